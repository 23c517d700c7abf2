"""Few bits for an image: a wavelet coder whose statistics are those of the server's public images.

Standard formats spend more on headers and on learning what images look like than is left here.
Sender and receiver know the same public images instead.

- Coefficients (:mod:`lightning_recon.attacks.coded.wavelet`) of the image less the public mean are
  divided by one step and rounded; what a bit costs decides where to round to, as in H.26x
  (Sullivan & Wiegand, IEEE Signal Processing Magazine 15, 1998).
- How large a coefficient will be is told by its place in public images and by those that are
  already known: beside it, coarser, of other orientations and colours; a weighted sum with weights
  of least squares, as Wu & Memon do for pixels (IEEE Trans. Communications 45, 1997).  By that size
  it falls into one of a few classes, each with frequencies counted on public images.
- These are coded by an asymmetric numeral system (Duda, arXiv 0902.0271) on one large integer.
- Sizes are whole numbers throughout, so that both sides agree to the last bit.
- A coefficient is decoded as the mean of those that were rounded to the same in its class.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.optimize import nnls

from lightning_recon.attacks.coded.wavelet import Band, Floats, forward, inverse, num_levels

Integers = NDArray[np.int64]
Images = NDArray[np.float64]
"""B H W C, in [0, 1]."""

_PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))  # places of every 2 x 2 coefficients, in turn
_UNIT = 1024  # of expected sizes: one step
_LEAST = 20  # of a band's largest expected size, below which it is not sent at all
_NUM_CLASSES = 36  # of expected sizes, three an octave
_CLASS_BOUNDS = np.round(_UNIT * 2 ** ((np.arange(1, _NUM_CLASSES) - 24) / 3)).astype(np.int64)
_LARGEST = 24  # size with a frequency of its own; larger ones are told by so many bits more
_MORE_BITS = 8
_TOTAL = 2**14  # of frequencies
_STEPS = 0.02 * 2 ** (np.arange(256) / 16)
_PRICE = 0.05  # of a bit, in squared steps
_BLUR = 24.0  # of the mean image, in pixels
_MAX_ROWS = 8000  # that weights are fitted to
_ROUNDS = 4  # of finding the step that public images take at this rate


class _Part(NamedTuple):
    """Coefficients that are coded together."""

    band: Band
    channel: int
    phase: int


class _Coded(NamedTuple):
    """A part of B images, B h w each."""

    kind: Integers
    chosen: Integers
    is_negative: NDArray[np.bool_]
    is_sent: NDArray[np.bool_]
    """B."""


class _Quantised(NamedTuple):
    """What B images are rounded to."""

    bits: Floats
    """B."""
    coded: list[_Coded]
    counts: Floats
    """By class and size, and"""
    sums: Floats
    """of what was rounded to it."""


class PublicCoder:
    """Codes images in a given number of bytes.

    Args:
        images: public, B H W C in [0, 1].
        num_bytes: that an image is coded in.
    """

    def __init__(self, images: Images, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._room = 8 * num_bytes - 16  # the step's number, and what is lost at the ends
        self.mean = gaussian_filter(images.mean(0), (_BLUR, _BLUR, 0), mode="nearest")
        bands = forward(images - self.mean)
        self.levels = num_levels(*images.shape[1:3])
        self._expected = {band: self._smooth(band, np.abs(x).mean(0)) for band, x in bands.items()}
        self._weights: dict[_Part, Integers] = {}
        self._sizes = np.tile(np.arange(_LARGEST + 1.0), (_NUM_CLASSES, 1))
        number = 100
        for _ in range(_ROUNDS):
            steps = np.full(len(images), _STEPS[number])
            self._fit(bands, steps)
            for _ in range(2):
                found = self._quantise(bands, steps)
                self._count(found.counts)
                plain = np.arange(_LARGEST + 1.0)
                self._sizes = (found.sums + 4 * plain) / (found.counts + 4)
            change = 0.8 * np.log2(found.bits.mean() / self._room)
            number = int(np.clip(number + round(16 * change), 0, len(_STEPS) - 1))
        self.typical = number
        """The step that public images are coded with, about."""

    def compress(self, images: Images) -> list[bytes]:
        """Return ``num_bytes`` bytes for each image, the first of which tells the step."""
        bands = forward(images - self.mean)
        low, high = np.zeros(len(images), int), np.full(len(images), len(_STEPS) - 1)
        number = np.full(len(images), self.typical)
        while (low < high).any():
            fits = self._quantise(bands, _STEPS[number]).bits <= self._room
            low, high = np.where(fits, low, number + 1), np.where(fits, number, high)
            # few images are far from the typical one
            near = np.where(fits, number - 8, number + 8)
            number = np.where((near > low) & (near < high), near, (low + high) // 2)
        found = self._quantise(bands, _STEPS[high])
        return [
            bytes([high[place]]) + self._written(found.coded, place) for place in range(len(images))
        ]

    def decompress(self, data: bytes) -> Images:
        """Return the image of :meth:`compress`, H W C."""
        state, step = int.from_bytes(data[1:], "little"), _STEPS[data[0]]
        known = {band: np.zeros((1, *x.shape), np.int64) for band, x in self._expected.items()}
        bands = {band: np.zeros(x.shape) for band, x in known.items()}
        frequencies, starts = self._frequencies.tolist(), self._starts.tolist()
        for part in self._parts():
            kind = self._classes(part, known, np.array([step]))
            if kind is None:
                continue
            size, sign = np.zeros(kind[0].size, np.int64), np.ones(kind[0].size)
            for place, group in enumerate(kind[0].ravel().tolist()):
                state, rest = divmod(state, _TOTAL)
                symbol = bisect_right(starts[group], rest) - 1
                state = state * frequencies[group][symbol] + rest - starts[group][symbol]
                if symbol == _LARGEST:
                    state, more = divmod(state, 2**_MORE_BITS)
                    symbol += more
                if symbol:
                    state, negative = divmod(state, 2)
                    sign[place] = 1 - 2 * negative
                size[place] = symbol
            shape = kind.shape
            self._put(part, known, size.reshape(shape))
            values = step * sign.reshape(shape) * self._values(kind, size.reshape(shape))
            self._put(part, bands, values)
        image: Images = np.clip(inverse(bands)[0] + self.mean, 0, 1)
        return image

    # --- sizes ---------------------------------------------------------------------------------

    def _smooth(self, band: Band, size: Floats) -> Floats:
        """Return the mean size of public coefficients, smoothed over places, C h w."""
        smooth: Floats
        if band.level == self.levels:
            smooth = np.exp(gaussian_filter(np.log(size + 1e-6), (0, 0.6, 0.6)))
            return smooth
        smooth = gaussian_filter(size, (0, size.shape[1] / 6, size.shape[2] / 6))
        return smooth

    def _parts(self) -> Iterator[_Part]:
        for band, size in self._expected.items():
            for channel in range(len(size)):
                for phase in range(len(_PHASES)):
                    yield _Part(band, channel, phase)

    def _is_sent(self, part: _Part, steps: Floats) -> NDArray[np.bool_]:
        """Return for which steps a part is sent, B."""
        largest = self._expected[part.band][part.channel].max()
        is_sent: NDArray[np.bool_] = largest * _UNIT >= _LEAST * steps
        return is_sent

    def _own(self, part: _Part, steps: Floats) -> Integers:
        """Return what public images tell of a part's sizes, B h w."""
        down, across = _PHASES[part.phase]
        size = self._expected[part.band][part.channel, down::2, across::2]
        return np.floor(size * (_UNIT / steps[:, None, None])).astype(np.int64)

    def _context(self, part: _Part, known: dict[Band, Integers]) -> list[Integers]:
        """Return sums of sizes that are known before a part, B h w each."""
        band, channel, phase = part
        found = []
        others = [known[band][:, other] for other in range(channel)]
        if band.level < self.levels:
            if band.level < self.levels - 1:
                coarser = known[Band(band.level + 1, band.kind)][:, channel]
                found += [coarser.repeat(2, -2).repeat(2, -1)]
                found += [(_around(coarser) - coarser).repeat(2, -2).repeat(2, -1)]
            others += [known[Band(band.level, kind)][:, channel] for kind in range(band.kind)]
        for other in others:
            found += [other, _around(other) - other]
        if phase:
            beside = _around(known[band][:, channel])
            found += [beside, _around(beside)]
        down, across = _PHASES[phase]
        return [sums[:, down::2, across::2] for sums in found]

    def _classes(self, part: _Part, known: dict[Band, Integers], steps: Floats) -> Integers | None:
        """Return the class of each coefficient of a part, B h w; None if none is sent."""
        if part not in self._weights or not self._is_sent(part, steps).any():
            return None
        own = self._own(part, steps)
        first, *weights = self._weights[part].tolist()
        total = first * own // _UNIT
        for weight, sums in zip(weights, self._context(part, known), strict=True):
            if weight:
                total = total + weight * sums
        kind: Integers = np.searchsorted(_CLASS_BOUNDS, total, side="right")
        return kind

    def _put(self, part: _Part, into: dict[Band, NDArray[Any]], values: NDArray[Any]) -> None:
        down, across = _PHASES[part.phase]
        into[part.band][:, part.channel, down::2, across::2] = values

    def _values(self, kind: Integers, size: Integers) -> Floats:
        """Return what sizes are decoded as, in steps."""
        known: Floats = self._sizes[kind, np.minimum(size, _LARGEST)]
        return np.where(size < _LARGEST, known, size)

    # --- what is counted on public images --------------------------------------------------------

    def _fit(self, bands: dict[Band, Floats], steps: Floats) -> None:
        """Fit weights to plainly rounded sizes, and count these by class."""
        sizes = {
            band: np.floor(np.abs(x) / steps[:, None, None, None] + 0.4).astype(np.int64)
            for band, x in bands.items()
        }
        random = np.random.default_rng(0)
        counts = np.zeros((_NUM_CLASSES, _LARGEST + 1))
        self._weights = {}
        for part in self._parts():
            own = self._own(part, steps)
            if not self._is_sent(part, steps).any() or not own.size:
                continue
            # what is coded later in the band is not known yet
            band, channel, phase = part
            before = sizes[band].copy()
            before[:, channel] = 0
            for down, across in _PHASES[:phase]:
                taken = (slice(None), channel, slice(down, None, 2), slice(across, None, 2))
                before[taken] = sizes[band][taken]
            context = self._context(part, {**sizes, band: before})
            rows = np.stack([own / _UNIT, *context], axis=-1).reshape(own.size, -1)
            down, across = _PHASES[phase]
            wanted = sizes[band][:, channel, down::2, across::2].ravel()
            chosen = random.permutation(len(wanted))[:_MAX_ROWS]
            weights, _ = nnls(rows[chosen], wanted[chosen])
            spread = (rows[chosen] @ weights + 1e-3) ** 0.7
            weights, _ = nnls(rows[chosen] / spread[:, None], wanted[chosen] / spread)
            self._weights[part] = np.round(_UNIT * weights).astype(np.int64)
            kind = self._classes(part, {**sizes, band: before}, steps)
            assert kind is not None
            np.add.at(counts, (kind.ravel(), np.minimum(wanted, _LARGEST)), 1)
        self._count(counts)

    def _count(self, counts: Floats) -> None:
        """Set the frequencies: counts, and what a geometric distribution of that mean expects."""
        size = np.arange(_LARGEST + 1)
        mean = 2 ** ((np.arange(_NUM_CLASSES) - 23.5) / 3)[:, None]
        prior = (mean / (1 + mean)) ** size
        share = counts + 20 * prior / prior.sum(1, keepdims=True)
        share /= share.sum(1, keepdims=True)
        frequency = 1 + np.floor((_TOTAL - len(size)) * share).astype(np.int64)
        frequency[np.arange(_NUM_CLASSES), frequency.argmax(1)] += _TOTAL - frequency.sum(1)
        self._frequencies = frequency
        self._starts = np.cumsum(frequency, axis=1) - frequency
        self._lengths = np.log2(_TOTAL / frequency) + (size > 0)
        self._lengths[:, _LARGEST] += _MORE_BITS

    # --- rounding and writing --------------------------------------------------------------------

    def _quantise(self, bands: dict[Band, Floats], steps: Floats) -> _Quantised:
        """Round coefficients, B C h w a band, to what is worth its bits."""
        known = {band: np.zeros(x.shape, np.int64) for band, x in bands.items()}
        bits, coded = np.zeros(len(steps)), []
        counts = np.zeros((_NUM_CLASSES, _LARGEST + 1))
        sums = np.zeros_like(counts)
        for part in self._parts():
            kind = self._classes(part, known, steps)
            if kind is None:
                continue
            down, across = _PHASES[part.phase]
            value = bands[part.band][:, part.channel, down::2, across::2] / steps[:, None, None]
            size = np.abs(value)
            least = np.full(kind.shape, np.inf)
            chosen = np.zeros(kind.shape, np.int64)
            most = np.minimum(np.ceil(size), _LARGEST + 2**_MORE_BITS - 1).astype(np.int64)
            for tried in (most, np.maximum(most - 1, 0), np.zeros_like(most)):
                length = self._lengths[kind, np.minimum(tried, _LARGEST)]
                cost = (size - self._values(kind, tried)) ** 2 + _PRICE * length
                chosen = np.where(cost < least, tried, chosen)
                least = np.minimum(cost, least)
            is_sent = self._is_sent(part, steps)
            chosen[~is_sent] = 0
            short = np.minimum(chosen, _LARGEST)
            bits += np.where(is_sent, self._lengths[kind, short].sum((1, 2)), 0)
            self._put(part, known, chosen)
            np.add.at(counts, (kind[is_sent], short[is_sent]), 1)
            np.add.at(sums, (kind[is_sent], short[is_sent]), size[is_sent])
            coded.append(_Coded(kind, chosen, value < 0, is_sent))
        return _Quantised(bits, coded, counts, sums)

    def _written(self, coded: list[_Coded], place: int) -> bytes:
        """Return an image's sizes and signs as one number; what is decoded first is put in last."""
        frequencies, starts = self._frequencies.tolist(), self._starts.tolist()
        state = 0
        for kind, chosen, is_negative, is_sent in reversed(coded):
            if not is_sent[place]:
                continue
            parts = (array[place].ravel()[::-1].tolist() for array in (kind, chosen, is_negative))
            for group, size, negative in zip(*parts, strict=True):
                if size:
                    state = 2 * state + negative
                symbol = min(size, _LARGEST)
                if symbol == _LARGEST:
                    state = (state << _MORE_BITS) + size - symbol
                whole, rest = divmod(state, frequencies[group][symbol])
                state = whole * _TOTAL + starts[group][symbol] + rest
        return state.to_bytes(self.num_bytes - 1, "little")


def _around(sizes: Integers) -> Integers:
    """Return the sum of each place and the eight around it, B h w."""
    padded = np.pad(sizes, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    around: Integers = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    return around
