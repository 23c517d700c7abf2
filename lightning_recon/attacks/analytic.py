"""Attacks that compute their reconstruction at once, without iterations."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

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


class Normalisation(NamedTuple):
    """What a layer reads of an image in [0, 1]: shift + scale times it."""

    shift: Tensor
    """C H W."""
    scale: Tensor
    """C H W, nowhere 0."""

    def undo(self, seen: Tensor) -> Tensor:
        """Return the image, C H W, of what the layer reads of it."""
        return (seen.to(self.shift).view_as(self.shift) - self.shift) / self.scale


def probe_images(model: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    """Return a black image, a white one and one of noise, 3 C H W, for :func:`read_normalisation`.

    Args:
        model: on whose device they are to lie.
        image_shape: C, H, W.
    """
    parameter = next(model.parameters())
    noise = torch.rand(image_shape, generator=torch.Generator().manual_seed(0)).to(parameter)
    return torch.stack([torch.zeros_like(noise), torch.ones_like(noise), noise])


def read_normalisation(seen: Tensor, probes: Tensor) -> Normalisation | None:
    """Return how a layer's input depends on the image; None if it is not the image, normalised.

    Args:
        seen: 3 ..., what the layer reads of the probes.
        probes: 3 C H W, of :func:`probe_images`.
    """
    if seen.numel() != probes.numel() or len(seen) != len(probes):
        return None
    black, white, noise = seen.reshape(probes.shape)
    found = Normalisation(black, white - black)
    is_affine = torch.allclose(noise, black + found.scale * probes[2], atol=1e-4)
    return found if is_affine and bool(found.scale.all()) else None
