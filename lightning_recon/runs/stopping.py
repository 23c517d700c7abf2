"""Runs that are stopped: by a signal, or since one of their processes was lost.

A signal is obeyed after the iteration in hand, and where an attack does not iterate, after the
client.  The exit code is 128 and the number of the signal, as the shell has it: no scheduler takes
a run that was preempted for one that is done.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console

from lightning_recon.errors import input_error_in
from lightning_recon.files import run_folder
from lightning_recon.runs import requeue

_told = threading.Lock()


class Stopped(SystemExit):
    """A signal has ended the process.

    Args:
        signum: of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within this context SIGTERM ends the process as an error does, and so tidily.

    A :class:`Stopping` run has its own way; this one holds before it begins and after its end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, _: Any) -> NoReturn:
        raise Stopped(signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say_lost(message: str) -> None:
    """Print that a process of the run was lost, once for all who notice.

    Args:
        message: one line.
    """
    if _told.acquire(blocking=False):
        with suppress(OSError):
            os.write(2, f"error: {message}\n".encode())  # whatever thread it is


class Stopping(Callback):
    """Stops a run on a signal, and says how to go on with one that was stopped.

    The last of a trainer's callbacks: what others do after an iteration is done by then.

    Args:
        line: returns the command line that goes on with a run, by its folder; None if nothing of
            it is kept.
        folder: returns the run's folder; all processes ask at once.
    """

    def __init__(
        self,
        line: Callable[[Path], str | None],
        folder: Callable[[Trainer], Path] = run_folder,
    ) -> None:
        self._line = line
        self._find_folder = folder
        self._folder: Path | None = None
        self._goes_on = True
        self._signal: int | None = None
        self._ending = threading.Event()
        self._is_remembered = False

    # --- signals -------------------------------------------------------------------------------

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._folder = self._find_folder(trainer)
        self._goes_on = _can_go_on(trainer, pl_module)
        self._signal = None
        self._ending.clear()
        if threading.current_thread() is threading.main_thread():
            # in the place of Lightning's, who looks between batches only, and takes them all back
            signal.signal(signal.SIGTERM, self._ask)
            if requeue.job() is not None:
                signal.signal(requeue.SIGNAL, self._ask)
        self._watch_iterations(pl_module)
        for rank, process in enumerate(_children(trainer), 1):
            threading.Thread(target=self._watch_process, args=(rank, process), daemon=True).start()

    on_fit_start = on_validation_start = on_test_start = on_predict_start = _begin

    def _ask(self, signum: int, _: Any) -> None:
        self._signal = signum

    def _watch_iterations(self, module: Any) -> None:
        told = getattr(module, "watch", None)

        def watch(iteration: int, num_iterations: int) -> None:
            if told is not None:
                told(iteration, num_iterations)
            self._check()

        if hasattr(module, "watch"):
            module.watch = watch

    def _check(self, *_: Any, **__: Any) -> None:
        if self._signal is not None:
            raise Stopped(self._signal)

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _check

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the iterations of controls, too, behind who shows progress."""
        self._watch_iterations(pl_module)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Remember by which job of SLURM the run is done."""
        if not self._is_remembered and trainer.is_global_zero and self._folder is not None:
            self._is_remembered = True
            requeue.remember(self._folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """Stop, with a checkpoint of just this iteration."""
        if self._signal is None:
            return
        callback = trainer.checkpoint_callback
        if trainer.world_size == 1 and isinstance(callback, ModelCheckpoint) and callback.dirpath:
            trainer.save_checkpoint(Path(callback.dirpath, "last.ckpt"))
        is_asking = self._signal == requeue.SIGNAL and trainer.is_global_zero
        if is_asking and self._goes_on:
            requeue.ask()
        self._check()

    # --- the end -------------------------------------------------------------------------------

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Print the line that goes on; past a client that cannot be attacked, if that is asked."""
        self._ending.set()
        if not trainer.is_global_zero or self._folder is None:
            return
        line = self._line_of_run()
        if line and input_error_in(exception) is None:
            _say(f"go on with: {line}")
        elif line and trainer.testing and getattr(pl_module, "records_failures", True) is False:
            _say(f"go on past this client with: {line} --audit.on_failure record")
        for process in _children(trainer):
            process.send_signal(signal.SIGTERM)

    def _line_of_run(self) -> str | None:
        """Return the line that goes on with the run; None if there is none."""
        if self._folder is None or not self._goes_on:
            return None
        return self._line(self._folder)

    def teardown(self, *_: Any, **__: Any) -> None:
        """Watch no longer."""
        self._ending.set()

    def _watch_process(self, rank: int, process: Any) -> None:
        """Wait for another process of the run, and end this one if that was lost.

        Lightning would kill this one without a word: it asks every few seconds, and learns nothing
        while somebody waits.
        """
        code = process.wait()
        # one that ended by itself may have met what this one meets now
        if code == 0 or self._ending.wait(0.3 if code > 0 else 0.0):
            return
        line = self._line_of_run()
        if self._signal is not None or code == 128 + signal.SIGTERM:
            if line:
                _say(f"go on with: {line}")
            code = 128 + (self._signal or signal.SIGTERM)
        else:
            how = "was ended by " + signal.Signals(-code).name if code < 0 else "ended"
            why = "" if code < 0 else "; its message says why"
            kept = f"; what is done is kept, go on with: {line}" if line else ""
            say_lost(f"process {rank} of the run {how}{why}{kept}")
        os._exit(max(code, 1))


def _can_go_on(trainer: Trainer, module: Any) -> bool:
    """Return whether a run of so many processes goes on; a ``fit`` whose client is resumed: one."""
    resumes = getattr(getattr(module, "loop", None), "resumes", False)
    is_fit = trainer.state.fn == TrainerFn.FITTING
    return trainer.world_size == 1 or not (is_fit and resumes)


def _children(trainer: Trainer) -> list[Any]:
    """Return the processes that Lightning started beside this one."""
    return list(getattr(trainer.strategy.launcher, "procs", []))


def _say(line: str) -> None:
    """Print a line for people, be it on stderr where nobody listens to stdout."""
    try:
        Console(markup=False, soft_wrap=True).print(line)
        sys.stdout.flush()
    except (OSError, SystemExit):  # rich exits
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)  # noqa: T201
