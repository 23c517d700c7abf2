"""The parsers of the commands that run no Trainer, and the help of them all."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_recon import __version__
from lightning_recon.commands.names import LIGHT, LIGHTNING
from lightning_recon.commands.shipped import shipped
from lightning_recon.errors import program
from lightning_recon.runs.parser import Parser

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
_PROG = program()
_RUN_HELP = "folder of a run, such as lightning_logs/version_0"
_FOLDER_HELP = "folder of a run, of several runs, or of a sweep"


def add_commands(subcommands: Any) -> None:
    """Add the parsers of :data:`LIGHT` to what jsonargparse's ``add_subcommands`` returned."""
    for name, summary in LIGHT.items():
        description = _COMPLETION if name == "completion" else summary
        parser = Parser(description=description)
        _OPTIONS.get(name, _add_list)(parser)
        subcommands.add_subcommand(name, parser, help=summary)
        parser.prog = f"{_PROG} {name}"


def _add_list(parser: Parser) -> None:
    """Add the option of a list of classes."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def _add_sweep(parser: Parser) -> None:
    """Add what completion knows of ``sweep`` and ``recommend``: runs.sweep parses, and helps."""
    parser.add_argument("--config", type=Path)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--trainer.devices")


def _add_compare(parser: Parser) -> None:
    """Add the options of ``compare``."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=_RUN_HELP)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("comparison.html"),
        help="the page to write, by default comparison.html",
    )
    _add_formats(parser, "print a table in LaTeX (booktabs) instead; of a sweep's folder, too")


def _add_formats(parser: Parser, latex_help: str) -> None:
    """Add the kinds of text that a table can be printed as."""
    parser.add_argument("--latex", action="store_true", help=latex_help)
    parser.add_argument("--markdown", action="store_true", help="the same in Markdown")


def _add_figure(parser: Parser) -> None:
    """Add the options of ``figure``."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help=_FOLDER_HELP)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="STEM",
        help="path without suffix, by default figure in the folder, or in the current one",
    )
    parser.add_argument(
        "--width",
        choices=["column", "page"],
        default="column",
        help="column: 3.5 inches; page: 7.16 inches, both columns",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="CLIENT:IMAGE",
        help="images of the grid, by default the first eight with pictures",
    )
    parser.add_argument("--along", metavar="AXIS", help="of a sweep, to draw along; a numeric one")
    parser.add_argument(
        "--panels", metavar="AXIS", help="of a sweep, that has a panel for each of its values"
    )


def _add_configs(parser: Parser) -> None:
    """Add the options of ``configs``."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("--markdown", action="store_true", help="print a table in Markdown")


def _add_report(parser: Parser) -> None:
    """Add the options of ``report``."""
    parser.add_argument("run", type=Path, metavar="RUN", help=_RUN_HELP)


def _add_doctor(parser: Parser) -> None:
    """Add the options of ``doctor``."""
    parser.add_argument(
        "--configs",
        type=Path,
        default=shipped("configs"),
        help="folder with the configurations whose data and checkpoints are looked for",
    )


def _add_completion(parser: Parser) -> None:
    """Add the options of ``completion``."""
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="the shell")


def _add_estimate(parser: Parser) -> None:
    """Add the options of ``estimate``."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML of a run")
    parser.add_argument("--num-clients", type=int, help="the first of its clients, by default all")
    parser.add_argument(
        "--sampling-rate", type=float, default=1.0, help="of records in a round of DP-SGD, for ReRo"
    )
    parser.add_argument("--num-rounds", type=int, help="that a client takes part in, for ReRo")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a JSON file to write as well")


def _add_audit(parser: Parser) -> None:
    """Add the options of ``audit``."""
    parser.add_argument("capture", metavar="CAPTURE", help="folder, see docs/update-format.md")
    parser.add_argument(
        "--model", required=True, metavar="PKG:NET", help="class of the federation's model"
    )
    parser.add_argument(
        "--normalize",
        nargs=2,
        metavar=("MEAN", "STD"),
        help="what clients do to images in [0, 1]; numbers, or a list for the channels: .5,.5,.5",
    )
    _add_model_facts(parser, "of what the model takes, where the capture does not say")
    parser.add_argument("--lr", type=float, help="of the clients' SGD, where the capture is silent")
    parser.add_argument("--batch-size", type=int, help="samples of a client, likewise")
    parser.add_argument("--steps", type=int, help="local steps of a client, likewise")
    parser.add_argument(
        "--mode",
        choices=["train", "eval"],
        help="in which the clients' model computes, for batch norm and dropout; by default train",
    )
    parser.add_argument(
        "--truth", metavar="FOLDER", help="what clients trained on, if known: adds the scores"
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="with --truth: tells what a linearised attacker would get of those clients, too; "
        "seconds for a small image, minutes for batches",
    )
    parser.add_argument(
        "--public",
        metavar="FOLDER",
        help="images like the clients', but nobody's; by default sample photographs",
    )
    parser.add_argument(
        "--effort",
        choices=["quick", "thorough"],
        default="quick",
        help="how long the optimising attacks go on; the confidence is calibrated on quick",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all randomness")
    parser.add_argument(
        "--output", metavar="FOLDER", help="by default lightning_logs/audit_CAPTURE"
    )


def _add_lint(parser: Parser) -> None:
    """Add the options of ``lint``."""
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="YAML or JSON with configurations, of NVIDIA FLARE or of a run; see docs/lint.md",
    )
    parser.add_argument(
        "--mechanism",
        metavar="CALL",
        help="or one as Python writes it: 'LocalDpMod(1.0, 1.0, epsilon=10, delta=1e-5)'",
    )
    for name, text in (
        ("rounds", "in which a client takes part, by default 1"),
        ("clients", "of the federation, from whom a round's are drawn"),
        ("batch-size", "images that share one update, by default 1"),
        ("dataset-size", "records of one client"),
        ("steps", "local steps of a round"),
        ("num-parameters", "numbers of an update, where no model is named"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=text)
    for name, text in (
        ("delta", "at which epsilon is given, by default the mechanism's own or 1e-5"),
        ("claim", "an epsilon that is claimed of all rounds together"),
        ("largest-share", "greatest weight of one client in the aggregate, at most 1"),
    ):
        parser.add_argument(f"--{name}", type=float, metavar="X", help=text)
    parser.add_argument(
        "--adjacency", choices=["replace", "add_remove"], help="that the claim is about"
    )
    parser.add_argument("--level", choices=["client", "record"], help="that the claim is about")
    parser.add_argument(
        "--sends",
        choices=["state_dict", "parameters"],
        help="what clients send, by default the state_dict, buffers included",
    )
    parser.add_argument(
        "--model", metavar="PKG:NET", help="class of the model: finds what passes unprotected"
    )
    parser.add_argument(
        "--model-args", metavar="JSON", help="its arguments, such as '{\"num_classes\": 10}'"
    )
    parser.add_argument(
        "--secure-sum", action="store_true", help="the server sees sums of updates alone"
    )
    parser.add_argument(
        "--source", metavar="PATH", help="the client's code: finds a seed that gives noise away"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def _add_detect(parser: Parser) -> None:
    """Add the options of ``detect``."""
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="what the server sent: a state_dict or a checkpoint (.pt, .pth, .ckpt, .bin, "
        ".safetensors), or arrays (.npz)",
    )
    parser.add_argument(
        "--model",
        metavar="PKG:NET",
        help="class of the declared model, which the file is loaded into; without a file, what an "
        "app ships is looked at itself",
    )
    parser.add_argument(
        "--model-args", metavar="JSON", help="its arguments, such as '{\"num_classes\": 10}'"
    )
    parser.add_argument(
        "--reference", metavar="FILE", help="what the server sent in the round before"
    )
    parser.add_argument(
        "--sample",
        metavar="FILE",
        help="images (B C H W, as the model takes them, at least 4) and labels of your own, by "
        "these names: tells whether one of them owns a row",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def _add_model_facts(parser: Parser, shape_help: str) -> None:
    """Add what goes with ``--model``: its arguments, and the shape of its images."""
    parser.add_argument(
        "--model-args", metavar="JSON", help="its arguments, such as '{\"num_classes\": 10}'"
    )
    parser.add_argument(
        "--image-shape", nargs=3, type=int, metavar=("C", "H", "W"), help=shape_help
    )


def _add_import(parser: Parser) -> None:
    """Add the options of ``import``."""
    parser.add_argument(
        "--before",
        metavar="FILE",
        help="weights that the client was sent: a state_dict or a checkpoint (.pt, .pth, .ckpt, "
        ".bin, .safetensors), or arrays (.npz)",
    )
    parser.add_argument("--after", metavar="FILE", help="weights that it sent back")
    parser.add_argument("--gradient", metavar="FILE", help="or the gradient that it sent")
    parser.add_argument(
        "--model", metavar="PKG:NET", help="class of the model, for arrays without names"
    )
    parser.add_argument(
        "--output",
        metavar="CAPTURE",
        default="capture",
        help="folder, by default capture; one that is there gets further clients",
    )
    parser.add_argument("--round", type=int, default=1, help="its number, by default 1")
    parser.add_argument("--client", metavar="NAME", help="by default the name of the file")
    parser.add_argument("--learning-rate", type=float, help="of the client's SGD, if known")
    parser.add_argument("--steps", type=int, help="of the client's training, if known")
    parser.add_argument("--batch-size", type=int, help="samples of one step, if known")
    parser.add_argument("--num-examples", type=int, help="of the client's data set, if known")
    _add_model_facts(parser, "of what the model sees, if known")


def light_parser() -> Parser:
    """The help of all commands, and the options of those that run no Trainer."""
    parser = Parser(
        prog=_PROG,
        description="Audit what the updates of federated learning give away about the images.",
        epilog=_EXAMPLES.replace("python cli.py", _PROG),
        exit_on_error=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lightning_recon {__version__}")
    subcommands = parser.add_subcommands(title="commands", metavar="COMMAND", description=None)
    for name, summary in LIGHTNING.items():
        subcommands.add_subcommand(name, Parser(), help=summary)
    add_commands(subcommands)
    return parser


_OPTIONS: Mapping[str, Callable[[Parser], None]] = {
    "audit": _add_audit,
    "compare": _add_compare,
    "completion": _add_completion,
    "configs": _add_configs,
    "detect": _add_detect,
    "doctor": _add_doctor,
    "estimate": _add_estimate,
    "figure": _add_figure,
    "import": _add_import,
    "lint": _add_lint,
    "recommend": _add_sweep,
    "report": _add_report,
    "sweep": _add_sweep,
}
"""By command; the others list classes."""
