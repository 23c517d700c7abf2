"""Attacks that compute their reconstruction at once, without iterations."""

from typing import Any

from torch import Tensor

from lightning_recon.attacks.base import Attack
from lightning_recon.observation import Observation, Reconstruction


class AnalyticAttack(Attack):
    """An attack in closed form: in ``fit`` an epoch is a client and has one step.

    Args:
        target: see :class:`Attack`.
        client: see :class:`Attack`.
        defenses: see :class:`Attack`.
        seed: see :class:`Attack`.
    """

    iterations = 1
    client_index: int | None = None
    """The client that was attacked last."""
    current: Reconstruction
    """What came of it."""
    image_shape: tuple[int, int, int] | None = None
    """C, H, W, once :meth:`learn_public` has seen the public images."""

    def learn_public(self, images: Tensor) -> None:
        """Learn the shape of the images.

        Args:
            images: N C H W in [0, 1], N may be 0.
        """
        _, channels, height, width = images.shape
        self.image_shape = (channels, height, width)
        self._payload = ()

    @property
    def known_shape(self) -> tuple[int, int, int]:
        """C, H, W of the images."""
        if self.image_shape is None:
            raise RuntimeError("learn_public() comes first")
        return self.image_shape

    def configure_optimizers(self) -> list[Any]:
        """There is nothing to optimise."""
        return []

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """Attack one client; ``batch`` is its number."""
        self.client_index = int(batch)
        self.current = self.attack_client(self.client_index)

    def validation_step(self, batch: Tensor, batch_idx: int) -> Reconstruction:  # type: ignore[override]
        """Attack one client again: a checkpoint holds nothing that is not computed anew."""
        return self.attack_client(int(batch))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint as an attack's."""
        checkpoint["client_index"] = self.client_index


def sign_of_gradient(observation: Observation) -> int:
    """Return the sign that a gradient has in the update: a change of weights runs against it."""
    return -1 if observation.protocol == "fedavg" else 1
