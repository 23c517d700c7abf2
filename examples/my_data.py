"""Data sets of your own: picture files with a table of labels, and grey pictures as an array."""

import csv
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_recon.data import ArraySource, ClientDataModule, FileSource, ImageSource
from lightning_recon.errors import InputError


class LabelledFolder(ClientDataModule):
    """Pictures below one folder, which ``labels.csv`` names with their labels.

    The arguments are those of :class:`~lightning_recon.data.ClientDataModule`.
    """

    name = "labelled folder"
    citation = "none: an example"
    expected = "a folder with labels.csv, whose columns are file and label (0 to 9)"

    @property
    def num_classes(self) -> int:
        """Ten."""
        return 10

    def open_source(self, root: Path) -> ImageSource | None:
        """Read the table: None if there is none, one line on what is wrong with it.

        A FileSource takes the folder and a pair for every picture, its path relative to the folder
        and its label.  It decodes what Pillow does, of any size; ``image_size``, ``channels`` and
        ``resize`` say what becomes of them.
        """
        table = root / "labels.csv"
        if not table.is_file():
            return None
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"file", "label"} <= rows[0].keys():
            raise InputError(f"{table} must have the columns file and label, and a row a picture")
        return FileSource(root, [(row["file"], int(row["label"])) for row in rows])


class GreyArrays(ClientDataModule):
    """Grey pictures of 28x28 in ``images.npy``, with ``labels.npy`` beside it.

    Args:
        image_size: height and width of the images, in pixels.
        channels: of the images; 3 repeats the grey.
        **kwargs: the options of :class:`~lightning_recon.data.ClientDataModule`.
    """

    name = "grey arrays"
    citation = "none: an example"
    expected = "a folder with images.npy (N 28 28, uint8) and labels.npy (N integers from 0 to 9)"

    # The base's defaults are 224 and 3; they are overridden in the signature, where the command
    # line reads them.
    def __init__(
        self, image_size: int = 28, channels: Literal[1, 3] | None = 1, **kwargs: Any
    ) -> None:
        super().__init__(image_size=image_size, channels=channels, **kwargs)

    @property
    def num_classes(self) -> int:
        """Ten."""
        return 10

    def open_source(self, root: Path) -> ImageSource | None:
        """Read the arrays.

        An ArraySource takes uint8 pictures, N H W (grey) or N H W 3 (colour), as many integers, and
        a prefix for the names of the pictures.  It treats them as square; floats are yours to
        bring to 0 to 255 first.
        """
        if not (root / "images.npy").is_file():
            return None
        images, labels = np.load(root / "images.npy"), np.load(root / "labels.npy")
        if images.dtype != np.uint8 or images.shape[1:] != (28, 28) or len(images) != len(labels):
            raise InputError(
                f"{root} must hold N 28 28 pictures of uint8 and N labels, not {images.shape} of "
                f"{images.dtype} and {len(labels)}"
            )
        return ArraySource(images, labels.tolist(), prefix="grey")
