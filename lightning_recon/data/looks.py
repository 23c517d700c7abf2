"""What pictures look like as stored, and words for what is changed about them."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from PIL import Image

from lightning_recon.data.geometry import Resize, margin_size
from lightning_recon.data.reading import Reading, is_deep, is_grey, orientation

_COMMON_MODES = {"L", "RGB"}
_MODE_NAMES = {"1": "1-bit", "P": "palette"}


class Look(NamedTuple):
    """What a picture looks like as stored."""

    size: tuple[int, int]
    """Width and height, in pixels."""
    mode: str
    """Pillow's name of it."""
    orientation: int = 1
    """By EXIF: 1 is upright."""
    is_transparent: bool = False
    is_deep_colour: bool = False
    """Whether Pillow keeps only the upper 8 of 16 bits of each colour."""
    has_frames: bool = False
    """Whether there is more than the one picture that is read."""

    @classmethod
    def at(cls, picture: Image.Image) -> "Look":
        """Look at a picture that was opened, decoded or not."""
        # First, for EXIF of a PNG is found by decoding, which empties the tiles.
        is_deep_colour = not is_deep(picture.mode) and ";16" in str(getattr(picture, "tile", ""))
        return cls(
            picture.size,
            picture.mode,
            1 if hasattr(picture, "tag_v2") else orientation(picture),
            picture.has_transparency_data,
            is_deep_colour,
            getattr(picture, "n_frames", 1) > 1,
        )

    def upright(self, is_turned: bool) -> tuple[int, int]:
        """Height and width of the picture, turned as EXIF says or not."""
        width, height = self.size
        return (width, height) if is_turned and self.orientation >= 5 else (height, width)


def describe_changes(
    looks: Sequence[Look], size: tuple[int, int], resize: Resize, reading: Reading
) -> str:
    """Return words for all that is done to some pictures.

    Args:
        looks: of the pictures.
        size: height and width of the images.
        resize: what is done to pictures of another size.
        reading: what is done to their values.
    """
    are_as_stored = [look.upright(reading.exif_orientation) == size for look in looks]
    words = [_describe_size(are_as_stored, size, resize)]
    words += _describe_channels(looks, reading.channels)
    if any(look.is_transparent for look in looks):
        ground = reading.background
        words.append("transparency dropped" if ground is None else f"laid on grey level {ground}")
    turned = sum(look.orientation != 1 for look in looks)
    if turned:
        verb = "applied" if reading.exif_orientation else "ignored"
        pictures = "1 image" if turned == 1 else f"{turned} images"
        words.append(f"EXIF orientation {verb} ({pictures})")
    if any(is_deep(look.mode) for look in looks) and reading.value_range:
        low, high = reading.value_range
        doubt = "guessed" if reading.is_guess else "clipped outside"
        words.append(f"values {low:g} to {high:g} scaled to 0 to 1 ({doubt})")
    if any(look.is_deep_colour for look in looks):
        words.append("upper 8 of 16 bits a colour")
    if any(look.has_frames for look in looks):
        words.append("first of several frames")
    return ", ".join(words)


def _describe_size(are_as_stored: Sequence[bool], size: tuple[int, int], resize: Resize) -> str:
    sides = _times(size)
    if all(are_as_stored):
        return f"{sides} as stored"
    if resize == "stretch":
        words = f"resized to {sides}"
    elif size[0] == size[1]:
        words = f"shorter side to {margin_size(size)[0]}, centre {sides} of it"
    else:
        words = f"resized to cover {_times(margin_size(size))}, centre {sides} of it"
    kept = sum(are_as_stored)
    stored = "1 image" if kept == 1 else f"{kept} images"
    return f"{words} ({stored} as stored)" if kept else words


def _describe_channels(looks: Iterable[Look], channels: Literal[1, 3]) -> list[str]:
    modes = {look.mode.removesuffix("A") for look in looks}
    words = []
    if channels == 1 and not all(map(is_grey, modes)):
        words.append("converted to 1 channel")
    if channels == 3 and any(map(is_grey, modes)):
        words.append("grey repeated in 3 channels")
    others = sorted(mode for mode in modes - _COMMON_MODES if not is_deep(mode))
    return words + [f"{_MODE_NAMES.get(mode, mode)} decoded" for mode in others]


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
