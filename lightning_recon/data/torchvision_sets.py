"""The classification data sets of torchvision, by name."""

import inspect
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torchvision import datasets

from lightning_recon.data.base import ClientDataModule
from lightning_recon.data.sources import ImageSource
from lightning_recon.errors import InputError
from lightning_recon.pictures import without_ghostscript

_UNPICKLED = (datasets.LSUN, datasets.lsun.LSUNClass)
"""CIFAR's pickles are held against their published checksums first; these are not."""


class TorchvisionDataModule(ClientDataModule):
    """Clients with images of a data set of ``torchvision.datasets``, as stored unless asked.

    Nothing is downloaded: the files lie where torchvision looks for them.

    Args:
        name: of the class, such as ``FashionMNIST``.
        split: which part, for the class' own argument ``split``, or ``train``.
        options: more arguments of the class, such as ``{split: letters, train: false}``.
        num_classes: number of classes of the model under attack; null: the data set's.
        image_size: height and width of the images, in pixels: one number or ``[H, W]``; null: as
            stored.
        channels: of the images; null: as stored.
        **kwargs: as in :class:`ClientDataModule`; ``root`` is what the class takes as ``root``.

    Raises:
        InputError: torchvision has no such data set, or unpickles its files unseen; or
            an option would download it.
    """

    name = "torchvision"
    expected = "the files of the torchvision data set, as torchvision's download lays them out"

    def __init__(
        self,
        name: str,
        split: str = "test",
        options: dict[str, Any] | None = None,
        num_classes: int | None = None,
        image_size: int | list[int] | None = None,
        channels: Literal[1, 3] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, channels=channels, **kwargs)
        found = getattr(datasets, name, None)
        if not (inspect.isclass(found) and issubclass(found, datasets.VisionDataset)):
            raise InputError(
                f"torchvision.datasets has no data set {name}; the name is that of the class, "
                "such as FashionMNIST, see https://pytorch.org/vision/stable/datasets.html"
            )
        if issubclass(found, _UNPICKLED):
            raise InputError(
                f"torchvision.datasets.{name} unpickles a file that it finds, which may run "
                "anything; extract its pictures, and take ImageFolderDataModule"
            )
        for option in ("download", "root"):
            if option in (options or {}):
                what = "nothing is downloaded" if option == "download" else "it stands beside them"
                raise InputError(f"TorchvisionDataModule: {option} is no option here: {what}")
        self.name = name
        self.split = split
        self.options = options or {}
        self._num_classes = num_classes

    @property
    def num_classes(self) -> int:
        """As given, or the data set's own number."""
        if self._num_classes is None:
            source = self.source
            classes = source.classes
            largest = max(map(source.label, range(len(source)))) if classes is None else 0
            self._num_classes = len(classes) if classes else largest + 1
        return self._num_classes

    def open_source(self, root: Path) -> ImageSource | None:
        """Open the data set as torchvision does.

        Raises:
            InputError: the files are damaged, or an option does not fit.
        """
        if not root.is_dir():
            return None
        dataset_class = getattr(datasets, self.name)
        parameters = inspect.signature(dataset_class).parameters
        options: dict[str, Any] = {"root": str(root)}
        if "train" in parameters:
            options["train"] = self.split == "train"
        elif "split" in parameters:
            options["split"] = self.split
        try:
            dataset = dataset_class(**{**options, **self.options})
        except (RuntimeError, FileNotFoundError) as error:
            reason = str(error).partition("\n")[0]
            self.expected = f"{type(self).expected}: {reason}"
            return None
        except (ValueError, TypeError, AssertionError, EOFError, OSError, zlib.error) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"torchvision cannot open {self.name} in {root}: {reason}") from error
        return TorchvisionSource(dataset, self.name)


class TorchvisionSource(ImageSource):
    """The pictures of one data set.

    Args:
        dataset: of torchvision, without transforms.
        name: what the names of the pictures begin with.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset = dataset
        self.name = name
        self.classes: Sequence[str] | None = getattr(dataset, "classes", None) or None
        width, height = self.image(0).size if len(self) else (1, 1)
        self.resize = "stretch" if width == height else "crop"

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> Image.Image:
        """Picture ``index`` as torchvision reads it.

        Raises:
            InputError: it cannot be read.
        """
        try:
            with without_ghostscript():  # torchvision opens whatever Pillow can
                picture = self.dataset[index][0]
        except Exception as error:  # every data set fails in its own way
            raise InputError(f"cannot read the image {self.key(index)}: {error}") from error
        if not isinstance(picture, Image.Image):
            raise InputError(f"{self.name} holds no pictures, but {type(picture).__name__}")
        return picture

    def label(self, index: int) -> int:
        """Class of picture ``index``.

        Raises:
            InputError: the data set does not have one class for each picture.
        """
        targets = getattr(self.dataset, "targets", getattr(self.dataset, "labels", None))
        label = self.dataset[index][1] if targets is None else targets[index]
        try:
            return int(label)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.name} does not have one class for each picture") from error

    def key(self, index: int) -> str:
        """Name of the data set and index, such as ``FashionMNIST/00012``."""
        return f"{self.name}/{index:05d}"
