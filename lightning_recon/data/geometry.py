"""How a picture of another size is brought to the size of the images."""

from collections.abc import Sequence
from typing import Literal

from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as geometry

from lightning_recon.functional.image_size import height_width

Resize = Literal["crop", "stretch", "refuse"]
"""See :func:`bring_to_size`; ``"refuse"`` changes nothing, and is for the caller to obey."""


def bring_to_size(
    picture: Image.Image,
    size: int | Sequence[int],
    resize: Literal["crop", "stretch"],
    resample: Image.Resampling,
) -> Image.Image:
    """Bring a picture, or its mask, to one size; the picture itself where it has that size.

    Args:
        picture: of any size.
        size: side of a square, or height and width, in pixels.
        resize: ``"crop"`` resizes to cover 256/224 of the size, then cuts out the centre, as the
            evaluation of ImageNet models does (for squares: the shorter side to
            ``size * 256 / 224``); ``"stretch"`` resizes both sides and cuts nothing off.
        resample: bilinear, or nearest for masks.
    """
    height, width = height_width(size)
    if picture.size == (width, height):
        return picture
    if resize == "stretch":
        return picture.resize((width, height), resample)
    mode = InterpolationMode.NEAREST
    if resample != Image.Resampling.NEAREST:
        mode = InterpolationMode.BILINEAR  # Pillow's, which antialiases
    covering = list(covering_size(picture.size, (height, width)))
    resized: Image.Image = geometry.resize(picture, covering, mode)
    cropped: Image.Image = geometry.center_crop(resized, [height, width])
    return cropped


def margin_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width that ``"crop"`` covers before it cuts out ``size``."""
    return round(size[0] * 256 / 224), round(size[1] * 256 / 224)


def covering_size(stored: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width that ``"crop"`` resizes to.

    Args:
        stored: width and height of the picture.
        size: height and width of the image.
    """
    stored_width, stored_height = stored
    height, width = margin_size(size)
    if stored_height * width <= stored_width * height:
        return height, max(width, int(height * stored_width / stored_height))
    return max(height, int(width * stored_height / stored_width)), width
