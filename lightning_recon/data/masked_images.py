"""The pictures of a data set as tensors: cropped to one size, and 0 outside their masks."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lightning_recon.data.masks import MaskSource
from lightning_recon.data.sources import ImageSource


class MaskSummary(TypedDict):
    """How the subjects of some pictures are masked."""

    method: str
    """``sam``, ``grabcut``, ``folder`` or ``none``."""
    mean_area: float | None
    """Share of the image, in [0, 1]; None without masks."""
    replaced: int
    """Masks that were implausible, and replaced by an ellipse."""


class MaskedImages:
    """Loads pictures by their places in a source.

    Args:
        source: of the pictures.
        image_size: height and width of the images, in pixels.
        masks: of their subjects; null: whole images.
    """

    def __init__(self, source: ImageSource, image_size: int, masks: MaskSource | None) -> None:
        self.source = source
        self.image_size = image_size
        self.masks = masks
        self._notes: dict[int, tuple[float, bool]] = {}

    def prepare(self, places: Sequence[int]) -> None:
        """Make the masks of these pictures ahead of time, with a progress bar."""
        if self.masks is None:
            return
        progress = track(
            places,
            description=f"masks ({self.masks.method})",
            console=Console(stderr=True),
            transient=True,
        )
        self.masks.prepare(
            (self.source.image(place), self.source.key(place), self._crop) for place in progress
        )

    def load(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return masked images, B 3 H W in [0, 1], and masks, B 1 H W."""
        size = (self.image_size, self.image_size)
        images = torch.empty(len(places), 3, *size)
        masks = torch.empty(len(places), 1, *size, dtype=torch.bool)
        for row, place in enumerate(places):
            picture = self.source.image(place)
            images[row] = self._pixels(picture)
            masks[row] = self._mask(place, picture)
        return images * masks, masks

    def thumbnails(self, places: Sequence[int], size: int) -> Tensor:
        """Return small pictures of whole images, whatever the masks: N 3 size size in [0, 1]."""
        images = torch.empty(len(places), 3, size, size)
        for row, place in enumerate(places):
            images[row] = F.adaptive_avg_pool2d(self._pixels(self.source.image(place)), size)
        return images

    def mask_summary(self, places: Sequence[int]) -> MaskSummary:
        """Return ``method``, ``mean_area`` and ``replaced`` of the masks of these pictures."""
        if self.masks is None:
            return {"method": "none", "mean_area": None, "replaced": 0}
        for place in places:
            if place not in self._notes:
                self._mask(place, self.source.image(place))
        areas, are_replaced = zip(*(self._notes[place] for place in places), strict=True)
        return {
            "method": self.masks.method,
            "mean_area": float(np.mean(areas)),
            "replaced": sum(are_replaced),
        }

    def _crop(self, picture: Image.Image, resample: Image.Resampling) -> Image.Image:
        return self.source.crop(picture, self.image_size, resample)

    def _pixels(self, picture: Image.Image) -> Tensor:
        """The cropped picture, C H W in [0, 1]."""
        pixels = np.array(self._crop(picture, Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels).permute(2, 0, 1) / 255

    def _mask(self, place: int, picture: Image.Image) -> Tensor:
        """H W, bool."""
        if self.masks is None:
            return torch.ones(self.image_size, self.image_size, dtype=torch.bool)
        mask, is_replaced = self.masks.usable_mask(picture, self.source.key(place), self._crop)
        self._notes[place] = mask.float().mean().item(), is_replaced
        return mask
