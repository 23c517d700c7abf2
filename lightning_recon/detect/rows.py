"""What the rows of one weight tell: statistics, the larger the stranger, each with its words.

Sources: imprint rows, which are equal and whose biases ascend: Fowl et al., "Robbing the Fed",
ICLR 2022.  Trap weights, whose positive half is the negative one, shuffled and scaled: Boenisch et
al., "When the Curious Abandon Honesty", EuroS&P 2023.  Biases set to quantiles of the
pre-activation: Shariati, 2026.  A head that is sure of one class: Wen et al., "Fishing for User
Data in Large-Batch Federated Learning via Gradient Magnification", ICML 2022.  All statistics are
ours.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recon.detect.layers import Layer

_SAME = 1e-4  # by which the cosine of two rows may fall short of 1
_MIN_ENTRIES = 16  # of a row that are not 0, for it to be compared with others
_MATCHED = 1e-3  # spread of the logarithm of quotients between the sorted halves of a row
_USUAL = 20  # times 1 / sqrt(D), up to which training takes biases that start below it
_DEVIATIONS = 2.5  # standard ones, by which a spread may lie below its expectation
_LEAST = 1e-6  # of the largest row, that any other counts with
_TINY = 1e-30


class Evidence(NamedTuple):
    """A statistic of one weight."""

    code: str
    value: float
    text: str


def evidence_of(layer: Layer) -> Iterator[Evidence]:
    """Yield what the rows of a weight tell."""
    if not layer.is_finite:
        yield Evidence("not-finite", 1.0, "holds NaN or infinity")
    norms = layer.rows.norm(dim=1)
    for check in _CHECKS:
        yield from check(layer, norms)


def _dead(layer: Layer, norms: Tensor) -> Iterator[Evidence]:
    """Rows of zeros: what they receive is the sample alone, or noise alone."""
    share = float((norms == 0).float().mean())
    if share == 0:
        return
    if share == 1 and layer.num_rows >= 32 and layer.num_columns >= 128 and not layer.is_last:
        known = {True: 0.7, None: 1.0, False: 2.0}[layer.is_known if layer.is_flat else True]
        text = f"all {layer.num_rows} rows of {layer.num_columns} numbers are zero"
        if layer.is_known is False:
            text += ", and they belong to no layer of torch.nn"
        yield Evidence("dead-rows", known, text)
    elif not layer.is_last:
        yield Evidence("dead-rows", share / 2, f"{share:.0%} of the rows are zero")


def _repeated(layer: Layer, norms: Tensor) -> Iterator[Evidence]:
    """Rows that are multiples of another one: every one of them measures the same of an image."""
    units = _units(layer, norms)
    if len(units) < 8:
        return
    cosines = (units @ units.T).fill_diagonal_(0).abs()
    share = float((cosines.max(1).values > 1 - _SAME).float().mean())
    yield Evidence("repeated-rows", share, f"{share:.0%} of the rows are multiples of another row")
    if len(units) < 32 or layer.num_columns < 64:
        return
    top = float(torch.linalg.eigvalsh((units @ units.T).double())[-1]) / len(units)
    text = f"{top:.0%} of what the rows measure is one and the same direction"
    yield Evidence("one-direction", top, text)


def _units(layer: Layer, norms: Tensor) -> Tensor:
    """Return rows of norm 1, those that have entries enough to be compared."""
    scaled = layer.rows / norms.clamp_min(_TINY)[:, None]
    return scaled[(layer.rows != 0).sum(1) >= _MIN_ENTRIES]


def _ordered(layer: Layer, norms: Tensor) -> Iterator[Evidence]:
    """Biases that ascend or descend from row to row: the edges of bins."""
    bias = layer.bias
    if bias is None or len(bias) < 16 or _num_different(bias) < len(bias) / 2:
        return
    place = torch.arange(len(bias), dtype=torch.float64)
    ranks = bias.argsort().argsort().double()
    correlation = _correlation(place, ranks)
    text = f"the biases are in order from row to row (rank correlation {correlation:+.2f})"
    yield Evidence("ordered-biases", abs(correlation) * math.sqrt(len(bias) - 1), text)


def _traps(layer: Layer, norms: Tensor) -> Iterator[Evidence]:
    """Rows whose positive half is the negative one again, scaled."""
    if layer.num_columns < 64:
        return
    positive, negative = (layer.whole > 0).sum(1), (layer.whole < 0).sum(1)
    alive = positive + negative > 0
    if alive.sum() >= 8:
        alike = layer.whole[alive & (positive == negative)]  # few rows by chance
        share = sum(map(_is_matched, alike)) / int(alive.sum())
        text = f"in {share:.0%} of the rows the positive half is the negative half, scaled"
        yield Evidence("trap-weights", share, text)


def _is_matched(row: Tensor) -> bool:
    positive, negative = row[row > 0].sort().values, -row[row < 0].sort(descending=True).values
    if _num_different(positive) < 16:
        return False
    quotients = (positive.double() / negative.double()).log()
    return float(quotients.std()) < _MATCHED


def _unbalanced(layer: Layer, norms: Tensor) -> Iterator[Evidence]:
    """Rows that all lean to one side by the same amount, or more alike than chance would have it.

    A row that is to fire for few samples must sum up to about what the others do; the sums of
    rows that were drawn vary by chance.  Trained convolutions come near it (a published SqueezeNet
    has layers that vary by a quarter of chance), so that it is told of linear layers alone.
    """
    totals = layer.totals[layer.totals[:, 1] > 0]
    if len(totals) < 32 or layer.num_columns < 64:
        return
    lean = totals[:, 0] / totals[:, 1]
    mean, spread = float(lean.mean()), float(lean.std())
    value = abs(mean) / max(spread, 1e-3 * abs(mean), 1e-6)
    text = f"all rows lean to one side alike: {mean:+.3f} of their size, give or take {spread:.3f}"
    yield Evidence("leaning-rows", value, text)
    if not layer.is_flat:
        return
    chance = float((totals[:, 2].sqrt() / totals[:, 1]).mean())
    doubt = 1 - _DEVIATIONS / math.sqrt(2 * len(totals))  # of the spread of so many
    text = f"the rows' sums vary by {spread:.2g} of their size, where chance gives {chance:.2g}"
    yield Evidence("even-rows", doubt * chance / max(spread, 1e-3 * chance), text)


def _set_biases(layer: Layer, norms: Tensor) -> Iterator[Evidence]:
    """Biases that are large beside the rows, or take away what the rows sum up to."""
    if layer.bias is None or layer.num_columns < 64 or len(norms) < 16:
        return
    bias, sums = layer.bias.double(), layer.totals[:, 0]
    size = float(bias.square().mean().sqrt())
    beside = size / max(float(layer.totals[:, 2].mean().sqrt()), _TINY)
    # as a start draws them they are at most 1 / sqrt(D), however small the rows are
    value = min(beside, size * math.sqrt(layer.num_columns) / _USUAL)
    text = f"the biases are {beside:.2g} times as large as the rows, and {size:.2g} on average"
    yield Evidence("large-biases", value, text)
    if bias.std() > 0 and sums.std() > 0:
        correlation = _correlation(bias, sums)
        text = f"the biases take away what the rows sum up to (correlation {correlation:+.2f})"
        yield Evidence("centring-biases", -correlation * math.sqrt(len(norms) - 1), text)


def _gain(layer: Layer, norms: Tensor) -> Iterator[Evidence]:
    """Weights of a size that no initialisation and no training gives."""
    size = float(layer.totals[:, 2].mean().sqrt())
    if size > 0 and layer.num_columns >= 16:
        text = f"rows have a norm of {size:.2g}, where about 1 is usual"
        yield Evidence("gain-out-of-range", abs(math.log10(size)), text)


def _copies(layer: Layer, norms: Tensor) -> Iterator[Evidence]:
    """Rows that hand one input on as it is."""
    if layer.num_columns < 9:
        return
    single = (layer.whole != 0).sum(1) == 1
    peaks = layer.whole.abs().amax(1)[single]
    if len(peaks) and float(peaks.max() - peaks.min()) <= 1e-6 * float(peaks.max()):
        share = float(single.float().mean())
        yield Evidence("copying-kernels", share, f"{share:.0%} of the rows copy one input")


def _sure(layer: Layer, norms: Tensor) -> Iterator[Evidence]:
    """A head that names one class, or all but one, whatever it sees."""
    if not layer.is_last or layer.bias is None:
        return
    value = float((layer.bias - layer.bias.median()).abs().max())
    text = f"the last layer sets one class apart by {value:.3g} nats before it sees an image"
    yield Evidence("confident-head", value, text)


def _lone(layer: Layer, norms: Tensor) -> Iterator[Evidence]:
    """A head in which one class alone has weights: the others send no gradient back."""
    if not layer.is_last or layer.num_columns < 16:
        return
    sizes = layer.totals[:, 2].sqrt().sort(descending=True).values
    if len(sizes) > 1 and sizes[0] > 0:
        value = float((sizes[0] / sizes[1].clamp_min(_LEAST * float(sizes[0]))).log10())
        text = f"one class' row of the last layer is {10**value:.2g} times as large as any other"
        yield Evidence("lone-class", value, text)


def _num_different(values: Tensor) -> int:
    return 1 + int((values.sort().values.diff() > 0).sum())


def _correlation(first: Tensor, second: Tensor) -> float:
    first, second = first - first.mean(), second - second.mean()
    return float((first @ second) / (first.norm() * second.norm()).clamp_min(_TINY))


_CHECKS: tuple[Callable[[Layer, Tensor], Iterator[Evidence]], ...] = (
    *(_dead, _repeated, _ordered, _traps, _unbalanced),
    *(_set_biases, _gain, _copies, _sure, _lone),
)
