"""Whether JSON conforms to the typed dictionaries of the schema."""

import types
from typing import Literal, get_args, get_origin, get_type_hints, is_typeddict


def problems(hint, value, where="results"):
    """What of a value of JSON does not conform to its type."""
    options = get_args(hint) if get_origin(hint) is types.UnionType else (hint,)
    if value is None:
        return [] if types.NoneType in options else [f"{where} is null"]
    hint = options[0]
    kind = get_origin(hint) or hint
    if is_typeddict(hint):
        if not isinstance(value, dict):
            return [f"{where} is no object"]
        hints = get_type_hints(hint)
        found = [f"{where}.{name} is missing" for name in hint.__required_keys__ - value.keys()]
        found += [f"{where}.{name} is unknown" for name in value.keys() - hints.keys()]
        return found + [
            problem
            for name in value.keys() & hints.keys()
            for problem in problems(hints[name], value[name], f"{where}.{name}")
        ]
    if kind is Literal:
        return [] if value in get_args(hint) else [f"{where} is {value!r}"]
    if kind in (dict, list) and isinstance(value, kind):
        items = value.items() if kind is dict else enumerate(value)
        inner = get_args(hint)[-1]
        return [p for name, one in items for p in problems(inner, one, f"{where}.{name}")]
    allowed = (int, float) if kind is float else kind
    is_right = isinstance(value, allowed) and isinstance(value, bool) == (kind is bool)
    return [] if is_right else [f"{where} is {value!r}, no {kind.__name__}"]


def names_of(hint):
    """Every key of a typed dictionary and of those within."""
    if is_typeddict(hint):
        for name, inner in get_type_hints(hint).items():
            yield name
            yield from names_of(inner)
    for inner in get_args(hint):
        yield from names_of(inner)
