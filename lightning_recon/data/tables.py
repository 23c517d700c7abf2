"""Tables: columns of numbers and of categories, and how a row becomes numbers in [0, 1]."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_recon.errors import InputError
from lightning_recon.functional.tables import TOLERANCE
from lightning_recon.randomness import make_generator
from lightning_recon.updates import Columns

Kind = Literal["number", "category", "label"]
MAX_VALUES = 1000
"""Values that a category may have."""


class Table(NamedTuple):
    """Rows as a server encodes them, with what the places mean."""

    rows: NDArray[np.float32]
    """N D: numbers scaled by the least and the largest of the table, categories one-hot."""
    labels: list[int]
    columns: Columns
    names: Sequence[str]
    """Of the features."""
    classes: Sequence[str]
    """Names of the labels."""


def encoded(features: Mapping[str, NDArray[Any]], labels: Sequence[Any]) -> Table:
    """Return a table of features by name: columns of floats are numbers, all others categories.

    Raises:
        InputError: if a category has more values than anybody could guess among.
    """
    parts, sizes, tolerances = [], [], []
    for name, values in features.items():
        if values.dtype.kind == "f":
            low, high = values.min(), values.max()
            part = ((values - low) / ((high - low) or 1.0))[:, None]
            tolerances.append(TOLERANCE * float(part.std()))
        else:
            known, place = np.unique(values, return_inverse=True)
            if len(known) > MAX_VALUES:
                raise InputError(
                    f"the category {name} has {len(known):,} values, and {MAX_VALUES:,} is the "
                    "most; leave it out of columns, or make it a number"
                )
            # one more where all are alike, for a place alone is a number
            part = np.eye(max(2, len(known)))[place]
            tolerances.append(0.0)
        parts.append(part)
        sizes.append(part.shape[1])
    classes, places = np.unique([str(label) for label in labels], return_inverse=True)
    return Table(
        np.concatenate(parts, 1).astype(np.float32),
        places.tolist(),
        Columns(tuple(sizes), tuple(tolerances)),
        list(features),
        classes.tolist(),
    )


# --- a file ------------------------------------------------------------------------------------


def read_csv(path: Path, kinds: Mapping[str, Kind]) -> Table:
    """Read a table with a head line.

    Args:
        path: the file, UTF-8.
        kinds: of the columns that are used, by name; exactly one is the label.

    Raises:
        InputError: if the file cannot be read as described; it says the line.
    """
    label = [name for name, kind in kinds.items() if kind == "label"]
    if len(label) != 1 or len(kinds) < 2:
        raise InputError(
            "columns must name one label and at least one number or category, such as "
            f"{{age: number, job: category, income: label}}, not {dict(kinds)}"
        )
    cells: dict[str, list[Any]] = {name: [] for name in kinds}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            missing = [name for name in kinds if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"{path} has no column {', '.join(missing)}; its head line has "
                    f"{', '.join(reader.fieldnames or ['nothing'])}"
                )
            for row in reader:
                for name, kind in kinds.items():
                    cells[name].append(_cell(row[name], kind, name, path, reader.line_num))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from error
    if not cells[label[0]]:
        raise InputError(f"{path} holds no rows below its head line")
    labels = cells.pop(label[0])
    return encoded({name: np.array(values) for name, values in cells.items()}, labels)


def _cell(value: str | None, kind: Kind, name: str, path: Path, line: int) -> float | str:
    """Return what one cell holds."""
    if value is None or not value.strip():
        raise InputError(
            f"{path}, line {line}: the column {name} is empty; fill it, or leave the row out"
        )
    if kind != "number":
        return value.strip()
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"{path}, line {line}: the column {name} holds {value[:40]!r}, no number; leave the "
            f"row out, or describe the column as {name}: category"
        )
    return number


# --- what ships --------------------------------------------------------------------------------

NUM_SYNTHETIC = 4000
_NUM_HIDDEN = 3
_CATEGORIES = {
    **{"workclass": 9, "education": 16, "marital_status": 7, "occupation": 15},
    **{"relationship": 6, "race": 5, "sex": 2, "native_country": 42},
}
"""Of UCI's Adult, with as many values."""


def synthetic_table() -> Table:
    """Return 4,000 rows made up in the manner of UCI's Adult: 6 numbers, 8 categories, 2 classes.

    Nobody is in it.  Three hidden numbers of each row make its columns depend on one another;
    values of a category are as frequent as Zipf's law has it, which makes the most frequent one a
    good guess, as in real tables.
    """
    generator = make_generator(0, "synthetic table")

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden = normal(NUM_SYNTHETIC, _NUM_HIDDEN)

    def mixed() -> torch.Tensor:
        """Standard normal numbers, N, that depend on the hidden ones."""
        along = normal(_NUM_HIDDEN)
        own = normal(NUM_SYNTHETIC)
        both: torch.Tensor = (hidden @ along / along.norm() + own) / 2**0.5
        return both

    def seldom(largest: float) -> torch.Tensor:
        """Mostly 0, else with a long tail."""
        number = mixed()
        return ((number - 1.3).clamp_min(0).expm1() * largest / 10).clamp_max(largest)

    numbers = {
        "age": (38 + 13 * mixed()).clamp(17, 90).round(),
        "final_weight": (12 + 0.5 * mixed()).exp(),
        "education_years": (10 + 2.5 * mixed()).clamp(1, 16).round(),
        "capital_gain": seldom(100_000).round(),
        "capital_loss": seldom(4_000).round(),
        "hours_per_week": (40 + 12 * mixed()).clamp(1, 99).round(),
    }
    features: dict[str, NDArray[Any]] = {name: part.numpy() for name, part in numbers.items()}
    for name, size in _CATEGORIES.items():
        frequency = -1.5 * torch.arange(1, size + 1, dtype=torch.float64).log()
        pull = hidden @ normal(_NUM_HIDDEN, size)
        uniform = torch.rand(NUM_SYNTHETIC, size, generator=generator, dtype=torch.float64)
        chosen = (frequency + pull - (-uniform.log()).log()).argmax(1)
        features[name] = np.array([f"{name} {value:02d}" for value in chosen.tolist()])
    rich = mixed() > 0.7  # a quarter
    return encoded(features, ["over 50K" if one else "up to 50K" for one in rich.tolist()])


def sklearn_table(name: Literal["breast_cancer", "wine"]) -> Table:
    """Return a real table that comes with scikit-learn: numbers alone, and classes."""
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    columns = np.asarray(bunch.data, dtype=np.float64).T
    features = dict(zip(map(str, bunch.feature_names), columns, strict=True))
    return encoded(features, [str(bunch.target_names[label]) for label in bunch.target])
