"""Picture files that somebody else may have written: which of them are opened at all.

Pillow knows some fifty formats and goes by a file's first bytes, not by its name: an EPS that is
called ``x.png`` would start Ghostscript.  And 99 bytes can say that they are a picture of any size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import EpsImagePlugin, Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Formats that are opened, all of them decoded by Pillow itself; PPM is PBM and PGM, too."""
MAX_SIDE = 2**15
"""In pixels: 32,768.  The sides of panoramas stay below; JPEG itself ends at 65,535."""
MAX_PIXELS = 2**27
"""134 million: the largest cameras have 100 and 102 million; decoded in colour, 400 MB."""


def opened(path: Path) -> Image.Image:
    """Open a picture file; nothing but its head is read yet.

    Args:
        path: of the file.

    Returns:
        The picture, to be closed by who asked.

    Raises:
        OSError: if it is of no format of :data:`FORMATS`, or cannot be read.
        ValueError: if a side, or the picture, is too large.
    """
    try:
        picture = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f"it is none of {', '.join(FORMATS)}") from error
    width, height = picture.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        picture.close()
        raise ValueError(
            f"it says that it has {width:,} x {height:,} pixels; a side may have {MAX_SIDE:,}, and "
            f"a picture {MAX_PIXELS:,}"
        )
    return picture


@contextmanager
def without_ghostscript() -> Iterator[None]:
    """Within this context no picture starts Ghostscript, whoever opens it."""
    before = EpsImagePlugin.gs_binary
    EpsImagePlugin.gs_binary = False
    try:
        yield
    finally:
        EpsImagePlugin.gs_binary = before
