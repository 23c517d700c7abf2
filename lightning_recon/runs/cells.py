"""The cells of a sweep, read from its YAML.

A sweep's YAML names a configuration to start from and the axes::

    base: ../ldp_imagenet.yaml          # relative to this file
    axes:
      noise_std: {key: model.init_args.defenses.1.init_args.noise_std, values: [.002, .02]}
      attack:                            # a label for every set of changes
        faithful: {}
        spectral: {config: ../ldp_spectral.yaml}
    set: {data.init_args.num_clients: 4} # changes to every cell
    trainer: {devices: 1}

A key is a path through the configuration, numbers count entries of lists, and ``config`` takes
another configuration in the place of the base.  All cells share one trainer: that of the sweep, not
of the base.
"""

import copy
import inspect
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import get_loader
from pytorch_lightning import Trainer

from lightning_recon.documents import MAX_YAML_BYTES, check_yaml, read_text
from lightning_recon.errors import InputError, instead, missing_file
from lightning_recon.runs.refusals import check_seeds

SECTIONS = ("seed_everything", "model", "data", "audit")
"""What a cell takes of a configuration."""
_KEYS = ("base", "axes", "set", "trainer")
_OF_FIT = {
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "limit_train_batches"),
    *("limit_val_batches", "limit_predict_batches", "val_check_interval"),
    *("check_val_every_n_epoch", "num_sanity_val_steps", "log_every_n_steps"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
    *("reload_dataloaders_every_n_epochs", "enable_checkpointing", "overfit_batches"),
    *("enable_progress_bar", "enable_model_summary"),
}
"""Options of a trainer that change neither what a sweep computes nor what it writes."""
_BESIDE = ("class_path", "init_args", "dict_kwargs")
"""What describes a class."""


class Cell(NamedTuple):
    """One point of the product."""

    labels: dict[str, Any]
    """What the cell is called on each axis."""
    config: dict[str, Any]
    """The whole configuration: model, data, audit and seed."""


def read_cells(path: Path) -> list[Cell]:
    """Return the cells of a sweep's YAML, the last axis running fastest.

    Raises:
        InputError: if the file or one it names cannot be read, or a key leads nowhere.
    """
    content = read_yaml(path)
    check_keys(path, content, _KEYS)
    if not isinstance(content.get("axes"), Mapping) or not content["axes"]:
        raise InputError(f"{path}: no axes; a sweep has base, axes, and maybe set and trainer")
    return product(path, content, content["axes"])


def check_keys(path: Path, content: Mapping[str, Any], known: Sequence[str]) -> None:
    """Make sure that a file has no key that nobody reads, and holds keys where it should.

    Args:
        path: of the file.
        content: of the file.
        known: its keys.

    Raises:
        InputError: naming the first key that is wrong.
    """
    for name in sorted(map(str, set(content) - set(known))):
        raise InputError(f"{path}: there is no key {name}{instead(name, known)}")
    for name in ("set", "trainer"):
        if not isinstance(content.get(name) or {}, Mapping):
            raise InputError(f"{path}: {name} must hold keys and values")


def product(
    path: Path,
    content: Mapping[str, Any],
    axes: Mapping[str, Any],
    sections: Sequence[str] = SECTIONS,
) -> list[Cell]:
    """Return the product of some axes, the last one running fastest.

    Args:
        path: of the file that they stand in.
        content: of the file: ``base`` and ``set``.
        axes: by name.
        sections: of a configuration, that keys may lead into.

    Raises:
        InputError: if a file cannot be read, or a key leads nowhere.
    """
    cells = []
    options = [_options(path, name, axis) for name, axis in axes.items()]
    for combination in itertools.product(*options):
        labels, changes = {}, dict(content.get("set") or {})
        for name, label, change in combination:
            labels[name] = label
            changes |= change
        base = changes.pop("config", content.get("base"))
        if base is None:
            raise InputError(f"{path}: give base, the configuration that the cells start from")
        config = read_yaml(path.parent / str(base))
        for key, value in changes.items():
            _set(config, str(key), copy.deepcopy(value), path, sections)
        check_seeds(config, str(path))
        cells.append(Cell(labels, config))
    return cells


def _options(path: Path, name: str, axis: Any) -> list[tuple[str, Any, dict[str, Any]]]:
    """Return (axis, label, changes) of every value of an axis."""
    if isinstance(axis, Mapping) and set(axis) == {"key", "values"}:
        if not isinstance(axis["values"], list) or not axis["values"]:
            raise InputError(f"{path}: the values of axis {name} must be a list, not empty")
        return [(name, value, {axis["key"]: value}) for value in axis["values"]]
    if isinstance(axis, Mapping) and axis and all(isinstance(v, Mapping) for v in axis.values()):
        return [(name, label, dict(changes)) for label, changes in axis.items()]
    known = ("key", "values")
    if isinstance(axis, Mapping) and set(axis) & set(known):
        for other in sorted(map(str, set(axis) - set(known))):
            raise InputError(f"{path}: axis {name}: there is no key {other}{instead(other, known)}")
    raise InputError(
        f"{path}: axis {name} needs either a key and values, or for each label what it changes"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file.

    Raises:
        InputError: if it cannot be read, or holds no keys.
    """
    try:
        text = read_text(path, MAX_YAML_BYTES)
        check_yaml(text, str(path.absolute()))
        content = get_loader("yaml")(text)  # as in runs: 1e-3 is a number
    except FileNotFoundError as error:
        raise InputError(missing_file(path)) from error
    except OSError as error:
        raise InputError(f"{path.absolute()} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path.absolute()} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path.absolute()} holds no keys")
    return content


def description(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return what ``sweep.yaml`` says of the cells."""
    return {"cells": [cell._asdict() for cell in cells]}


def check_trainers(cells: Sequence[Cell], options: Mapping[str, Any]) -> None:
    """Make sure that no configuration asks for another trainer than the sweep's one.

    Args:
        cells: of the sweep.
        options: of its trainer.

    Raises:
        InputError: naming the first option that would be ignored.
    """
    declared = inspect.signature(Trainer).parameters
    for cell in cells:
        for name, value in (cell.config.get("trainer") or {}).items():
            usual = [options.get(name), None, "auto"]
            if name in declared:
                usual.append(declared[name].default)
            if name not in _OF_FIT and _precision(name, value) not in [
                _precision(name, one) for one in usual
            ]:
                raise InputError(
                    f"trainer.{name}: a configuration of the sweep has {value}, but all cells "
                    f"share the sweep's one trainer, which has {options.get(name)}; set it in the "
                    "trainer section of the sweep's file"
                )


def _precision(name: str, value: Any) -> str:
    is_full = name == "precision" and value in (None, 32, "32", "32-true")
    return "None" if is_full else str(value)


def _set(config: dict[str, Any], key: str, value: Any, path: Path, sections: Sequence[str]) -> None:
    """Set the value at a dotted key in place; numbers count entries of lists."""
    *parents, last = key.split(".")
    if [*parents, last][0] not in sections:
        raise InputError(
            f"{path}: {key} would change nothing: a cell has {', '.join(sections)}, and the "
            "sweep one trainer"
        )
    place: Any = config
    try:
        for name in parents:
            if isinstance(place, dict) and "class_path" in place and name not in _BESIDE:
                raise InputError(
                    f"{path}: {key}: no key {name} beside class_path{instead(name, _BESIDE)}"
                )
            place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
        place[int(last) if isinstance(place, list) else last] = value
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: {key} leads nowhere in the configuration") from error
