"""The command line: Lightning's own runs fit, validate, test and predict, plain functions the rest.

Nothing heavy is imported before it is needed, so that ``--help`` answers at once.
"""

import os
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
    if args and args[0] in {*names.LIGHTNING, *names.TRAINED}:
        from lightning_recon.commands.bad_input import report_bad_input
        from lightning_recon.commands.early import check_early

        with report_bad_input() as outcome:
            check_early(args)
        if outcome.exit_code:
            return outcome.exit_code
        from lightning_recon.commands.lightning import main as run

        return run()  # Lightning reads sys.argv itself, in every process that it starts
    return plain.main(args)


def command() -> int:
    """Run the command that ``sys.argv`` holds, and return the exit code.

    That is 141 where nobody listens to the output any more, as the shell has it.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this process
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    code = 0
    try:
        try:
            from lightning_recon.commands.shipped import with_configs

            sys.argv[1:] = with_configs(sys.argv[1:])
            code = main(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except ModuleNotFoundError as error:
        if str(error.name).startswith("lightning_recon"):
            raise
        print(f"error: {error}; run: pip install -r requirements.txt", file=sys.stderr)  # noqa: T201
        return 1
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more
        if not isinstance(error, BrokenPipeError):  # which is no fault, as by "| head -1"
            print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)  # noqa: T201
            return code or 2
        return code or 141
    return code


if __name__ == "__main__":
    sys.exit(command())
