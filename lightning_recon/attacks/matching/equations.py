"""An observed update as equations for the images, each in units of its own error.

Where the defenses are known and what they add has a known variance, every number is divided by its
standard deviation.  Elsewhere every layer is divided by its norm: the update counts as exact.  A
layer of little but rounding is divided by more, for it would drown the others: the keys' bias of an
attention has no gradient, and a bias before batch norm in training mode has none.
"""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from lightning_recon.attacks.matching.evidence import Evidence
from lightning_recon.attacks.matching.last_maps import Seen
from lightning_recon.attacks.matching.softened import Softened
from lightning_recon.clients.base import functional
from lightning_recon.defenses import chain_variance, expected_chain
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.updates import Update

_LEAST_VARIANCE = 0.1  # of the largest in a tensor: while images are far off, it is a guess
EXACT = 1e-16
"""Variance of an equation that counts as exact, in units of its layer's squared norm: that of
numbers which are right to 1e-6 of their layer's size, as float32 leaves them."""
_LEAST_ERROR = 0.01  # of a layer's norm, where errors are fitted
_MIXED = 1e-6  # of a layer's norm, in float64
_ROUNDING = 1e-6  # of a layer's norm, which float32 leaves in the layers that are weighed by it


class Equations:
    """What the simulated update of images lacks to be the observed one.

    Args:
        evidence: what was observed of one client.
        images: B C H W, float64, any: the rounding of their simulated update tells that of every
            layer.

    Attributes:
        number: of equations.
        has_kinks: whether ReLUs or max-pools make the simulated update jump.
        seen: by the last convolution, where it has been read.
        precise: what the server sent, in float64.
    """

    seen: Seen | None = None

    def __init__(self, evidence: Evidence, images: Tensor) -> None:
        self.evidence = evidence
        self.precise = copy.deepcopy(evidence.payload).double()
        chain = evidence.chain or ()
        self.is_noisy = chain_variance(chain, evidence.observed, evidence.observed) is not None
        self._temperature = 0.0
        self._fits_errors = False
        self.has_kinks = self._meets_kinks(images)
        self._rounding = self.rounding_of(images)
        self.weights = self._weights(evidence.observed)
        self.number = sum(
            part.numel() if self.is_noisy else int((self.weights[name] != 0).sum())
            for name, part in evidence.observed.items()
        )

    @property
    def variance(self) -> float:
        """Of an equation: 1, or :data:`EXACT`."""
        return 1.0 if self.is_noisy or self._fits_errors else EXACT

    def rounding(self, images: Tensor) -> float:
        """Return the squared length that the residual has at true images, for it was rounded.

        Args:
            images: B C H W, float64, near the true ones.
        """
        reference = next(iter(self.evidence.observed.values()))
        both = self._expected(images), self._expected(images.to(reference))
        parts = [
            (self.weights[name] * (part - both[1][name])).square().sum()
            for name, part in both[0].items()
        ]
        return float(torch.stack(parts).sum())

    @contextmanager
    def inexact(self, temperature: float, images: Tensor) -> Iterator[None]:
        """Simulate with soft kinks; the variance of a layer is what its numbers lack, in the mean.

        A soft network, and images inside another pattern of ReLUs, leave errors, whose sizes are
        the most probable ones at these images.

        Args:
            temperature: of ReLUs and max-pools, at least 0
                (:mod:`~lightning_recon.attacks.matching.softened`).
            images: B C H W, float64.
        """
        self._temperature, self._fits_errors = temperature, True
        try:
            self.weigh(images)
            yield
        finally:
            self._temperature, self._fits_errors = 0.0, False

    def weigh(self, images: Tensor) -> None:
        """Take the variances of noise that depends on the update, and errors, from these images.

        Args:
            images: B C H W, float64.
        """
        update = self.evidence.observed
        if self.is_noisy:
            update = self._scaled(self._simulate(images))
        self.weights = self._weights(update)
        if self._fits_errors:
            self.weights = self._fitted(self._expected(images))

    def residual(self, images: Tensor, names: Collection[str] | None = None) -> Tensor:
        """Return what the simulated update lacks, weighted: M numbers.

        Args:
            images: B C H W, float32 or float64, which is the precision of all that is computed.
            names: of the parameters whose numbers are compared; null: all.
        """
        simulated, observed = self._expected(images), self._as(images)
        parts = [
            (self.weights[name].to(images) * (part - observed[name])).flatten()
            for name, part in simulated.items()
            if names is None or name in names
        ]
        return torch.cat(parts)

    def network(self, images: Tensor) -> nn.Module:
        """Return the payload in the precision of these images, on which clients are simulated."""
        return self.precise if images.dtype == torch.float64 else self.evidence.payload

    def share(self, image: Tensor, label: Tensor) -> Update:
        """Return what one image adds to the update of its batch, where images do not mix.

        Args:
            image: 1 C H W, float64.
            label: 1.
        """
        client, number = self.evidence.client, len(self.evidence.labels)
        with client.working(self.precise):
            alone = client.simulate(self.precise, image, label, gradient=functional)
        return {name: part / number for name, part in alone.items()}

    def mixes(self, images: Tensor) -> bool:
        """Return whether images have a say in what others add, as in training's batch norm.

        Args:
            images: B C H W, float64, any.
        """
        labels = self.evidence.labels
        shares = [
            self.share(image[None], label[None])
            for image, label in zip(images, labels, strict=True)
        ]
        return any(
            bool((part - sum(share[name] for share in shares)).norm() > _MIXED * part.norm())
            for name, part in self._simulate(images).items()
        )

    def _expected(self, images: Tensor) -> Update:
        simulated = self._simulate(images)
        simulated = expected_chain(self.evidence.chain or (), simulated, self._as(images))
        return self._scaled(simulated)

    def _meets_kinks(self, images: Tensor) -> bool:
        payload = self.precise
        with left_as_found(payload, training=False, keeps_buffers=True), torch.no_grad():
            hard = payload(images)
            with Softened(1.0):
                return not torch.equal(hard, payload(images))

    def rounding_of(self, images: Tensor) -> dict[str, Tensor]:
        """Return the mean square of the rounding of every layer's numbers."""
        reference = next(iter(self.evidence.observed.values()))
        with torch.no_grad():
            precise, rounded = (self._simulate(one) for one in (images, images.to(reference)))
        return {name: (part - rounded[name]).square().mean() for name, part in precise.items()}

    def _sizes(self) -> dict[str, Tensor]:
        """Return the norm of every layer, or more where little of it is not rounding."""
        observed = self.evidence.observed
        norms = {name: part.double().norm() for name, part in observed.items()}
        largest = torch.stack(list(norms.values())).max()
        sizes = {}
        for name, norm in norms.items():
            rounding = (self._rounding[name] * observed[name].numel()).sqrt()
            sizes[name] = norm.maximum((rounding / _ROUNDING).minimum(largest))
        return sizes

    def _simulate(self, images: Tensor) -> Update:
        evidence = self.evidence
        payload = self.network(images)
        soft = Softened(self._temperature) if self._temperature else nullcontext()
        with evidence.client.working(payload), soft:
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

    def _fitted(self, simulated: Update) -> Update:
        """Return one over the greater of every number's own error and its layer's mean one."""
        weights, sizes = {}, self._sizes()
        for name, part in self.evidence.observed.items():
            own = self.weights[name]
            error = (simulated[name] - part).square().mean()
            least = (_LEAST_ERROR * sizes[name]).square() / max(1, part.numel())
            variance = error.maximum(least)
            if self.is_noisy:
                variance = variance.maximum(own.clamp_min(1e-30).square().reciprocal())
            weights[name] = torch.where(own > 0, variance.rsqrt(), 0.0)
        return weights

    def _weights(self, update: Update) -> Update:
        """Return one over the standard deviation of every number, float64; 0: not compared."""
        observed = self.evidence.observed
        added = chain_variance(self.evidence.chain or (), update, observed)
        weights, sizes = {}, self._sizes()
        for name, part in observed.items():
            if added is None:
                weight = torch.where(part.any(), 1 / sizes[name], 0.0).expand_as(part)
            else:
                variance = added[name].double()
                most = variance.max() if variance.numel() else variance.new_zeros(())
                least = (_LEAST_VARIANCE * most).maximum(self._rounding[name])
                weight = variance.maximum(least).rsqrt()
                weight = torch.where(most > 0, weight, 0.0)
            weights[name] = weight
        return weights
