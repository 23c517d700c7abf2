"""CIFAR-10 and CIFAR-100.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from torchvision import datasets

from lightning_recon.data.arrays import read_npz
from lightning_recon.data.base import ClientDataModule
from lightning_recon.data.sources import ArraySource, ImageSource
from lightning_recon.errors import InputError


class CIFAR10DataModule(ClientDataModule):
    """Clients with images of CIFAR-10, 32 x 32 pixels unless asked otherwise.

    Args:
        split: which part of the data set, ``train`` or ``test``.
        image_size: height and width of the images, in pixels.
        **kwargs: as in :class:`ClientDataModule`; ``root`` is the folder that holds
            ``cifar-10-batches-py``, or an ``.npz`` file with arrays ``x_train``, ``y_train``,
            ``x_test``, ``y_test``.
    """

    name = "cifar10"
    citation = "Krizhevsky, technical report, University of Toronto, 2009"
    expected = (
        "the folder cifar-10-batches-py in it (unpack "
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz there) or an .npz file"
    )

    def __init__(
        self,
        split: Literal["train", "test"] = "test",
        image_size: int | list[int] | None = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, **kwargs)
        self.split = split

    @property
    def num_classes(self) -> int:
        """10."""
        return 10

    def open_source(self, root: Path) -> ImageSource | None:
        """Read torchvision's files, or the arrays of an ``.npz`` file."""
        if root.suffix == ".npz":
            return _open_npz(root, self.split) if root.is_file() else None
        return _open_torchvision(datasets.CIFAR10, root, self.split)


class CIFAR100DataModule(ClientDataModule):
    """Clients with images of CIFAR-100, 32 x 32 pixels unless asked otherwise.

    Args:
        split: which part of the data set, ``train`` or ``test``.
        image_size: height and width of the images, in pixels.
        **kwargs: as in :class:`ClientDataModule`; ``root`` is the folder that holds
            ``cifar-100-python``.
    """

    name = "cifar100"
    citation = "Krizhevsky, technical report, University of Toronto, 2009"
    expected = (
        "the folder cifar-100-python in it (unpack "
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz there)"
    )

    def __init__(
        self,
        split: Literal["train", "test"] = "test",
        image_size: int | list[int] | None = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, **kwargs)
        self.split = split

    @property
    def num_classes(self) -> int:
        """100."""
        return 100

    def open_source(self, root: Path) -> ImageSource | None:
        """Read torchvision's files."""
        return _open_torchvision(datasets.CIFAR100, root, self.split)


def _open_torchvision(
    dataset: type[datasets.CIFAR10], root: Path, split: str
) -> ArraySource | None:
    folder = root / dataset.base_folder
    if not folder.is_dir():
        return None
    try:
        images = dataset(str(root), train=split == "train", download=False)
    except RuntimeError as error:
        raise InputError(f"the files in {folder} are incomplete or damaged") from error
    return ArraySource(images.data, images.targets, split, images.classes)


def _open_npz(path: Path, split: str) -> ArraySource:
    images, labels = read_npz(path, split)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise InputError(
            f"{path}: x_{split} must be N 32 32 3 of uint8, not {images.shape} of {images.dtype}"
        )
    return ArraySource(images, labels, split)
