"""The commands that run no Trainer, and the help of them all.

What a command needs is imported inside it: neither ``--help`` nor a typing error waits for torch.
"""

import argparse
import difflib
import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from lightning_recon import __version__
from lightning_recon.errors import InputError

T = TypeVar("T")

LIGHTNING = {
    "fit": "attack one client after the other, with progress and TensorBoard; or train a prior",
    "validate": "score the reconstruction that a checkpoint of fit holds",
    "test": "attack many clients, spread over the devices; --resume goes on with a stopped run",
    "predict": "reconstruct from captured updates, for which nobody has the truth",
}
"""Lightning's commands: what each does, in one line."""

LIGHT = {
    "sweep": "run every combination of the values that one YAML file lists",
    "compare": "put several runs side by side on one page",
    "report": "build the report.html of a run anew",
    "attacks": "list the attacks, with their citations",
    "defenses": "list the defenses, with their citations",
    "data": "list the data sets, with their citations",
    "targets": "list the networks that can be attacked",
    "clients": "list what a client may do between a batch and its update",
    "priors": "list the penalties that an attack can put on images",
    "refiners": "list the networks that can improve a reconstruction",
    "doctor": "tell what is installed, and which devices, data and checkpoints are found",
    "completion": "print the script that completes commands and options at the Tab key",
}
"""The other commands."""
LISTS = {
    "attacks": ("Attack",),
    "defenses": ("Defense",),
    "data": ("AuditDataModule",),
    "targets": ("Target",),
    "clients": ("Client",),
    "priors": ("Prior", "ActivationPrior"),
    "refiners": ("Refiner",),
}
"""Those that list the classes of the package of that name, and what these are below."""

_COMPLETION = """\
print the script that completes commands, options and their values at the Tab key

bash; completes "python cli.py ..." and "./cli.py ...":
  python cli.py completion bash > ~/.lightning_recon.bash
  echo 'source ~/.lightning_recon.bash' >> ~/.bashrc
zsh, into a folder of $fpath; completes "./cli.py ...":
  python cli.py completion zsh > ~/.zfunc/_cli.py
"""
_EXAMPLES = """\
python cli.py COMMAND --help shows the options of a command.

examples:
  python cli.py fit --config configs/ldp_imagenet.yaml
  python cli.py test --config configs/ldp_cifar10.yaml --trainer.devices 2
  python cli.py test --resume lightning_logs/version_0
  python cli.py compare lightning_logs/version_0 lightning_logs/version_1

tab completion: python cli.py completion --help
"""
_FRAME = (
    "Does not validate",
    "Errors:",
    "Given value",
    "Problem with given class_path",
    "Subtypes:",
)
"""How the lines of jsonargparse begin that only lead to the reason."""
_PROG = "python cli.py"
_RUN_HELP = "folder of a run, such as lightning_logs/version_0"


@dataclass
class Outcome:
    """What a command comes to."""

    exit_code: int = 0


def main(args: Sequence[str]) -> int:
    """Run one of the commands that need no Trainer, or show the help of all.

    Args:
        args: what stands after the program's name.

    Returns:
        The exit code: 0; 1 if the doctor finds something broken; 2 for input that cannot be used.
    """
    with report_bad_input() as outcome:
        _check_command(args)
        config = _parser().parse_args(list(args))
        outcome.exit_code = _run(config.subcommand, config[config.subcommand])
    return outcome.exit_code


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


def add_commands(subcommands: Any) -> None:
    """Add the parsers of :data:`LIGHT` to what jsonargparse's ``add_subcommands`` returned."""
    for name, summary in LIGHT.items():
        description = _COMPLETION if name == "completion" else summary
        parser = ArgumentParser(description=description)
        if name == "sweep":  # for completion: lightning_recon.sweep parses, and helps, itself
            parser.add_argument("--config", type=Path)
            parser.add_argument("--resume", type=Path)
            parser.add_argument("--dry-run", action="store_true")
            parser.add_argument("--trainer.devices")
        elif name == "compare":
            parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=_RUN_HELP)
            parser.add_argument(
                "--output",
                type=Path,
                default=Path("comparison.html"),
                help="the page to write, by default comparison.html",
            )
        elif name == "report":
            parser.add_argument("run", type=Path, metavar="RUN", help=_RUN_HELP)
        elif name == "doctor":
            parser.add_argument(
                "--configs",
                type=Path,
                default=Path(__file__).parents[1] / "configs",
                help="folder with the configurations whose data and checkpoints are looked for",
            )
        elif name == "completion":
            parser.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="the shell")
        else:
            parser.add_argument("--json", action="store_true", help="print JSON, for programs")
        subcommands.add_subcommand(name, parser, help=summary)
        parser.prog = f"{_PROG} {name}"


def _parser() -> ArgumentParser:
    """The help of all commands, and the options of those that run no Trainer."""
    parser = ArgumentParser(
        prog=_PROG,
        description="Audit what the updates of federated learning give away about the images.",
        epilog=_EXAMPLES,
        exit_on_error=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lightning_recon {__version__}")
    subcommands = parser.add_subcommands(title="commands", metavar="COMMAND", description=None)
    for name, summary in LIGHTNING.items():
        subcommands.add_subcommand(name, ArgumentParser(), help=summary)
    add_commands(subcommands)
    return parser


def _check_command(args: Sequence[str]) -> None:
    """Raise InputError unless a command that exists stands first, or an option of our own."""
    known = [*LIGHTNING, *LIGHT]
    if not args:
        raise InputError(f"a command is missing: one of {', '.join(known)}; see --help")
    if args[0] in {"-h", "--help", "--version", *known}:
        return
    if args[0].startswith("-"):
        raise InputError(f"the command comes first, before {args[0]}: one of {', '.join(known)}")
    close = difflib.get_close_matches(args[0], known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    raise InputError(f"there is no command {args[0]}; {hint}")


def _run(command: str, options: Namespace) -> int:
    if command in LISTS:
        _list_classes(command, as_json=options.json)
    elif command == "doctor":
        from lightning_recon.doctor import doctor

        return doctor(options.configs)
    elif command == "compare":
        from lightning_recon.comparison import compare_runs

        print(compare_runs(options.runs, options.output))  # noqa: T201
    elif command == "report":
        from lightning_recon.report import write_report

        print(write_report(options.run))  # noqa: T201
    else:
        from lightning_recon.completion import completion_script

        print(completion_script(options.shell))  # noqa: T201
    return 0


def _list_classes(kind: str, *, as_json: bool) -> None:
    """Print what there is of one kind: name, first sentence, citation."""
    package = importlib.import_module(f"lightning_recon.{kind}")
    bases = tuple(getattr(package, name) for name in LISTS[kind])
    classes = {found for base in bases for found in concrete_subclasses(base)}
    entries = [
        {
            "name": found.__name__,
            "class_path": f"{found.__module__}.{found.__name__}",
            "summary": _first_sentence(found.__doc__ or ""),
            "citation": _citation_of(found, kind),
        }
        for found in sorted(classes, key=lambda found: found.__name__)
        if found.__name__ in package.__all__ and found not in bases  # no parts of these
    ]
    if as_json:
        print(json.dumps(entries, indent=2))  # noqa: T201
        return
    for entry in entries:
        print(f"{entry['name']}\n  {entry['summary']}")  # noqa: T201
        if entry["citation"]:
            print(f"  {entry['citation']}")  # noqa: T201


def _citation_of(found: type[Any], kind: str) -> str | None:
    """Return where a class was published; None for kinds of which that is not told."""
    is_told = kind in ("attacks", "defenses", "data")
    return getattr(found, "citation", None) or ("no publication" if is_told else None)


def _first_sentence(docstring: str) -> str:
    return inspect.cleandoc(docstring).split("\n\n")[0].replace("\n", " ").replace("``", "")


def concrete_subclasses(base: type[T]) -> set[type[T]]:
    """All classes of the package below ``base`` that can be built."""
    below: set[type[T]] = set()
    for child in base.__subclasses__():
        below |= concrete_subclasses(child)
    if not inspect.isabstract(base) and base.__module__.startswith("lightning_recon."):
        below.add(base)
    return below


def input_error_in(error: BaseException) -> InputError | None:
    """Return the InputError that an error is, or was made from; jsonargparse wraps them."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


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
    keys = re.findall(r'Parser key "([\w.]+)":', text)
    if not keys:
        return " ".join(text.split())
    where = ".".join(dict.fromkeys(keys))
    if found_path := re.search(r"Expected a dot import path string: (\S+)", text):
        return (
            f"{where}: there is no class {found_path[1]}; give the name of a class of "
            "lightning_recon or the full import path of one"
        )
    if classes := re.findall(r"given class_path '[\w.]*?(\w+)'", text):
        where += f" ({classes[-1]})"
    return f"{where}: {_innermost_reason(text)}"


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
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.", r"\1", reason)
