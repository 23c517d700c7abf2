"""Where pictures come from: files, arrays in memory; and the geometry that each kind needs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as geometry

from lightning_recon.errors import InputError

EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
"""File names that count as pictures, in lower case."""


class ImageSource(ABC):
    """An indexed set of labelled pictures."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Picture ``index`` as stored, RGB.

        Raises:
            InputError: the file cannot be decoded; the message has its path.
        """

    @abstractmethod
    def label(self, index: int) -> int:
        """Class of picture ``index``."""

    @abstractmethod
    def key(self, index: int) -> str:
        """Stable name of picture ``index``: for files, the relative path without extension."""

    def crop(self, picture: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
        """Bring a picture, or its mask, to ``size`` x ``size`` pixels.

        Photographs: the shorter side to ``size * 256 / 224``, then the centre, as the evaluation
        of ImageNet models does.
        """
        shorter = round(size * 256 / 224)
        mode = InterpolationMode.NEAREST
        if resample != Image.Resampling.NEAREST:
            mode = InterpolationMode.BILINEAR  # Pillow's, which antialiases
        resized: Image.Image = geometry.resize(picture, [shorter], mode)
        cropped: Image.Image = geometry.center_crop(resized, [size, size])
        return cropped


class SquareSource(ImageSource):
    """Square pictures: brought to the size asked without cutting anything off."""

    def crop(self, picture: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
        """Resize to ``size`` x ``size`` pixels; the picture itself where it has that size."""
        return picture if picture.size == (size, size) else picture.resize((size, size), resample)


class FileSource(ImageSource):
    """Picture files under one folder.

    Args:
        root: the folder.
        files: (path relative to ``root``, label) of every picture, in order.
    """

    def __init__(self, root: Path, files: Sequence[tuple[str, int]]) -> None:
        self.root = root
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        """Decode file ``index``, RGB.

        Raises:
            InputError: the file cannot be decoded.
        """
        path = self.root / self.files[index][0]
        return open_picture(path)

    def label(self, index: int) -> int:
        """Class of file ``index``."""
        return self.files[index][1]

    def key(self, index: int) -> str:
        """Relative path of file ``index`` without extension, with forward slashes."""
        return Path(self.files[index][0]).with_suffix("").as_posix()


class ArraySource(SquareSource):
    """Pictures in memory.

    Args:
        images: N H W 3, uint8, H = W.
        labels: N integers.
        prefix: what the names of the pictures begin with.
    """

    def __init__(self, images: NDArray[np.uint8], labels: Sequence[int], prefix: str) -> None:
        self.images = images
        self.labels = labels
        self.prefix = prefix

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """Picture ``index``, RGB."""
        return Image.fromarray(self.images[index])

    def label(self, index: int) -> int:
        """Class of picture ``index``."""
        return int(self.labels[index])

    def key(self, index: int) -> str:
        """Prefix and index, such as ``test/00012``."""
        return f"{self.prefix}/{index:05d}"


def open_picture(path: Path, mode: str = "RGB") -> Image.Image:
    """Decode a whole picture file.

    Args:
        path: the file.
        mode: Pillow's mode to convert to.

    Raises:
        InputError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert(mode)
    except Exception as error:  # every decoder of Pillow fails in its own way
        raise InputError(f"cannot read the image {path.absolute()}: {error}") from error


def image_files(folder: Path) -> list[str]:
    """Paths of all pictures below ``folder``, relative to it, sorted."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS and path.is_file()
    )
