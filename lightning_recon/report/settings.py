"""The settings in which runs differ, from the configurations that they left."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_recon.documents import parse_yaml
from lightning_recon.errors import InputError
from lightning_recon.report.page import DASH, Table

_MAX_SETTINGS = 300
_MAX_LENGTH = 120  # of a value


def differing_settings(configs: Mapping[str, str]) -> Table:
    """Return the keys in which configurations differ.

    Args:
        configs: the text of each run's ``config.yaml``, empty where there is none, by the run's
            label.
    """
    flat = [dict(_flattened(_parsed(config))) for config in configs.values()]
    keys = sorted(set().union(*flat))
    unlike = [key for key in keys if len({config.get(key, DASH) for config in flat}) > 1]
    rows = [
        [key, *(config.get(key, DASH)[:_MAX_LENGTH] for config in flat)]
        for key in unlike[:_MAX_SETTINGS]
    ]
    caption = "From config.yaml of each run."
    missing = [label for label, config in configs.items() if not config]
    if missing:
        caption += f" There is none of {', '.join(missing)}."
    elif not rows:
        caption = "The configurations are the same."
    if len(unlike) > len(rows):
        caption += f" The first {len(rows)} of {len(unlike)} keys are shown."
    return Table(caption, ["Key", *configs], rows)


def _parsed(config: str) -> Any:
    try:
        return parse_yaml(config, "config.yaml")
    except InputError:
        return config


def _flattened(value: Any, path: str = "") -> Iterable[tuple[str, str]]:
    """Return every value under its dotted path; numbers count entries of lists."""
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    elif value is not None or path:
        yield path, str(value)
    for name, part in parts:
        yield from _flattened(part, f"{path}.{name}" if path else str(name))
