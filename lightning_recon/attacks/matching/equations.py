"""An observed update as equations for the images, each in units of its own error.

Where the defenses are known and what they add has a known variance, every number is divided by its
standard deviation.  Elsewhere every layer is divided by its norm: the update counts as exact.  A
layer of little but rounding is divided by more, for it would drown the others: the keys' bias of an
attention has no gradient, and a bias before batch norm in training mode has none.
"""

import copy

import torch
from torch import Tensor

from lightning_recon.attacks.matching.evidence import Evidence
from lightning_recon.clients.base import functional
from lightning_recon.defenses import chain_variance, expected_chain
from lightning_recon.updates import Update

_LEAST_VARIANCE = 0.1  # of the largest in a tensor: while images are far off, it is a guess
EXACT = 1e-16
"""Variance of an equation that counts as exact, in units of its layer's squared norm: that of
numbers which are right to 1e-6 of their layer's size, as float32 leaves them."""
_ROUNDING = 1e-6  # of a layer's norm, which float32 leaves in the layers that are weighed by it


class Equations:
    """What the simulated update of images lacks to be the observed one.

    Args:
        evidence: what was observed of one client.
        images: B C H W, float64, any: the rounding of their simulated update tells that of every
            layer.

    Attributes:
        variance: of an equation: 1, or :data:`EXACT`.
        number: of equations.
    """

    def __init__(self, evidence: Evidence, images: Tensor) -> None:
        self.evidence = evidence
        self._precise = copy.deepcopy(evidence.payload).double()
        chain = evidence.chain or ()
        self.is_noisy = chain_variance(chain, evidence.observed, evidence.observed) is not None
        self.variance = 1.0 if self.is_noisy else EXACT
        self._rounding = {} if self.is_noisy else self._rounding_of(images)
        self.weights = self._weights(evidence.observed)
        self.number = sum(
            part.numel() if self.is_noisy else int((self.weights[name] != 0).sum())
            for name, part in evidence.observed.items()
        )

    def weigh(self, images: Tensor) -> None:
        """Take the variances of noise that depends on the update from that of these images.

        Args:
            images: B C H W, float64.
        """
        if self.is_noisy:
            simulated = self._simulate(images)
            self.weights = self._weights(self._scaled(simulated))

    def residual(self, images: Tensor) -> Tensor:
        """Return what the simulated update lacks, weighted: M numbers.

        Args:
            images: B C H W, float32 or float64, which is the precision of all that is computed.
        """
        evidence = self.evidence
        simulated = self._simulate(images)
        simulated = expected_chain(evidence.chain or (), simulated, self._as(images))
        simulated = self._scaled(simulated)
        observed = self._as(images)
        parts = [
            (self.weights[name].to(images) * (part - observed[name])).flatten()
            for name, part in simulated.items()
        ]
        return torch.cat(parts)

    def _rounding_of(self, images: Tensor) -> dict[str, Tensor]:
        """Return the norm of every layer's rounding."""
        reference = next(iter(self.evidence.observed.values()))
        with torch.no_grad():
            precise, rounded = (self._simulate(one) for one in (images, images.to(reference)))
        return {name: (part - rounded[name]).norm() for name, part in precise.items()}

    def _simulate(self, images: Tensor) -> Update:
        evidence = self.evidence
        is_precise = images.dtype == torch.float64
        payload = self._precise if is_precise else evidence.payload
        with evidence.client.working(payload):
            found = evidence.client.simulate(payload, images, evidence.labels, gradient=functional)
        return evidence.client.stand_in(found, self._as(images))

    def _as(self, images: Tensor) -> Update:
        return {name: part.to(images) for name, part in self.evidence.observed.items()}

    def _scaled(self, simulated: Update) -> Update:
        """Bring a simulated update nearest to the observed one where its rate is not known."""
        if self.evidence.scale is not None:
            return simulated
        dot = energy = torch.zeros((), dtype=next(iter(simulated.values())).dtype)
        for name, part in simulated.items():
            weight = self.weights[name].to(part).square()
            dot = dot + (weight * part * self.evidence.observed[name].to(part)).sum()
            energy = energy + (weight * part.square()).sum()
        factor = dot / energy.clamp_min(torch.finfo(energy.dtype).tiny)
        return {name: factor * part for name, part in simulated.items()}

    def _weights(self, update: Update) -> Update:
        """Return one over the standard deviation of every number, float64; 0: not compared."""
        observed = self.evidence.observed
        added = chain_variance(self.evidence.chain or (), update, observed)
        weights: Update = {}
        for name, part in observed.items():
            if added is None:
                norm = part.double().norm()
                size = norm.maximum(self._rounding[name] / _ROUNDING)
                weight = torch.where(norm > 0, 1 / size, 0.0).expand_as(part)
            else:
                variance = added[name].double()
                most = variance.max() if variance.numel() else variance.new_zeros(())
                weight = (variance.clamp_min(_LEAST_VARIANCE * most)).rsqrt()
                weight = torch.where(most > 0, weight, 0.0)
            weights[name] = weight
        return weights
