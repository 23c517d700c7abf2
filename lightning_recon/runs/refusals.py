"""What the parser refuses, in one line: the file, the key, the reason, and what to do.

jsonargparse prints a tree of reasons, all alternatives of every option on the way included.
"""

import ast
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError

from lightning_recon.documents import read_yaml
from lightning_recon.errors import InputError, input_error_in, instead, program
from lightning_recon.runs.parser import NO_OPTION

_FRAME = (
    "Does not validate",
    "Errors:",
    "Given value",
    "Problem with given class_path",
    "Subtypes:",
    "Not a valid subclass",
    "Subclass types expect",
    "- a class path (str)",
    "- a dict with",
)
"""How the lines of jsonargparse begin that only lead to the reason."""
_LISTED = "here are "
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")


@contextmanager
def explained(words: Sequence[str]) -> Iterator[None]:
    """Within this context what the parser refuses is said in one line, with the file it stands in.

    Args:
        words: the command and its options.

    Raises:
        InputError: in the place of jsonargparse's own.
    """
    try:
        yield
    except ArgumentError as error:
        if input_error_in(error):
            raise
        text = str(error)
        line = f"{_source(text, words)}{explain(text, words[0])}"
        if early := _before_config(words):
            first = f"put --config FILE first, before {early}: the file names the class"
            line = first if early.endswith(".help") else f"{line}; {first}"
        raise InputError(line) from error


def _before_config(words: Sequence[str]) -> str | None:
    """Return an option of the attack or the data that stands before the file that names these."""
    for place, word in enumerate(words):
        if word.partition("=")[0] in ("--config", "-c"):
            early = (one.partition("=")[0] for one in words[:place])
            return next((one for one in early if re.match(r"--(model|data)\.", one)), None)
    return None


def explain(text: str, command: str = "test") -> str:
    """Return in one line what jsonargparse says at length.

    Args:
        text: of an ArgumentError.
        command: whose help lists the options.
    """
    if text.startswith("the following arguments are required"):
        is_run = re.search(r"\.(model|data)\b", text)
        return f"{text}; {'give --config configs/NAME.yaml' if is_run else 'see --help'}"
    if "add_function_arguments() got an unexpected" in text:
        return "a class_path names a function; name a class, or leave it out"
    keys, classes = _keys(text), re.findall(r"given class_path '([\w.]+)'", text)
    key = ".init_args.".join(keys)
    if NO_OPTION in text:
        return _unknown_option(text, key, classes, command)
    if named := _missing_class(text, keys, classes):
        return f"{key}: {named}" if key else named
    if not keys:
        return " ".join(text.split())
    if misnamed := _misnamed(text):
        return f"{key}: {misnamed}"
    if module := _missing_in_module(text):
        return f"{key}: {module}"
    if classes:
        key += f" ({classes[-1].rpartition('.')[2]})"
    reason = _innermost_reason(text)
    modules = re.findall(r"'class_path': '([\w.]+)\.\w+'", text)
    broken = [module for module in modules if module not in sys.modules]
    if broken and not reason.startswith(("Expected", "takes", "the following")):
        reason = f"the module {broken[0]} cannot be imported: {reason}"
    return f"{key}: {reason}"


def _keys(text: str) -> list[str]:
    """Return the options on the way to the reason, the outermost first."""
    keys: list[str] = []
    depth = -1
    for line in text.splitlines():
        found = re.match(r'(?P<indent>[ -]*)Parser key "(?P<key>[\w.+]+)":', line)
        if found and len(found["indent"]) > depth:
            depth = len(found["indent"])
            keys.append(found["key"].removesuffix("+"))
    if asked := re.search(r"--([\w.]+)\.help: ", text):
        keys.append(asked[1])
    return keys


def _unknown_option(text: str, key: str, classes: Sequence[str], command: str) -> str:
    """Return a line on an option that does not exist, with the help that lists those that do."""
    said = re.search(rf"{NO_OPTION}.*", text)
    assert said is not None
    reason = re.sub(r"\.? Got value: Namespace.*", "", said[0])
    if not key:
        return reason if _LISTED in reason else f"{reason} (all of them: --help)"
    made_later = re.search(r"Got value: Namespace\(class_path='([\w.]+)'", said[0])
    path = made_later[1] if made_later else classes[-1] if classes else ""
    name = path.rpartition(".")[2]
    help_of = f" (all of them: {program()} {command} --config FILE --{key}.help {name})"
    return f"{key} ({name}): {reason}{'' if _LISTED in reason else help_of}"


def _missing_class(text: str, keys: Sequence[str], classes: Sequence[str]) -> str | None:
    """Return a line on a class that nothing goes by the name of."""
    found = _NO_CLASS.search(text)
    if not found or any(path.endswith(f".{found[1]}") for path in classes):
        return None  # another alternative knows the class, and says what is wrong
    from lightning_recon.runs.allowed import names_for  # imports torch

    meant = instead(found[1], names_for(keys, classes))
    return f"there is no class {found[1]}{meant} (your own: by its module, as in mine.Net)"


def _missing_in_module(text: str) -> str | None:
    """Return a line on a class path that leads nowhere."""
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        module = sys.modules.get(found[1])
        inside = [name for name, part in vars(module or re).items() if isinstance(part, type)]
        if f".{found[2]}'" not in text:  # a module on the way to the class
            inside = [part.name for part in pkgutil.iter_modules(getattr(module, "__path__", []))]
        return f"there is no {found[2]} in {found[1]}{instead(found[2], inside)}"
    if found := re.search(r"No module named '([\w.]+)'", text):
        path = re.findall(r"given class_path '([\w.]+)'", text)[-1:]
        is_named = re.search(rf"'{re.escape(found[1])}(\.\w+)+'", text)
        if path and not is_named and not f"{path[0]}.".startswith(f"{found[1]}."):
            return f"{path[0]} cannot be imported: it needs the module {found[1]}"
        return (
            f"there is no module {found[1]}; put the folder that holds it on the path: "
            f"PYTHONPATH=FOLDER {program()} ..."
        )
    return None


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
    for line in re.sub(r'Parser key "[\w.+]+": *', "", text).splitlines():
        said = line.lstrip(" -")
        if said and not line.lstrip().startswith(_FRAME) and not said.startswith(_FRAME):
            depth = len(line) - len(said)
            link = " or " if line.lstrip().startswith("- ") else " "
            reasons[depth] = f"{reasons[depth]}{link}{said}" if depth in reasons else said
    reason = reasons[max(reasons)] if reasons else " ".join(text.split())
    base = re.findall(r"Not a valid subclass of (\w+)", text)
    if base and reason == "Expected a <class 'NoneType'>":
        reason = f"Expected a class below {base[-1]}, by class_path and init_args"
    elif not reason.startswith("Expected"):
        reason = reason.replace(" or Expected a <class 'NoneType'>", "")
    given = re.search(r"Given value: (?!NestedArg|Namespace)(.{1,80})$", text, flags=re.MULTILINE)
    if given and reason.startswith("Expected") and "Got value" not in reason:
        reason += f"; got {given[1]}"
        if re.match(r"Expected a (?:<class ')?str\b", reason) and given[1][0] not in "[{":
            reason += "; in YAML, quote a text that looks like a number or a date"
    reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.", r"\1", reason)
    return _one_of(reason) or reason


def _one_of(reason: str) -> str | None:
    """Return a line on a value that is none of some words; None for other reasons."""
    given = re.search(r"(?:Got value: |; got )(.*)$", reason)
    words = re.findall(r"Literal(\[.*?\])(?=\W)", reason.replace("Optional", ""))
    if not given or not words:
        return None
    others = [word for word in re.findall(r"Expected a (\w+)", reason) if word != "Literal"]
    literals = [str(word) for part in words for word in ast.literal_eval(part)]
    kinds = ["null" if other == "NoneType" else f"a {other}" for other in others]
    allowed = ", ".join(dict.fromkeys([*literals, *kinds]))
    return f"takes {allowed}, not {given[1]}{instead(given[1], literals, is_listed=False)}"


def _source(text: str, words: Sequence[str]) -> str:
    """Return the file that holds the option in question, with a colon; nothing if none does."""
    keys = _keys(text)
    option = re.search(rf"{NO_OPTION} (?:--)?([\w.]+)", text)
    if option:
        keys.append(option[1])
    parts = [part for key in keys for part in key.split(".") if part != "init_args"]
    key = ".".join(parts)
    if any(word.lstrip("-").replace("init_args.", "").startswith(key) for word in words if key):
        return ""
    for path in reversed(config_files(words)):
        try:
            content = read_yaml(path)
        except (OSError, InputError):
            continue
        if key and _holds(content, parts):
            return f"{path}: "
    return ""


def config_files(words: Sequence[str]) -> list[Path]:
    """Return the configuration files that a command line names."""
    files = []
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in ("--config", "-c"):
            files.append(Path(value if equals else "".join(words[place + 1 : place + 2])))
    return files


def check_seeds(content: Mapping[str, Any], where: str) -> None:
    """Make sure that a configuration has one seed, for no other one would be read.

    Args:
        content: of a file, or of a cell.
        where: what an error names.

    Raises:
        InputError: if the attack or the data have another one.
    """
    seed = content.get("seed_everything", 0)
    for section in ("model", "data"):
        options = content.get(section)
        options = options.get("init_args") if isinstance(options, Mapping) else None
        own = options.get("seed", seed) if isinstance(options, Mapping) else seed
        if own != seed:
            raise InputError(
                f"{where}: {section}.init_args.seed is {own}, but all random numbers of a run "
                f"begin with seed_everything, which is {seed}; set that one alone"
            )


def check_seed_words(words: Sequence[str]) -> None:
    """Do as :func:`check_seeds` for a command line and the files that it names."""
    for word in words:
        option = word.partition("=")[0]
        if option.replace(".init_args", "") in ("--model.seed", "--data.seed"):
            raise InputError(
                f"{option} would not be read: all random numbers of a run begin with "
                "--seed_everything"
            )
    for path in config_files(words):
        with suppress(OSError):  # the parser's to tell
            content = read_yaml(path)
            if isinstance(content, dict):
                check_seeds(content, str(path))


def _holds(content: Any, parts: Sequence[str]) -> bool:
    """Whether a configuration has these keys below each other, others between them left out."""
    if isinstance(content, dict):
        if parts[0] in content and (len(parts) == 1 or _holds(content[parts[0]], parts[1:])):
            return True
        content = list(content.values())
    return isinstance(content, list) and any(_holds(entry, parts) for entry in content)
