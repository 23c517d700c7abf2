"""Taking apart the rows that several samples reached.

A client that computes the gradient of every sample by itself (DP-SGD) cannot be told which rows are
taken, and samples fall into the same one as often as chance has it.  The sum of two images in one
row at one observation cannot be taken apart.  So each sample is sent twice, at half the energy
each, to one row of a first table and one of a second, chosen by two different features: what is
mixed in one table is, but for a chance of 1 in K^2 / 4 a pair, alone or mixed with others in the
second.  Two copies of half the energy add up to one of the whole, so samples that are alone lose
nothing.  This is the scheme of contention resolution diversity slotted ALOHA (Casini, De Gaudenzi
& Del Rio Herrero, IEEE Trans. Wireless Communications 6, 2007); where they cancel one interferer
after the other we solve for all samples at once.
"""

from typing import NamedTuple

import torch
from scipy.stats import chi2
from torch import Tensor

SAME = 0.5  # of one copy's energy, that the product of two rows with a sample in common exceeds
_IDENTIFIED = 1 - 1e-6


class Unmixed(NamedTuple):
    """M samples, out of R rows."""

    received: Tensor
    """M N: scaled so that the noise is that of a row."""
    first: Tensor
    """M: which of the R rows is the sample's row of the first table."""
    is_mixed: Tensor
    """M: whether the sample shared a row."""
    num_shared: int
    """Rows that hold several samples, or something that was not understood."""


def unmix(received: Tensor, is_first: Tensor, noise_variance: float, test_rate: float) -> Unmixed:
    """Find which rows hold copies of the same samples, and solve for the samples.

    A row of the first table and one of the second have a sample in common if their product is
    that of a copy with itself.  All rows are then sums of samples plus white noise, and the samples
    their least squares.  A sample is returned if the rows determine it, and if what it and its
    neighbours leave unexplained is no more than noise.

    Args:
        received: R N, the rows that were hit; copies have about the same energy.
        is_first: R, bool: the rows of the first table.
        noise_variance: of the noise on ``received``.
        test_rate: probability that noise alone makes one row count as not explained.
    """
    double = received.double()
    gram = double @ double.T
    num_columns = received.shape[1]
    energy = (gram.diagonal() - num_columns * noise_variance).clamp_min(0)
    one = energy.median() if len(energy) else energy.sum()  # most rows hold one sample
    common = (gram > SAME * one) & is_first[:, None] & ~is_first
    first, second = common.nonzero().unbind(1)
    samples = torch.arange(len(first), device=received.device)
    holds = double.new_zeros(len(received), len(samples))
    holds[first, samples] = 1
    holds[second, samples] = 1

    solve = torch.linalg.pinv(holds)
    is_known = (solve @ holds).diagonal() > _IDENTIFIED
    variance = (solve @ solve.T).diagonal()
    # what is left of a row, and the share of its noise that stays in it
    left = double - holds @ (solve @ double)
    share = 1 - (holds @ solve).diagonal()
    critical = noise_variance * float(chi2.isf(test_rate, num_columns))
    is_bad = left.square().sum(1) > critical * share.clamp_min(1e-6)
    # a bad row spoils what hangs together with it
    joined = (holds @ holds.T > 0) | torch.eye(
        len(received), dtype=torch.bool, device=is_bad.device
    )
    reach = torch.linalg.matrix_power(joined.double(), max(len(received), 1)) > 0
    is_bad = (reach & is_bad).any(1)

    kept = is_known & ~is_bad[first]
    count = holds.sum(1)
    shares = (holds.T @ (count > 1).double()) > 0
    return Unmixed(
        received=((solve @ double) / variance.sqrt()[:, None])[kept].to(received.dtype),
        first=first[kept],
        is_mixed=shares[kept],
        num_shared=int(((count > 1) | is_bad).sum()),
    )
