"""A list that is given later replaces the first one whole.

jsonargparse merges two lists of mappings item by item where their lengths are equal, so that an
option of the first one's item stays in the second's.  An empty list in between replaces: it is put
before every list of mappings that follows another one at the same key.  ``KEY+`` appends, and
dotted edits (``defenses.0.init_args...``) change one item, as they are.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from lightning_recon.documents import MAX_YAML_BYTES, read_text
from lightning_recon.errors import InputError

_FILES = ("--config", "-c")


def replacing_lists(words: Sequence[str]) -> list[str]:
    """Return the words of a command line, with an empty list before each list that replaces one.

    Args:
        words: the command, its options and their values.  Files that cannot be read are left to
            the parser, which says so.

    Examples:
        >>> replacing_lists(["test", "--d", "[{a: 1}]", "--d", "[{b: 2}]"])
        ['test', '--d', '[{a: 1}]', '--d', '[]', '--d', '[{b: 2}]']
    """
    result: list[str] = []
    held: set[str] = set()
    for option, value, given in _options(words):
        content = _content(option, value)
        key = "" if option in _FILES else option.removeprefix("--")
        lists = set(_lists(content, key))
        for path in sorted(lists & held):
            result += [f"--{path}", "[]"]
        held |= lists
        result += given
    return result


def _options(words: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the options with their values, both empty for other words, and the words they are."""
    place = 0
    while place < len(words):
        name, equals, value = words[place].partition("=")
        given = [words[place]]
        is_option = name.startswith("-")
        following = words[place + 1 : place + 2]
        if is_option and not equals and following and not following[0].startswith("--"):
            value = following[0]
            given.append(value)
        yield (name, value, given) if is_option else ("", "", given)
        place += len(given)


def _content(option: str, value: str) -> Any:
    """Return what an option holds; None for what is no mapping and no list."""
    if not option or option.endswith("+"):
        return None
    try:
        text = read_text(Path(value), MAX_YAML_BYTES) if option in _FILES else value
        content = get_loader("yaml")(text) if text else None
    except (OSError, ValueError, InputError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict | list) else None


def _lists(content: Any, key: str) -> Iterator[str]:
    """Yield the keys of all lists of mappings below a key, those inside of lists left out."""
    if isinstance(content, list):
        if any(isinstance(entry, dict) for entry in content):
            yield key
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _lists(value, f"{key}.{name}" if key else str(name))
