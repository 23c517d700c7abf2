"""Defaults that a class sets where the command line cannot see them, and would override them.

The parser reads the options of a class from its signature, and those that its ``**kwargs`` hand on
from the signatures of its bases.  What nobody gives it hands over with the default that it read.
So a ``kwargs.setdefault("distance", "cosine")`` holds from Python, and not from a configuration,
without a word.  Such a class is refused: its default belongs into its signature.
"""

import ast
import inspect
import sysconfig
import textwrap
from collections.abc import Iterator
from typing import Any

from lightning_recon.errors import InputError

_CHANGING = ("setdefault", "update")
"""Methods of a dictionary that set what nobody gave; ``pop`` and ``get`` the parser understands."""
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def check_defaults(found: type[Any], key: str = "") -> None:
    """Make sure that the command line sees the defaults of a class.

    Looked at are classes below one of ours, and all that are not installed as a package.

    Args:
        found: the class.
        key: the option that names it, for the message.

    Raises:
        InputError: naming the class, the line and what to write instead.
    """
    for ancestor in found.__mro__:
        making = vars(ancestor).get("__init__")
        if not inspect.isfunction(making) or not _is_own(ancestor):
            continue
        if (line := hidden_default(making)) is not None:
            name = f"{ancestor.__module__}.{ancestor.__qualname__}"
            raise InputError(
                f"{f'{key}: ' if key else ''}{name} changes what it hands on to its base within "
                f"__init__ ({line}); the command line does not see that, and would hand on the "
                "base's own default; write the option into the signature, such as "
                "def __init__(self, ..., distance: Distance = 'cosine', **kwargs)"
            )


def hidden_default(making: Any) -> str | None:
    """Return the first statement of an ``__init__`` that changes its ``**kwargs``; None: none.

    Args:
        making: a function; one whose source is not at hand counts as one that changes nothing.
    """
    name = inspect.getfullargspec(making).varkw
    if name is None:
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(making)))
    except (OSError, TypeError, SyntaxError):
        return None
    nodes = list(ast.walk(tree))
    if not any(isinstance(node, ast.Call) and _hands_on(node, name) for node in nodes):
        return None
    found = (node for node in nodes if name in _changed(node))
    return next((ast.unparse(node).splitlines()[0] for node in found), None)


def _hands_on(call: ast.Call, name: str) -> bool:
    given = (keyword.value for keyword in call.keywords if keyword.arg is None)
    return any(isinstance(value, ast.Name) and value.id == name for value in given)


def _changed(node: ast.AST) -> Iterator[str]:
    """Yield the names of the variables that a node sets, or into which it sets something."""
    match node:
        case ast.Assign(targets=targets):
            places = targets
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            places = [target]
        case ast.NamedExpr(target=target):
            places = [target]
        case ast.Call(func=ast.Attribute(value=value, attr=method)) if method in _CHANGING:
            places = [value]
        case _:
            return
    for place in places:
        inner = place.value if isinstance(place, ast.Subscript) else place
        if isinstance(inner, ast.Name):
            yield inner.id


def _is_own(found: type[Any]) -> bool:
    """Whether a class is somebody's own: below one of ours, or not installed."""
    if found.__module__.startswith("lightning_recon."):
        return True
    if any(base.__module__.startswith("lightning_recon.") for base in found.__mro__):
        return True
    try:
        return not inspect.getfile(found).startswith(_INSTALLED)
    except (OSError, TypeError):  # made without a file
        return False
