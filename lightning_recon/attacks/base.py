"""What every attack is, and all that ties it to Lightning.

The path of one client: ``observe`` plays the federation (server payload -> client -> defenses) and
returns the :class:`Observation`; from there on the attack works on the observation alone, and the
truth comes back only where the audit matches the reconstruction to it
(:mod:`lightning_recon.audit.auditor`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_recon.clients import Client, FedSGD
from lightning_recon.defenses import Defense, apply_chain, bind_chain
from lightning_recon.errors import InputError
from lightning_recon.observation import Failure, Observation, Reconstruction
from lightning_recon.randomness import derive_seed, make_generator
from lightning_recon.rowsparse import is_finite, zeros_for
from lightning_recon.targets import Target
from lightning_recon.updates import Buffers, PrivateBatch, Update

Result = TypeVar("Result")


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
    """What the attacker is told beside the update: ``labels`` and ``num_samples`` of the batch,
    ``client`` (the protocol's hyperparameters), ``defenses`` (the chain), ``buffers`` (the
    payload's, as the client's training left them)."""
    protocols: tuple[str, ...] = ("fedsgd", "fedavg")
    """Those whose updates the attack can read."""

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
        if self.client.protocol not in self.protocols:
            raise InputError(
                f"{type(self).__name__} reads updates of {' and '.join(self.protocols)}, not of "
                f"{self.client.protocol}; change the client, or choose another attack"
            )
        bind_chain(list(defenses), self.client.clip_norm)
        # a tuple hides the payload from Lightning: it is neither saved nor broadcast
        self._payload: tuple[nn.Module, ...] = ()
        self._data: Any = None
        self.records_failures = False
        """Whether ``test`` goes on after a client whose attack failed; set by the audit."""

    # --- the science: what an attack's author writes -------------------------------------------

    @property
    @abstractmethod
    def citation(self) -> str:
        """Where the attack was published; a class attribute of every attack."""

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

    @property
    def has_payload(self) -> bool:
        """Whether the server has made the model that it sends."""
        return bool(self._payload)

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
            update, buffers = self.client.run(
                self.payload, batch, seed=derive_seed(self.seed, client, "client")
            )
        return self._send(update, buffers, client, batch.labels, "defenses")

    def observe_noise(self, labels: Tensor, client: int) -> Observation:
        """Return what the server sees of a client whose update is zero before the defenses.

        Its buffers are the payload's own.

        The null control: what the attack makes of it is its prior and not a leak.

        Args:
            labels: B, of the client's batch, for an attack to which they are granted.
            client: its number.
        """
        update = {name: zeros_for(parameter) for name, parameter in self.payload.named_parameters()}
        buffers = dict(self.payload.named_buffers())
        return self._send(update, buffers, client, labels.to(self.device), "noise only")

    def _send(
        self, update: Update, buffers: Buffers, client: int, labels: Tensor, purpose: str
    ) -> Observation:
        generator = make_generator(self.seed, client, purpose, device=self.device)
        update = apply_chain(self.chain, update, generator=generator)
        _check_finite(update, client)
        return self._observation(update, buffers, client, labels, len(labels))

    def _observation(
        self,
        update: Update,
        buffers: Buffers | None,
        client: int,
        labels: Tensor | None,
        num_samples: int | None,
    ) -> Observation:
        """Leave out what is not granted to the attacker."""
        return Observation(
            payload=self.payload,
            update=update,
            protocol=self.client.protocol,
            labels=labels if "labels" in self.oracles else None,
            num_samples=num_samples if "num_samples" in self.oracles else None,
            seed=derive_seed(self.seed, client, "attack"),
            client=self.client if "client" in self.oracles else None,
            defenses=self.chain if "defenses" in self.oracles else None,
            buffers=buffers if "buffers" in self.oracles else None,
        )

    @property
    def chain(self) -> tuple[Defense, ...]:
        """The defenses, in order."""
        return tuple(defense for defense in self.defenses if isinstance(defense, Defense))

    def observe_captured(self, captured: dict[str, Any], client: int) -> Observation:
        """Return the observation of an update that was captured outside this program.

        Args:
            captured: ``update`` (tensors by parameter name), ``num_samples``, ``labels`` and, if
                the client sent them, ``buffers`` (tensors by buffer name).
            client: its number.

        Raises:
            InputError: if the update or the buffers do not fit the payload.
        """
        update = {name: tensor.to(self.device) for name, tensor in captured["update"].items()}
        _check_fit(update, dict(self.payload.named_parameters()), "parameter", client)
        _check_finite(update, client)
        buffers = captured.get("buffers")
        if buffers is None and "buffers" in self.oracles:
            raise InputError(
                f"captured update {client} holds no buffers, which are granted to the attacker; "
                "add them to the file, or take buffers out of known"
            )
        if buffers is not None:
            buffers = {name: tensor.to(self.device) for name, tensor in buffers.items()}
            _check_fit(buffers, dict(self.payload.named_buffers()), "buffer", client)
        labels = captured.get("labels")
        labels = None if labels is None else labels.to(self.device)
        return self._observation(update, buffers, client, labels, captured["num_samples"])

    # --- Lightning -----------------------------------------------------------------------------

    @property
    def data(self) -> Any:
        """The data module of this run; one that was set stands before the trainer's."""
        return self._data or self.trainer.datamodule  # type: ignore[attr-defined]

    @data.setter
    def data(self, data: Any) -> None:
        self._data = data

    def setup(self, stage: str) -> None:
        """Check that the target fits the data, before anything is written."""
        self.target.check_input(self.data.image_shape)
        num_classes = getattr(self.data, "num_classes", 0)
        if num_classes > self.target.num_classes:
            raise InputError(
                f"the data has {num_classes} classes, but the target knows "
                f"{self.target.num_classes}; set the target's num_classes"
            )
        if "buffers" in self.oracles and next(self.target.buffers(), None) is None:
            raise InputError(
                f"{type(self.target).__name__} has no buffers to grant; take buffers out of known"
            )

    def on_fit_start(self) -> None:
        """Fit on public images; the device is known by now."""
        self.start_run()

    def on_validation_start(self) -> None:
        """See :meth:`on_fit_start`."""
        self.start_run()

    def on_test_start(self) -> None:
        """See :meth:`on_fit_start`."""
        self.start_run()

    def on_predict_start(self) -> None:
        """See :meth:`on_fit_start`."""
        self.start_run()

    def start_run(self) -> None:
        """Learn from the public images of :attr:`data`."""
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
            labels = self.data.client_labels(client)
            return self.reconstruct(self.observe_noise(labels, client))

    def test_step(  # type: ignore[override]
        self, batch: Tensor, batch_idx: int
    ) -> Reconstruction | Failure:
        """Attack one client; ``batch`` is its number."""
        return self.attempt(self.attack_client, int(batch))

    def attempt(self, attack: Callable[[int], Result], client: int) -> Result | Failure:
        """Return what an attack gives back; a failure if it fails and failures are recorded.

        Args:
            attack: :meth:`attack_client`, :meth:`attack_noise`, or a part of them.
            client: its number.
        """
        if not self.records_failures:
            return attack(client)
        try:
            return attack(client)
        except (InputError, RuntimeError, ValueError) as error:  # torch raises the last two
            return Failure(" ".join(str(error).split()))

    def predict_step(self, batch: Tensor, batch_idx: int) -> Reconstruction:
        """Reconstruct from one update without truth; ``batch`` is its number."""
        client = int(batch)
        if not hasattr(self.data, "captured"):
            return self.attack_client(client)
        with self.computing():
            return self.reconstruct(self.observe_captured(self.data.captured(client), client))


def _check_fit(
    captured: dict[str, Tensor], expected: dict[str, Tensor], kind: str, client: int
) -> None:
    for name, tensor in expected.items():
        if name not in captured or captured[name].shape != tensor.shape:
            found = tuple(captured[name].shape) if name in captured else "missing"
            raise InputError(
                f"captured update {client}: {kind} {name} should be {tuple(tensor.shape)} but is "
                f"{found}; configure the attack as it was when the payload was sent"
            )


def _check_finite(update: Update, client: int) -> None:
    for name, tensor in update.items():
        if not is_finite(tensor):
            raise InputError(
                f"the update of client {client} holds NaN or infinity in parameter {name}; "
                "check the target's weights, or leave this client out"
            )
