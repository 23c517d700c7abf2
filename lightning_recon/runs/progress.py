"""How far a run is, and how long it will take: a bar in a terminal, a line now and then elsewhere.

All is measured on what this run did itself: a resumed one counts neither the clients nor the
iterations that were done before.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ProgressBar, TQDMProgressBar

LINE_EVERY = 20.0  # seconds between two lines
_BAR_EVERY = 0.5  # seconds between two changes of the bar within a client


class Pace:
    """The time that the client in hand and the whole run still take."""

    def __init__(self) -> None:
        self.begin(0, 1)

    def begin(self, total: int, passes: int) -> None:
        """Begin a run.

        Args:
            total: clients that it attacks.
            passes: times that the iterations are done on a client: once more for a control.
        """
        self.total, self.passes = total, passes
        self.done = 0
        self._started = time.monotonic()
        self.begin_client()

    def begin_client(self, iteration: int = 0) -> None:
        """Begin a client, or go on with one after some iterations."""
        self._client_started = self._pass_started = time.monotonic()
        self._first = self.iteration = iteration
        self._before = 0.0  # the iterations: the payload is made, the client trains
        self.num_iterations = 0
        self.num_passes = 0

    def at(self, iteration: int, num_iterations: int) -> None:
        """Take note of an iteration, counted from 1; one that is no later begins another pass."""
        is_first = not self.num_iterations
        is_again = iteration <= self.iteration and not is_first
        if is_first or is_again:
            self.num_passes += is_again
            self._first = iteration
            self._pass_started = time.monotonic()
        if is_first:
            self._before = self._pass_started - self._client_started
        self.iteration, self.num_iterations = iteration, num_iterations

    def end_client(self) -> None:
        """End a client."""
        self.done += 1
        self.begin_client()

    def left_of_pass(self) -> float | None:
        """Seconds until the iterations on the client are done; None: not known yet."""
        if self.iteration <= self._first:
            return None
        each = (time.monotonic() - self._pass_started) / (self.iteration - self._first)
        return each * (self.num_iterations - self.iteration)

    def left(self) -> float | None:
        """Seconds until the run is done; None: not known yet."""
        now = time.monotonic()
        if self.done:
            each = (self._client_started - self._started) / self.done
            here = max(each - (now - self._client_started), self.left_of_pass() or 0.0)
            return here + each * (self.total - self.done - 1)
        of_pass = self.left_of_pass()
        if of_pass is None:
            return None
        # a client that is gone on with is the shorter one
        each = (now - self._pass_started) / (self.iteration - self._first)
        whole = self._before + each * (self.num_iterations - 1)
        others = self.passes - 1 - self.num_passes + self.passes * (self.total - 1)
        return of_pass + whole * max(0, others)

    def within_client(self) -> str:
        """Return how far the client in hand is; empty where nothing is iterated."""
        if not self.num_iterations:
            return ""
        again = f"pass {self.num_passes + 1}, " if self.num_passes else ""
        left = self.left_of_pass()
        time_left = f", {duration(left)} left" if left is not None else ""
        return f"{again}iteration {self.iteration:,} of {self.num_iterations:,}{time_left}"


def duration(seconds: float) -> str:
    """Return a time for people, such as ``4 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class _Paced(ProgressBar):
    """A progress bar that knows the pace."""

    def __init__(self) -> None:
        super().__init__()
        self.pace = Pace()
        self.shown = 0.0
        self.module: Any = None

    def show(self) -> None:
        """Show how far the client is, within ``test``."""
        raise NotImplementedError

    def _begin(self, module: LightningModule, total: float, passes: int) -> None:
        self.module = module
        module.watch = self._watch  # type: ignore[assignment]
        self.pace.begin(int(total), passes)
        self.shown = time.monotonic()

    def _watch(self, iteration: int, num_iterations: int) -> None:
        self.pace.at(iteration, num_iterations)
        self.show()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        super().on_test_start(trainer, pl_module)
        self._begin(pl_module, sum(trainer.num_test_batches), _passes(trainer))

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Count the client before, or several that were attacked as one: its control is done."""
        super().on_test_batch_start(*args, **kwargs)
        if args[3]:  # not the first
            self.pace.end_client()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count; a resumed run begins within a client, maybe."""
        super().on_train_start(trainer, pl_module)
        total = (trainer.max_epochs or 0) - trainer.current_epoch
        self._begin(pl_module, total, _passes(trainer))
        self.pace.begin_client(trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count an iteration."""
        trainer, batch_idx = args[0], args[4]
        self.pace.at(batch_idx + 1, int(trainer.num_training_batches))
        super().on_train_batch_end(*args, **kwargs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count a client."""
        super().on_train_epoch_end(trainer, pl_module)
        self.pace.end_client()


def _passes(trainer: Trainer) -> int:
    """Return how often a client's iterations are done: once more for the noise-only control."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return 1 + any(getattr(callback, "null_controls", False) for callback in callbacks)


class ClientBar(_Paced, TQDMProgressBar):
    """Lightning's bar, with the client in hand in ``test`` and with the whole run in ``fit``."""

    def show(self) -> None:
        """Put the client's iterations behind the bar of the clients."""
        now = time.monotonic()
        if now - self.shown < _BAR_EVERY:
            return
        self.shown = now
        bar = (
            self._train_progress_bar if self._test_progress_bar is None else self._test_progress_bar
        )
        if bar is not None and not bar.disable:
            where = getattr(self.module, "doing", "")
            bar.set_postfix_str(", ".join(filter(None, (where, self.pace.within_client()))))

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        """Return the figures, and the time that all clients still take; no number of a version."""
        metrics: dict[str, Any] = super().get_metrics(*args)
        metrics.pop("v_num", None)
        left = self.pace.left()
        total = {} if left is None else {"all_clients": f"{duration(left)} left"}
        return {**total, **metrics}


class Lines(_Paced):
    """Plain lines, seldom: for a run whose output is a file."""

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True

    def disable(self) -> None:
        """Print nothing."""
        self._is_enabled = False

    def enable(self) -> None:
        """Print again."""
        self._is_enabled = True

    def show(self) -> None:
        """Print a line, if the last one is some time ago."""
        now = time.monotonic()
        if not self._is_enabled or now - self.shown < LINE_EVERY:
            return
        self.shown = now
        pace = self.pace
        noun = "client" if getattr(self.module, "clients_at_once", 1) == 1 else "group"
        where = getattr(self.module, "doing", "") or f"{noun} {pace.done + 1} of {pace.total}"
        within, left = pace.within_client(), pace.left()
        all_left = f"about {duration(left)} left in all" if left is not None else ""
        line = where + (f": {within}" if within else "") + (f"; {all_left}" if all_left else "")
        self.print(line, flush=True)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Say where the run is, where attacks do not iterate."""
        super().on_test_batch_end(*args, **kwargs)
        self.show()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count an iteration, and say so."""
        super().on_train_batch_end(*args, **kwargs)
        self.show()


def with_progress(options: Mapping[str, Any]) -> list[Callback]:
    """Return a trainer's callbacks with one that shows progress, unless one does or none may.

    Args:
        options: of the trainer.
    """
    given = options.get("callbacks") or []
    callbacks = list(given) if isinstance(given, list) else [given]
    wanted = options.get("enable_progress_bar")
    if wanted is False or any(isinstance(callback, ProgressBar) for callback in callbacks):
        return callbacks
    return [*callbacks, ClientBar() if wanted or sys.stdout.isatty() else Lines()]
