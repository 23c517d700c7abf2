"""A user's own model, by the name of what makes it."""

import copy
import difflib
import importlib
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from lightning_recon.documents import parse_json
from lightning_recon.errors import InputError


def imported_module(
    name: str, arguments: Mapping[str, Any] | None = None
) -> Callable[[], nn.Module]:
    """Return what makes a user's model.

    The current folder is searched before all others, as ``python -m`` does.  To name a module runs
    its code.

    Args:
        name: ``"package.module:Net"``: a class below ``torch.nn.Module``, a function that returns
            a module, or a module, of which every call gives a copy.
        arguments: by which the class or function is called; null: none.

    Returns:
        A function without arguments, which raises InputError where no module can be made.

    Raises:
        InputError: if there is no such module, class or function, its module cannot be imported,
            or the arguments are not those that it takes.
    """
    path, colon, attribute = name.partition(":")
    if not colon or not all(part.isidentifier() for part in [*path.split("."), attribute]):
        raise InputError(f"{name!r} names no model: {_well_formed(name)}")
    made_by = _found(_imported(path), attribute)
    arguments = dict(arguments or {})
    if isinstance(made_by, nn.Module):
        if arguments:
            raise InputError(f"{name} is a module that is made already; leave out its arguments")
        return lambda: copy.deepcopy(made_by)
    is_other_class = isinstance(made_by, type) and not issubclass(made_by, nn.Module)
    if is_other_class or not callable(made_by):
        kind = "class" if is_other_class else f"value of type {type(made_by).__name__}"
        raise InputError(
            f"{name} is a {kind}, but no torch.nn.Module; name a class below it, a function that "
            "returns one, or a module"
        )
    _check_arguments(name, made_by, arguments)

    def make() -> nn.Module:
        with _current_folder_first(), _told(name):
            made = made_by(**arguments)
        if not isinstance(made, nn.Module):
            raise InputError(f"{name} gave a {type(made).__name__}, and no torch.nn.Module")
        return made

    return make


def json_arguments(text: str | None) -> dict[str, Any] | None:
    """Return the arguments of a model that a command line gives as JSON; None for none.

    Args:
        text: such as ``{"num_classes": 10}``.

    Raises:
        InputError: if it is no JSON object.
    """
    if text is None:
        return None
    try:
        found = parse_json(text)
    except ValueError as error:
        raise InputError(f"--model-args should be JSON, not {text}: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f'--model-args should be a JSON object, as {{"num_classes": 10}}: {text}')
    return found


def _well_formed(name: str) -> str:
    """Return how a name should look that does not."""
    path, _, attribute = name.partition(":")
    stem = path.removesuffix(".py").strip("./").replace("/", ".")
    if path.endswith(".py") or "/" in path:
        return f"give the module as it is imported: {stem}:{attribute or 'Net'}"
    before, dot, last = path.rpartition(".")
    if not attribute and dot:
        return f"put a colon before the class or function: {before}:{last}"
    return "it should look like package.module:Net"


def _imported(path: str) -> ModuleType:
    """Return a module, imported with the current folder before all others."""
    importlib.invalidate_caches()  # of a file that was written a moment ago
    with _current_folder_first():
        try:
            with _told(path):
                return importlib.import_module(path)
        except InputError as error:
            missing = error.__cause__
            if not isinstance(missing, ModuleNotFoundError) or not missing.name:
                raise
            if f"{path}.".startswith(f"{missing.name}."):
                raise InputError(_no_module(missing.name)) from missing
            raise InputError(
                f"{path} imports {missing.name}, which is not installed; install it beside "
                "lightning_recon"
            ) from missing


def _no_module(path: str) -> str:
    """Return in words that a module is not on the path, with those that are there."""
    before, _, last = path.rpartition(".")
    parent = sys.modules.get(before)
    places = getattr(parent, "__path__", []) if before else [str(Path.cwd())]
    where = f"the package {before}" if before else f"{Path.cwd()} or on Python's path"
    return (
        f"there is no module {last} in {where}"
        f"{_nearest(last, [found.name for found in pkgutil.iter_modules(places)])}; start in the "
        "folder that holds it, or set PYTHONPATH"
    )


def _found(module: ModuleType, name: str) -> Any:
    """Return what a module holds under a name."""
    if hasattr(module, name):
        return getattr(module, name)
    own = [
        key
        for key, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ or isinstance(value, nn.Module)
    ]
    raise InputError(
        f"the module {module.__name__} holds no {name}{_nearest(name, own)} ({module.__file__})"
    )


def _nearest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(sorted(known)[:8])}" if known else ""


def _check_arguments(name: str, made_by: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise InputError unless a class or function takes these arguments, and needs no others."""
    try:
        takes = inspect.signature(made_by).parameters.values()
    except (TypeError, ValueError):  # of what is not written in Python
        return
    named = [part for part in takes if part.kind not in (part.VAR_POSITIONAL, part.VAR_KEYWORD)]
    if not any(part.kind is part.VAR_KEYWORD for part in takes):
        names = [part.name for part in named if part.kind is not part.POSITIONAL_ONLY]
        for argument in arguments:
            if argument not in names:
                nearest = _nearest(argument, names) or "; it takes none"
                raise InputError(f"{name} takes no argument {argument}{nearest}")
    needed = [part.name for part in named if part.default is part.empty]
    if missing := [argument for argument in needed if argument not in arguments]:
        raise InputError(
            f"{name} needs the argument{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            "give a value for each, or name a function that needs none"
        )


@contextmanager
def _current_folder_first() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Make one line of what a user's code raises."""
    try:
        yield
    except InputError:
        raise
    except SystemExit as error:
        raise InputError(
            f'{name} ends the program; put what it runs below if __name__ == "__main__"'
        ) from error
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(str(error).split())
        raise InputError(
            f"{name} raises {type(error).__name__}: {reason} ({last.filename}, line {last.lineno})"
        ) from error
