"""Taking apart the rows that several samples reached.

A client that computes the gradient of every sample by itself (DP-SGD) cannot be told which rows are
taken, and samples fall into the same one as often as chance has it.  The sum of two images in one
row at one observation cannot be taken apart.  So each sample is sent twice, at half the energy
each, to one row of a first table and one of a second, chosen by two different features: what is
mixed in one table is, but for a chance of 1 in K^2 / 4 a pair, alone or mixed with others in the
second.  Two copies of half the energy add up to one of the whole, so samples that are alone lose
nothing.  Local steps (FedAvg) come to the same: a minibatch does not see what others take.  This is
the scheme of contention resolution diversity slotted ALOHA (Casini, De Gaudenzi
& Del Rio Herrero, IEEE Trans. Wireless Communications 6, 2007); where they cancel one interferer
after the other we solve for all samples at once.
"""

from typing import NamedTuple

import torch
from scipy.sparse.csgraph import connected_components
from scipy.stats import chi2
from torch import Tensor

SAME = 0.5  # of a copy's energy: what the product of two rows that have it in common exceeds
ALIKE = 0.4  # cosine from which rows have a copy in common, where energies differ
FAINT = 0.2  # of the product of two rows' norms: a sample below that is alike by chance
ROUNDING = 1e-9  # of a copy's energy, in what may be left unexplained without noise
_TINY = 1e-6


class Unmixed(NamedTuple):
    """M samples, out of R rows."""

    received: Tensor
    """M N: scaled so that the noise is that of a row."""
    first: Tensor
    """M: which of the R rows is the sample's row of the first table, or its only one."""
    is_mixed: Tensor
    """M: whether the sample shared a row."""
    num_shared: int
    """Rows that hold several samples, or something that was not understood."""


def unmix(
    received: Tensor,
    is_first: Tensor,
    noise_variance: float,
    test_rate: float,
    *,
    keeps_alone: bool = False,
) -> Unmixed:
    """Find which rows hold copies of the same samples, and solve for the samples.

    A row of the first table and one of the second have a sample in common if their product is
    that of a copy with itself.  All rows are then sums of samples plus white noise, and the samples
    their least squares.  A sample is returned if it has the energy of one, if the rows determine
    it, and if what hangs together with it leaves no more than noise unexplained.

    Args:
        received: R N, the rows that were hit; both copies of a sample have the same energy, and
            all samples about the same.
        is_first: R, bool: the rows of the first table.
        noise_variance: of the noise on ``received``.
        test_rate: probability that noise alone makes one row count as not explained.
        keeps_alone: whether one of the copies may be missing, and samples may differ in energy,
            as after local steps; a row that has nothing in common with others is then a sample.
    """
    double = received.double()
    num_columns = received.shape[1]
    one = double.square().sum(1) - num_columns * noise_variance
    one = one.median() if len(one) else one.sum()  # most rows hold one sample
    product = double @ double.T
    if keeps_alone:
        own = (double.square().sum(1) - num_columns * noise_variance).clamp_min(noise_variance)
        pair = (own[:, None] * own).sqrt()
        is_common, faint = product > ALIKE * pair, FAINT * pair
    else:
        pair = (SAME * one).expand(2 * double.shape[:1])
        is_common, faint = product > pair, pair
    noise = noise_variance * float(chi2.isf(test_rate, num_columns))
    first, second = (is_common & is_first[:, None] & ~is_first).nonzero().unbind(1)
    while True:
        number = torch.arange(len(first), device=received.device)
        holds = double.new_zeros(len(received), len(first))
        holds[first, number] = 1
        holds[second, number] = 1
        solve = torch.linalg.pinv(holds)
        samples = solve @ double
        variance = (solve @ solve.T).diagonal()
        energy = samples.square().sum(1) - num_columns * variance * noise_variance
        above = energy / faint[first, second]
        if len(first) and above.min() <= 1:
            is_kept = number != above.argmin()  # the two rows are alike by chance
            first, second = first[is_kept], second[is_kept]
            continue

        left = (double - holds @ samples).square().sum(1)
        share = 1 - (holds @ solve).diagonal()  # of its noise, that stays in what is left of a row
        is_bad = left > noise * share + ROUNDING * one
        if keeps_alone:
            is_bad &= holds.sum(1) > 0
        part = torch.from_numpy(connected_components((holds @ holds.T).cpu().numpy())[1]).to(first)
        is_spoilt = torch.isin(part, part[is_bad])
        is_doubtful = is_spoilt[first] & (part[first].bincount()[part[first]] > 1)
        if not keeps_alone or not is_doubtful.any():
            break
        # of two samples that are like each other one has lost a copy: the least alike are not one
        likeness = (product / pair)[first, second].where(is_doubtful, torch.inf)
        is_kept = number != likeness.argmin()
        first, second = first[is_kept], second[is_kept]
    # one of several samples may have been too faint to be seen in what it shares
    is_alone = ((holds.sum(1) == 0) | is_spoilt) & keeps_alone
    is_kept = ((solve @ holds).diagonal() > 1 - _TINY) & ~is_spoilt[first]
    is_shared = holds.sum(1) > 1
    found = (samples / variance.sqrt()[:, None])[is_kept].to(received.dtype)
    is_mixed = (is_shared[first] | is_shared[second])[is_kept]
    alone = is_alone.nonzero().squeeze(1)
    return Unmixed(
        received=torch.cat([found, received[alone]]),
        first=torch.cat([first[is_kept], alone]),
        is_mixed=torch.cat([is_mixed, torch.zeros_like(alone, dtype=torch.bool)]),
        num_shared=int((is_shared | is_bad).sum()),
    )
