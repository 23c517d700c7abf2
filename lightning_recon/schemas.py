"""Types of JSON as type hints: a value that was read is held against one before it is used."""

import re
import types
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

_NAMES = {str: "text", bool: "true or false", int: "whole number", float: "number"}
_LARGEST_INTEGER = 2**63
Place = tuple[str | int, ...]
"""Keys and numbers of items on the way to a value."""


class MisfitError(Exception):
    """A value that a schema does not allow.

    Args:
        place: of the value.
        reason: what it is instead.
    """

    def __init__(self, place: Place, reason: str) -> None:
        super().__init__(reason)
        self.place = place
        self.reason = reason


def told(place: Place) -> str:
    """Return a place in words.

    Examples:
        >>> told(("curves", 0, "client"))
        'curves[0].client'
    """
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return words.removeprefix(".")


def conform(hint: Any, value: Any, place: Place = ()) -> Any:
    """Return a value as a type hint says.

    Args:
        hint: a type of JSON, ``X | None``, ``Literal``, a sequence, a mapping, a tuple, a
            TypedDict or a NamedTuple.  What a NamedTuple lacks keeps its default, and None counts
            as lacking, as in a Mapping; of the others, all that they need must be there.
        value: as JSON gives it.
        place: of the value, for the error.

    Raises:
        MisfitError: if it is of another type, or a whole number above 64 bits.
    """
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, Union):  # X | None
        inner = [kind for kind in get_args(hint) if kind is not type(None)]
        return None if value is None else conform(inner[0], value, place)
    if origin is Literal:
        if isinstance(value, Hashable) and value in get_args(hint):
            return value
        known = ", ".join(map(str, get_args(hint)))
        raise MisfitError(place, f"should be one of {known}, not {_shown(value)}")
    kind = origin or hint
    if kind in _NAMES:
        return _plain(kind, value, place)
    is_record = is_typeddict(kind) or hasattr(kind, "_fields")
    if not is_record and issubclass(kind, Sequence):
        return _items(kind, get_args(hint), value, place)
    if not isinstance(value, Mapping):
        raise MisfitError(place, f"is {_shown(value)}, no object")
    if is_record:
        return _record(kind, value, place)
    inner = get_args(hint)[1]
    there = [(name, one) for name, one in value.items() if one is not None or kind is dict]
    return {name: conform(inner, one, (*place, name)) for name, one in there}


def _plain(kind: type, value: Any, place: Place) -> Any:
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or isinstance(value, bool) != (kind is bool):
        raise MisfitError(place, f"is {_shown(value)}, no {_NAMES[kind]}")
    if isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
        raise MisfitError(place, "is a number of more than 64 bits")
    return value


def _items(kind: type, inner: tuple[Any, ...], value: Any, place: Place) -> Any:
    if not isinstance(value, list | tuple):
        raise MisfitError(place, f"is {_shown(value)}, no list")
    if kind is tuple and Ellipsis not in inner:
        if len(value) != len(inner):
            raise MisfitError(place, f"has {len(value)} items, not {len(inner)}")
        pairs = zip(inner, value, strict=True)
        return tuple(conform(one, part, (*place, i)) for i, (one, part) in enumerate(pairs))
    found = [conform(inner[0], part, (*place, i)) for i, part in enumerate(value)]
    return tuple(found) if kind is tuple else found


def _record(kind: Any, content: Mapping[str, Any], place: Place) -> Any:
    """Return a TypedDict or NamedTuple; keys that it does not know are kept, or left out."""
    hints = get_type_hints(kind)
    is_dictionary = is_typeddict(kind)
    needed = kind.__required_keys__ if is_dictionary else hints.keys() - kind._field_defaults.keys()
    if lacking := needed - content.keys():
        raise MisfitError(place, f"lacks {', '.join(sorted(lacking))}")
    found = {
        name: conform(hint, content[name], (*place, name))
        for name, hint in hints.items()
        if content.get(name) is not None or (name in content and name in needed)
    }
    return {**content, **found} if is_dictionary else kind(**found)


def _shown(value: Any) -> str:
    return repr(re.sub(r"\s+", " ", str(value)[:60])[:40])
