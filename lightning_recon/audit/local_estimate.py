"""What a linearised Gaussian attacker gets of a client's images, without an attack.

At the true images x the update is linearised, u = g(x) + noise of covariance S, and images are
taken for a Gaussian of mean mu and precision Q, that of the public images' spectrum.  The best
estimate is linear then, x^ - mu = K (u - g(mu)), K = (J' S^-1 J + Q)^-1 J' S^-1, J = dg/dx, and its
expected squared error at this x is

    ||(I - K J)(x - mu)||^2 + tr K S K'.

It is **no bound**: better priors, and the kinks of ReLUs and pools, may do better, and an attack
may stay far under it.  On a linear channel with Gaussian noise it is what the Wiener filter gets,
in the mean over images.  The bound beside it is that of van Trees (Detection, Estimation, and
Modulation Theory, 1968) with the information averaged over clients: for images of that Gaussian,
no estimate has a smaller mean squared error; as a bound for data reconstruction: Guo, Karrer,
Chaudhuri & van der Maaten, "Bounding Training Data Reconstruction in Private (Deep) Learning",
ICML 2022; Maeng, Guo, Kariyappa & Suh, NeurIPS 2023.

This is the auditor's side: it sees the truth, and no attack may call it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_recon.attacks.features.spectrum import Spectrum
from lightning_recon.attacks.matching.equations import Equations
from lightning_recon.attacks.matching.evidence import Reader
from lightning_recon.errors import InputError
from lightning_recon.functional.damped_least_squares import jacobian
from lightning_recon.observation import Observation
from lightning_recon.updates import PrivateBatch

MAX_UNKNOWNS = 6144  # of one client: matrices of 300 MB, and minutes


class LocalEstimate(NamedTuple):
    """Of the images of one client."""

    mse: Tensor
    """B: the expected mean squared error of each image."""
    prior_mse: Tensor
    """B: that of the prior's mean alone."""
    num_equations: int
    num_unknowns: int
    num_above_noise: int
    """Directions of the images that the update tells better than the prior does."""
    information: Tensor
    """N N, float64: J' S^-1 J along the cosines of the images, the first image's first."""


def local_estimate(
    observation: Observation,
    batch: PrivateBatch,
    spectrum: Spectrum,
    num_directions: int | None = None,
) -> LocalEstimate:
    """Return what a linearised Gaussian attacker gets, who knows all but the images.

    Args:
        observation: with the client and the defenses granted; where they add nothing at random
            the update counts as exact to float32.
        batch: what the client owns.
        spectrum: of the server's public images, in float64.
        num_directions: how many of an image's directions, those of the largest variance, are
            looked at; of the others the update counts as silent, in either direction, so that
            they keep the prior's error.  Null: all.

    Raises:
        InputError: if the images have more numbers than can be treated.
    """
    size = spectrum.mean.numel()
    kept = min(num_directions or size, size)
    unknowns = len(batch.images) * kept
    if unknowns > MAX_UNKNOWNS:
        raise InputError(
            f"the local estimate treats {MAX_UNKNOWNS} unknowns of a client, not {unknowns}; "
            "take smaller images or batches"
        )
    evidence = Reader("local estimate", "residual_counts").evidence(observation, batch.labels, {})
    equations = Equations(evidence)
    reference = next(iter(observation.update.values()))
    images = batch.images.to(reference)
    basis = spectrum.moved(torch.eye(kept, size).to(spectrum.mean))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        equations.weigh(images.double())
        rows = jacobian(equations.residual, images, basis.to(images), _length(equations))
    if not equations.is_noisy:
        rows = rows.double()
    information = (rows @ rows.T).double() / equations.variance
    variances = spectrum.variances[:kept].double().repeat(len(images))
    offset = spectrum.along(images.double() - spectrum.mean)
    mse = _errors(information, variances, offset[:, :kept].flatten()).view(len(images), -1)
    prior = offset.square()
    mse = torch.cat([mse, prior[:, kept:]], dim=1)
    roots = variances.sqrt()
    told = torch.linalg.eigvalsh(information * roots * roots[:, None])
    return LocalEstimate(
        mse=mse.sum(1) / size,
        prior_mse=prior.sum(1) / size,
        num_equations=equations.number,
        num_unknowns=unknowns,
        num_above_noise=int((told > 1).sum()),
        information=information,
    )


def van_trees_mse(estimates: Sequence[LocalEstimate], spectrum: Spectrum) -> float:
    """Return the least mean squared error of any estimate, for images of the prior: a bound.

    Args:
        estimates: of clients of the same number of images, at least 1.
        spectrum: the prior.
    """
    mean = torch.stack([estimate.information for estimate in estimates]).mean(0)
    variances = spectrum.variances.double().repeat(len(mean) // len(spectrum.variances))
    covariance = _covariance(mean, variances)
    return float(covariance.diagonal().mean())


def _errors(information: Tensor, variances: Tensor, offset: Tensor) -> Tensor:
    """Return the expected squared error along every cosine, N.

    Args:
        information: N N, G = J' S^-1 J.
        variances: N, of the prior.
        offset: N, of the truth from the prior's mean.
    """
    covariance = _covariance(information, variances)  # P = (G + Q)^-1; K J = I - P Q
    bias = covariance @ (offset / variances)
    spread = covariance.diagonal() - (covariance.square() / variances).sum(1)  # of P G P
    return bias.square() + spread.clamp_min(0)


def _covariance(information: Tensor, variances: Tensor) -> Tensor:
    """Return (G + Q)^-1, computed in standard deviations of the prior, where Q is the unit."""
    roots = variances.sqrt()
    whole = information * roots * roots[:, None] + torch.eye(len(roots)).to(information)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(whole))
    return inverse * roots * roots[:, None]


def _length(equations: Equations) -> int:
    return sum(part.numel() for part in equations.weights.values())
