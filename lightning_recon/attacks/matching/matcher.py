"""The objective of gradient matching: the distance of a simulated update, and priors.

    D(f(x), u) + priors(x),

u the observed update, f the client run on the images x
(:meth:`lightning_recon.clients.Client.simulate`), D a distance of
:mod:`lightning_recon.functional.gradient_distance`.

The adaptive attacker knows the defenses and passes f(x) through their stand-ins first
(:meth:`lightning_recon.defenses.Defense.stand_in`); the naive one compares with the raw f(x).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lightning_recon.attacks.matching.evidence import Evidence, scaled
from lightning_recon.clients.base import functional
from lightning_recon.defenses import stand_in_chain
from lightning_recon.errors import InputError
from lightning_recon.functional.gradient_distance import DISTANCES, Distance
from lightning_recon.priors import ActivationPrior
from lightning_recon.updates import Update


class Matcher:
    """Compares images with an observed update; not a module: the attack registers the priors.

    Args:
        attack: name of the attack, for messages.
        distance: between the simulated update and the observed one.
        priors: penalties on the images, added to the distance.

    Raises:
        InputError: if there is no such distance.
    """

    def __init__(self, attack: str, distance: Distance, priors: Iterable[nn.Module]) -> None:
        if distance not in DISTANCES:
            raise InputError(f"{attack}: distance must be one of {', '.join(DISTANCES)}")
        self.distance = distance
        self.priors = tuple(priors)

    def with_priors(
        self, parts: dict[str, Tensor], images: Tensor, labels: Tensor, evidence: Evidence
    ) -> dict[str, Tensor]:
        """Return the parts of an objective with the priors added, those of a class summed."""
        for prior in self.priors:
            penalty = _penalty(prior, images, labels, evidence)
            name = type(prior).__name__
            parts[name] = parts[name] + penalty if name in parts else penalty
        return parts

    def matching(self, images: Tensor, labels: Tensor, evidence: Evidence) -> Tensor:
        """Return the distance of a restart's update to the observed one, of shape 1."""
        return self.compare(*self.updates(images, labels, evidence))[None]

    def updates(self, images: Tensor, labels: Tensor, evidence: Evidence) -> tuple[Update, Update]:
        """Return the simulated update of one restart, and the observed one, to be compared.

        The simulated one has passed the stand-ins of the defenses that are known, and both are
        scaled alike: to a mean gradient where the client's rate is known.

        Args:
            images: B C H W.
            labels: B, int64, or B num_classes probabilities.
            evidence: of one client, the payload in the client's mode.
        """
        gradient = functional if evidence.is_functional else None
        simulated = evidence.client.simulate(evidence.payload, images, labels, gradient=gradient)
        if evidence.chain is not None:
            simulated = evidence.client.stand_in(simulated, evidence.observed)
            simulated = stand_in_chain(evidence.chain, simulated, evidence.observed)
        if evidence.scale is None:
            return _fitted(simulated, evidence.reference), evidence.reference
        return scaled(simulated, evidence.scale), evidence.reference

    def compare(self, simulated: Update, observed: Update) -> Tensor:
        """Return the distance of two updates that :meth:`updates` returned, a number."""
        return DISTANCES[self.distance](simulated, observed)


def _penalty(prior: nn.Module, images: Tensor, labels: Tensor, evidence: Evidence) -> Tensor:
    penalty: Tensor
    if isinstance(prior, ActivationPrior):
        penalty = prior(images, labels, evidence.payload, evidence.observed, evidence.statistics)
    else:
        penalty = prior(images).mean()
    return penalty[None]


def _fitted(simulated: Update, observed: Update) -> Update:
    """Multiply by the number that brings the simulated update nearest to the observed one."""
    dot = torch.stack([(simulated[n] * observed[n]).sum() for n in observed]).sum()
    energy = torch.stack([tensor.square().sum() for tensor in simulated.values()]).sum()
    factor = dot / energy.clamp_min(torch.finfo(energy.dtype).tiny)
    return {name: factor * tensor for name, tensor in simulated.items()}
