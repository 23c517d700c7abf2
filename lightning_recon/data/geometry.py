"""How a picture of another size is brought to the size of the images."""

from collections.abc import Sequence
from typing import Literal

from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as geometry

from lightning_recon.functional.image_size import height_width

_MAX_COVERING = 8
"""How many times the size a side may be before the centre is cut out: 1 x 5000 pixels would become
256 x 1,280,000.  No photograph is that narrow, and the largest covering is of 400 MB at 4096."""
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
    if max(covering[0] / height, covering[1] / width) > _MAX_COVERING:
        return _resized_centre(picture, (height, width), resample)
    resized: Image.Image = geometry.resize(picture, covering, mode)
    cropped: Image.Image = geometry.center_crop(resized, [height, width])
    return cropped


def _resized_centre(
    picture: Image.Image, size: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    """Return the centre of a narrow picture, of which no more is resized than is seen.

    The same as of any other picture but for the rounding of Pillow's coordinates.
    """
    height, width = size
    covering_height, covering_width = covering_size(picture.size, size)
    across, down = picture.width / covering_width, picture.height / covering_height
    left, top = round((covering_width - width) / 2), round((covering_height - height) / 2)
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    return picture.resize((width, height), resample, box=box)


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
