"""Attacks that compute their reconstruction at once, without iterations."""

from lightning_recon.attacks.base import Attack
from lightning_recon.observation import Observation


class AnalyticAttack(Attack):
    """An attack in closed form: in ``fit`` an epoch is a client and has one step.

    Args:
        target: the model that the federation trains.
        client: the protocol that the clients follow; null: FedSGD.
        defenses: what a client does to its update before it sends it, in order.
        seed: of all randomness: the clients', the defenses' and the attack's own.
    """

    @property
    def known_shape(self) -> tuple[int, int, int]:
        """C, H, W of the images."""
        return self.spec.image_shape


def sign_of_gradient(observation: Observation) -> int:
    """Return the sign that a gradient has in the update: a change of weights runs against it."""
    return -1 if observation.protocol == "fedavg" else 1
