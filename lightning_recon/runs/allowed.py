"""What a configuration may name: classes below the bases of their options, and no functions.

And no number that is none: NaN compares with nothing, so that checks of a range would let it pass.

A configuration may come from somebody else.  :func:`check_named` walks over all of it once it is
parsed and before anything of it is made: what it names is imported by then, but not called.  The
bases are those of the options' type hints.
"""

import inspect
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_recon.attacks import Attack
from lightning_recon.attacks.inverting_gradients import published_adam
from lightning_recon.clients import Client
from lightning_recon.data import AuditDataModule, MaskSource
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.metrics import PerImageMetric
from lightning_recon.priors import ActivationPrior, Prior
from lightning_recon.refiners import Refiner
from lightning_recon.runs.callback import Audit
from lightning_recon.runs.hidden_defaults import check_defaults
from lightning_recon.targets import Target

FUNCTIONS: tuple[Callable[..., Any], ...] = (published_adam,)
"""The functions that a configuration may name wherever an option takes one."""
SECTIONS = {"audit": Audit, "checkpoint": ModelCheckpoint, "trainer": Trainer}
"""The sections of a configuration that hold the options of one class."""
_PARTS = (
    *(Attack, AuditDataModule, MaskSource, Client, Defense, Target, Prior, ActivationPrior),
    *(Refiner, PerImageMetric, Optimizer, LRScheduler),
)
"""With those of the trainer's options, the bases where the type hint of an option names none."""
_PLAIN = {"builtins", "collections.abc", "datetime", "pathlib", "types", "typing"}
"""Modules whose classes are values in a configuration, and never named by a class path."""


class _Option(NamedTuple):
    """An option as its class declares it."""

    hint: Any = Any
    default: Any = None


def check_named(config: Namespace, model: Callable[..., Any], data: Callable[..., Any]) -> None:
    """Make sure that a parsed configuration names nothing but classes that belong there.

    Args:
        config: of a command or a cell, as it is parsed; nothing of it is made yet.
        model: the base of the section ``model``.
        data: the base of the section ``data``.

    Raises:
        InputError: naming the first option that names something else, and what it names; or a
            class whose defaults the command line would override (:mod:`.hidden_defaults`).
    """
    sections = {**SECTIONS, "model": model, "data": data}
    for name, value in vars(config).items():
        if name in SECTIONS and not isinstance(value, Namespace | Mapping):
            told = "nothing" if value is None else repr(value)
            raise InputError(f"{name} takes keys with values, not {told}; or leave it out")
        _check(value, _Option(sections.get(name, Any)), name)


def names_for(keys: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return the names of all classes that an option may name.

    Args:
        keys: the options on the way to it, itself the last.
        classes: paths of the classes that these options name.
    """
    sections = {**SECTIONS, "model": Attack, "data": AuditDataModule}
    first, _, option = keys[0].partition(".") if keys else ("", "", "")
    if len(keys) > 1 and classes:
        owner, option = _named(classes[-1]), keys[-1].rpartition(".")[2]
    else:
        owner = sections.get(first)
    bases: tuple[type[Any], ...] = () if owner is None else (owner,)
    if option and owner is not None:
        bases = _bases(_options_of(owner).get(option, _Option()).hint)
    below = (name for base in bases or _all_bases() for name in _names_below(base))
    return sorted(set(below))


def _names_below(base: type[Any]) -> Iterator[str]:
    for found in base.__subclasses__():
        if not inspect.isabstract(found) and not found.__name__.startswith("_"):
            yield found.__name__
        yield from _names_below(found)


def _check(value: Any, option: _Option, key: str) -> None:
    """Look at a value and all below it."""
    if isinstance(value, Namespace | Mapping):
        if "class_path" in _entries(value):
            _check_class(_entries(value), option, key)
        else:
            _check_entries(value, option, key)
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for place, entry in enumerate(value):
            _check(entry, option, f"{key}.{place}")
    elif callable(value) and not isinstance(value, os.PathLike):
        _check_callable(value, option, key)
    elif isinstance(value, float) and math.isnan(value):
        raise InputError(f"{key} is not a number (NaN); give one, or leave it out")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise InputError(f"{key}: {value} is a whole number of more than 64 bits")


def _entries(value: Any) -> Mapping[str, Any]:
    """Return what lies directly below a value, by its name."""
    if isinstance(value, Namespace):
        return vars(value)
    return value if isinstance(value, Mapping) else {}


def _check_class(entries: Mapping[str, Any], option: _Option, key: str) -> None:
    """Look at a class path and its arguments."""
    path, bases = entries["class_path"], _bases(option.hint)
    found = _named(path)
    if not _is_below(found, bases):
        raise _misplaced(found, path, bases, key)
    if found in _PARTS:  # also where a class is described without its name
        raise InputError(
            f"{key}: {found.__name__} is what the classes here have in common, and no class of its "
            "own; name one of them by class_path"
        )
    check_defaults(found, key)
    options = _options_of(found)
    for name, value in entries.items():
        if name in ("init_args", "dict_kwargs"):
            for argument, given in _entries(value).items():
                place = f"{key}.{name}.{argument}"
                declared = options.get(argument, _Option())
                if given is None and not _may_be_null(declared):
                    raise InputError(f"{place} takes no null; give a value, or leave it out")
                _check(given, declared, place)
        elif name != "class_path":
            _check(value, _Option(), f"{key}.{name}")


def _may_be_null(option: _Option) -> bool:
    """Whether None is a value of an option; the parser takes it for all that have a default."""
    hints = (option.hint, *get_args(option.hint))
    is_told = option.hint is not Any and option.hint is not inspect.Parameter.empty
    return not is_told or option.default is None or type(None) in hints or Any in hints


def _check_entries(value: Any, option: _Option, key: str) -> None:
    """Look at a section, which holds the options of its class, or at a dictionary."""
    bases = _bases(option.hint)
    options, others = {}, option
    if isinstance(value, Namespace):
        options, others = _options_of(bases[0]) if bases else {}, _Option()
    for name, entry in _entries(value).items():
        _check(entry, options.get(name, others), f"{key}.{name}")


def _check_callable(value: Any, option: _Option, key: str) -> None:
    """Raise InputError unless a callable is allowed, the option's own default, or of its base."""
    bases = _bases(option.hint)
    is_class = isinstance(value, type)
    if value is option.default or any(value is function for function in FUNCTIONS):
        return
    if _is_below(value if is_class else type(value), bases):
        return
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
    if is_class:
        raise _misplaced(value, name, bases, key)
    allowed = ", ".join(f"{function.__module__}.{function.__name__}" for function in FUNCTIONS)
    raise InputError(
        f"{key}: {name} is a function, and a configuration may name none but {allowed}; "
        "name a class by its class_path, or leave it out"
    )


def _is_below(found: Any, bases: tuple[type[Any], ...]) -> bool:
    """Whether this is a class below one of the bases, or of any where there are none."""
    # by its ancestors: issubclass would ask the classes themselves
    return isinstance(found, type) and bool(set(found.__mro__) & set(bases or _all_bases()))


def _misplaced(found: Any, path: Any, bases: tuple[type[Any], ...], key: str) -> InputError:
    wanted = " or ".join(base.__name__ for base in bases)
    what = "a class" if isinstance(found, type) else "a function" if callable(found) else "no class"
    return InputError(
        f"{key}: {path} is {what}, but an option takes only classes below "
        f"{wanted or 'a base of lightning_recon or Lightning'}; name one of these, or leave it out"
    )


def _named(path: Any) -> Any:
    """Return what an import path leads to; None if it leads nowhere."""
    module, _, name = str(path).rpartition(".")
    outer, _, middle = module.rpartition(".")
    try:
        try:
            return getattr(import_module(module), name)
        except ModuleNotFoundError:  # of a class in a class
            return getattr(getattr(import_module(outer), middle), name)
    except Exception:  # a module may raise anything
        return None


def _bases(hint: Any) -> tuple[type[Any], ...]:
    """Return the classes that a type hint names, those that a function returns included."""
    here = [part for part in (hint, get_origin(hint)) if _is_base(part)][:1]
    below = (base for part in get_args(hint) for base in _bases(part))
    return tuple(dict.fromkeys((*here, *below)))


def _is_base(part: Any) -> bool:
    return isinstance(part, type) and not get_args(part) and part.__module__ not in _PLAIN


@cache
def _all_bases() -> tuple[type[Any], ...]:
    hints = (option.hint for option in _options_of(Trainer).values())
    return (*_PARTS, *(base for hint in hints for base in _bases(hint)))


def _options_of(owner: type[Any]) -> dict[str, _Option]:
    """Return the options of a class by their names, with those that it hands on to its bases."""
    options: dict[str, _Option] = {}
    for ancestor in reversed(owner.__mro__):
        making = vars(ancestor).get("__init__")
        if inspect.isfunction(making):
            options |= _declared(making)
    return options


@cache
def _declared(function: Callable[..., Any]) -> dict[str, _Option]:
    """Return the parameters of a function."""
    try:
        hints = get_type_hints(function)
    except Exception:  # names that exist for type checkers alone
        hints = {}
    return {
        name: _Option(hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
    }
