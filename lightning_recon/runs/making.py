"""Objects are made from options: what they refuse is the input's fault, and gets one line."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from docstring_parser import DocstringStyle
from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.cli import LightningArgumentParser

from lightning_recon.errors import InputError, input_error_in
from lightning_recon.runs.allowed import SECTIONS
from lightning_recon.runs.parser import Parser

# told apart by itself, a docstring that begins with a role counts as another style's
set_parsing_settings(docstring_parse_style=DocstringStyle.GOOGLE)

_REFUSALS = (
    *(ArithmeticError, AssertionError, ImportError, LookupError, MemoryError, RuntimeError),
    *(TypeError, ValueError),
    MisconfigurationException,
)
"""What a class raises where it does not take what it is given."""
_refused: list[InputError] = []
"""While objects are made: what classes said that refused."""
_PLAIN = (bool, int, float, str, list, tuple)


class RunParser(Parser, LightningArgumentParser):
    """The parser of the commands that run a Trainer."""

    def says_where(self, config: Namespace) -> None:
        """Have all that is made of a configuration, now or later, name its place if it refuses.

        Args:
            config: of a command or a cell, as it is parsed.
        """
        self.add_instantiator(partial(_make, config), object)

    def instantiate_classes(self, cfg: Namespace, **kwargs: Any) -> Any:
        """Make all that a configuration names.

        Raises:
            InputError: as the class said that refuses; of an option that takes several kinds of
                classes, jsonargparse keeps the last kind's reason alone.
        """
        _refused.clear()
        try:
            return super().instantiate_classes(cfg, **kwargs)
        except (ArgumentError, ValueError) as error:
            if _refused and input_error_in(error) is None:
                raise _refused[-1] from error
            raise


@contextmanager
def making(key: str, given: Mapping[str, Any], name: str = "") -> Iterator[None]:
    """Within this context an object is made from options: what it refuses is the input's fault.

    Args:
        key: of the options.
        given: the options.
        name: of the class, where the key does not tell it.

    Raises:
        InputError: in the place of what says that arguments do not fit.
    """
    try:
        yield
    except InputError as error:
        is_told = not key or str(error).startswith(key)
        raise InputError(str(error) if is_told else f"{key}: {error}") from error
    except _REFUSALS as error:
        if input_error_in(error):
            raise
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if missing := re.search(r"Requirement '([^']+)' not met", reason):
            reason = f"it needs a package: pip install '{missing[1]}'"
        where = f"{key} ({name})" if key and name else key or name
        raise InputError(f"{where}: {reason}{_value(reason, given)}") from error


def _value(reason: str, given: Mapping[str, Any]) -> str:
    """Return what was given for the options that a reason names, unless it names this, too."""
    options = [name for name in given if re.search(rf"\b{re.escape(name)}\b", reason)]
    values = [(name, given[name]) for name in options if isinstance(given[name], _PLAIN)]
    told = [f"{name} {value}" for name, value in values if str(value) not in reason]
    return f"; given: {', '.join(told)}" if told else ""


def _make(config: Namespace, class_type: type[Any], *args: Any, **kwargs: Any) -> Any:
    try:
        with making(_place(config, class_type, kwargs), kwargs, class_type.__name__):
            return class_type(*args, **kwargs)
    except InputError as error:
        _refused.append(error)
        raise


def _place(config: Namespace, class_type: type[Any], given: Mapping[str, Any]) -> str:
    """Return the key at which a configuration names a class with such arguments, if it does."""
    found = [
        key
        for key, named, arguments in _classes_in(config, "")
        if named.rpartition(".")[2] == class_type.__name__
        and all(arguments.get(name) == given.get(name) for name in _plain(arguments))
    ]
    found += [name for name, owner in SECTIONS.items() if owner is class_type]
    return found[0] if found else ""


def _plain(arguments: Mapping[str, Any]) -> list[str]:
    return [
        name for name, value in arguments.items() if isinstance(value, bool | int | float | str)
    ]


def _classes_in(value: Any, key: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the key, the class path and the arguments of all classes that a value names."""
    if isinstance(value, Namespace | dict):
        entries = vars(value) if isinstance(value, Namespace) else value
        path, arguments = entries.get("class_path"), entries.get("init_args")
        if isinstance(path, str):
            yield key, path, vars(arguments) if isinstance(arguments, Namespace) else {}
    elif isinstance(value, list | tuple):
        entries = {str(place): entry for place, entry in enumerate(value)}
    else:
        return
    for name, entry in entries.items():
        yield from _classes_in(entry, f"{key}.{name}" if key else str(name))
