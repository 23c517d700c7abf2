"""Iterations on dummy images: step by step in ``fit``, at a stretch elsewhere, with one result."""

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_recon.attacks.loops import Loop
from lightning_recon.errors import InputError
from lightning_recon.observation import Observation, Reconstruction

NUM_CURVE_POINTS = 50  # of the objective, about, that a reconstruction keeps
BAR_EVERY = 0.5  # seconds between two objectives in the progress bar

Curve = list[tuple[int, float]]
"""(iteration, objective) pairs."""


class Optimised(Protocol):
    """What a :class:`DummyLoop` asks of the attack that holds it."""

    dummy: nn.Parameter
    watch: Callable[[int, int], None] | None

    @property
    def num_dummies_held(self) -> int: ...  # noqa: D102
    @property
    def dummy_shape(self) -> tuple[int, ...]: ...  # noqa: D102
    def initialize(self, observation: Observation) -> tuple[Tensor, Any]: ...  # noqa: D102
    def iterate(  # noqa: D102
        self, dummy: nn.Parameter, evidence: Any, optimizer: Any, scheduler: Any
    ) -> dict[str, Tensor]: ...
    def differentiate(  # noqa: D102
        self, dummy: Tensor, evidence: Any
    ) -> tuple[dict[str, Tensor], Tensor]: ...
    def adjust(self, gradient: Tensor) -> None: ...  # noqa: D102
    def project(self, dummy: Tensor) -> None: ...  # noqa: D102
    def iterating(self, evidence: Any) -> AbstractContextManager[None]: ...  # noqa: D102
    def finish(self, dummy: Tensor, evidence: Any) -> Reconstruction: ...  # noqa: D102
    def forget(self) -> None: ...  # noqa: D102
    def num_clients_of(self, evidence: Any) -> int: ...  # noqa: D102
    def play(self, client: int) -> Observation: ...  # noqa: D102
    def computing(self) -> AbstractContextManager[None]: ...  # noqa: D102


class DummyLoop(Loop):
    """Iterations on the dummy images of one client after the other.

    Args:
        attack: that optimises them.
        iterations: on one client, at least 1.
        optimizer: makes the optimizer of the dummy images.
        lr_scheduler: makes its schedule, stepped at every iteration; None: constant.
        patience: iterations in which the objective must fall by 1 %, or the client is left; None:
            all iterations are done.

    Raises:
        InputError: if a number is out of its range.
    """

    resumes = True

    def __init__(
        self,
        attack: Any,
        iterations: int,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        patience: int | None = None,
    ) -> None:
        if iterations < 1:
            raise InputError(f"iterations must be at least 1, not {iterations}")
        if patience is not None and patience < 1:
            name = type(attack).__name__
            raise InputError(f"{name}: patience must be at least 1, not {patience}")
        self._attack = attack  # Optimised, and a LightningModule
        self.iterations = iterations
        self.patience = patience
        self._make_optimizer = optimizer
        self._make_scheduler = lr_scheduler
        self.evidence: Any = None
        self.num_dummies = 0
        self._curve: Curve = []
        self._is_resuming = False
        self._shown = 0.0  # when the progress bar got an objective

    # --- at a stretch --------------------------------------------------------------------------

    def run(self, start: Tensor, evidence: Any) -> list[tuple[Tensor, Curve]]:
        """Run all iterations.

        Args:
            start: as the attack's ``initialize`` returned it; those of several clients one after
                the other.
            evidence: of the same clients.

        Returns:
            The dummy images and the curve of each client.  A client that is left on a plateau
            keeps the dummy images that it had there.
        """
        attack: Optimised = self._attack
        dummy = nn.Parameter(start.clone())
        optimizer, scheduler = self._make([dummy])
        shares = dummy.detach().chunk(attack.num_clients_of(evidence))
        curves: list[Curve] = [[] for _ in shares]
        left: dict[int, Tensor] = {}
        with attack.iterating(evidence):
            for iteration in range(self.num_steps):
                self.iteration = iteration
                parts = attack.iterate(dummy, evidence, optimizer, scheduler)
                if attack.watch is not None:
                    attack.watch(iteration + 1, self.num_steps)
                if not self._is_on_curve(iteration):
                    continue
                for place, value in enumerate(parts["objective"].reshape(-1).tolist()):
                    if place in left:
                        continue
                    curves[place].append((iteration, value))
                    if self.is_on_plateau(curves[place]):
                        left[place] = shares[place].clone()
                if len(left) == len(shares):
                    break
        return [(left.get(place, shares[place]), curve) for place, curve in enumerate(curves)]

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Run all iterations on what was observed of one client."""
        attack: Optimised = self._attack
        start, evidence = attack.initialize(observation)
        if len(start) == 0:
            return attack.finish(start, evidence)
        ((dummy, curve),) = self.run(start, evidence)
        return attack.finish(dummy, evidence)._replace(curve=tuple(curve))

    def iterate(
        self, dummy: nn.Parameter, evidence: Any, optimizer: Any, scheduler: Any
    ) -> dict[str, Tensor]:
        """Do one iteration on the dummy images.

        The gradient is set by hand: DDP's hooks would average the dummy images of different
        clients without a word.

        Returns:
            ``objective`` and its parts, each summed over a client's dummies: numbers, or one for
            each of several clients.
        """
        attack: Optimised = self._attack
        first: dict[str, Tensor] = {}  # an optimizer with a line search evaluates often
        num_clients = attack.num_clients_of(evidence)

        def evaluate() -> Tensor:
            with torch.enable_grad():
                parts, dummy.grad = attack.differentiate(dummy, evidence)
            attack.adjust(dummy.grad)
            sums = _finite_sums(parts, num_clients)
            if not first:
                first.update(sums)
            return sums["objective"].sum()

        optimizer.step(evaluate)
        if scheduler is not None:
            scheduler.step()
        with torch.no_grad():
            attack.project(dummy)
        return first

    def estimate(self, observation: Observation) -> float:
        """Return about how many seconds all iterations take, from one after a first."""
        attack: Optimised = self._attack
        started = time.monotonic()
        self.iteration = 0
        start, evidence = attack.initialize(observation)
        if len(start) == 0:
            return time.monotonic() - started
        dummy = nn.Parameter(start.clone())
        optimizer, scheduler = self._make([dummy])
        float(attack.iterate(dummy, evidence, optimizer, scheduler)["objective"])
        warm = time.monotonic()
        self.iteration = 1
        float(attack.iterate(dummy, evidence, optimizer, scheduler)["objective"])
        return warm - started + self.iterations * (time.monotonic() - warm)

    def _make(self, parameters: list[nn.Parameter]) -> tuple[Any, Any]:
        optimizer = self._make_optimizer(parameters)
        scheduler = self._make_scheduler(optimizer) if self._make_scheduler else None
        return optimizer, scheduler

    def _is_on_curve(self, iteration: int) -> bool:
        is_last = iteration == self.num_steps - 1
        return is_last or iteration % max(1, self.iterations // NUM_CURVE_POINTS) == 0

    def is_on_plateau(self, curve: Sequence[tuple[int, float]]) -> bool:
        """Return whether no point of a curve's last stretch is 1 % below the ones before."""
        if self.patience is None or not curve:
            return False
        before = [value for place, value in curve if place <= curve[-1][0] - self.patience]
        since = [value for place, value in curve if place > curve[-1][0] - self.patience]
        return bool(before) and min(since) > min(before) - 0.01 * abs(min(before))

    # --- step by step --------------------------------------------------------------------------

    def create(self) -> None:
        """Create the dummy images' shape, so that they resume with their optimizer state."""
        if not hasattr(self._attack, "dummy"):
            shape = self._attack.num_dummies_held, *self._attack.dummy_shape
            self._attack.dummy = nn.Parameter(torch.zeros(shape))

    def configure(self) -> Any:
        """Optimise the dummy images and nothing else."""
        optimizer, scheduler = self._make([self._attack.dummy])
        # the state of a fresh client, put back at each new one
        self._fresh = [copy.deepcopy(part.state_dict()) for part in (optimizer, scheduler) if part]
        return [optimizer], [scheduler] if scheduler else []

    def resume(self, client: int) -> None:
        """Make the observation again; the dummy images are those of the checkpoint."""
        if self._is_resuming:
            self._is_resuming = False
            self._begin(client, keep_dummy=client == self.client)

    def begin(self, client: int) -> None:
        """Begin with a client."""
        self._begin(client, keep_dummy=False)

    def _begin(self, client: int, *, keep_dummy: bool) -> None:
        attack = self._attack
        start = self._observe(client)
        self.client = client
        if keep_dummy:
            return
        attack.forget()
        self._curve = []
        attack.dummy.grad = None
        with torch.no_grad():
            attack.dummy.zero_()
            attack.dummy[: len(start)] = start
        parts = [attack.optimizers(use_pl_optimizer=False), attack.lr_schedulers()]
        for part, fresh in zip(parts, self._fresh, strict=False):
            part.load_state_dict(copy.deepcopy(fresh))

    def _observe(self, client: int) -> Tensor:
        with self._attack.computing():
            start, self.evidence = self._attack.initialize(self._attack.play(client))
        self.num_dummies = len(start)
        found: Tensor = start
        return found

    def step(self, client: int, iteration: int, *, is_logged: bool, has_bar: bool) -> None:
        """Do one iteration on the dummy images of the client."""
        attack = self._attack
        self.iteration = iteration
        if self.num_dummies == 0 or self.is_on_plateau(self._curve):
            attack.dummy.grad = None  # nothing to do: count the step
            attack.optimizers().step(lambda: torch.zeros(()))
            return
        parts = attack.iterate(
            attack.dummy, self.evidence, attack.optimizers(), attack.lr_schedulers()
        )
        bar = {"objective": parts.pop("objective")}
        if self._is_on_curve(iteration):
            self._curve.append((iteration, float(bar["objective"])))
        # a millisecond, which for small networks is an iteration: not at every step
        now = time.monotonic()
        if is_logged or (has_bar and now - self._shown > BAR_EVERY):
            self._shown = now
            attack.log_dict(bar, prog_bar=True, on_step=True, on_epoch=False)
            attack.log_dict(parts, on_step=True, on_epoch=False)

    def current(self) -> Reconstruction:
        """Return the reconstruction as it stands now."""
        dummy = self._attack.dummy.detach()[: self.num_dummies]
        with self._attack.computing():
            reconstruction: Reconstruction = self._attack.finish(dummy, self.evidence)
        return reconstruction._replace(curve=tuple(self._curve))

    def restore(self, client: int) -> Reconstruction | None:
        """Return what a checkpoint holds, for the client that it was made of."""
        if self.client is not None and client != self.client:
            return None
        start = self._observe(client)
        if self.client is not None:
            return self.current()
        with self._attack.computing():
            reconstruction: Reconstruction = self._attack.finish(start, self.evidence)
        return reconstruction

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Remember which client the dummy images are of."""
        super().save(checkpoint)
        checkpoint["curve"] = self._curve

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take back the client and its curve; a client that was not finished goes on."""
        self.client = checkpoint.get("client_index")
        self._curve = list(checkpoint.get("curve", []))
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        self._is_resuming = batches["ready"] > 0


def _finite_sums(parts: dict[str, Tensor], num_clients: int) -> dict[str, Tensor]:
    """Add up what is finite, so that one lost dummy does not hide the others; NaN if none is.

    Returns:
        ``objective`` and the parts: numbers of one client, vectors of several.
    """
    table = torch.stack([part.detach().view(num_clients, -1) for part in parts.values()])
    finite = table.isfinite()
    sums = table.where(finite, 0.0).sum(2).where(finite.any(2), torch.nan)
    if num_clients == 1:
        sums = sums[:, 0]
    return {"objective": sums.sum(0), **dict(zip(parts, sums, strict=True))}
