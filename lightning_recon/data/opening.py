"""A data set where it should be, or the sample photographs in its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_recon.data.photographs import PhotographSource
from lightning_recon.data.sources import ImageSource
from lightning_recon.errors import InputError
from lightning_recon.files import expanded


def open_or_samples(
    root: str | None,
    open_source: Callable[[Path], ImageSource | None],
    on_missing: Literal["error", "samples"],
    name: str,
    expected: Callable[[], str],
) -> ImageSource:
    """Open a data set, or fall back on the sample photographs and say so.

    Args:
        root: the folder or file, as a person wrote it.
        open_source: opens it; None where nothing is there.
        on_missing: what to do then.
        name: of the data set.
        expected: says what should be at ``root``; asked once that was looked for.

    Returns:
        The images, at least one.

    Raises:
        InputError: there is nothing, and no fallback is allowed.
    """
    folder = None if root is None else expanded(root)
    source = None if folder is None else open_source(folder)
    if source is not None and len(source):
        return source
    found = "no root given" if folder is None else f"no data at {folder}"
    problem = f"{name}: {found}; expected {expected()}"
    if on_missing == "error":
        raise InputError(f"{problem}; or set on_missing: samples")
    rank_zero_warn(f"{problem}; the sample photographs are used instead")
    return PhotographSource()
