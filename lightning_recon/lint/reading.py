"""Configurations, as a command line or a file has them."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_recon.documents import read_yaml
from lightning_recon.errors import InputError, missing_file

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")  # 1e-5: a word in YAML 1.1
_BESIDE = ("name", "mechanism", "source")


class Entry(NamedTuple):
    """One configuration."""

    title: str
    where: str
    """It stands, for messages."""
    mechanism: str
    args: Mapping[str, Any]
    positional: tuple[Any, ...]
    facts: Mapping[str, Any]
    model: str | None = None
    """Of the command line alone: a file that somebody sent runs no code."""
    model_args: str | None = None
    source: str | None = None


def from_call(text: str, where: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Return name, positional arguments and others of a call, as Python writes it.

    Args:
        text: such as ``LocalDpMod(clipping_norm=1, sensitivity=1, epsilon=10, delta=1e-5)``; a
            variable, such as the strategy that another one wraps, is read as its name.
        where: it stands, for messages.

    Raises:
        InputError: if it is no call of plain values.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise InputError(f"{where}: {text!r} is no call; see docs/lint.md") from error
    if isinstance(node, ast.Name | ast.Attribute):
        return ast.unparse(node).rpartition(".")[2], (), {}
    if not isinstance(node, ast.Call) or any(word.arg is None for word in node.keywords):
        raise InputError(f"{where}: {text!r} is no call; see docs/lint.md")
    name = ast.unparse(node.func).rpartition(".")[2]
    words = {str(word.arg): _value(word.value, where) for word in node.keywords}
    return name, tuple(_value(value, where) for value in node.args), words


def _value(node: ast.expr, where: str) -> Any:
    if isinstance(node, ast.Name | ast.Attribute | ast.Call):
        return Variable(ast.unparse(node))
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: {ast.unparse(node)} is no plain value") from error


class Variable(str):
    """The name of a value that a call does not say."""

    def __repr__(self) -> str:
        return f"the variable {self}"


def from_file(path: Path) -> list[Entry]:
    """Return the configurations of a file.

    YAML or JSON: one configuration or a list of them; a client's or server's configuration of
    NVIDIA FLARE, of which all filters of results are read; or a run of this project.

    Args:
        path: of the file.

    Raises:
        InputError: if it cannot be read, or holds no configuration.
    """
    if not path.is_file():
        raise InputError(missing_file(path))
    try:
        content = _numbers(read_yaml(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if isinstance(content, dict) and "mechanism" not in content:
        entries = [*_filters(content, str(path)), *_run(content, str(path))]
    else:
        listed = content if isinstance(content, list) else [content]
        entries = [_entry(one, f"{path}, {place}") for place, one in enumerate(listed, 1)]
    if not entries:
        raise InputError(
            f"{path} names no mechanism: give mechanism, filters of NVIDIA FLARE, or a run's model"
        )
    return entries


def _entry(content: Any, where: str) -> Entry:
    """Return a configuration of our own form."""
    if not isinstance(content, dict) or "mechanism" not in content:
        raise InputError(f"{where}: a configuration has a key mechanism; see docs/lint.md")
    given = content["mechanism"]
    if isinstance(given, str):
        name, positional, args = from_call(given, where)
    elif isinstance(given, dict) and isinstance(given.get("name"), str):
        name, positional = given["name"], ()
        args = {key: value for key, value in given.items() if key != "name"}
    else:
        raise InputError(
            f"{where}: mechanism is a call, or has a name and arguments, not {given!r}"
        )
    facts = {key: value for key, value in content.items() if key not in _BESIDE}
    return Entry(
        str(content.get("name") or name),
        where,
        name,
        args,
        positional,
        facts,
        source=content.get("source"),
    )


def _filters(content: Mapping[str, Any], where: str) -> Iterator[Entry]:
    """Yield the filters that a FLARE configuration puts behind tasks."""
    for group in _listed(content, "task_result_filters", where):
        for one in _listed(group, "filters", where):
            name = str(one.get("path") or one.get("name") or "").rpartition(".")[2]
            args = one.get("args") or {}
            if not isinstance(args, dict):
                raise InputError(f"{where}: args of {name} are no keys with values, but {args!r}")
            yield Entry(name, where, name, args, (), {})


def _listed(content: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """Return the mappings that a key lists."""
    listed = content.get(key) or []
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise InputError(f"{where}: {key} should be a list of keys with values, not {listed!r}")
    return listed


def _run(content: Mapping[str, Any], where: str) -> Iterator[Entry]:
    """Yield the chain of a run of this project."""
    model = content.get("model")
    arguments = model.get("init_args") if isinstance(model, dict) else None
    if not isinstance(arguments, dict):
        return
    data = content.get("data")
    named = data.get("init_args") if isinstance(data, dict) else None
    size = named.get("batch_size") if isinstance(named, dict) else None
    facts = {"batch_size": size} if size else {}
    args = {"defenses": arguments.get("defenses"), "client": arguments.get("client")}
    yield Entry(Path(where).stem, where, "Chain", args, (), facts)


def _numbers(content: Any) -> Any:
    """Return what a file holds, numbers such as 1e-5 read as numbers."""
    if isinstance(content, dict):
        return {name: _numbers(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_numbers(value) for value in content]
    return float(content) if isinstance(content, str) and _NUMBER.match(content) else content
