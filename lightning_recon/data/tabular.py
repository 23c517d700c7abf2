"""Rows of a table as what clients hold."""

import math
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from lightning_recon.data.base import ClientDataModule
from lightning_recon.data.sources import ImageSource, SquareSource
from lightning_recon.data.tables import Kind, Table, read_csv, sklearn_table, synthetic_table
from lightning_recon.errors import InputError
from lightning_recon.functional.image_size import MIN_SIDE
from lightning_recon.updates import DataSpec


class TabularDataModule(ClientDataModule):
    """Clients with rows of a table, laid out as small grey images.

    A row is its features one after the other, numbers scaled to [0, 1] by the table's least and
    largest, categories one-hot, and zeros up to a square: so all attacks, defenses and figures for
    images hold, and ``features`` counts the features that are right.  The encoding is known to the
    server, which trains on it.

    Args:
        table: ``synthetic``, made up in the manner of UCI's Adult (14 features, 4,000 rows; nobody
            is in it), ``breast_cancer`` or ``wine``, real ones that come with scikit-learn, of
            numbers alone, or ``csv``: the file ``root``.
        columns: of a CSV file, by name: ``number``, ``category``, or, once, ``label``; others are
            left out.
        num_classes: number of classes of the model under attack; null: the table's.
        root: of the CSV file.
        batch_size: rows of one client.
        num_clients: number of clients.
        indices: places in the table of the one client's rows, or one list per client; null draws
            them with ``seed``.
        num_public: rows that the server owns itself.
        seed: of the permutation that the clients' and the public rows are taken from.

    Raises:
        InputError: if ``columns`` or ``root`` is given without a CSV file, or the other way around.
    """

    name = "table"
    citation = "after Vero et al., ICML 2023 (encoding, tolerance); Becker, Kohavi, UCI Adult, 1996"
    expected = "a CSV file with a head line, and columns: {age: number, job: category, y: label}"

    def __init__(
        self,
        table: Literal["synthetic", "breast_cancer", "wine", "csv"] = "synthetic",
        columns: dict[str, Kind] | None = None,
        num_classes: int | None = None,
        root: str | None = None,
        batch_size: int = 8,
        num_clients: int = 1,
        indices: list[int] | list[list[int]] | None = None,
        num_public: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__(
            root=root,
            batch_size=batch_size,
            num_clients=num_clients,
            indices=indices,
            num_public=num_public,
            seed=seed,
            image_size=None,
            channels=1,
            value_range=[0.0, 1.0],
        )
        if num_classes is not None and num_classes < 2:
            raise InputError(f"num_classes must be at least 2, not {num_classes}")
        if (table == "csv") != (columns is not None):
            raise InputError(
                "TabularDataModule: table: csv needs columns, a name and a kind for each, and the "
                f"others know theirs; found table: {table}, columns: {columns}"
            )
        if table != "csv" and self.root is not None:
            raise InputError(
                f"TabularDataModule: the table {table} comes with the package and reads no root, "
                f"found {self.root}; set table: csv for a file of yours"
            )
        self.table = table
        self.columns = columns
        self._num_classes = num_classes

    @property
    def num_classes(self) -> int:
        """As given, or the table's own number, at least 2."""
        return self._num_classes or max(2, len(self.opened.classes))

    @property
    def opened(self) -> Table:
        """The table."""
        source = self.source
        assert isinstance(source, TableSource)
        return source.table

    @property
    def spec(self) -> DataSpec:
        """What a server knows beforehand, the table's encoding included."""
        return super().spec._replace(columns=self.opened.columns)

    def open_source(self, root: Path) -> ImageSource | None:
        """Read the file."""
        assert self.columns is not None
        return TableSource(read_csv(root, self.columns), root.stem) if root.is_file() else None

    def _open(self) -> ImageSource:
        if self.table == "csv":
            return super()._open()
        table = synthetic_table() if self.table == "synthetic" else sklearn_table(self.table)
        return TableSource(table, self.table)

    def describe(self) -> str:
        """One line for people: which table, and what its rows become."""
        sizes = self.opened.columns.sizes
        numbers = sizes.count(1)
        side = self.image_shape[1]
        return (
            f"{super().describe()}; {numbers} numbers and {len(sizes) - numbers} categories of "
            f"the table {self.table}, {sum(sizes)} places of {side}x{side}"
        )


class TableSource(SquareSource):
    """The rows of a table as grey pictures of floats.

    Args:
        table: whose rows.
        prefix: what the names of the rows begin with.
    """

    def __init__(self, table: Table, prefix: str) -> None:
        self.table = table
        self.prefix = prefix
        self.classes = table.classes

    def __len__(self) -> int:
        return len(self.table.rows)

    @cached_property
    def side(self) -> int:
        """Of the smallest square that holds a row and can be compared."""
        width: int = self.table.rows.shape[1]
        side: int = max(MIN_SIDE, math.ceil(width**0.5))
        return side

    def image(self, index: int) -> Image.Image:
        """Row ``index``, its features and zeros."""
        row = self.table.rows[index]
        pixels = np.zeros(self.side**2, np.float32)
        pixels[: len(row)] = row
        return Image.fromarray(pixels.reshape(self.side, self.side))

    def label(self, index: int) -> int:
        """Class of row ``index``."""
        return self.table.labels[index]

    def key(self, index: int) -> str:
        """Name of the table and index, such as ``synthetic/00012``."""
        return f"{self.prefix}/{index:05d}"
