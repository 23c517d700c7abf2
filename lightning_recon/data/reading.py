"""How a stored picture of any mode becomes an image of one or three channels."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lightning_recon.errors import InputError

_ORIENTATION = 0x0112
_WHITE_IS_ZERO = (262, 0)
"""Tag of a TIFF, and its value where large numbers are dark."""
_WHITES = (255, 1023, 4095, 16383, 65535)
"""What white is stored as in 8, 10, 12, 14 and 16 bits."""


@dataclass(frozen=True)
class Reading:
    """What is done to the values of stored pictures.

    Args:
        channels: of the images.
        exif_orientation: whether pictures are turned as EXIF says.
        background: grey level that transparent pictures are laid on; None: transparency is
            dropped, and the colours below it show, as in torchvision's folders.
        value_range: what black and white are stored as, where pictures have more than 8 bits.
        is_guess: whether nobody gave ``value_range``: values outside are then refused, else
            clipped.
    """

    channels: Literal[1, 3] = 3
    exif_orientation: bool = False
    background: int | None = None
    value_range: tuple[float, float] | None = None
    is_guess: bool = False

    def read(self, picture: Image.Image, where: str) -> Image.Image:
        """Return the picture as L, RGB, or F in [0, 1] where more than 8 bits were stored.

        Args:
            picture: as stored, decoded.
            where: its path or name, for the error.

        Raises:
            InputError: its values cannot be brought to [0, 1].
        """
        if is_deep(picture.mode):
            picture = self._scaled(picture, where)
        elif picture.has_transparency_data and self.background is not None:
            layers = picture.convert("RGBA")
            ground = Image.new("RGBA", layers.size, (self.background,) * 3 + (255,))
            picture = _with_orientation(Image.alpha_composite(ground, layers), picture)
        if self.exif_orientation:
            picture = ImageOps.exif_transpose(picture)
        if picture.mode == "F":
            return picture
        try:
            return picture.convert("L" if self.channels == 1 else "RGB")
        except ValueError as error:  # Pillow converts not every mode to every other
            raise InputError(f"cannot convert the image {where}: {error}") from error

    def _scaled(self, picture: Image.Image, where: str) -> Image.Image:
        assert self.value_range is not None
        low, high = self.value_range
        values = deep_values(picture, where)
        if self.is_guess and (values.min() < low or values.max() > high):
            raise InputError(
                f"the image {where} has values from {values.min():g} to {values.max():g}, but "
                f"others of the data set suggest {low:g} to {high:g}; set value_range"
            )
        scaled = ((values - low) / (high - low)).clip(0, 1).astype(np.float32)
        tag, white_is_zero = _WHITE_IS_ZERO
        if getattr(picture, "tag_v2", {}).get(tag) == white_is_zero:
            scaled = 1 - scaled
        return _with_orientation(Image.fromarray(scaled), picture)


def is_deep(mode: str) -> bool:
    """Whether pictures of one of Pillow's modes have one channel of more than 8 bits."""
    return mode == "F" or mode.startswith("I")


def is_grey(mode: str) -> bool:
    """Whether pictures of one of Pillow's modes have no colours."""
    return is_deep(mode) or mode in {"1", "L", "LA", "La"}


def orientation(picture: Image.Image) -> int:
    """How EXIF says that a picture is turned, 1 to 8; 1 is upright."""
    try:
        value: Any = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken block of EXIF says nothing
        return 1
    return value if value in range(1, 9) else 1


def deep_values(picture: Image.Image, where: str) -> NDArray[np.float64]:
    """Values of a picture of more than 8 bits, H W.

    Args:
        picture: the picture, decoded.
        where: its path or name, for the error.

    Raises:
        InputError: some are not finite.
    """
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"the image {where} has values that are not finite; mend or remove it")
    return values


def guess_range(least: float, largest: float, is_float: bool) -> tuple[float, float]:
    """Guess what black and white are stored as in pictures of more than 8 bits.

    Args:
        least: value of the pictures.
        largest: value of the pictures.
        is_float: whether they hold fractions.

    Returns:
        0 and 1 for fractions; otherwise 0 and the largest number of 8, 10, 12, 14 or 16 bits
        that holds them all.

    Raises:
        InputError: neither fits.
    """
    whites = (1,) if is_float else _WHITES
    fitting = [white for white in whites if largest <= white]
    if least < 0 or not fitting:
        raise InputError(
            f"values from {least:g} to {largest:g}: what is black and what is white? set "
            f"value_range: [{least:g}, {largest:g}] or wider, the same for all images"
        )
    return 0, fitting[0]


def _with_orientation(changed: Image.Image, stored: Image.Image) -> Image.Image:
    """Keep what EXIF says of a picture whose values were changed."""
    turned = 1 if hasattr(stored, "tag_v2") else orientation(stored)  # Pillow turns TIFFs itself
    if turned != 1:
        changed.getexif()[_ORIENTATION] = turned
    return changed
