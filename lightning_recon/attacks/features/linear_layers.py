"""What the gradient of a linear layer tells of every single sample's input.

For a batch the gradient of a layer's weights, K N, is ``residuals.T @ inputs``: a sum over samples
of what comes back at the layer's output, B K, times what went in, B N.  Where the residuals are
known, every column of the gradient is a regression of K numbers on the B unknown inputs at that
place, however its entries were obfuscated:

- exact or with Gaussian noise: least squares (with noise: the posterior mean of Gaussian inputs);
- rounded at random to the multiples of a step (QSGD, TernGrad): an entry g that lies at the
  fraction f of its step has the variance f (1 - f) step^2, and least squares reweighted by it are
  Fisher's scoring for the exact likelihood, since its score is (observed - g) / variance;
- only the largest kept (top-k): kept entries are exact, the others are known to be smaller;
- signs: regression on one-bit data with a logistic likelihood; the size of a column is lost, and
  that which is usual for its place takes its stead.

Each is a Newton iteration whose step is a weighted least squares with targets of its own.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.errors import InputError

_CHUNK = 2**21  # entries that are worked on at once
_SAMPLED = 200_000  # entries from which an obfuscation is recognised
_MIN_ROWS = 8  # whose zeros are compared
_MAX_PATTERNS = 0.5  # of the rows: more patterns of zeros are no structure
_KEPT_ERROR = 0.02  # std of kept entries about what the residuals explain, of an entry's usual size
_MIN_ROUNDING = 0.02  # of step^2: the least variance that a rounded entry is taken to have
_SIGN_WIDTH = 0.3  # of the logistic, in units of an entry's usual size
_PROBIT = 1.7  # a logistic that many times narrower is about a normal distribution
_MIN_CURVATURE = 0.1  # of a sign's likelihood; Newton's steps grow too large below
_NOISE = 1e-4  # of the inputs' variance, from which noise on an exact gradient counts


class Reading(NamedTuple):
    """What was done to the entries of a tensor."""

    kind: Literal["exact", "rounded", "kept", "signs"]
    size: float
    """The noise's standard deviation, the step, the least kept magnitude (infinite where entries
    were dropped whatever their size), or the magnitude of all."""


def read_entries(observed: Tensor) -> Reading:
    """Tell from an observed gradient how its entries were obfuscated.

    Rows and columns of zeros are left out, for they come from inputs and residuals that are 0.

    Args:
        observed: K N.

    Examples:
        >>> import torch
        >>> gradient = torch.tensor([[0.31, -0.013], [-0.7, 0.2]])
        >>> read_entries(gradient.sign()).kind
        'signs'
        >>> read_entries(gradient).kind
        'exact'
    """
    live = observed[observed.any(1)]
    live = live[:, live.any(0)].flatten().abs()
    live = live[:: max(1, len(live) // _SAMPLED)]
    nonzero = live[live > 0]
    if len(nonzero) == 0:
        return Reading("exact", 0.0)
    least, most = float(nonzero.min()), float(nonzero.max())
    if len(nonzero) == len(live) > 1 and most <= 1.0001 * least:
        return Reading("signs", least)
    levels = nonzero / least
    if (
        len(nonzero) > 1
        and most < 2**16 * least
        and bool((levels - levels.round()).abs().lt(1e-3).all())
    ):
        return Reading("rounded", least)
    least = float(torch.where(observed == 0, torch.inf, observed.abs()).min())
    if len(nonzero) < len(live) and least > 0.05 * float(nonzero.median()):
        return Reading("kept", least)
    # ReLUs of few samples leave zeros, too, and so do black pixels that all of these have
    is_whole = len(nonzero) > 0.9 * len(live) or _zeros_repeat(observed)
    return Reading("exact", 0.0) if is_whole else Reading("kept", math.inf)


def _zeros_repeat(observed: Tensor) -> bool:
    """Whether many rows have their zeros at the same places, as no random choice leaves them.

    A row's zeros are those that all samples that reach it share: of few samples, few patterns.
    """
    rows = observed[observed.any(1)] == 0
    return len(rows) >= _MIN_ROWS and len(torch.unique(rows, dim=0)) <= _MAX_PATTERNS * len(rows)


def obfuscate(
    gradient: Tensor, reading: Reading, observed: Tensor, generator: torch.Generator
) -> Tensor:
    """Do to the entries of a gradient what was done to the observed one.

    Args:
        gradient: K N.
        reading: of ``observed``.
        observed: K N.
        generator: on the gradient's device.
    """
    if reading.kind == "rounded":
        levels = gradient / reading.size
        drawn = torch.rand(levels.shape, generator=generator, device=levels.device)
        return reading.size * (levels + drawn.to(levels)).floor()
    if reading.kind == "signs":
        return torch.where(gradient >= 0, reading.size, -reading.size)
    if reading.kind == "kept":
        is_kept = observed != 0 if math.isinf(reading.size) else gradient.abs() >= reading.size
        return gradient * is_kept
    noise = torch.randn(gradient.shape, generator=generator, device=gradient.device)
    return gradient + reading.size * noise.to(gradient)


def output_residuals(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the mean cross-entropy by the logits, B K.

    Args:
        logits: B K.
        labels: B, int64.
    """
    one_hot = F.one_hot(labels, logits.shape[1]).to(logits)
    return (logits.softmax(1) - one_hot) / len(labels)


def solve_inputs(
    residuals: Tensor,
    observed: Tensor,
    reading: Reading,
    mean: Tensor,
    variance: Tensor,
    rounds: int = 3,
) -> Tensor:
    """Return the inputs of a linear layer, sample by sample: B N.

    Args:
        residuals: B K, what comes back at the layer's output.
        observed: K N, the gradient of the layer's weights, obfuscated.
        reading: how.
        mean: N, of an input at each place, usually.
        variance: N, likewise, above 0; the inputs are taken for Gaussian.
        rounds: of reweighting, at least 1; exact gradients need none.

    Raises:
        InputError: if the shapes disagree.
    """
    num_samples = len(residuals)
    if residuals.shape[1] != len(observed) or len(mean) != observed.shape[1]:
        raise InputError(
            f"solve_inputs: residuals {tuple(residuals.shape)} and means {tuple(mean.shape)} do "
            f"not fit a gradient of {tuple(observed.shape)}"
        )
    live = residuals.any(0)
    if not live.any():
        return mean.expand(num_samples, -1).clone()
    residuals, observed = residuals[:, live], observed[live]
    if reading.kind == "exact" and reading.size == 0:
        return least_squares(residuals, observed)
    usual = float((residuals.square().sum(0).mean() * variance.mean()).sqrt())
    products = (residuals[:, None] * residuals).flatten(0, 1).T.contiguous()
    size = max(1, _CHUNK // len(observed))
    pieces = []
    for start in range(0, observed.shape[1], size):
        here = slice(start, start + size)
        columns = observed[:, here].T.contiguous()
        newton = _Newton(residuals, products, columns, mean[here], variance[here])
        pieces.append(newton.run(reading, usual, rounds).T)
    return torch.cat(pieces, dim=1)


def noise_of(residuals: Tensor, observed: Tensor, inputs: Tensor, variance: Tensor) -> float:
    """Return the standard deviation of the noise on an exact gradient; 0 if it does not matter.

    Args:
        residuals: B K.
        observed: K N.
        inputs: B N, as :func:`solve_inputs` gives them without noise.
        variance: N, of the inputs.
    """
    freedom = max(1, len(observed) - len(residuals))
    noise = float((observed - residuals.T @ inputs).square().sum(0).mean()) / freedom
    gram = (residuals @ residuals.T).double()
    amplified = noise * float(torch.linalg.pinv(gram, rtol=1e-9).diagonal().mean())
    return noise**0.5 if amplified > _NOISE * float(variance.mean()) else 0.0


def solve_residuals(observed: Tensor, reading: Reading, inputs: Tensor, guess: Tensor) -> Tensor:
    """Return the residuals of a linear layer from its inputs, B K: the other way around.

    Args:
        observed: K N, the gradient of the layer's weights, obfuscated.
        reading: how; not signs, which tell no sizes.
        inputs: B N.
        guess: B K: residuals from which entries that were dropped are filled in.
    """
    if reading.kind == "kept":
        filled = (guess.T @ inputs).clamp(-reading.size, reading.size)
        observed = torch.where(observed == 0, filled, observed)
    return least_squares(inputs, observed.T)


def least_squares(factor: Tensor, right: Tensor) -> Tensor:
    """Return the X, B N, of least ``factor.T @ X - right``; the smallest where many are.

    Args:
        factor: B K.
        right: K N.
    """
    gram = (factor @ factor.T).double()
    inverse = torch.linalg.pinv(gram, rtol=1e-9, hermitian=True)
    solution: Tensor = inverse @ (factor @ right).double()
    return solution.to(right)


class _Newton:
    """Regressions of n columns on the same residuals, with weights of their own."""

    def __init__(
        self, residuals: Tensor, products: Tensor, observed: Tensor, mean: Tensor, variance: Tensor
    ) -> None:
        self.residuals = residuals  # B K
        self.products = products  # K B*B
        self.observed = observed  # n K
        self.mean = mean[:, None]
        self.precision = 1 / variance[:, None]

    def run(self, reading: Reading, usual: float, rounds: int) -> Tensor:
        """Return the inputs, n B."""
        observed = self.observed
        if reading.kind == "exact":
            return self._step(torch.full_like(observed, 1 / reading.size**2), observed)
        if reading.kind == "rounded":
            return self._rounded(reading.size, rounds)
        if reading.kind == "kept":
            return self._kept(reading.size, (_KEPT_ERROR * usual) ** -2, rounds)
        return self._signs(_SIGN_WIDTH * usual, rounds)

    def _step(self, weight: Tensor, wanted: Tensor) -> Tensor:
        num_samples = len(self.residuals)
        normal = (weight @ self.products).view(-1, num_samples, num_samples)
        diagonal = normal.diagonal(dim1=1, dim2=2)
        diagonal += self.precision + 1e-6 * diagonal.mean(1, keepdim=True)
        right = (weight * wanted) @ self.residuals.T + self.mean * self.precision
        result: Tensor = torch.cholesky_solve(right[..., None], torch.linalg.cholesky(normal))
        return result[..., 0]

    def _rounded(self, step: float, rounds: int) -> Tensor:
        inputs = self._step(torch.full_like(self.observed, 4 / step**2), self.observed)
        for _ in range(rounds):
            fraction = (inputs @ self.residuals / step).remainder(1)
            variance = (fraction * (1 - fraction)).clamp_min(_MIN_ROUNDING) * step**2
            inputs = self._step(1 / variance, self.observed)
        return inputs

    def _kept(self, limit: float, weight: float, rounds: int) -> Tensor:
        is_kept = self.observed != 0
        inputs = self._step(weight * is_kept.to(self.observed), self.observed)
        for _ in range(rounds if math.isfinite(limit) else 0):
            predicted = inputs @ self.residuals
            counts = is_kept | (predicted.abs() > limit)
            wanted = torch.where(is_kept, self.observed, predicted.clamp(-limit, limit))
            inputs = self._step(weight * counts.to(wanted), wanted)
        return inputs

    def _signs(self, width: float, rounds: int) -> Tensor:
        sign = self.observed.sign()
        num_samples = len(self.residuals)
        inputs = self.mean.expand(-1, num_samples)
        for _ in range(rounds + 2):
            predicted = inputs @ self.residuals
            wrong = torch.sigmoid(-_PROBIT / width * sign * predicted)
            curvature = (_PROBIT**2 * wrong * (1 - wrong)).clamp_min(_MIN_CURVATURE)
            wanted = predicted + sign * width * _PROBIT * wrong / curvature
            inputs = self._step(curvature / width**2, wanted).clamp_min(0)
        usual = (num_samples * (self.mean.square() + 1 / self.precision)).sqrt()
        norm = torch.linalg.vector_norm(inputs, dim=1, keepdim=True)
        inputs = inputs * (usual / norm.clamp_min(1e-9 * usual))
        # the sign of 0 is one and the same everywhere
        is_zero = (sign == sign[:, :1]).all(1, keepdim=True)
        result: Tensor = inputs.masked_fill(is_zero, 0.0)
        return result
