"""The commands that run no Trainer.

What a command needs is imported inside it: neither ``--help`` nor a typing error waits for torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_recon.commands.bad_input import report_bad_input
from lightning_recon.commands.names import LIGHT, LIGHTNING, LISTS
from lightning_recon.commands.parsers import light_parser
from lightning_recon.errors import InputError, instead
from lightning_recon.files import meant


def main(args: Sequence[str]) -> int:
    """Run one of the commands that need no Trainer, or show the help of all.

    Args:
        args: what stands after the program's name.

    Returns:
        The exit code: 0; 1 if the doctor finds something broken, lint a claim that does
        not hold, or detect a payload that is suspicious; 2 for input that cannot be used.
    """
    with report_bad_input() as outcome:
        _check_command(args)
        config = light_parser().parse_args(list(args))
        options = config[config.subcommand]
        for name, value in options.items():
            options[name] = _meant(value)
        outcome.exit_code = _run(config.subcommand, options)
    return outcome.exit_code


def _check_command(args: Sequence[str]) -> None:
    """Raise InputError unless a command that exists stands first, or an option of our own."""
    known = [*LIGHTNING, *LIGHT]
    if not args:
        raise InputError(f"a command is missing: one of {', '.join(known)}; see --help")
    if args[0] in {"-h", "--help", "--version", *known}:
        return
    if args[0].startswith("-"):
        raise InputError(f"the command comes first, before {args[0]}: one of {', '.join(known)}")
    hint = instead(args[0], known) or f"; there are {', '.join(known)}"
    raise InputError(f"there is no command {args[0]}{hint}")


def _meant(value: Any) -> Any:
    """Return an option with ``~`` replaced in its paths: the shell leaves it after ``--x=``."""
    if isinstance(value, list):
        return [_meant(one) for one in value]
    return Path(meant(str(value))) if isinstance(value, Path) else value


def _run(command: str, options: Namespace) -> int:
    if command in LISTS or command == "configs":
        _list(command, options)
    elif command == "audit":
        from lightning_recon.commands.audit import audit
        from lightning_recon.runs.stopping import stopped_by_signals

        with stopped_by_signals():
            print(audit(options))  # noqa: T201
    elif command == "lint":
        from lightning_recon.commands.linting import lint

        return lint(options)
    elif command == "detect":
        from lightning_recon.commands.detecting import detect_payload

        return detect_payload(options)
    elif command == "import":
        from lightning_recon.commands.importing import import_update

        print(import_update(options))  # noqa: T201
    elif command == "estimate":
        from lightning_recon.runs.estimate import estimate

        settings = options.sampling_rate, options.num_rounds
        print(estimate(options.config, options.num_clients, options.output, *settings))  # noqa: T201
    elif command == "papers":
        from lightning_recon.commands import claims

        print(claims.as_json() if options.json else claims.words())  # noqa: T201
    elif command == "doctor":
        from lightning_recon.commands.doctor import doctor

        return doctor(options.configs)
    elif command in ("compare", "figure", "report"):
        print(_shown(command, options))  # noqa: T201
    else:
        from lightning_recon.commands.completion import completion_script

        print(completion_script(options.shell))  # noqa: T201
    return 0


def _list(command: str, options: Namespace) -> None:
    """Print what there is of a kind."""
    if command == "configs":
        from lightning_recon.commands.configs import list_configs

        list_configs(as_json=options.json, as_markdown=options.markdown)
        return
    from lightning_recon.commands.listing import list_classes

    list_classes(command, as_json=options.json)


def _shown(command: str, options: Namespace) -> object:
    """Return what was made of finished runs: the path of a page, a table, or names of figures."""
    if command == "report":
        from lightning_recon.report import write_again

        return write_again(options.run)
    if command == "figure":
        from lightning_recon.report.papers import write_figures

        chosen = {name: options[name] for name in ("output", "width", "images", "along", "panels")}
        return write_figures(options.folders, **chosen)
    if options.latex or options.markdown:
        from lightning_recon.report.tables import paper_tables

        return paper_tables(options.runs, is_latex=options.latex, is_markdown=options.markdown)
    from lightning_recon.report.comparison import compare_runs

    return compare_runs(options.runs, options.output)
