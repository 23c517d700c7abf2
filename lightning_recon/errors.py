"""The one exception that is shown to a person as a single line."""

import difflib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

_FEW = 12
"""Names that a line lists; of more it shows the nearest."""


class InputError(Exception):
    """Bad input from the user: the message says what is wrong, where, and what to do.

    The command line prints the message alone, without a traceback, and exits with 2.  No
    ``ValueError``: jsonargparse would take those for a mismatch of types and bury the message.
    """


def input_error_in(error: BaseException) -> InputError | None:
    """Return the InputError that an error is, or was made from; jsonargparse wraps them."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def instead(
    name: object,
    known: Iterable[str],
    *,
    is_listed: bool = True,
    written: Callable[[str], str] = str,
) -> str:
    """Return what goes behind a line on a name that does not exist: what it may have meant.

    Args:
        name: as it was given.
        known: the names that exist.
        is_listed: whether all of them are named, if they are few.
        written: how one of them is to be written.

    Examples:
        >>> instead("tset", ["fit", "test"])
        '; did you mean test? There are fit, test'
        >>> instead("what", ["fit", "test"])
        '; there are fit, test'
    """
    names = {one.lower(): one for one in sorted(known)}
    given = str(name).lower()
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.8)
    close = close or difflib.get_close_matches(given, names, n=1)
    guess = f"; did you mean {' or '.join(written(names[one]) for one in close)}?" if close else ""
    if not is_listed or len(names) > _FEW or len(names) == len(close):
        return guess
    listed = ", ".join(map(written, names.values()))
    return f"{guess}{' There' if guess else '; there'} are {listed}"


def program() -> str:
    """Return how this program is started: from a clone, or as it is installed."""
    path = Path(sys.argv[0])
    if path.name == "lightning-recon":
        return "lightning-recon"
    is_module = path.parts[-2:] == ("lightning_recon", "__main__.py")
    return "python -m lightning_recon" if is_module else "python cli.py"


def missing_file(path: Path) -> str:
    """Return a line on a file that is not there, with one beside it that may be meant."""
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"there is no file {path.absolute()}, and no folder {folder}"
    beside = (other.name for other in folder.iterdir())
    return f"there is no file {path.absolute()}{instead(path.name, beside)}"
