"""Configurations of this repository in which one thing was changed."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.hostile.inputs import places
from benchmarks.hostile.numbers import VALUES, Case

WORDS: tuple[Any, ...] = (
    *VALUES,
    *("", "null", "os.system", "../x", "[red]", "nan", "1e400", "ü", "LeNet", "ClipL2", True),
    *(
        [],
        {},
        [1, 2],
        [[]],
        {"a": 1},
        {"class_path": "os.system"},
        {"class_path": "DLG"},
        0.5,
        1e-9,
    ),
    {"class_path": None},
)
SMALL = {"batch_size": 2, "num_clients": 2, "num_public": 8, "masks": None}


def mutated(folder: Path, seed: int, count: int) -> Iterator[Case]:
    """Yield so many configurations, each of a file of the folder with one value changed.

    Data are the sample photographs, small, for it is not they that are tried.

    Args:
        folder: with the configurations.
        seed: of the changes.
        count: how many.
    """
    files = [path for path in sorted(folder.glob("*.yaml")) if not path.stem.startswith("train_")]
    chance = random.Random(seed)
    for number in range(count):
        path = chance.choice(files)
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name in ("trainer", "checkpoint"):
            content.pop(name, None)
        data = content["data"].setdefault("init_args", {})
        data |= {**SMALL, "on_missing": "samples"}
        data.pop("indices", None)
        holder, key = chance.choice(list(places(content)))
        kind = chance.choice(("value", "value", "value", "gone", "renamed", "copied"))
        word = copy.deepcopy(chance.choice(WORDS))
        if kind == "value":
            holder[key] = word
        elif kind == "gone":
            del holder[key]
        elif isinstance(holder, dict):
            moved = holder.pop(key) if kind == "renamed" else holder[key]
            holder[f"{key}x" if kind == "renamed" else chance.choice(("seed", "weight"))] = moved
        else:
            holder.append(word)
        yield Case(f"{number} {path.stem}: {kind} {key} {str(word)[:30]}", content)
