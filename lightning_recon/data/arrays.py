"""Anyone's own pictures as arrays in one file."""

import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_recon.data.base import ClientDataModule
from lightning_recon.data.sources import ArraySource, ImageSource
from lightning_recon.errors import InputError


class ArrayDataModule(ClientDataModule):
    """Clients with the pictures of an ``.npz`` file, as they are unless asked otherwise.

    Args:
        split: which part: the arrays are ``x_`` and ``y_`` with this name.
        num_classes: number of classes of the model under attack; null: the largest label and 1.
        image_size: height and width of the images, in pixels: one number or ``[H, W]``; null: as
            the pictures are.
        channels: of the images; null: as the pictures have.
        **kwargs: as in :class:`ClientDataModule`; ``root`` is the file, with ``x_test`` (N H W,
            N H W 1 or N H W 3, uint8) and ``y_test`` (N integers), or with ``x_train`` and
            ``y_train``.
    """

    name = "arrays"
    expected = "an .npz file with arrays x_test (N H W or N H W 3, uint8) and y_test (N integers)"

    def __init__(
        self,
        split: str = "test",
        num_classes: int | None = None,
        image_size: int | list[int] | None = None,
        channels: Literal[1, 3] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, channels=channels, **kwargs)
        if num_classes is not None and num_classes < 1:
            raise InputError(f"num_classes must be at least 1, not {num_classes}")
        self.split = split
        self._num_classes = num_classes

    @property
    def num_classes(self) -> int:
        """As given, or one more than the largest label."""
        if self._num_classes is None:
            self._num_classes = 1 + max(map(self.source.label, range(len(self.source))))
        return self._num_classes

    def open_source(self, root: Path) -> ImageSource | None:
        """Read the arrays of the split."""
        if not root.is_file():
            return None
        images, labels = read_npz(root, self.split)
        if images.ndim == 4 and images.shape[-1] == 1:
            images = images[..., 0]
        is_colour = images.ndim == 4 and images.shape[-1] == 3
        if images.dtype != np.uint8 or not (is_colour or images.ndim == 3):
            raise InputError(
                f"{root}: x_{self.split} must be N H W, N H W 1 or N H W 3 of uint8, not "
                f"{images.shape} of {images.dtype}; bring it to 0 to 255 and save it anew"
            )
        return ArraySource(images, labels, self.split)


def read_npz(path: Path, split: str) -> tuple[NDArray[Any], list[int]]:
    """Read pictures and labels from an ``.npz`` file.

    Args:
        path: the file.
        split: which part: the arrays are ``x_`` and ``y_`` with this name.

    Returns:
        The array of pictures as it is, and as many labels.

    Raises:
        InputError: the file or an array is missing or damaged, or the numbers differ.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"].reshape(-1)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is not an .npz file with arrays x_{split} and y_{split}: {error}"
        ) from error
    if len(images) != len(labels):
        raise InputError(f"{path}: {len(images)} images but {len(labels)} labels")
    if len(labels) and (labels.astype(np.int64) != labels).any():
        raise InputError(f"{path}: y_{split} must be integers, not {labels.dtype}")
    return images, labels.astype(np.int64).tolist()
