"""Where pictures come from: files, arrays in memory; and the geometry that each kind needs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_recon.data.geometry import bring_to_size
from lightning_recon.data.looks import Look
from lightning_recon.data.reading import orientation
from lightning_recon.errors import InputError
from lightning_recon.pictures import opened

EXTENSIONS = (
    *(".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".pbm", ".pgm", ".ppm", ".pnm"),
)
"""File names that count as pictures, in lower case."""


class ImageSource(ABC):
    """An indexed set of labelled pictures."""

    resize: Literal["crop", "stretch"] = "crop"
    """What :meth:`crop` does to a picture of another size; see :func:`bring_to_size`."""
    classes: Sequence[str] | None = None
    """Names of the classes by label; None: they have none."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Picture ``index`` as stored, in any of Pillow's modes.

        Raises:
            InputError: the file cannot be decoded; the message has its path.
        """

    @abstractmethod
    def label(self, index: int) -> int:
        """Class of picture ``index``."""

    @abstractmethod
    def key(self, index: int) -> str:
        """Stable name of picture ``index``: for files, the relative path without extension."""

    def where(self, index: int) -> str:
        """Where picture ``index`` lies, for messages: for files, the whole path."""
        return self.key(index)

    def file(self, index: int) -> str:
        """What a person finds picture ``index`` by: for files, the relative path."""
        return self.key(index)

    def look(self, index: int) -> Look:
        """What picture ``index`` looks like as stored.

        Raises:
            InputError: the file cannot be opened.
        """
        return Look.at(self.image(index))

    def crop(
        self, picture: Image.Image, size: int | Sequence[int], resample: Image.Resampling
    ) -> Image.Image:
        """Bring a picture, or its mask, to a size, by :attr:`resize`.

        Args:
            picture: the whole picture.
            size: side of a square, or height and width, in pixels.
            resample: bilinear, or nearest for masks.
        """
        return bring_to_size(picture, size, self.resize, resample)


class SquareSource(ImageSource):
    """Square pictures: brought to the size asked without cutting anything off."""

    resize = "stretch"


class FileSource(ImageSource):
    """Picture files under one folder.

    Args:
        root: the folder.
        files: (path relative to ``root``, label) of every picture, in order.
        classes: names of the classes by label; null: they have none.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[tuple[str, int]],
        classes: Sequence[str] | None = None,
    ) -> None:
        self.root = root
        self.files = files
        self.classes = classes

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        """Decode file ``index``.

        Raises:
            InputError: the file cannot be decoded.
        """
        path = self.root / self.files[index][0]
        try:
            with opened(path) as picture:
                orientation(picture)  # EXIF is read from the open file
                picture.load()
                return picture
        except Exception as error:  # every decoder of Pillow fails in its own way
            raise _unreadable(path, error) from error

    def where(self, index: int) -> str:
        """Path of file ``index``."""
        return str((self.root / self.files[index][0]).absolute())

    def file(self, index: int) -> str:
        """Relative path of file ``index``, with forward slashes."""
        return Path(self.files[index][0]).as_posix()

    def look(self, index: int) -> Look:
        """What file ``index`` looks like; only its head is read.

        Raises:
            InputError: the file cannot be opened.
        """
        path = self.root / self.files[index][0]
        try:
            with opened(path) as picture:
                return Look.at(picture)
        except Exception as error:  # every decoder of Pillow fails in its own way
            raise _unreadable(path, error) from error

    def label(self, index: int) -> int:
        """Class of file ``index``."""
        return self.files[index][1]

    def key(self, index: int) -> str:
        """Relative path of file ``index`` without extension, with forward slashes."""
        return Path(self.files[index][0]).with_suffix("").as_posix()


class ArraySource(SquareSource):
    """Pictures in memory.

    Args:
        images: N H W 3 or N H W, uint8, H = W.
        labels: N integers.
        prefix: what the names of the pictures begin with.
        classes: names of the classes by label; null: they have none.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: Sequence[int],
        prefix: str,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.classes = classes
        self.images = images
        self.labels = labels
        self.prefix = prefix

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """Picture ``index``, RGB or L."""
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
        with opened(path) as picture:
            return picture.convert(mode)
    except Exception as error:  # every decoder of Pillow fails in its own way
        raise _unreadable(path, error) from error


def image_files(folder: Path) -> list[str]:
    """Paths of all pictures below ``folder``, relative to it, sorted.

    Links are followed.  What is hidden (its name begins with a dot, such as ``._a.jpg`` and
    ``.ipynb_checkpoints``) or lies in ``__MACOSX`` does not count.

    Args:
        folder: to look through; it need not exist.

    Raises:
        InputError: a folder cannot be listed, or a link leads nowhere.
    """
    if not folder.is_dir():
        return []
    return sorted(path.relative_to(folder).as_posix() for path in _pictures(folder, ()))


def visible_entries(folder: Path) -> list[Path]:
    """Entries of a folder that count, sorted by name; see :func:`image_files`.

    Args:
        folder: to list.

    Raises:
        InputError: it cannot be listed.
    """
    try:
        return sorted(
            path
            for path in folder.iterdir()
            if not path.name.startswith(".") and path.name != "__MACOSX"
        )
    except OSError as error:
        raise InputError(f"cannot list the folder {folder}: {error.strerror}") from error


def _pictures(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link to a folder that it lies in
        return
    for path in visible_entries(folder):
        is_picture = path.suffix.lower() in EXTENSIONS
        if path.is_dir():
            yield from _pictures(path, (*above, real))
        elif is_picture and (path.is_file() or path.is_symlink()):
            yield path  # a link to a picture that is gone fails when it is read
        elif path.is_symlink() and not path.exists():
            raise InputError(
                f"the link {path} leads to {path.readlink()}, which is not there; mend or remove it"
            )


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"cannot read the image {path.absolute()}: {error}")


class UnusableImageError(InputError):
    """A picture of a data set that cannot be decoded, or cannot be an image as asked."""


@contextmanager
def opened_as(purpose: str) -> Iterator[None]:
    """Within this context an error about a picture says what it was opened for, and how to go on.

    Args:
        purpose: such as "one of the public images".

    Raises:
        InputError: in place of an :class:`UnusableImageError`.
    """
    try:
        yield
    except UnusableImageError as error:
        raise InputError(
            f"{error}; mend or remove it, or set on_corrupt: skip (opened as {purpose})"
        ) from error


def first_look(source: ImageSource, *, skips: bool) -> Look:
    """Return what the first picture of a source looks like.

    Args:
        source: of at least one picture.
        skips: whether one that cannot be opened gives way to the next.

    Raises:
        UnusableImageError: if it cannot be opened, or none can.
    """
    for place in range(len(source)):
        with suppress(InputError) if skips and place + 1 < len(source) else unusable():
            return source.look(place)
    raise AssertionError("a source holds pictures")


@contextmanager
def unusable() -> Iterator[None]:
    """Within this context an error says that a picture cannot be used.

    Raises:
        UnusableImageError: in place of an :class:`InputError`.
    """
    try:
        yield
    except InputError as error:
        raise UnusableImageError(*error.args) from error
