"""The pictures of a data set as tensors: brought to one size, and 0 outside their masks."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from lightning_utilities.core.rank_zero import rank_zero_warn
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lightning_recon.data.geometry import Resize, bring_to_size
from lightning_recon.data.looks import Look, describe_changes
from lightning_recon.data.masks import MaskSource
from lightning_recon.data.reading import Reading, deep_values, guess_range, is_deep
from lightning_recon.data.sources import ImageSource, UnusableImageError, unusable
from lightning_recon.errors import InputError

_NUM_GUESSED = 32
"""Pictures that the range of the values is guessed from."""
_MAX_UPPER_BITS = 15
"""Upper 8 bits up to here: no more than 12 of the 16 bits are used, and the picture is black."""


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
        reading: what is done to the values of the pictures.
        resize: what is done to pictures of another size; null: what the source does.
        prefix: what stands before the pictures' names where masks are looked for.
    """

    def __init__(
        self,
        source: ImageSource,
        image_size: tuple[int, int],
        masks: MaskSource | None,
        reading: Reading,
        resize: Resize | None,
        prefix: str = "",
    ) -> None:
        self.source = source
        self.image_size = image_size
        self.masks = masks
        self.reading = reading
        self.resize: Resize = source.resize if resize is None else resize
        self.prefix = prefix
        self._uses_source = resize is None
        self._are_readable: dict[int, bool] = {}
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
            (_as_rgb(self.picture(place)), self._key(place), self._crop) for place in progress
        )

    def picture(self, place: int) -> Image.Image:
        """Return a whole picture: L, RGB, or F in [0, 1].

        Args:
            place: in the source.

        Raises:
            UnusableImageError: it cannot be decoded, or cannot be an image as asked.
        """
        with unusable():
            return self._picture(place)

    def _picture(self, place: int) -> Image.Image:
        picture = self.source.image(place)
        where = self.source.where(place)
        reading = self._deep_reading if is_deep(picture.mode) else self.reading
        if picture.mode.startswith("RGB") and self._is_black_by_depth(place, picture):
            raise InputError(
                f"the image {where} has 16 bits a colour, of which no more than 12 are used, and "
                "would be black; save it with 8 bits a colour"
            )
        picture = reading.read(picture, where)
        height, width = self.image_size
        if self.resize == "refuse" and picture.size != (width, height):
            raise InputError(
                f"the image {where} is {picture.height}x{picture.width}, not {height}x{width}; "
                "set resize: crop or stretch, or another image_size"
            )
        return picture

    def is_readable(self, place: int) -> bool:
        """Whether a picture can be used; what is wrong with one that cannot is told once.

        Args:
            place: in the source.
        """
        if place not in self._are_readable:
            try:
                self.picture(place)
            except UnusableImageError as error:
                rank_zero_warn(f"skipped: {error}")
            else:
                self._are_readable[place] = True
            self._are_readable.setdefault(place, False)
        return self._are_readable[place]

    @property
    def skipped(self) -> list[str]:
        """Names of the pictures that were found to be of no use, in the source's order."""
        found = self._are_readable.items()
        return [self.source.file(place) for place, is_good in sorted(found) if not is_good]

    def _key(self, place: int) -> str:
        return self.prefix + self.source.key(place)

    def load(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return masked images, B C H W in [0, 1], and masks, B 1 H W."""
        images = torch.empty(len(places), self.reading.channels, *self.image_size)
        masks = torch.empty(len(places), 1, *self.image_size, dtype=torch.bool)
        for row, place in enumerate(places):
            picture = self.picture(place)
            images[row] = self._pixels(picture)
            masks[row] = self._mask(place, picture)
        return images * masks, masks

    def thumbnails(self, places: Sequence[int], size: int) -> Tensor:
        """Return small pictures of whole images, whatever the masks: N C h w in [0, 1].

        Args:
            places: in the source, N.
            size: longest side, in pixels.
        """
        scale = size / max(self.image_size)
        height, width = self.image_size
        shape = (max(1, round(height * scale)), max(1, round(width * scale)))
        images = torch.empty(len(places), self.reading.channels, *shape)
        for row, place in enumerate(places):
            images[row] = F.adaptive_avg_pool2d(self._pixels(self.picture(place)), shape)
        return images

    def mask_summary(self, places: Sequence[int]) -> MaskSummary:
        """Return ``method``, ``mean_area`` and ``replaced`` of the masks of these pictures."""
        if self.masks is None:
            return {"method": "none", "mean_area": None, "replaced": 0}
        for place in places:
            if place not in self._notes:
                self._mask(place, self.picture(place))
        areas, are_replaced = zip(*(self._notes[place] for place in places), strict=True)
        return {
            "method": self.masks.method,
            "mean_area": float(np.mean(areas)),
            "replaced": sum(are_replaced),
        }

    def changes(self, places: Sequence[int]) -> str:
        """Return words for what is done to these pictures; those that cannot be read are left out.

        Args:
            places: in the source.
        """
        looks = [look for look in map(self._look, places) if look]
        is_any_deep = any(is_deep(look.mode) for look in looks)
        reading = self._deep_reading if is_any_deep else self.reading
        return describe_changes(looks, self.image_size, self.resize, reading)

    def _look(self, place: int) -> Look | None:
        try:
            return self.source.look(place)
        except InputError:
            return None

    @cached_property
    def _deep_reading(self) -> Reading:
        """The reading of pictures of more than 8 bits: the range of their values is known."""
        if self.reading.value_range is not None:
            return self.reading
        count = len(self.source)
        step = -(-count // _NUM_GUESSED)
        extremes, modes = [], set()
        for place in range(0, count, step):
            try:
                picture = self.source.image(place)
            except InputError:
                continue
            if is_deep(picture.mode):
                values = deep_values(picture, self.source.where(place))
                extremes += [values.min(), values.max()]
                modes.add(picture.mode)
        if not extremes:
            raise InputError(
                "some images have more than 8 bits: what is black and what is white? set "
                "value_range, such as [0, 65535]"
            )
        try:
            guess = guess_range(min(extremes), max(extremes), "F" in modes)
        except InputError as error:
            raise InputError(f"the images below {self.source.where(0)}: {error}") from error
        return replace(self.reading, value_range=guess, is_guess=True)

    def _is_black_by_depth(self, place: int, picture: Image.Image) -> bool:
        colours = picture.convert("RGB").getextrema()
        brightest = max(largest for _, largest in colours)  # type: ignore[misc]
        return brightest <= _MAX_UPPER_BITS and self.source.look(place).is_deep_colour

    def _crop(self, picture: Image.Image, resample: Image.Resampling) -> Image.Image:
        height, width = self.image_size
        if picture.size == (width, height):
            return picture
        if self._uses_source or self.resize == "refuse":
            return self.source.crop(picture, self.image_size, resample)
        return bring_to_size(picture, self.image_size, self.resize, resample)

    def _pixels(self, picture: Image.Image) -> Tensor:
        """The picture at its final size, C H W in [0, 1]."""
        cropped = self._crop(picture, Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(cropped))
        if cropped.mode == "F":
            return pixels.clamp(0, 1).expand(self.reading.channels, -1, -1)
        pixels = pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]
        return pixels / 255

    def _mask(self, place: int, picture: Image.Image) -> Tensor:
        """H W, bool."""
        if self.masks is None:
            return torch.ones(self.image_size, dtype=torch.bool)
        key = self._key(place)
        mask, is_replaced = self.masks.usable_mask(_as_rgb(picture), key, self._crop)
        self._notes[place] = mask.float().mean().item(), is_replaced
        return mask


def describe_masks(summary: MaskSummary) -> str:
    """Return words for how the subjects are masked.

    Args:
        summary: of the masks.
    """
    if summary["method"] == "none":
        return "no masks"
    return (
        f"masks: {summary['method']}, mean area {summary['mean_area']:.2f}, "
        f"{summary['replaced']} replaced by an ellipse"
    )


def _as_rgb(picture: Image.Image) -> Image.Image:
    """The picture in 8 bits and three colours, as segmentation needs it."""
    if picture.mode == "F":
        picture = Image.fromarray((np.array(picture) * 255).round().astype(np.uint8))
    return picture.convert("RGB")
