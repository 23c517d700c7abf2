"""The folder of a run is its own: made by its first process, and held while the run goes on.

Two runs that start at once would both find that ``version_3`` is the next one.  Only one of them
makes it, for a folder is made once; the other takes the next number.  A lock in the folder tells
whether its run still goes on: the system lets go of it when the process ends, be it killed.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_recon.errors import InputError
from lightning_recon.files import remove_temporaries, run_folder

_LOCK = ".lock"
_LOGS = ("events.out.", "hparams.yaml", "metrics.csv", _LOCK)
"""How the files begin that stand in the folder of a run that never began."""


def is_first_process() -> bool:
    """Return whether this process is the first of its run, before a Trainer knows."""
    node = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0"
    return getattr(rank_zero_only, "rank", 0) in (0, None) and node == "0"


@contextmanager
def claimed(roots: Sequence[Path]) -> Iterator[str]:
    """Make ``version_N`` in some folders, N the first number that is free in all, and hold it.

    At the end those that hold nothing but logs are removed: their run never began.

    Args:
        roots: folders, at least one; made if they are missing.

    Raises:
        OSError: if a folder cannot be made.
    """
    missing = [path for root in roots for path in (root, *root.parents) if not path.exists()]
    numbers = [_number(path) for root in roots for path in root.glob("version_*")]
    number = max(numbers, default=-1) + 1
    while not _make_all(folders := [root / f"version_{number}" for root in roots]):
        number += 1
    try:
        with _locked(folders[0]):
            yield f"version_{number}"
    finally:
        for folder in folders:
            _take_back(folder)
        for path in missing:
            with suppress(OSError):  # it is not empty
                path.rmdir()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder of a run to go on with, or one that its user named.

    What a killed process left half-written is removed.

    Args:
        folder: made if it is missing.

    Raises:
        InputError: if its run still goes on.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder):
            for other in folder.glob(f"{_LOCK}?*"):  # of the other processes of a run
                with _locked(folder, int(other.name.removeprefix(_LOCK))):
                    pass
            remove_temporaries(folder)
            yield
    finally:
        if is_new:
            _take_back(folder)


class Holding(Callback):
    """Has processes but the first hold the run's folder too: one may outlive the first.

    Args:
        folder: returns the run's folder; all processes ask at once.
    """

    def __init__(self, folder: Callable[[Trainer], Path] = run_folder) -> None:
        self._find_folder = folder

    def _hold(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = self._find_folder(trainer)
        if trainer.global_rank and folder.is_dir():
            self._lock = _locked(folder, trainer.global_rank)  # until the process ends
            self._lock.__enter__()

    on_fit_start = on_validation_start = on_test_start = on_predict_start = _hold

    def teardown(self, *_: Any, **__: Any) -> None:
        """Let go."""
        if hasattr(self, "_lock"):
            self._lock.__exit__(None, None, None)
            del self._lock


@contextmanager
def _locked(folder: Path, rank: int = 0) -> Iterator[None]:
    lock = FileLock(folder / (f"{_LOCK}{rank}" if rank else _LOCK), thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"another process writes into {folder.absolute()}; wait for its end, or stop it"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()  # before it is let go, so that nobody waits for it
        lock.release()


def _number(path: Path) -> int:
    name = path.name.removeprefix("version_")
    return int(name) if name.isdecimal() else -1


def _make_all(folders: Sequence[Path]) -> bool:
    """Make all of some folders, or none and return False."""
    made: list[Path] = []
    for folder in folders:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.mkdir(folder)
        except FileExistsError:
            for one in made:
                one.rmdir()
            return False
        made.append(folder)
    return True


def _take_back(folder: Path) -> None:
    """Remove a folder that holds nothing but logs, and the one around it if that is empty."""
    files = list(folder.iterdir()) if folder.is_dir() else []
    if all(file.name.startswith(_LOGS) for file in files):
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # other runs are there
            folder.parent.rmdir()
