"""Which pixels show the subject: masks by Segment Anything, by GrabCut, or from a folder.

Segment Anything: A. Kirillov et al., "Segment Anything", ICCV 2023 (arXiv:2304.02643).
GrabCut: C. Rother, V. Kolmogorov and A. Blake, "GrabCut: interactive foreground extraction using
iterated graph cuts", SIGGRAPH 2004.
"""

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_recon.data.sam import load_sam
from lightning_recon.data.sources import open_picture
from lightning_recon.errors import InputError
from lightning_recon.files import expanded, sha256_of, write_atomically

Crop = Callable[[Image.Image, Image.Resampling], Image.Image]
"""The geometry that a picture goes through, for the mask to follow."""

BoolArray = NDArray[np.bool_]

MIN_AREA = 0.02
MAX_AREA = 0.95
"""Masks outside these fractions of the image count as failed."""
ELLIPSE_AREA = 0.30
"""Fraction of the image inside the ellipse that replaces a failed mask."""

_RELEASES = ("sam_vit_h_4b8939.pth", "sam_vit_l_0b3195.pth", "sam_vit_b_01ec64.pth")
_RELEASES_URL = "https://dl.fbaipublicfiles.com/segment_anything"
_SAM_PROMPT = "one point at the centre, best of three"
_GRABCUT_PRIOR = "ellipse 0.35 0.07, frame 2, 5 iterations, tidied with 5x5"


class MaskSource(ABC):
    """Says which pixels of an image show its subject."""

    @property
    @abstractmethod
    def method(self) -> str:
        """How the masks are made: ``"sam"``, ``"grabcut"`` or ``"folder"``."""

    @abstractmethod
    def check(self) -> None:
        """Make sure that the files needed are there.

        Raises:
            InputError: one is missing.
        """

    @abstractmethod
    def mask(self, picture: Image.Image, key: str, crop: Crop) -> Tensor:
        """Mask of one picture as the source has it.

        Args:
            picture: the whole picture as stored, RGB.
            key: the picture's name in its data set.
            crop: the geometry that brings the picture to its final H x W.

        Returns:
            H W, bool: True on the subject of the cropped picture.
        """

    def usable_mask(self, picture: Image.Image, key: str, crop: Crop) -> tuple[Tensor, bool]:
        """Mask of one picture, or the centred ellipse if the mask has failed.

        A mask has failed if it covers less than 2 % or more than 95 % of the image.

        Args:
            picture: the whole picture as stored, RGB.
            key: the picture's name in its data set.
            crop: the geometry that brings the picture to its final H x W.

        Returns:
            H W, bool, and whether the ellipse took the mask's place.
        """
        mask = self.mask(picture, key, crop)
        if MIN_AREA <= mask.sum().item() / mask.numel() <= MAX_AREA:
            return mask, False
        return centred_ellipse(mask.shape[0], mask.shape[1]), True

    def prepare(self, items: Iterable[tuple[Image.Image, str, Crop]]) -> None:
        """Do the slow work for many pictures ahead of time.

        Args:
            items: arguments of :meth:`mask`, one tuple a picture.
        """
        for picture, key, crop in items:
            self.mask(picture, key, crop)


class MaskFolder(MaskSource):
    """Ready masks, one PNG an image, made for the whole pictures before any cropping.

    The mask of picture ``a/b.jpg`` is ``a/b.png`` in the folder; a pixel that is not 0 is the
    subject's.  The masks go through the geometry of their pictures, without interpolation.

    Args:
        folder: the folder with the masks.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @property
    def method(self) -> str:
        """Always ``"folder"``."""
        return "folder"

    def check(self) -> None:
        """Make sure that the folder exists.

        Raises:
            InputError: it does not.
        """
        folder = expanded(self.folder)
        if not folder.is_dir():
            raise InputError(
                f"no folder of masks at {folder}: give one PNG per image, "
                "with the image's relative name"
            )

    def mask(self, picture: Image.Image, key: str, crop: Crop) -> Tensor:
        """Read, check and crop one mask.

        Args:
            picture: the whole picture as stored.
            key: its name in its data set.
            crop: the geometry that brings the picture to its final H x W.

        Returns:
            H W, bool.

        Raises:
            InputError: the mask is missing, unreadable, or not of the picture's size.
        """
        path = expanded(self.folder) / f"{key}.png"
        if not path.is_file():
            raise InputError(f"no mask for the image {key}: {path} does not exist")
        stored = open_picture(path, mode="L")
        if stored.size != picture.size:
            raise InputError(
                f"the mask {path} has {_pixels(stored)}, but its image has {_pixels(picture)}: "
                "masks are for the whole image, before cropping"
            )
        return torch.from_numpy(np.array(crop(stored, Image.Resampling.NEAREST)) > 0)


class SubjectMasks(MaskSource):
    """Masks of the central subject by Segment Anything, computed once and kept on disk.

    The prompt is one point at the centre of the cropped image; of SAM's three masks, the one
    that SAM scores best is taken.

    Args:
        checkpoint: file with SAM's weights: any of Meta's three, or one of another size; the
            sizes are read from the tensors.
        on_missing: what to do if there is no such file: ``"grabcut"`` segments with OpenCV's
            GrabCut from a central prior, which is weaker.
        cache_dir: folder for the finished masks; by default ``lightning_recon/masks`` in
            ``$XDG_CACHE_HOME`` or ``~/.cache``.
        device: where SAM runs: ``"auto"`` is the GPU if there is one.
    """

    def __init__(
        self,
        checkpoint: str | None,
        on_missing: Literal["error", "grabcut"] = "error",
        cache_dir: str | None = None,
        device: str = "auto",
    ) -> None:
        self.checkpoint = checkpoint
        self.on_missing = on_missing
        self.cache_dir = cache_dir
        self.device = device
        self._predictor: Any = None
        self._is_fallback_told = False

    @property
    def method(self) -> str:
        """``"sam"``, or ``"grabcut"`` where the checkpoint is missing and that is allowed."""
        is_allowed = self.on_missing == "grabcut"
        return "grabcut" if is_allowed and not self._has_checkpoint else "sam"

    @property
    def _has_checkpoint(self) -> bool:
        return self.checkpoint is not None and expanded(self.checkpoint).is_file()

    def check(self) -> None:
        """Make sure that there is something to segment with; tell of the fallback once.

        Raises:
            InputError: there is no checkpoint, and GrabCut is not allowed; or the package is not
                installed that segments.
        """
        _check_installed(self.method)
        if self._has_checkpoint:
            return
        where = "null" if self.checkpoint is None else str(expanded(self.checkpoint))
        if self.method == "sam":
            raise InputError(
                f"no Segment Anything checkpoint: looked for {where}; download one of "
                f"{', '.join(_RELEASES)} from {_RELEASES_URL}/NAME into checkpoints/, "
                "or set on_missing: grabcut"
            )
        if self.checkpoint is not None and not self._is_fallback_told:
            self._is_fallback_told = True
            rank_zero_warn(f"no Segment Anything checkpoint at {where}: masks are by GrabCut")

    def prepare(self, items: Iterable[tuple[Image.Image, str, Crop]]) -> None:
        """Compute the masks that are not on disk yet, then let go of the network.

        Args:
            items: arguments of :meth:`mask`, one tuple a picture.
        """
        super().prepare(items)
        self._predictor = None

    def mask(self, picture: Image.Image, key: str, crop: Crop) -> Tensor:
        """Mask of one picture, from disk if it was made before.

        Args:
            picture: the whole picture as stored, RGB.
            key: its name; not used, since masks are kept by content.
            crop: the geometry that brings the picture to its final H x W.

        Returns:
            H W, bool.

        Raises:
            InputError: the checkpoint cannot be used, or the cache cannot be written.
        """
        pixels: NDArray[np.uint8] = np.array(crop(picture, Image.Resampling.BILINEAR))
        path = self.cache_path(pixels)
        mask = _read_mask(path, pixels.shape[:2])
        if mask is None:
            mask = self._segment(pixels)
            _write_mask(path, mask)
        return torch.from_numpy(mask)

    def cache_path(self, pixels: NDArray[np.uint8]) -> Path:
        """File that keeps the mask of these pixels: its name depends on all that shapes the mask.

        Args:
            pixels: H W 3, uint8.
        """
        if self.method == "grabcut":
            recipe = f"grabcut {_GRABCUT_PRIOR}"
        else:
            recipe = f"sam {self._checkpoint_sha256} {_SAM_PROMPT}"
        digest = hashlib.sha256(f"{recipe} {pixels.shape} ".encode() + pixels.tobytes())
        return self._cache_folder / f"{digest.hexdigest()}.png"

    @property
    def _cache_folder(self) -> Path:
        if self.cache_dir is not None:
            return expanded(self.cache_dir)
        root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return Path(root) / "lightning_recon" / "masks"

    @cached_property
    def _checkpoint_sha256(self) -> str:
        self.check()
        return sha256_of(expanded(str(self.checkpoint)))

    def _segment(self, pixels: NDArray[np.uint8]) -> BoolArray:
        if self.method == "grabcut":
            return grabcut(pixels)
        if self._predictor is None:
            from segment_anything import SamPredictor

            sam = load_sam(expanded(str(self.checkpoint)))
            cuda_or_cpu = "cuda" if torch.cuda.is_available() else "cpu"
            sam.to(cuda_or_cpu if self.device == "auto" else self.device)
            self._predictor = SamPredictor(sam)
        height, width = pixels.shape[:2]
        self._predictor.set_image(pixels)
        masks, scores, _ = self._predictor.predict(
            point_coords=np.array([[width / 2, height / 2]]),
            point_labels=np.array([1]),
            multimask_output=True,
        )
        best: BoolArray = masks[int(np.argmax(scores))]
        return best


def centred_ellipse(height: int, width: int) -> Tensor:
    """Ellipse in the middle of the image with the image's proportions.

    Its half axes are sqrt(0.30 / pi) = 0.309 of the sides, so that it covers 0.30 of the image.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        H W, bool.
    """
    y = (torch.arange(height) + 0.5) / height - 0.5
    x = (torch.arange(width) + 0.5) / width - 0.5
    return y[:, None] ** 2 + x[None, :] ** 2 <= ELLIPSE_AREA / torch.pi


def _check_installed(method: str) -> None:
    """Raise InputError if the package is missing that makes masks by this method."""
    module, package = {
        "sam": ("segment_anything", "segment-anything"),
        "grabcut": ("cv2", "opencv-python-headless"),
    }[method]
    if find_spec(module) is None:
        raise InputError(f"SubjectMasks needs a package: pip install {package}; or leave out masks")


def grabcut(pixels: NDArray[np.uint8]) -> BoolArray:
    """Segment the subject in the middle with OpenCV's GrabCut.

    The prior: the central ellipse with half axes of 0.35 of the sides is probably subject, its
    inner fifth surely; the rest is probably background, the outermost two pixels surely.  After
    five iterations specks and cracks of two pixels go, only the pieces that reach into the inner
    half of that ellipse stay, and their holes are filled.

    Args:
        pixels: H W 3, uint8, RGB.

    Returns:
        H W, bool; empty where GrabCut finds no subject.
    """
    import cv2

    height, width = pixels.shape[:2]
    y, x = np.ogrid[:height, :width]
    radius = np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5) / 0.35
    classes = np.full((height, width), cv2.GC_BGD, dtype=np.uint8)
    classes[2:-2, 2:-2] = cv2.GC_PR_BGD
    classes[radius <= 1] = cv2.GC_PR_FGD
    classes[radius <= 0.2] = cv2.GC_FGD
    cv2.setRNGSeed(0)  # its k-means draws
    models = np.zeros((1, 65)), np.zeros((1, 65))
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    try:
        cv2.grabCut(bgr, classes, (0, 0, 1, 1), *models, 5, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few pixels on one side
        return np.zeros((height, width), dtype=np.bool_)
    subject = np.isin(classes, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    opened = cv2.morphologyEx(subject, cv2.MORPH_OPEN, disc)
    tidy = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, disc)
    _, pieces = cv2.connectedComponents(tidy)
    central = np.setdiff1d(pieces[radius <= 0.5], [0])  # 0 is the background
    outlines, _ = cv2.findContours(
        np.isin(pieces, central).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    filled = cv2.drawContours(np.zeros_like(subject), outlines, -1, 1, thickness=cv2.FILLED)
    return np.asarray(filled > 0)


def _read_mask(path: Path, shape: tuple[int, ...]) -> BoolArray | None:
    """H W mask from a file of the cache; None where there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        mask: BoolArray = np.array(open_picture(path, mode="1"))
    except InputError as error:
        rank_zero_warn(f"damaged file in the cache of masks, made anew: {error}")
        return None
    if mask.shape != shape:
        rank_zero_warn(f"wrong size in the cache of masks, made anew: {path}")
        return None
    return mask


def _write_mask(path: Path, mask: BoolArray) -> None:
    """Write a file of the cache in one step, so that no other process sees half of it."""
    try:
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, format="PNG")
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise InputError(
            f"cannot keep masks in {path.parent.absolute()}: {error}; set cache_dir to a folder "
            "that can be written"
        ) from error


def _pixels(picture: Image.Image) -> str:
    return f"{picture.width}x{picture.height} pixels"
