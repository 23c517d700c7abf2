"""Attacks that optimise dummy images against the observed update."""

import copy
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from lightning_recon.attacks.base import Attack
from lightning_recon.clients import Client
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.targets import Target

NUM_CURVE_POINTS = 50  # of the objective, about, that a reconstruction keeps
BAR_EVERY = 0.5  # seconds between two objectives in the progress bar


class OptimizationAttack(Attack):
    """An attack that optimises dummy images against the observed update.

    In ``fit`` an epoch is a client and a training step is one iteration on its dummy images; in
    ``test`` the same iterations run in a loop, a client a step.

    Args:
        target: see :class:`Attack`.
        client: see :class:`Attack`.
        defenses: see :class:`Attack`.
        iterations: steps on the dummy images of one client.
        optimizer: makes the optimizer of the dummy images.
        lr_scheduler: makes its schedule, stepped at every iteration; null: constant.
        seed: see :class:`Attack`.
    """

    dummy: nn.Parameter
    patience: int | None = None
    """Iterations without progress after which a client is left; None: never."""

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        iterations: int = 400,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(target, client, defenses, seed)
        if iterations < 1:
            raise InputError(f"iterations must be at least 1, not {iterations}")
        self.iterations = iterations
        self._make_optimizer = optimizer
        self._make_scheduler = lr_scheduler
        self.evidence: Any = None
        self.client_index: int | None = None
        self._curve: list[tuple[int, float]] = []
        self._is_resuming = False
        self._shown = 0.0  # when the progress bar got an objective

    # --- the science ---------------------------------------------------------------------------

    @abstractmethod
    def initialize(self, observation: Observation) -> tuple[Tensor, Any]:
        """Read the observation.

        Returns:
            The R dummy images to start from, R C H W, and the evidence: all that the objective
            needs of the observation.
        """

    @abstractmethod
    def objective(self, dummy: Tensor, evidence: Any) -> dict[str, Tensor]:
        """Return the parts of the objective, each of shape R; their sum is minimised."""

    def project(self, dummy: Tensor) -> None:
        """Bring the dummy images back to where images lie, in place: [0, 1]."""
        dummy.clamp_(0, 1)

    def differentiate(self, dummy: Tensor, evidence: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of the objective and the gradient of their sum.

        Args:
            dummy: R C H W, a leaf.
            evidence: as :meth:`initialize` returned it.
        """
        parts = self.objective(dummy, evidence)
        loss = torch.stack([part.sum() for part in parts.values()]).sum()
        with torch.autocast(dummy.device.type, enabled=False):  # see clients.base
            (gradient,) = torch.autograd.grad(loss, [dummy])
        return parts, gradient

    def adjust(self, gradient: Tensor) -> None:
        """Change the gradient before the optimizer's step, in place; here not at all."""

    @abstractmethod
    def finish(self, dummy: Tensor, evidence: Any) -> Reconstruction:
        """Turn the dummy images into the reconstruction."""

    @property
    def num_dummies_held(self) -> int:
        """The most dummy images that a client needs."""
        num_samples: int = self.data.batch_size
        return num_samples

    @property
    def dummy_shape(self) -> tuple[int, ...]:
        """C, H, W of the dummy images."""
        shape: tuple[int, int, int] = self.data.image_shape
        return shape

    # --- the loop ------------------------------------------------------------------------------

    @contextmanager
    def iterating(self, evidence: Any) -> Iterator[None]:
        """The context of a whole loop: what need not be set up anew for each iteration."""
        yield

    def num_clients_of(self, evidence: Any) -> int:
        """Return how many clients' dummy images are optimised together; here one's."""
        return 1

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
        first: dict[str, Tensor] = {}  # an optimizer with a line search evaluates often
        num_clients = self.num_clients_of(evidence)

        def evaluate() -> Tensor:
            with torch.enable_grad():
                parts, dummy.grad = self.differentiate(dummy, evidence)
            self.adjust(dummy.grad)
            sums = _finite_sums(parts, num_clients)
            if not first:
                first.update(sums)
            return sums["objective"].sum()

        optimizer.step(evaluate)
        if scheduler is not None:
            scheduler.step()
        with torch.no_grad():
            self.project(dummy)
        return first

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Run all iterations on one client."""
        start, evidence = self.initialize(observation)
        if len(start) == 0:
            return self.finish(start, evidence)
        ((dummy, curve),) = self.optimise(start, evidence)
        return self.finish(dummy, evidence)._replace(curve=tuple(curve))

    def optimise(
        self, start: Tensor, evidence: Any
    ) -> list[tuple[Tensor, list[tuple[int, float]]]]:
        """Run all iterations.

        Args:
            start: as :meth:`initialize` returned it; those of several clients one after the other.
            evidence: of the same clients.

        Returns:
            The dummy images and the curve of each client.  A client that is left on a plateau
            keeps the dummy images that it had there.
        """
        dummy = nn.Parameter(start.clone())
        optimizer, scheduler = self._optimization([dummy])
        shares = dummy.detach().chunk(self.num_clients_of(evidence))
        curves: list[list[tuple[int, float]]] = [[] for _ in shares]
        left: dict[int, Tensor] = {}
        with self.iterating(evidence):
            for iteration in range(self.iterations):
                parts = self.iterate(dummy, evidence, optimizer, scheduler)
                if not self._is_on_curve(iteration):
                    continue
                for place, value in enumerate(parts["objective"].reshape(-1).tolist()):
                    if place in left:
                        continue
                    curves[place].append((iteration, value))
                    if self._is_on_plateau(curves[place]):
                        left[place] = shares[place].clone()
                if len(left) == len(shares):
                    break
        return [(left.get(place, shares[place]), curve) for place, curve in enumerate(curves)]

    def measure_iteration(self, observation: Observation) -> float:
        """Return the seconds of one iteration on an observation, after one that warms up."""
        start, evidence = self.initialize(observation)
        if len(start) == 0:
            return 0.0
        dummy = nn.Parameter(start.clone())
        optimizer, scheduler = self._optimization([dummy])
        seconds = 0.0
        for _ in range(2):
            started = time.monotonic()
            float(self.iterate(dummy, evidence, optimizer, scheduler)["objective"])
            seconds = time.monotonic() - started
        return seconds

    def _is_on_curve(self, iteration: int) -> bool:
        is_last = iteration == self.iterations - 1
        return is_last or iteration % max(1, self.iterations // NUM_CURVE_POINTS) == 0

    def _is_on_plateau(self, curve: Sequence[tuple[int, float]]) -> bool:
        """Return whether no point of a curve's last stretch is 1 % below the ones before."""
        if self.patience is None or not curve:
            return False
        before = [value for place, value in curve if place <= curve[-1][0] - self.patience]
        since = [value for place, value in curve if place > curve[-1][0] - self.patience]
        return bool(before) and min(since) > min(before) - 0.01 * abs(min(before))

    def _optimization(self, parameters: list[nn.Parameter]) -> tuple[Any, Any]:
        optimizer = self._make_optimizer(parameters)
        scheduler = self._make_scheduler(optimizer) if self._make_scheduler else None
        return optimizer, scheduler

    # --- Lightning -----------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Create the dummy images' shape, so that they resume with their optimizer state."""
        if not hasattr(self, "dummy"):
            self.dummy = nn.Parameter(torch.zeros(self.num_dummies_held, *self.dummy_shape))

    def configure_optimizers(self) -> Any:
        """Optimise the dummy images and nothing else."""
        optimizer, scheduler = self._optimization([self.dummy])
        # the state of a fresh client, put back at each new one
        self._fresh = [copy.deepcopy(part.state_dict()) for part in (optimizer, scheduler) if part]
        return [optimizer], [scheduler] if scheduler else []

    def on_train_start(self) -> None:
        """Resume: the observation is made again, the dummy images are those of the checkpoint.

        Lightning does not fire ``on_train_epoch_start`` for the epoch that it resumes, be it
        within a client or between two.
        """
        if not self._is_resuming or self.trainer.current_epoch >= (self.trainer.max_epochs or 0):
            return
        self._is_resuming = False
        self._begin_client(keep_dummy=self.trainer.current_epoch == self.client_index)

    def on_train_epoch_start(self) -> None:
        """Begin the next client."""
        self._begin_client(keep_dummy=False)

    def _begin_client(self, *, keep_dummy: bool) -> None:
        client = self.trainer.current_epoch * self.trainer.world_size + self.global_rank
        with self.computing():
            start, self.evidence = self.initialize(self.observe(self.data.client(client), client))
        self.client_index = client
        self.num_dummies = len(start)
        if keep_dummy:
            return
        self._curve = []
        self.dummy.grad = None
        with torch.no_grad():
            self.dummy.zero_()
            self.dummy[: len(start)] = start
        parts = [self.optimizers(use_pl_optimizer=False), self.lr_schedulers()]
        for part, fresh in zip(parts, self._fresh, strict=False):
            part.load_state_dict(copy.deepcopy(fresh))  # type: ignore[union-attr]

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """Do one iteration on the dummy images of the client; ``batch`` is its number."""
        if self.num_dummies == 0 or self._is_on_plateau(self._curve):
            self.dummy.grad = None  # nothing to do: count the step
            self.optimizers().step(lambda: torch.zeros(()))  # type: ignore[union-attr]
            return
        parts = self.iterate(self.dummy, self.evidence, self.optimizers(), self.lr_schedulers())
        bar = {"objective": parts.pop("objective")}
        if self._is_on_curve(batch_idx):
            self._curve.append((batch_idx, float(bar["objective"])))
        # a millisecond, which for small networks is an iteration: not at every step
        trainer, now = self.trainer, time.monotonic()
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_logged = every > 0 and trainer.global_step % every == 0
        is_shown = trainer.progress_bar_callback is not None and now - self._shown > BAR_EVERY
        if is_logged or is_shown:
            self._shown = now
            self.log_dict(bar, prog_bar=True, on_step=True, on_epoch=False)
            self.log_dict(parts, on_step=True, on_epoch=False)

    @property
    def current(self) -> Reconstruction:
        """The reconstruction as it stands now."""
        dummy = self.dummy.detach()[: self.num_dummies]
        with self.computing():
            reconstruction = self.finish(dummy, self.evidence)
        return reconstruction._replace(curve=tuple(self._curve))

    def validation_step(  # type: ignore[override]
        self, batch: Tensor, batch_idx: int
    ) -> Reconstruction | None:
        """Give the reconstruction that a checkpoint holds, for the client that it was made of."""
        client = int(batch)
        if self.client_index is not None and client != self.client_index:
            return None
        with self.computing():
            start, self.evidence = self.initialize(self.observe(self.data.client(client), client))
        if self.client_index is None:
            return self.finish(start, self.evidence)
        self.num_dummies = len(start)
        return self.current

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember which client the dummy images are of."""
        checkpoint["client_index"] = self.client_index
        checkpoint["curve"] = self._curve
        checkpoint["num_processes"] = self.trainer.world_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See :meth:`on_save_checkpoint`; a client that was not finished goes on.

        Raises:
            InputError: if fit is to go on with several processes, or with what several wrote; a
                checkpoint holds the first one's images only.
        """
        self.client_index = checkpoint.get("client_index")
        self._curve = list(checkpoint.get("curve", []))
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        self._is_resuming = batches["ready"] > 0
        if self._trainer is None or self._trainer.state.fn != TrainerFn.FITTING:
            return
        if checkpoint.get("num_processes", 1) > 1:
            raise InputError(
                "fit resumes on one process only, and several wrote this checkpoint; run fit anew, "
                "or test, which resumes on any number"
            )
        if self._trainer.world_size > 1:
            raise InputError("fit resumes on one process only; use --trainer.devices 1")


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
