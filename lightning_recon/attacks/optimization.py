"""Attacks that optimise dummy images against the observed update."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_recon.attacks.base import Attack
from lightning_recon.attacks.dummy_loop import DummyLoop
from lightning_recon.clients import Client
from lightning_recon.defenses import Defense
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.targets import Target


class OptimizationAttack(Attack):
    """An attack that optimises dummy images against the observed update.

    In ``fit`` an epoch is a client and a training step is one iteration on its dummy images; in
    ``test`` the same iterations run in a loop, a client a step.

    Args:
        target: the model that the federation trains.
        client: the protocol that the clients follow; null: FedSGD.
        defenses: what a client does to its update before it sends it, in order.
        iterations: steps on the dummy images of one client.
        optimizer: makes the optimizer of the dummy images.
        lr_scheduler: makes its schedule, stepped at every iteration; null: constant.
        seed: of all randomness: the clients', the defenses' and the attack's own.
    """

    loop: DummyLoop
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
        self.loop = DummyLoop(self, iterations, optimizer, lr_scheduler)

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

    @abstractmethod
    def finish(self, dummy: Tensor, evidence: Any) -> Reconstruction:
        """Turn the dummy images into the reconstruction."""

    def project(self, dummy: Tensor) -> None:
        """Bring the dummy images back to where images lie, in place: [0, 1]."""
        dummy.clamp_(0, 1)

    def differentiate(self, dummy: Tensor, evidence: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of the objective and the gradient of their sum.

        Args:
            dummy: R C H W, a leaf.
            evidence: as :meth:`initialize` returned it.
        """
        return gradient_of(self.objective(dummy, evidence), dummy)

    @property
    def num_dummies_held(self) -> int:
        """The most dummy images that a client needs."""
        return self.spec.max_batch_size

    @property
    def dummy_shape(self) -> tuple[int, ...]:
        """C, H, W of the dummy images."""
        return self.spec.image_shape

    # --- the loop ------------------------------------------------------------------------------

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Run all iterations on one client."""
        return self.loop.reconstruct(observation)

    def iterate(
        self, dummy: nn.Parameter, evidence: Any, optimizer: Any, scheduler: Any
    ) -> dict[str, Tensor]:
        """Do one iteration on the dummy images; see :meth:`.DummyLoop.iterate`."""
        return self.loop.iterate(dummy, evidence, optimizer, scheduler)

    def adjust(self, gradient: Tensor) -> None:
        """Change the gradient before the optimizer's step, in place; here not at all."""

    def forget(self) -> None:
        """Forget what was kept of the client before, within ``fit``; here nothing is."""

    @contextmanager
    def iterating(self, evidence: Any) -> Iterator[None]:
        """The context of a whole loop: what need not be set up anew for each iteration."""
        yield

    def num_clients_of(self, evidence: Any) -> int:
        """Return how many clients' dummy images are optimised together; here one's."""
        return 1


def gradient_of(parts: dict[str, Tensor], dummy: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return the parts of an objective, and the gradient of their sum by the dummy images."""
    loss = torch.stack([part.sum() for part in parts.values()]).sum()
    with torch.autocast(dummy.device.type, enabled=False):  # see clients.base
        (gradient,) = torch.autograd.grad(loss, [dummy])
    return parts, gradient
