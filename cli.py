#!/usr/bin/env python
"""The command line: Lightning's own runs fit, validate, test and predict, plain functions the rest.

Nothing heavy is imported before it is needed, so that ``--help`` answers at once.
"""

import sys


def main(args: list[str]) -> int:
    """Hand the command to whom it belongs.

    Args:
        args: what stands after the program's name.

    Returns:
        The exit code: 0; 1 if something needed is broken; 2 for input that cannot be used.
    """
    from lightning_recon.commands import names, plain
    from lightning_recon.commands.words import use_utf8

    use_utf8()
    if args and args[0] in {*names.LIGHTNING, "sweep"}:
        from lightning_recon.commands.bad_input import report_bad_input
        from lightning_recon.commands.early import check_early

        with report_bad_input() as outcome:
            check_early(args)
        if outcome.exit_code:
            return outcome.exit_code
        from lightning_recon.commands.lightning import main as run

        return run()  # Lightning reads sys.argv itself, in every process that it starts
    return plain.main(args)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ModuleNotFoundError as error:
        if str(error.name).startswith("lightning_recon"):
            raise
        print(f"error: {error}; run: pip install -r requirements.txt", file=sys.stderr)
        sys.exit(1)
