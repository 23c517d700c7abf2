"""Polar codes: bits through white Gaussian noise, near its capacity.

E. Arikan, "Channel polarization: a method for constructing capacity-achieving codes for symmetric
binary-input memoryless channels", IEEE Trans. Information Theory 55, 2009.  N = 2^n symbols of one
amplitude are N bits u times the n-fold Kronecker power of [[1, 0], [1, 1]] modulo 2; decoded one
after the other, most of the bits are either certain or lost, and those that would be lost are held
at 0 ("frozen").

- Which ones: density evolution in the Gaussian approximation (Chung, Richardson & Urbanke, IEEE
  Trans. Information Theory 47, 2001; Trifonov, IEEE Trans. Communications 60, 2012).
- Decoding: successive cancellation, with subtrees that hold no bit, one bit, all bits or all but
  one decided at once (Alamdari-Yazdi & Kschischang, IEEE Communications Letters 15, 2011; Sarkis et
  al., IEEE J. Selected Areas in Communications 32, 2014).
"""

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.special import log_ndtr
from torch import Tensor

Floats = NDArray[np.float64]
_LOG_MEANS = np.linspace(-30.0, 12.0, 4000)
_WIDTH = 14.0  # of the integrals, in roots of the mean, and
_REACH = 90.0  # in the logarithm of the likelihood ratio
_BATCH_SYMBOLS = 2**24  # that are decoded together
_LOG_2 = math.log(2)
_KNEE = 1 / (8 * _LOG_2)


class PolarCode:
    """A code of N = 2^exponent symbols of +1 or -1.

    Args:
        exponent: n >= 1.
        snr: squared amplitude over the noise's variance that the code is made for, > 0.
        block_error: bound of the probability that any bit of a block is wrong there.
        max_bits: more are not carried, which makes the others safer.
    """

    def __init__(self, exponent: int, snr: float, block_error: float, max_bits: int) -> None:
        log_error = bit_log_errors(exponent, snr)
        order = log_error.argsort()[:max_bits]
        is_kept = np.exp(log_error[order]).cumsum() <= block_error
        self.is_information = torch.zeros(2**exponent, dtype=torch.bool)
        self.is_information[torch.from_numpy(order[is_kept])] = True
        self._before: list[int] = [0, *self.is_information.cumsum(0).tolist()]

    @property
    def num_symbols(self) -> int:
        """N."""
        return len(self.is_information)

    @property
    def num_bits(self) -> int:
        """How many bits a block carries."""
        return self._before[-1]

    def encode(self, bits: Tensor) -> Tensor:
        """Return the symbols of B blocks, +1 for 0 and -1 for 1, B N, int8.

        Args:
            bits: B num_bits, uint8, 0 or 1.
        """
        word = bits.new_zeros(len(bits), self.num_symbols)
        word[:, self.is_information.to(bits.device)] = bits
        return 1 - 2 * transform(word).to(torch.int8)

    def decode(self, log_ratio: Tensor) -> Tensor:
        """Return the bits of B blocks, B num_bits, uint8.

        Args:
            log_ratio: B N: the logarithm of the likelihood of +1 over that of -1.
        """
        if not len(log_ratio):
            return log_ratio.new_zeros(0, self.num_bits, dtype=torch.uint8)
        size = max(1, _BATCH_SYMBOLS // self.num_symbols)
        return torch.cat(
            [self.bits_of(self._decide(part, 0)) for part in torch.split(log_ratio, size)]
        )

    def bits_of(self, symbols: Tensor) -> Tensor:
        """Return the bits of code words, B num_bits, uint8; the inverse of :meth:`encode`."""
        word = transform((symbols < 0).to(torch.uint8))
        return word[:, self.is_information.to(word.device)]

    def num_held(self, start: int, size: int) -> int:
        """Return how many of ``size`` bits from ``start`` on carry something."""
        return self._before[start + size] - self._before[start]

    def _decide(self, log_ratio: Tensor, start: int) -> Tensor:
        """Return the symbols of the subtree below ``start``, B M, +1 or -1."""
        size = log_ratio.shape[1]
        held = self.num_held(start, size)
        if held == 0:
            return torch.ones_like(log_ratio)
        if held == 1 and self.is_information[start + size - 1]:  # all symbols are that bit
            return signs(log_ratio.sum(1, keepdim=True)).expand(-1, size)
        if held >= size - 1 and (held == size or not self.is_information[start]):
            symbols = signs(log_ratio)
            if held == size - 1:  # an even number of ones: the least certain symbol pays
                weakest = log_ratio.abs().argmin(1, keepdim=True)
                parity = symbols.prod(1, keepdim=True)
                symbols.scatter_(1, weakest, symbols.gather(1, weakest) * parity)
            return symbols
        half = size // 2
        left, right = log_ratio[:, :half], log_ratio[:, half:]
        symbols = torch.empty_like(log_ratio)
        first = self._decide(log_ratio_of_product(left, right), start)
        second = self._decide(torch.addcmul(right, first, left), start + half)
        torch.mul(first, second, out=symbols[:, :half])
        symbols[:, half:] = second
        return symbols


def signs(log_ratio: Tensor) -> Tensor:
    """Return +1, or -1 where the logarithm is below 0, of its type."""
    return (log_ratio >= 0).to(log_ratio).mul_(2).sub_(1)


def transform(word: Tensor) -> Tensor:
    """Multiply B N bits by the Kronecker power modulo 2, in place; it is its own inverse."""
    half = 1
    while half < word.shape[1]:
        pairs = word.view(len(word), word.shape[1] // (2 * half), 2, half)
        pairs[:, :, 0] ^= pairs[:, :, 1]
        half *= 2
    return word


def log_ratio_of_product(left: Tensor, right: Tensor) -> Tensor:
    """Return 2 artanh(tanh(left / 2) tanh(right / 2)), to .03."""
    alike, unlike = (left + right).abs_(), (left - right).abs_()
    result = (alike - unlike).mul_(0.5)
    return result.add_(_log1p_exp(alike)).sub_(_log1p_exp(unlike))


def _log1p_exp(size: Tensor) -> Tensor:
    """Return log(1 + e^-x) of x >= 0, to .015, in place: its value and slope at 0 are right."""
    return size.mul_(-_KNEE).add_(1).clamp_min_(0).square_().square_().mul_(_LOG_2)


@lru_cache(maxsize=1)
def _combined_mean() -> Floats:
    """Return log m' by log m: of 2 artanh of a product of two tanh(l / 2), l ~ N(m, 2 m).

    E tanh(l / 2) of the product is the product of both.  Multiplied out, the Gaussian density and
    tanh give integrals without cancellation for 1 - E tanh(l / 2), and for E tanh(l / 2) by
    E tanh = E tanh^2.
    """
    mean = np.exp(_LOG_MEANS)[:, None]
    reach = np.minimum(_WIDTH * np.sqrt(mean), _REACH)
    place = reach * np.linspace(-1, 1, 801)
    density = np.exp(-(place**2) / (4 * mean))
    factor = (-mean / 4 - 0.5 * np.log(4 * np.pi * mean) + np.log(reach / 400))[:, 0]
    log_loss = factor + np.log((density / np.cosh(place / 2)).sum(1))
    log_gain = factor + np.log((density * np.sinh(place / 2) * np.tanh(place / 2)).sum(1))
    log_loss = np.where(mean[:, 0] < 0.1, np.log1p(-np.exp(log_gain)), log_loss)
    log_gain = np.where(mean[:, 0] > 20, np.log1p(-np.exp(log_loss)), log_gain)
    # log odds of E tanh, and those of its square
    wanted = 2 * log_gain - log_loss - np.log1p(np.exp(log_gain))
    combined: Floats = np.interp(wanted, log_gain - log_loss, _LOG_MEANS)
    return combined


def bit_log_errors(exponent: int, snr: float) -> Floats:
    """Return the logarithm of each bit's probability of error, 2^exponent, by its place.

    Args:
        exponent: n.
        snr: squared amplitude over the noise's variance.
    """
    log_mean = np.array([math.log(2 * snr)])
    for _ in range(exponent):
        worse = np.interp(log_mean, _LOG_MEANS, _combined_mean())
        log_mean = np.stack([worse, log_mean + math.log(2)], axis=1).reshape(-1)
    errors: Floats = log_ndtr(-np.exp(log_mean.clip(max=_LOG_MEANS[-1]) / 2) / math.sqrt(2))
    return errors


def binary_capacity(snr: float) -> float:
    """Return the most bits that a symbol of +1 or -1 carries through white Gaussian noise.

    >>> round(binary_capacity(1.0), 3)
    0.486
    """
    place, weight = hermegauss(80)
    log_ratio = 2 * snr + 2 * math.sqrt(snr) * place
    return 1 - float((weight / weight.sum()) @ np.log2(1 + np.exp(-log_ratio)))
