"""What every attack is, and all that ties it to Lightning.

The path of one client: the data module plays a round of the :class:`~lightning_recon.federation.
Federation` and returns the :class:`Observation`; from there on the attack works on the observation
alone, and the truth comes back only where the audit matches the reconstruction to it
(:mod:`lightning_recon.audit`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from lightning_recon.attacks.loops import AtOnce, Loop
from lightning_recon.clients import Client, FedSGD
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.federation import Federation
from lightning_recon.functional.stateless import sent_buffers
from lightning_recon.observation import Channel, Failure, Grant, Observation, Reconstruction
from lightning_recon.targets import Target
from lightning_recon.updates import DataSpec

Result = TypeVar("Result")
MAX_COUNT = 2**20
"""Rows of a payload, or samples that it is made for: of images of 32x32, 2^20 rows take 13 GB."""


def check_counts(owner: str, **counts: tuple[int | None, int]) -> None:
    """Make sure that rows, samples and the like can be counted.

    Args:
        owner: the class that asks, for the error.
        **counts: by argument: its value, None for not given, and the least that it may be.

    Raises:
        InputError: one is below its least, or above :data:`MAX_COUNT`.
    """
    for name, (value, least) in counts.items():
        if value is not None and not least <= value <= MAX_COUNT:
            bound = f"least {least}" if value < least else f"most {MAX_COUNT:,}"
            raise InputError(f"{owner}: {name} must be at {bound}, not {value}")


class Attack(LightningModule, ABC):
    """An attack on the update of one client after the other.

    In ``fit`` an epoch is a client and a step one iteration of :attr:`loop` on it; in ``test`` a
    step is a client.

    Args:
        target: the model that the federation trains.
        client: the protocol that the clients follow; null: FedSGD.
        defenses: what a client does to its update before it sends it, in order.
        seed: of all randomness: the clients', the defenses' and the attack's own.
    """

    oracles: Sequence[str] = ()
    """What the attacker is told beside the update, values of
    :class:`~lightning_recon.observation.Grant`."""
    protocols: tuple[str, ...] = ("fedsgd", "fedavg")
    """Those whose updates the attack can read.  One that reads ``"fedsgd"`` alone reads any
    multiple of the gradient, such as FedAvg's one step on the whole batch, -learning_rate times
    it."""
    instead: str = "choose another attack"
    """What to do where the clients follow none of those protocols."""
    clients_at_once: int = 1
    """Clients that ``test`` hands over together."""
    num_rounds: int = 1
    """Rounds in which a client takes part, with the same data."""
    can_simulate_defenses: bool = False
    """Whether the attack simulates the defenses where they are granted, as by ``adaptive``."""

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
        if self.client.protocol not in self.protocols and not self.client.sends_gradient:
            raise InputError(
                f"{type(self).__name__} reads updates of {' and '.join(self.protocols)}, not of "
                f"{self.client.protocol} with several steps; change the client (FedAvg of epochs "
                "1, without minibatch_size and weight_decay, sends a gradient), or "
                f"{self.instead}"
            )
        self.federation = Federation(self.target, self.client, defenses, seed)
        self._spec: DataSpec | None = None
        self.loop: Loop = AtOnce(self)
        """How the iterations of ``fit`` are done."""
        self.records_failures = False
        """Whether ``test`` goes on after a client whose attack failed; set by the audit."""
        self.watch: Callable[[int, int], None] | None = None
        """Told after an iteration at a stretch how many are done, of how many; set by who shows
        progress."""

    # --- the science: what an attack's author writes -------------------------------------------

    @property
    @abstractmethod
    def citation(self) -> str:
        """Where the attack was published; a class attribute of every attack."""

    @property
    @abstractmethod
    def threat_model(self) -> str:
        """What the server does, and what it sees; a class attribute of every attack."""

    @abstractmethod
    def server_payload(self, model: Target) -> nn.Module:
        """Return the model that the server sends; ``model`` itself if the server is honest."""

    @abstractmethod
    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Return what can be told of the client's images from what the server saw."""

    def next_payload(self, observation: Observation) -> nn.Module:
        """Return what a client is sent after a round of it; the same again.

        Args:
            observation: of its last round.
        """
        return observation.payload

    def learn_public(self, images: Tensor) -> None:
        """Fit whatever the attack takes from public data; the payload is made after that.

        Args:
            images: N C H W in [0, 1], N may be 0; images that belong to no client.
        """

    # --- what an attack knows ------------------------------------------------------------------

    def bind(self, spec: DataSpec, public_images: Tensor | None = None) -> None:
        """Tell the attack what is known of the data, and begin a run with another payload.

        Args:
            spec: of the data.
            public_images: N C H W in [0, 1], N may be 0, on any device; None: they come later.

        Raises:
            InputError: if the target or what is granted does not fit the data.
        """
        if spec != self._spec:
            _check(self, spec)
            self._spec = spec
        if public_images is None:
            return
        self.learn_public(public_images.to(self.device, next(self.target.parameters()).dtype))
        self.federation.start(
            lambda: self.server_payload(self.target),
            self.oracles,
            self.num_rounds,
            self.next_payload,
        )

    @property
    def spec(self) -> DataSpec:
        """What is known of the data."""
        if self._spec is None:
            raise RuntimeError("bind() tells an attack what is known of the data; it comes first")
        return self._spec

    @property
    def channel(self) -> Channel:
        """What of the defenses is granted before the payload is made."""
        return self.federation.channel.granted(self._grants)

    @property
    def sends_gradient(self) -> bool:
        """Whether an update is one gradient; every server knows what it asks for."""
        return self.client.sends_gradient

    @property
    def known_client(self) -> Client | None:
        """How clients train, as far as a server knows before it makes its payload; None: not."""
        return self.client if Grant.CLIENT in self._grants else None

    @property
    def _grants(self) -> list[Grant]:
        return [Grant(grant) for grant in self.oracles]

    @property
    def mode(self) -> Literal["train", "eval"]:
        """In which clients compute: who writes their code knows it, and results print it."""
        return self.client.mode

    @property
    def num_clients(self) -> int:
        """Clients of a round, of whose updates the server sees the mean: it has picked them."""
        return self.client.num_clients

    # --- one client ----------------------------------------------------------------------------

    def play(self, client: int, *, noise_only: bool = False) -> Observation:
        """Have a round played with one client; no other method asks for a client's data.

        Args:
            client: its number.
            noise_only: whether its update is zero before the defenses, the null control.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        observation: Observation = data.play(self.federation, client, noise_only=noise_only)
        return observation

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The context of all that an attack computes: gradients, and the run's precision."""
        trainer = self._trainer
        precision = trainer.precision_plugin.forward_context() if trainer else nullcontext()
        with torch.inference_mode(False), torch.enable_grad(), precision:
            yield

    def attack_client(self, client: int) -> Reconstruction:
        """Observe and reconstruct one client from start to end."""
        with self.computing():
            return self.reconstruct(self.play(client))

    def attack_noise(self, client: int) -> Reconstruction:
        """Reconstruct from the noise-only update of a client: the null control."""
        with self.computing():
            return self.reconstruct(self.play(client, noise_only=True))

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

    # --- Lightning: every stage ----------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that the target fits the data, before anything is written.

        A trial run (fast_dev_run) does few iterations, in ``test`` and in controls too.
        """
        self.bind(self.trainer.datamodule.spec)  # type: ignore[attr-defined]
        self.loop.limit = int(self.trainer.fast_dev_run) or None  # type: ignore[attr-defined]

    def _start_run(self) -> None:
        """Fit on public images; the device is known by now."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.bind(data.spec, data.public_images())

    on_fit_start = on_validation_start = on_test_start = on_predict_start = _start_run

    def test_step(  # type: ignore[override]
        self, batch: Tensor, batch_idx: int
    ) -> Reconstruction | Failure | list[Reconstruction | Failure]:
        """Attack one client; ``batch`` is its number."""
        return self.attempt(self.attack_client, int(batch))

    def predict_step(self, batch: Tensor, batch_idx: int) -> Reconstruction:
        """Reconstruct from one update without truth; ``batch`` is its number."""
        return self.attack_client(int(batch))

    # --- Lightning: fit, and what it leaves; the loop does it ----------------------------------

    @property
    def iterations(self) -> int:
        """Steps of ``fit`` on one client."""
        return self.loop.iterations

    @property
    def iteration(self) -> int:
        """The iteration in hand, from 0 on, whatever the command."""
        return self.loop.iteration

    @property
    def client_index(self) -> int | None:
        """The client that ``fit`` has in hand; None before the first."""
        return self.loop.client

    @property
    def current(self) -> Reconstruction:
        """The reconstruction as it stands now."""
        return self.loop.current()

    def configure_model(self) -> None:
        """Create what is optimised, before Lightning looks for parameters."""
        self.loop.create()

    def configure_optimizers(self) -> Any:
        """Optimise the dummy images and nothing else."""
        return self.loop.configure()

    def on_train_start(self) -> None:
        """Go on with the client of a checkpoint.

        Lightning does not fire ``on_train_epoch_start`` for the epoch that it resumes, be it
        within a client or between two.
        """
        self.loop.limit = int(self.trainer.num_training_batches)  # limit_train_batches
        if self.current_epoch < (self.trainer.max_epochs or 0):
            self.loop.resume(self._client_of_epoch)

    def on_train_epoch_start(self) -> None:
        """Begin the next client."""
        self.loop.begin(self._client_of_epoch)

    @property
    def _client_of_epoch(self) -> int:
        return self.current_epoch * self.trainer.world_size + self.global_rank

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """Do one iteration on a client; ``batch`` is its number."""
        trainer = self.trainer
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_logged = every > 0 and (trainer.global_step + 1) % every == 0  # as Lightning counts
        has_bar = trainer.progress_bar_callback is not None
        self.loop.step(int(batch), batch_idx, is_logged=is_logged, has_bar=has_bar)

    def validation_step(  # type: ignore[override]
        self, batch: Tensor, batch_idx: int
    ) -> Reconstruction | None:
        """Give the reconstruction that a checkpoint holds, for the client that it was made of."""
        return self.loop.restore(int(batch))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember how far the client is."""
        self.loop.save(checkpoint)
        checkpoint["num_processes"] = self.trainer.world_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See :meth:`on_save_checkpoint`; a client that was not finished goes on.

        Raises:
            InputError: if fit is to go on with several processes, or with what several wrote; a
                checkpoint holds the first one's images only.
        """
        self.loop.load(checkpoint)
        if self._trainer is None or self._trainer.state.fn != TrainerFn.FITTING:
            return
        if not self.loop.resumes:
            return
        if checkpoint.get("num_processes", 1) > 1:
            raise InputError(
                "fit resumes on one process only, and several wrote this checkpoint; run fit anew, "
                "or test, which resumes on any number"
            )
        if self._trainer.world_size > 1:
            raise InputError("fit resumes on one process only; use --trainer.devices 1")


def _check(attack: Attack, spec: DataSpec) -> None:
    """Raise InputError unless target, client and what is granted fit the data."""
    target, client = attack.target, attack.client
    target.check_input(spec.image_shape)
    if client.mode == "train":
        with client.working(target):
            fewest = client.fewest_samples(spec.max_batch_size)
            target.check_batch(spec.image_shape, fewest)
    if spec.num_classes is not None and spec.num_classes > target.num_classes:
        raise InputError(
            f"the data has {spec.num_classes} classes, but the target knows "
            f"{target.num_classes}; set the target's num_classes"
        )
    if Grant.BUFFERS in attack.oracles and not sent_buffers(target):
        raise InputError(
            f"{type(target).__name__} has no buffers to grant; take buffers out of known"
        )
