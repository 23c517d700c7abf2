"""Input that cannot be used: one line on the terminal, and the exit code 2."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentError

from lightning_recon.errors import InputError, input_error_in

_FRAME = (
    "Does not validate",
    "Errors:",
    "Given value",
    "Problem with given class_path",
    "Subtypes:",
)
"""How the lines of jsonargparse begin that only lead to the reason."""


@dataclass
class Outcome:
    """What a command comes to."""

    exit_code: int = 0


@contextmanager
def report_bad_input() -> Iterator[Outcome]:
    """Turn input that cannot be used into one line on the terminal and the exit code 2."""
    outcome = Outcome()
    try:
        yield outcome
    except (InputError, ArgumentError, ValueError, OSError) as error:
        message = _explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)  # noqa: T201
        outcome.exit_code = 2
    except RuntimeError as error:
        # one process has said what is wrong and left; the others only lose the connection
        if "closed by peer" not in str(error):
            raise
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            print("error: another process ended; its message says why", file=sys.stderr)  # noqa: T201
        outcome.exit_code = 2


def _explain(error: Exception) -> str | None:
    """Return one line on what is wrong with the input; None if the error is not the input's."""
    if found := input_error_in(error):
        return " ".join(str(found).split())
    if isinstance(error, OSError):
        name = error.filename
        return (
            None if name is None else f"cannot use {Path(str(name)).absolute()}: {error.strerror}"
        )
    if not isinstance(error, ArgumentError):
        return None
    text = str(error)
    if text.startswith("the following arguments are required"):
        is_run = re.search(r"\.(model|data)\b", text)
        return f"{text}; {'give --config configs/NAME.yaml' if is_run else 'see --help'}"
    if "add_function_arguments() got an unexpected" in text:
        return "a class_path names a function; name a class, or leave it out"
    keys = re.findall(r'Parser key "([\w.]+)":', text)
    if not keys:
        return " ".join(text.split())
    where = ".".join(dict.fromkeys(keys))
    if found_path := re.search(r"Expected a dot import path string: (\S+)", text):
        return (
            f"{where}: there is no class {found_path[1]}; give the name of a class of "
            "lightning_recon or the full import path of one"
        )
    if misnamed := _misnamed(text):
        return f"{where}: {misnamed}"
    if classes := re.findall(r"given class_path '[\w.]*?(\w+)'", text):
        where += f" ({classes[-1]})"
    return f"{where}: {_innermost_reason(text)}"


def _misnamed(text: str) -> str | None:
    """Return a line on what is named in the place of a class of another kind, if that is wrong."""
    wrong = r"Import path (?:(\S+) )?does not correspond to a subclass of (\w+)"
    made_later = (
        r"Expected '([\w.]+)' to be a (?:subclass of|function that returns) (.*?)\.(?:\W|$)"
    )
    found: list[tuple[str, str]] = re.findall(wrong, text) or re.findall(made_later, text)
    given = re.search(r"^ *Given value: ([\w.]+)$", text, flags=re.MULTILINE)
    if not found:
        return None
    path = found[-1][0] or (given[1] if given else "what it names")
    if f"given class_path '{path}'" in text:  # one of several kinds, and other options do not fit
        return None
    words = re.findall(r"\b[A-Z]\w+", " ".join(bases for _, bases in found))
    kinds = " or ".join(dict.fromkeys(word for word in words if word != "Union"))
    if kinds == "Target":
        return (
            f"{path} is no class below Target; name one of these, or give a torch.nn.Module to "
            "ModuleTarget as its module (docs/python.md)"
        )
    return f"{path} is no class below {kinds}; name one of these, or leave it out"


def _innermost_reason(text: str) -> str:
    """Return what stands deepest in the tree of reasons that jsonargparse prints."""
    reasons: dict[int, str] = {}
    for line in re.sub(r'Parser key "[\w.]+": *', "", text).splitlines():
        said = line.lstrip(" -")
        if said and not said.startswith(_FRAME):
            depth = len(line) - len(said)
            link = " or " if line.lstrip().startswith("- ") else " "
            reasons[depth] = f"{reasons[depth]}{link}{said}" if depth in reasons else said
    reason = reasons[max(reasons)] if reasons else " ".join(text.split())
    given = re.search(r"Given value: (?!NestedArg|Namespace)(.{1,80})$", text, flags=re.MULTILINE)
    if given and reason.startswith("Expected") and "Got value" not in reason:
        reason += f"; got {given[1]}"
        if re.match(r"Expected a (?:<class ')?str\b", reason) and given[1][0] not in "[{":
            reason += "; in YAML, quote a text that looks like a number or a date"
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.", r"\1", reason)
