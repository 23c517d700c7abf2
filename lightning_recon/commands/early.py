"""Plain faults of configuration files, told before torch is imported.

Syntax, a key that stands twice, a section that does not exist, a class that does not exist: what
needs no more than the file and the names of the package's classes.  All else is the parser's.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_recon.commands.names import LISTS, TRAINED
from lightning_recon.commands.sources import known_names, offered_classes
from lightning_recon.documents import read_yaml
from lightning_recon.errors import InputError, instead, missing_file, program
from lightning_recon.runs.refusals import config_files

SECTIONS = (
    *("seed_everything", "trainer", "model", "data", "audit", "checkpoint", "ckpt_path"),
    *("weights_only", "verbose", "return_predictions", "config"),
)
"""The keys of a run's configuration."""
_ROOMS = {
    "model": ("attacks", "training"),
    "data": ("data", "training"),
    "target": ("targets",),
    "client": ("clients",),
    "defenses": ("defenses",),
    "priors": ("priors",),
    "refiner": ("refiners",),
    "masks": ("data",),
}
"""By option: the rooms whose classes it may name without their module."""
_ONE = ("model", "data", "target", "client", "refiner", "masks")
_HOLDING = ("trainer", "audit", "checkpoint")
_BESIDE = ("class_path", "init_args", "dict_kwargs")


def check_early(words: Sequence[str]) -> None:
    """Look at the configuration files that a command line names.

    Args:
        words: the command and its options.

    Raises:
        InputError: naming the file, the place and what is wrong.  A file that cannot be read is
            left to the parser.
    """
    files = config_files(words)
    for path in files:
        if path.name and not path.exists():
            raise InputError(missing_file(path))
        try:
            content = read_yaml(path)
        except OSError:
            continue
        if not content or not isinstance(content, dict):
            what = f"no keys, but a {type(content).__name__}" if content else "nothing"
            raise InputError(f"{path} holds {what}; see configs/ for examples")
        if words[0] in TRAINED:
            continue
        _check_sections(content, path)
        for name, key, value in _entries(content, ""):
            _check_entry(name, value, f"{path}: {key}")
            option = f"--{key}".replace("init_args.", "")
            elsewhere = (word.replace("init_args.", "").startswith(option) for word in words)
            if len(files) == 1 and not any(elsewhere):
                _check_whole(name, value, f"{path}: {key}")


def _check_sections(content: dict[Any, Any], path: Path) -> None:
    """Raise InputError for a section that does not exist, or that holds no keys."""
    for name, value in content.items():
        if name not in SECTIONS:
            raise InputError(f"{path}: there is no section {name}{instead(name, SECTIONS)}")
        if name in _HOLDING and not isinstance(value, dict | str):
            found = "nothing" if value is None else f"a {type(value).__name__}"
            raise InputError(
                f"{path}: {name} takes keys with values, not {found}; correct it, or leave it out"
            )


def _entries(content: Any, key: str) -> Iterator[tuple[str, str, Any]]:
    """Yield all values of a configuration, lists and then their items, with name and place."""
    for name, value in content.items() if isinstance(content, dict) else ():
        where = f"{key}.{name}" if key else str(name)
        yield str(name), where, value
        if not isinstance(value, list):
            yield from _entries(value, where)
            continue
        for place, entry in enumerate(value):
            yield str(name), f"{where}.{place}", entry
            yield from _entries(entry, f"{where}.{place}")


def _check_entry(name: str, value: Any, where: str) -> None:
    """Raise InputError for a list where one class belongs, and what is wrong about a class."""
    if isinstance(value, list) and name in _ONE:
        raise InputError(f"{where} takes one class, not a list; leave out the dash")
    is_item = where.rpartition(".")[2].isdigit()
    takes_list = name in _ROOMS and name not in _ONE and not is_item
    if takes_list and isinstance(value, dict) and "class_path" in value:
        raise InputError(f"{where} takes a list of classes; put a dash in front of class_path")
    named = value
    if isinstance(value, dict):
        if not isinstance(value.get("init_args"), dict | str | None):
            raise InputError(f"{where}: init_args takes keys with values, not a list or a value")
        named = value.get("class_path")
        for other in value if "class_path" in value else ():
            if other not in _BESIDE:
                meant = instead(other, _BESIDE)
                raise InputError(f"{where}: no key {other} beside class_path{meant}")
    if name in _ROOMS and isinstance(named, str) and "." not in named:
        known = {one for room in _ROOMS[name] for one in known_names(room)}
        if named not in known:
            room = _ROOMS[name][0]
            bases = ("MaskSource",) if name == "masks" else LISTS[room]
            meant = instead(named, [found.name for found in offered_classes(room, bases)])
            see = "" if name == "masks" else f" ({program()} {room} lists all)"
            raise InputError(f"{where}: there is no class {named}{meant}{see}")


def _check_whole(name: str, value: Any, where: str) -> None:
    """Raise InputError for what describes a class without naming one, where no other file does."""
    if name in _ROOMS and isinstance(value, dict) and value and "class_path" not in value:
        wrong = next((key for key in value if key not in _BESIDE), None)
        meant = "" if wrong is None else f"; there is {wrong}, did you mean class_path?"
        raise InputError(f"{where}: no class_path names the class{meant}")
