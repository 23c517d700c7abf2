"""Text that somebody else may have written: read as UTF-8, bounded, and held against a schema.

A parser that recurses, or follows anchors, can be made to run for hours by a few hundred bytes.  So
size, depth and what anchors add are bounded before anything is built; every bound is far above what
this program writes, and is told with its reason in docs/trust.md.
"""

import json
import math
from pathlib import Path
from typing import Any

from lightning_recon.errors import InputError
from lightning_recon.schemas import MisfitError, Place, told

MAX_YAML_BYTES = 2**24
"""16 MiB: a configuration takes 5 KB, and one that lists the images of 10^5 clients 10 MB."""
MAX_JSON_BYTES = 2**28
"""256 MiB: ``results.json`` of 10^5 clients takes 30 MB."""
MAX_DEPTH = 64
"""Of lists and objects: a configuration of this program has 10 levels; Python gives up at 1,000."""
MAX_ALIASED = 100_000
"""Values that the anchors of a YAML may stand for beside those that are written out."""


# --- text --------------------------------------------------------------------------------------


def read_text(path: Path, largest: int = MAX_JSON_BYTES) -> str:
    """Return what a file says, in UTF-8 whatever the locale is.

    Args:
        path: of the file.
        largest: bytes that it may have.

    Raises:
        InputError: if it has more, or is no UTF-8; the line is named.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise InputError(f"{path} has more than {largest:,} bytes, and is not read")
    return decoded(content, str(path))


def decoded(content: bytes, source: str, first_line: int = 1) -> str:
    """Return bytes as text.

    Args:
        content: in UTF-8.
        source: what an error names.
        first_line: number of the first line.

    Raises:
        InputError: naming the line that is no UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        byte = content[error.start]
        raise InputError(f"{source}, line {line}: no UTF-8: a byte 0x{byte:02X}") from error


# --- JSON --------------------------------------------------------------------------------------


def read_json(path: Path, advice: str, largest: int = MAX_JSON_BYTES) -> tuple[dict[str, Any], str]:
    """Return the object that a file of JSON holds, and its text; NaN and infinity are None.

    Args:
        path: of the file.
        advice: what to do about a file that cannot be used.
        largest: bytes that it may have.

    Raises:
        InputError: naming the file, the line and the reason.
    """
    try:
        text = read_text(path, largest)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; {advice}") from error
    except InputError as error:
        raise InputError(f"{error}; {advice}") from error
    try:
        content = parse_json(text)
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise InputError(
            f"{path}, line {line} is truncated or no JSON ({error}); {advice}"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}, line 1 holds no object of names and values; {advice}")
    return content, text


def parse_json(text: str, *, keeps_nan: bool = False) -> Any:
    """Return what JSON says.

    Args:
        text: the JSON.
        keeps_nan: whether NaN and infinity, which JSON does not know, are numbers; else None.

    Raises:
        ValueError: if it is none, holds a name twice, or is nested too deeply.
    """
    constant = float if keeps_nan else _none
    hooks = {"object_pairs_hook": _once_each, "parse_constant": constant}
    try:
        return json.loads(text, **hooks, parse_float=_finite)  # type: ignore[arg-type]
    except RecursionError as error:
        raise ValueError("lists or objects are nested too deeply") from error


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _none(_: str) -> None:
    return None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:40]} stands twice in one object")
    return found


def refusal(path: Path, text: str, misfit: MisfitError, advice: str) -> InputError:
    """Return the line on a value that the schema of a file does not allow.

    Args:
        path: of the file.
        text: of the file, JSON.
        misfit: what is wrong.
        advice: what to do.
    """
    line = _line_of(text, misfit.place)
    return InputError(f"{path}, line {line}: {told(misfit.place)} {misfit.reason}; {advice}")


def _line_of(text: str, place: Place) -> int:
    """Return the line in which a value of some JSON begins; JSON is YAML, which has marks."""
    import yaml

    try:
        node = yaml.compose(text, Loader=_loader())
        for part in place:
            if isinstance(node, yaml.MappingNode):
                node = next(value for key, value in node.value if key.value == str(part))
            else:
                node = node.value[part]
        return int(node.start_mark.line) + 1
    except (yaml.YAMLError, StopIteration, LookupError, AttributeError, TypeError, RecursionError):
        return 1


# --- YAML --------------------------------------------------------------------------------------


def read_yaml(path: Path, largest: int = MAX_YAML_BYTES) -> Any:
    """Return what a file of YAML holds.

    Args:
        path: of the file.
        largest: bytes that it may have.

    Raises:
        InputError: naming the file, the line and the reason, if it is no YAML, holds a key twice,
            or is above a bound.
        OSError: if it cannot be read.
    """
    return parse_yaml(read_text(path, largest), str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Return what YAML says; plain values only.

    Args:
        text: the YAML.
        source: what an error names.

    Raises:
        InputError: naming the source, the line and the reason.
    """
    import yaml

    try:
        check_yaml(text, source)
        return yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise _no_yaml(source, error) from error


def check_yaml(text: str, source: str) -> None:
    """Make sure that YAML can be built: no key twice, not too deep, not blown up by anchors.

    Args:
        text: the YAML.
        source: what an error names.

    Raises:
        InputError: naming the source, the line and the reason.
        yaml.YAMLError: if it is no YAML.
    """
    import yaml

    try:
        _check_events(yaml.parse(text, Loader=_loader()), source)
    except yaml.YAMLError as error:
        if "nesting depth" not in str(error):  # LibYAML's own bound is met first by what is deeper
            raise
        message = f"{source}: lists or keys are nested more than {MAX_DEPTH} deep"
        raise InputError(message) from error
    _check_keys(yaml.compose(text, Loader=_loader()), source)


def _loader() -> Any:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _no_yaml(source: str, error: Exception) -> InputError:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    told = getattr(error, "problem", None) or getattr(error, "context", None) or error
    return InputError(f"{source}{where}: no YAML: {' '.join(str(told).split())}")


def _check_events(events: Any, source: str) -> None:
    """Walk over the events, which a parser gives without recursion, and count what they build."""
    size = _Size()
    for event in events:
        size.add(event)
        where = f"{source}, line {event.start_mark.line + 1}"
        if size.depth > MAX_DEPTH:
            raise InputError(f"{where}: lists or keys are nested more than {MAX_DEPTH} deep")
        if size.aliased > MAX_ALIASED:
            raise InputError(
                f"{where}: anchors stand for more than {MAX_ALIASED:,} values; write them out"
            )
        if size.is_circular:
            raise InputError(f"{where}: *{event.anchor} stands for nothing that ends before it")


class _Size:
    """How much the events so far would build."""

    def __init__(self) -> None:
        self.aliased = self._built = 0
        self.is_circular = False
        self._open: list[tuple[str | None, int]] = []
        self._sizes: dict[str, int] = {}

    @property
    def depth(self) -> int:
        """Of the lists and keys that are open."""
        return len(self._open)

    def add(self, event: Any) -> None:
        """Count an event of the parser."""
        import yaml

        if isinstance(event, yaml.AliasEvent):
            self.is_circular = event.anchor not in self._sizes
            self._built += self._sizes.get(event.anchor, 0)
            self.aliased += self._sizes.get(event.anchor, 0)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self._open.pop()
            if anchor:
                self._sizes[anchor] = self._built - before
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open.append((event.anchor, self._built))
            self._built += 1
        elif isinstance(event, yaml.ScalarEvent):
            self._built += 1
            if event.anchor:
                self._sizes[event.anchor] = 1


def _check_keys(node: Any, source: str) -> None:
    """Raise InputError for a key that stands twice; every node is looked at once."""
    import yaml

    waiting, seen_nodes = [node], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen_nodes:
            continue
        seen_nodes.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, value in node.value:
                line, name = key.start_mark.line + 1, str(key.value)
                if name in seen and name != "<<":
                    raise InputError(
                        f"{source}, line {line}: the key {name} stands in line {seen[name]} "
                        "already; leave one"
                    )
                seen[name] = line
                waiting.append(value)
