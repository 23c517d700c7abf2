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

Where the images have too many numbers for a matrix, x^ is computed by conjugate gradients on
products with J and its transpose: of the update without noise, which gives the first term, and of
noise alone, whose squared size is in the mean the second (after Hutchinson, Communications in
Statistics 18, 1989).  What so many products do not reach counts as not found.

This is the auditor's side: it sees the truth, and no attack may call it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_recon.attacks import Attack
from lightning_recon.attacks.features.decoding import teaching_images
from lightning_recon.attacks.features.spectrum import Spectrum
from lightning_recon.attacks.matching.batched import is_out_of_memory
from lightning_recon.attacks.matching.equations import Equations
from lightning_recon.attacks.matching.evidence import Reader
from lightning_recon.errors import InputError
from lightning_recon.federation import Federation
from lightning_recon.functional.damped_least_squares import (
    conjugate_gradients,
    gram,
    jacobian,
    products,
)
from lightning_recon.observation import Grant, Observation
from lightning_recon.randomness import derive_seed
from lightning_recon.updates import PrivateBatch

MAX_UNKNOWNS = 6144
"""Of one client, of which the matrix is made: 300 MB, and minutes."""
GRANTS = (Grant.LABELS, Grant.NUM_SAMPLES, Grant.CLIENT, Grant.DEFENSES)
"""What the attacker of the estimate knows."""
_MAX_NUMBERS = 2**29  # of a whole Jacobian: 2 GB
NUM_PRODUCTS = 200
"""Pairs of products with J and its transpose, of one estimate without a matrix, at most."""
_PROBES = 4  # draws of noise
_TOLERANCE = 1e-4  # of the conjugate gradients' residual, relative


class LocalEstimate(NamedTuple):
    """Of the images of one client."""

    mse: Tensor
    """B: the expected mean squared error of each image."""
    prior_mse: Tensor
    """B: that of the prior's mean alone."""
    drawn_mse: Tensor | None
    """B: the squared error of the same estimate with the noise that was drawn, in whose mean it is
    ``mse``; None where no matrix is made."""
    num_equations: int
    num_unknowns: int
    num_told: float
    """Directions of the images that the update tells: of each the share that the update, and not
    the prior, decides (MacKay's well-determined parameters, Neural Computation 4, 1992)."""
    information: Tensor | None
    """N N, float64: J' S^-1 J along the cosines of the images that were looked at, the first
    image's first; None where there are too many unknowns."""


class Estimator:
    """Estimates one client after the other, by what an attack's server sends.

    Args:
        attack: bound to data of the clients' shape; it is not run.
        public: N C H W in [0, 1], the server's own images; noise of a natural spectrum replaces
            fewer than 8.
        seed: of the clients' and the defenses' randomness.
    """

    def __init__(self, attack: Attack, public: Tensor, seed: int) -> None:
        self.attack = attack
        chain = [*attack.federation.defenses]
        self._federation = Federation(attack.target, attack.client, chain, seed)
        self._federation.start(lambda: attack.federation.payload, GRANTS)
        images, _ = teaching_images(public, attack.spec.image_shape, derive_seed(seed, "synthetic"))
        self.spectrum = Spectrum(images.double())

    def estimate(self, batch: PrivateBatch, client: int) -> LocalEstimate:
        """Return what a linearised attacker gets of a client; see :func:`local_estimate`.

        Args:
            batch: what the client owns.
            client: its number.

        Raises:
            InputError: if the client's update cannot be differentiated by the images.
        """
        observation = self._federation.play(batch, client)
        try:
            return local_estimate(observation, batch, self.spectrum)
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:160]
            raise InputError(
                f"the update of {type(self._federation.target).__name__} cannot be differentiated "
                f"by the images: {reason}"
            ) from error


def local_estimate(
    observation: Observation,
    batch: PrivateBatch,
    spectrum: Spectrum,
    max_unknowns: int = MAX_UNKNOWNS,
    num_directions: int | None = None,
    num_products: int = NUM_PRODUCTS,
) -> LocalEstimate:
    """Return what a linearised Gaussian attacker gets, who knows all but the images.

    Args:
        observation: with the client and the defenses granted; where they add nothing at random
            the update counts as exact to float32.
        batch: what the client owns.
        spectrum: of the server's public images, in float64.
        max_unknowns: of a matrix; with more, and where a whole Jacobian would take more than 2 GB,
            products alone are taken.
        num_directions: how many of an image's directions, those of the largest variance, are
            looked at by a matrix; of the others the update counts as silent, in either direction,
            so that they keep the prior's error.  Null: all.
        num_products: pairs of products of an estimate without a matrix, of which five are made.
    """
    size = spectrum.mean.numel()
    kept = min(num_directions or size, size)
    num_unknowns = len(batch.images) * kept
    reference = next(iter(observation.update.values()))
    images = batch.images.to(reference)
    labels = batch.labels.to(reference.device)
    evidence = Reader("local estimate", "residual_counts").evidence(observation, labels, {})
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        equations = Equations(evidence, images.double())
        equations.weigh(images.double())
        offset = spectrum.along(images.double() - spectrum.mean)
        prior = offset.square()
        information = drawn = None
        fits = num_directions is not None or num_unknowns * equations.number <= _MAX_NUMBERS
        is_explicit = num_unknowns <= max_unknowns and fits
        if is_explicit:
            variances = spectrum.variances[:kept].double().repeat(len(images))
            information = _information(equations, images, spectrum, kept)
            heard = _heard(equations, images, spectrum)[:, :kept].flatten()
            errors, told, drawn = _errors(information, variances, offset[:, :kept].flatten(), heard)
            errors, drawn = (
                torch.cat([one.view(len(images), -1), prior[:, kept:]], dim=1)
                for one in (errors, drawn)
            )
        else:
            errors, told = _errors_by_products(
                equations, images, spectrum, offset.flatten(), num_products
            )
    return LocalEstimate(
        mse=errors.view(len(images), -1).sum(1) / size,
        prior_mse=prior.sum(1) / size,
        drawn_mse=None if drawn is None else drawn.sum(1) / size,
        num_equations=equations.number,
        num_unknowns=num_unknowns if is_explicit else images.numel(),
        num_told=told,
        information=information,
    )


def van_trees_mse(estimates: Sequence[LocalEstimate], spectrum: Spectrum) -> float | None:
    """Return the least mean squared error of any estimate, for images of the prior: a bound.

    None where clients differ in their number of images, have too many for a matrix, or were looked
    at along a few directions.

    Args:
        estimates: of clients, at least 1.
        spectrum: the prior.
    """
    size = len(spectrum.variances)
    known = [
        one.information
        for one in estimates
        if one.information is not None and one.num_unknowns == len(one.mse) * size
    ]
    if len(known) < len(estimates) or len({len(one) for one in known}) > 1:
        return None
    mean = torch.stack(known).mean(0)
    variances = spectrum.variances.double().repeat(len(mean) // len(spectrum.variances))
    covariance = _covariance(mean, variances)
    return float(covariance.diagonal().mean())


def _information(equations: Equations, images: Tensor, spectrum: Spectrum, kept: int) -> Tensor:
    """Return J' S^-1 J along so many cosines of each image, N N, float64."""
    basis = spectrum.moved(torch.eye(kept, spectrum.mean.numel()).to(spectrum.mean))
    length = sum(part.numel() for part in equations.weights.values())
    rows = jacobian(equations.residual, images, basis.to(images), length)
    if not equations.is_noisy:
        rows = rows.double()
    return gram(rows).double() / equations.variance


def _heard(equations: Equations, images: Tensor, spectrum: Spectrum) -> Tensor:
    """Return J' S^-1 of the noise that was drawn, along the cosines of each image, B K, float64."""
    point = images if equations.is_noisy else images.double()
    noise, back = torch.func.vjp(equations.residual, point)[:2]
    return spectrum.along(back(noise)[0].double()) / equations.variance


def _errors(
    information: Tensor, variances: Tensor, offset: Tensor, heard: Tensor
) -> tuple[Tensor, float, Tensor]:
    """Return the expected squared error along every cosine, N, and how many directions are told.

    Behind them the squared error with the noise that was drawn, N.

    Args:
        information: N N, G = J' S^-1 J.
        variances: N, of the prior.
        offset: N, of the truth from the prior's mean.
        heard: N, J' S^-1 of the noise that was drawn.
    """
    covariance = _covariance(information, variances)  # P = (G + Q)^-1; K J = I - P Q
    bias = covariance @ (offset / variances)
    spread = covariance.diagonal() - (covariance.square() / variances).sum(1)  # of P G P
    told = (1 - covariance.diagonal() / variances).sum()
    drawn = bias + covariance @ heard
    return bias.square() + spread.clamp_min(0), float(told), drawn.square()


def _covariance(information: Tensor, variances: Tensor) -> Tensor:
    """Return (G + Q)^-1, computed in standard deviations of the prior, where Q is the unit."""
    roots = variances.sqrt()
    whole = information * roots * roots[:, None] + torch.eye(len(roots)).to(information)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(whole))
    return inverse * roots * roots[:, None]


def _errors_by_products(
    equations: Equations,
    images: Tensor,
    spectrum: Spectrum,
    offset: Tensor,
    num_products: int,
) -> tuple[Tensor, float]:
    """Return the first two of :func:`_errors`, of an attacker who takes so many products.

    All is in standard deviations of the prior: A = J' S^-1 J, and x^ = (A + 1)^-1 J' S^-1 u.
    """
    point = images if equations.is_noisy else images.double()
    roots = spectrum.variances.double().sqrt().repeat(len(images))
    forward, backward = products(
        equations.residual,
        point,
        lambda moves: spectrum.moved(moves).to(point),
        lambda moves: spectrum.along(moves.double()),
    )
    std = equations.variance**0.5

    def tell(numbers: Tensor) -> Tensor:
        told: Tensor = forward(roots * numbers) / std
        return told

    def hear(numbers: Tensor) -> Tensor:
        heard: Tensor = roots * backward(numbers.to(point) / std).double()
        return heard

    def solve(wanted: Tensor) -> Tensor:
        return conjugate_gradients(
            lambda numbers: hear(tell(numbers)) + numbers,
            wanted,
            torch.clone,
            num_products,
            _TOLERANCE,
        )

    truth = offset / roots
    errors = (roots * (truth - solve(hear(tell(truth))))).square()
    generator = torch.Generator().manual_seed(0)
    told = 0.0
    length = sum(part.numel() for part in equations.weights.values())
    for _ in range(_PROBES):
        noise = 2.0 * torch.randint(2, (length,), generator=generator).to(point) - 1
        heard = hear(noise)
        found = solve(heard)
        errors += (roots * found).square() / _PROBES
        told += float(heard @ found) / _PROBES
    return errors, told
