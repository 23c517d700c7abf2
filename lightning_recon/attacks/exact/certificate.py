"""Whether an image is in an update exactly: a test that needs no truth.

The gradients of a linear layer's weights and bias, side by side, are R = sum_i d_i (x_i, 1): every
sample adds a product of its slopes d_i by the layer's outputs, K numbers, and of what the layer
reads of it, D numbers and a 1.  With fewer samples than rows the columns of R span a space of few
dimensions in which every d_i lies, and the rows one in which every (x_i, 1) lies.  A candidate x
tells its own slopes: the server runs its model on x, once for each label.  So it is put to three
tests that share no equation:

- its slopes must lie in the span of the columns: K less rank equations, of which the candidate has
  used none.  A mixture of samples lies in the span of the rows as they do, but the slopes that it
  computes are no mixture of theirs;
- its pixels must lie in the span of the rows, every one within half a level;
- R less c d (x, 1) must have one rank less, which gives c = 1 / ((x, 1) R^+ d): a whole multiple of
  the scale that all samples share (Wedderburn's rank reduction).  A sample that is there k times
  has k times the scale.

The null hypothesis is "a mixture": its statistic, the share of d's energy outside the span (the
smallest of all labels), is simulated on mixtures of the update's own rows.  A p-value is the share
of these that do as well, beyond their smallest one by an exponential tail in the logarithm (Hill,
1975), times the number of candidates tried.  That the truth passes is another question: a
deviation within what the noise explains, which a chi-squared test of the truth would bound.

Diana, Xu, Nusser, Neglia, "No More Guessing: a Verifiable Gradient Inversion Attack in Federated
Learning", 2026, certify by a subspace as well, that of several rounds' rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recon.attacks.exact.slopes import SlopeModel, Slopes
from lightning_recon.functional.tables import category_places
from lightning_recon.observation import HALF_LEVEL
from lightning_recon.updates import Columns

CERTAIN = 1e-4
"""p-value up to which an image is certified."""
TOLD = 4.0
"""Times the misfit by which a small move is told: the error's own effect is the smaller then."""
_TAIL = 0.1  # share of the null's smallest statistics that its tail is fitted to
_TINY = 1e-300
_SPARE = 16  # dimensions beyond the rank, that the noise is read from
_FAR = 4 / 255  # by which a mixture differs from its parts; nearer ones the pixels' test tells
_FLOOR = 2e-5  # relative deviation of slopes that rounding in a network of float32 explains
_VAGUE = 0.1  # relative error of a scale, above which it is no evidence
_MOST = 16  # times that one sample is there
_PART = 64  # candidates that are tested together
_SURE = 6.0  # standard deviations of the noise


class Spans(NamedTuple):
    """The spaces that a gradient's columns and rows span, and the noise beside them."""

    columns: Tensor
    """K r."""
    strengths: Tensor
    """r singular values, the largest first."""
    rows: Tensor
    """r (D + 1)."""
    noise_std: float
    """Of an entry, rounding included."""
    constant: float = 1.0
    """What the layer reads beside every image: 1, or 0 if it has no bias."""

    @property
    def rank(self) -> int:
        """Dimensions of the spans."""
        return len(self.strengths)

    def extended(self, images: Tensor) -> Tensor:
        """Return N D images with the constant beside them, N (D + 1)."""
        return torch.cat([images, images.new_full((len(images), 1), self.constant)], 1)

    def project(self, images: Tensor) -> Tensor:
        """Return N D images moved into the span of the rows; NaN where it holds nothing alike."""
        inside = self.extended(images) @ self.rows.T @ self.rows
        return inside[:, :-1] / (inside[:, -1:] if self.constant else 1.0)


class Tested(NamedTuple):
    """What the tests say of N candidates."""

    statistic: Tensor
    """N in [0, 1]: share of the slopes' energy outside the span of the columns."""
    label: Tensor
    """N, int64."""
    slopes: Tensor
    """N K, of that label."""
    scale: Tensor
    """N: the c that lowers the rank."""
    scale_error: Tensor
    """N: that noise makes in it, relative, at the most."""
    fits_noise: Tensor
    """N, bool: whether noise explains what lies outside the span of the columns."""
    fits_pixels: Tensor
    """N, bool: whether every pixel is within half a level, and noise hides no level."""
    off_categories: Tensor
    """N in [0, .5]: how far a category's place of a table's row is from 0 and 1; of pictures 0."""

    def at(self, places: Tensor) -> "Tested":
        """Return what is said of some of the candidates."""
        return Tested(*(field[places] for field in self))


def read_spans(gradient: Tensor, num_samples: int | None, generator: torch.Generator) -> Spans:
    """Return the spans of a gradient, by subspace iteration (Halko et al., SIAM Review 2011).

    Args:
        gradient: K (D + 1), of weights and bias, float64; a last column of 0: there is no bias.
        num_samples: rank that it has at the most; null: half of what it could.
        generator: of the subspace that the iteration begins with.
    """
    height, width = gradient.shape
    most = num_samples or min(height, width) // 2
    size = min(most + _SPARE, height, width)
    start = torch.randn(width, size, generator=generator, dtype=gradient.dtype)
    basis = torch.linalg.qr(gradient @ start.to(gradient)).Q
    for _ in range(2):
        basis = torch.linalg.qr(gradient @ (gradient.T @ basis)).Q
    columns, strengths, rows = torch.linalg.svd(basis.T @ gradient, full_matrices=False)
    freedom = max((height - size) * (width - size), 1)
    noise_std = float((gradient - basis @ (basis.T @ gradient)).norm()) / freedom**0.5
    # twice what the largest singular value of noise alone comes to
    rank = int((strengths[:most] > 2 * noise_std * (height**0.5 + width**0.5)).sum())
    constant = float(gradient[:, -1].any())
    return Spans(basis @ columns[:, :rank], strengths[:rank], rows[:rank], noise_std, constant)


def examine(spans: Spans, model: SlopeModel, images: Tensor) -> Tested:
    """Test candidates, the best label of each.

    Args:
        spans: of the update.
        model: the payload.
        images: N D in [0, 1].
    """
    slopes = model(images)
    each = _settle_near_zero(slopes, spans.columns)
    inside = each @ spans.columns
    outside = each - inside @ spans.columns.T
    energy = each.square().sum(2)
    statistic = outside.square().sum(2) / energy.clamp_min(_TINY)
    # a label that the model is sure of has no slopes, and what rounding leaves proves nothing
    statistic = statistic.where(energy > 1e-24 * energy.amax(1, keepdim=True), 1.0)
    best = statistic.amin(1, keepdim=True)
    seen = spans.extended(images)
    share = seen @ spans.rows.T
    left = share / spans.strengths
    # of two classes both labels have slopes along one line, and only one has them the right way
    is_forward = torch.einsum("nr,ncr->nc", left, inside) > 0
    is_alike = statistic <= (4 * best).clamp_min(1e-10)
    label = energy.where(is_alike, -1.0).where(is_forward | ~is_alike, 0.0).argmax(1)
    place = torch.arange(len(images), device=images.device)
    statistic, chosen, inside = statistic[place, label], each[place, label], inside[place, label]
    right = inside / spans.strengths
    scale = 1 / (share * right).sum(1)
    off = (seen - share @ spans.rows).abs().amax(1)
    explained = len(spans.columns) ** 0.5 * spans.noise_std * right.norm(dim=1)
    allowed = _SURE * explained + _FLOOR * chosen.norm(dim=1)
    return Tested(
        statistic,
        label,
        chosen,
        scale,
        _FLOOR + _SURE * spans.noise_std * scale.abs() * left.norm(dim=1) * right.norm(dim=1),
        statistic.sqrt() * chosen.norm(dim=1) <= allowed,
        (off <= HALF_LEVEL / 2) & (_SURE * spans.noise_std * left.norm(dim=1) <= HALF_LEVEL),
        _off_categories(images, model.columns),
    )


def examine_all(spans: Spans, model: SlopeModel, images: Tensor) -> Tested:
    """Test candidates in parts that fit into memory; see :func:`examine`."""
    parts = [examine(spans, model, part) for part in torch.split(images, _PART)]
    return Tested(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def _off_categories(images: Tensor, columns: Columns | None) -> Tensor:
    """Return how far the categories of N D flat rows are from 0 and 1, at the most, N."""
    if columns is None or not (groups := category_places(columns)):
        return images.new_zeros(len(images))
    values = images[:, torch.cat(groups).to(images.device)]
    return torch.minimum(values.abs(), (values - 1).abs()).amax(1)


def _settle_near_zero(slopes: Slopes, columns: Tensor) -> Tensor:
    """Return the slopes, N C K, those of outputs near 0 as they fit best.

    There a client's rounding may have decided the other way.
    """
    each = slopes.each.clone()
    most = (len(columns) - columns.shape[1]) // 4  # of more the rest would prove little
    for place in slopes.near_zero.any(1).nonzero()[:, 0].tolist():
        rows = slopes.near_zero[place].nonzero()[:, 0]
        if len(rows) > most:
            continue
        outside = each[place].T - columns @ (columns.T @ each[place].T)
        free = -columns @ columns[rows].T
        free[rows, torch.arange(len(rows), device=rows.device)] += 1
        each[place, :, rows] -= torch.linalg.lstsq(free, outside).solution.T
    return each


def misfit(tested: Tested, scale: float | None) -> Tensor:
    """Return how far candidates are from passing, N: the statistic that p-values are of.

    It is the larger of the share of the slopes' energy outside the span and of the square by which
    the scale misses a whole multiple of the common one: slopes of few rows may lie in the span by
    chance, but not with the right size as well.  Of a table's rows the square by which a category
    is off counts too: of two classes all slopes within one linear piece of the network lie along
    one line, but no mixture of rows has its categories right.

    Args:
        tested: the candidates.
        scale: common to all samples; null: not known.
    """
    least = torch.maximum(tested.statistic, tested.off_categories.square())
    if scale is None:
        return least
    times = how_often(tested, scale)
    missed = (times - tested.scale / scale).abs() / times
    missed = (missed - tested.scale_error.clamp_max(_VAGUE)).clamp_min(0)
    return torch.maximum(least, missed.square().clamp_max(1))


def how_often(tested: Tested, scale: float) -> Tensor:
    """Return how often each candidate is there, N, at least once and not absurdly often."""
    return (tested.scale / scale).round().clamp(1, _MOST)


class MixtureNull(NamedTuple):
    """How often a mixture comes as far as a candidate."""

    tested: Tested
    """M mixtures."""

    def pass_rate(self, value: Tensor, scale: float | None) -> Tensor:
        """Return the share of mixtures whose misfit is at most as large.

        Args:
            value: N, of :func:`misfit`.
            scale: as there.
        """
        known = misfit(self.tested, scale).nan_to_num(1.0).clamp_min(_TINY).sort().values
        empirical = (torch.searchsorted(known, value, right=True) + 1) / (len(known) + 1)
        size = max(1, int(_TAIL * len(known)))
        edge = known[size - 1]
        rate = (1 / (edge / known[:size]).log().mean().clamp_min(1e-9)).clamp_max(len(known))
        tail = _TAIL * (value.clamp_min(_TINY) / edge) ** rate
        return torch.where(value < known[0], torch.minimum(tail, empirical), empirical)


def simulate_null(
    spans: Spans, model: SlopeModel, images: Tensor, size: int, generator: torch.Generator
) -> MixtureNull:
    """Return the tests of mixtures of what an update's rows show.

    Args:
        spans: of the update.
        model: the payload.
        images: N D, at least 2: what single rows show.
        size: mixtures that are drawn.
        generator: of the pairs and shares.
    """
    pairs = torch.randint(len(images), (size, 2), generator=generator)
    share = torch.rand(size, 1, generator=generator, dtype=torch.float64).to(images)
    first, second = images[pairs[:, 0].to(images.device)], images[pairs[:, 1].to(images.device)]
    mixed = share * first + (1 - share) * second
    nearest = torch.minimum((mixed - first).abs().amax(1), (mixed - second).abs().amax(1))
    mixed = mixed[nearest > _FAR].clamp(0, 1)
    return MixtureNull(examine_all(spans, model, mixed))
