"""What every attack is, and all that ties it to Lightning.

The path of one client: ``observe`` plays the federation (server payload -> client -> defenses) and
returns the :class:`Observation`; from there on the attack works on the observation alone, and the
truth comes back only where the audit matches the reconstruction to it
(:mod:`lightning_recon.callbacks`).
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_recon.clients import Client, FedSGD
from lightning_recon.defenses import Defense, apply_chain, bind_chain
from lightning_recon.errors import InputError
from lightning_recon.randomness import derive_seed, make_generator
from lightning_recon.structures import Observation, PrivateBatch, Reconstruction, Update
from lightning_recon.targets import Target


class Attack(LightningModule, ABC):
    """An attack on the update of one client after the other.

    Args:
        target: the model that the federation trains.
        client: the protocol that the clients follow; null: FedSGD.
        defenses: what a client does to its update before it sends it, in order.
        seed: of all randomness: the clients', the defenses' and the attack's own.
    """

    threat_model: str
    """One sentence: what the server does, and what it sees."""
    oracles: tuple[str, ...] = ()
    """What the attacker is told beside the update."""
    citation: str

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.target = target.requires_grad_(False)
        self.client = client or FedSGD()
        self.defenses = nn.ModuleList(defenses)
        self.seed = seed
        bind_chain(list(defenses))
        # a tuple hides the payload from Lightning: it is neither saved nor broadcast
        self._payload: tuple[nn.Module, ...] = ()

    # --- the science: what an attack's author writes -------------------------------------------

    @abstractmethod
    def server_payload(self, model: Target) -> nn.Module:
        """Return the model that the server sends; ``model`` itself if the server is honest."""

    @abstractmethod
    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Return what can be told of the client's images from what the server saw."""

    def learn_public(self, images: Tensor) -> None:
        """Fit whatever the attack takes from public data.

        Args:
            images: N C H W in [0, 1], N may be 0; images that belong to no client.
        """

    # --- the federation, simulated -------------------------------------------------------------

    @property
    def payload(self) -> nn.Module:
        """The model that the server sends; the same one to every client."""
        if not self._payload:
            self._payload = (self.server_payload(self.target),)
        return self._payload[0]

    def observe(self, batch: PrivateBatch, client: int) -> Observation:
        """Play one round with one client and return all that the server sees of it.

        Args:
            batch: the client's data, on any device.
            client: its number, from which its randomness is derived.

        Raises:
            InputError: if the update is not finite.
        """
        dtype = next(self.target.parameters()).dtype
        batch = PrivateBatch(*(field.to(self.device) for field in batch))
        batch = batch._replace(images=batch.images.to(dtype))
        with sdpa_kernel(SDPBackend.MATH):
            update = self.client(self.payload, batch, seed=derive_seed(self.seed, client, "client"))
        return self._send(update, client, len(batch.images), "defenses")

    def observe_noise(self, num_samples: int, client: int) -> Observation:
        """Return what the server sees of a client whose update is zero before the defenses.

        The null control: what the attack makes of it is its prior and not a leak.
        """
        update = {
            name: torch.zeros(parameter.shape, dtype=parameter.dtype, device=self.device)
            for name, parameter in self.payload.named_parameters()
        }
        return self._send(update, client, num_samples, "noise only")

    def _send(self, update: Update, client: int, num_samples: int, purpose: str) -> Observation:
        generator = make_generator(self.seed, client, purpose, device=self.device)
        update = apply_chain(
            [defense for defense in self.defenses if isinstance(defense, Defense)],
            update,
            generator=generator,
        )
        _check_finite(update, client)
        return Observation(
            payload=self.payload,
            update=update,
            protocol=self.client.protocol,
            labels=None,
            num_samples=num_samples if "num_samples" in self.oracles else None,
            seed=derive_seed(self.seed, client, "attack"),
        )

    def observe_captured(self, captured: dict[str, Any], client: int) -> Observation:
        """Return the observation of an update that was captured outside this program.

        Args:
            captured: ``update`` (tensors by parameter name) and ``num_samples``.
            client: its number.

        Raises:
            InputError: if the update does not fit the payload.
        """
        update = {name: tensor.to(self.device) for name, tensor in captured["update"].items()}
        for name, parameter in self.payload.named_parameters():
            if name not in update or update[name].shape != parameter.shape:
                found = tuple(update[name].shape) if name in update else "missing"
                raise InputError(
                    f"captured update {client}: parameter {name} should be "
                    f"{tuple(parameter.shape)} but is {found}; configure the attack as it was "
                    "when the payload was sent"
                )
        _check_finite(update, client)
        return Observation(
            payload=self.payload,
            update=update,
            protocol=self.client.protocol,
            labels=None,
            num_samples=captured["num_samples"] if "num_samples" in self.oracles else None,
            seed=derive_seed(self.seed, client, "attack"),
        )

    # --- Lightning -----------------------------------------------------------------------------

    @property
    def data(self) -> Any:
        """The data module of this run."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Check that the target fits the data, before anything is written."""
        self.target.check_input(self.data.image_shape)
        num_classes = getattr(self.data, "num_classes", 0)
        if num_classes > self.target.num_classes:
            raise InputError(
                f"the data has {num_classes} classes, but the target knows "
                f"{self.target.num_classes}; set the target's num_classes"
            )

    def on_fit_start(self) -> None:
        """Fit on public images; the device is known by now."""
        self._start_run()

    def on_validation_start(self) -> None:
        """See :meth:`on_fit_start`."""
        self._start_run()

    def on_test_start(self) -> None:
        """See :meth:`on_fit_start`."""
        self._start_run()

    def on_predict_start(self) -> None:
        """See :meth:`on_fit_start`."""
        self._start_run()

    def _start_run(self) -> None:
        dtype = next(self.target.parameters()).dtype
        self.learn_public(self.data.public_images().to(self.device, dtype))

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The context of all that an attack computes: gradients, and the run's precision."""
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            self.trainer.precision_plugin.forward_context(),
        ):
            yield

    def attack_client(self, client: int) -> Reconstruction:
        """Observe and reconstruct one client from start to end."""
        with self.computing():
            return self.reconstruct(self.observe(self.data.client(client), client))

    def attack_noise(self, client: int) -> Reconstruction:
        """Reconstruct from the noise-only update of a client: the null control."""
        with self.computing():
            return self.reconstruct(self.observe_noise(self.data.batch_size, client))

    def test_step(self, batch: Tensor, batch_idx: int) -> Reconstruction:  # type: ignore[override]
        """Attack one client; ``batch`` is its number."""
        return self.attack_client(int(batch))

    def predict_step(self, batch: Tensor, batch_idx: int) -> Reconstruction:
        """Reconstruct from one update without truth; ``batch`` is its number."""
        client = int(batch)
        if not hasattr(self.data, "captured"):
            return self.attack_client(client)
        with self.computing():
            return self.reconstruct(self.observe_captured(self.data.captured(client), client))


def _check_finite(update: Update, client: int) -> None:
    for name, tensor in update.items():
        # the norm of numbers that float32 holds overflows long after any real update
        if not torch.linalg.vector_norm(tensor).isfinite():
            raise InputError(
                f"the update of client {client} holds NaN or infinity in parameter {name}; "
                "check the target's weights, or leave this client out"
            )


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
        self._is_resuming = False

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

    @abstractmethod
    def finish(self, dummy: Tensor, evidence: Any) -> Reconstruction:
        """Turn the dummy images into the reconstruction."""

    @property
    def dummy_shape(self) -> tuple[int, int, int]:
        """C, H, W of the dummy images."""
        shape: tuple[int, int, int] = self.data.image_shape
        return shape

    # --- the loop ------------------------------------------------------------------------------

    def iterate(
        self, dummy: nn.Parameter, evidence: Any, optimizer: Any, scheduler: Any
    ) -> dict[str, Tensor]:
        """Do one iteration on the dummy images; return the parts of the objective, summed.

        The gradient is set by hand: DDP's hooks would average the dummy images of different
        clients without a word.
        """
        with torch.enable_grad():
            parts = {name: part.sum() for name, part in self.objective(dummy, evidence).items()}
            loss = torch.stack(list(parts.values())).sum()
            (dummy.grad,) = torch.autograd.grad(loss, [dummy])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        with torch.no_grad():
            self.project(dummy)
        return {"objective": loss.detach()} | {k: v.detach() for k, v in parts.items()}

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Run all iterations on one client."""
        start, evidence = self.initialize(observation)
        if len(start) == 0:
            return self.finish(start, evidence)
        dummy = nn.Parameter(start.clone())
        optimizer, scheduler = self._optimization([dummy])
        for _ in range(self.iterations):
            self.iterate(dummy, evidence, optimizer, scheduler)
        return self.finish(dummy.detach(), evidence)

    def _optimization(self, parameters: list[nn.Parameter]) -> tuple[Any, Any]:
        optimizer = self._make_optimizer(parameters)
        scheduler = self._make_scheduler(optimizer) if self._make_scheduler else None
        return optimizer, scheduler

    # --- Lightning -----------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Create the dummy images' shape, so that they resume with their optimizer state."""
        if not hasattr(self, "dummy"):
            self.dummy = nn.Parameter(torch.zeros(self.data.batch_size, *self.dummy_shape))

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

        Raises:
            InputError: with several processes; a checkpoint holds the first one's images only.
        """
        if not self._is_resuming or self.trainer.current_epoch >= (self.trainer.max_epochs or 0):
            return
        self._is_resuming = False
        if self.trainer.world_size > 1:
            raise InputError("fit resumes on one process only; use --trainer.devices 1")
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
        self.dummy.grad = None
        with torch.no_grad():
            self.dummy.zero_()
            self.dummy[: len(start)] = start
        parts = [self.optimizers(use_pl_optimizer=False), self.lr_schedulers()]
        for part, fresh in zip(parts, self._fresh, strict=False):
            part.load_state_dict(copy.deepcopy(fresh))  # type: ignore[union-attr]

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """Do one iteration on the dummy images of the client; ``batch`` is its number."""
        if self.num_dummies == 0:
            self.optimizers().step()  # type: ignore[union-attr]  # nothing found: count the step
            return
        parts = self.iterate(self.dummy, self.evidence, self.optimizers(), self.lr_schedulers())
        bar = {"objective": parts.pop("objective")}
        self.log_dict(bar, prog_bar=True, on_step=True, on_epoch=False)
        self.log_dict(parts, on_step=True, on_epoch=False)

    @property
    def current(self) -> Reconstruction:
        """The reconstruction as it stands now."""
        dummy = self.dummy.detach()[: self.num_dummies]
        with self.computing():
            return self.finish(dummy, self.evidence)

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See :meth:`on_save_checkpoint`; a client that was not finished goes on."""
        self.client_index = checkpoint.get("client_index")
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        self._is_resuming = batches["ready"] > 0
