"""The size of images, as a configuration gives it."""

from collections.abc import Sequence

from lightning_recon.errors import InputError

MAX_SIDE = 2**14
"""In pixels: 16,384.  One colour image of that size takes 3 GB; no attack reads 1,024 yet."""

MIN_SIDE = 7
"""In pixels: the window of SSIM.  Smaller images cannot be compared, and nothing is audited."""


def check_comparable(height: int, width: int) -> None:
    """Make sure that images of this size can be compared.

    Raises:
        InputError: a side is below :data:`MIN_SIDE`.
    """
    if min(height, width) < MIN_SIDE:
        raise InputError(
            f"images of {height}x{width} are too small to be compared: a side has at least "
            f"{MIN_SIDE} pixels"
        )


def height_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width, in pixels.

    Args:
        image_size: one number for square images, or height and width.

    Raises:
        InputError: there are not one or two numbers, or one is below 1 or above
            :data:`MAX_SIDE`.
    """
    sides = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
    if len(sides) != 2:
        raise InputError(f"image_size must be one number or [height, width], not {sides}")
    for side in sides:
        if side < 1:
            raise InputError(f"image_size must be at least 1, not {side}")
        if side > MAX_SIDE:
            raise InputError(f"image_size must be at most {MAX_SIDE:,}, not {side}")
    return sides[0], sides[1]
