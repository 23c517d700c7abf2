"""List decoding of polar codes: the most likely code words, where the first guess is wrong.

I. Tal & A. Vardy, "List decoding of polar codes", IEEE Trans. Information Theory 61, 2015:
successive cancellation that goes on with the L best decisions so far in the place of one.  Which of
the L code words is meant a checksum tells.  A path's metric is minus the logarithm of its
probability (Balatsoukas-Stimming, Bastani Parizi & Burg, IEEE Trans. Signal Processing 63, 2015);
subtrees that hold no bit, one bit, all bits or all but one are decided at once, of the last two
kinds by changing their least certain symbols (Hashemi, Condo & Gross, IEEE Trans. Signal Processing
65, 2017; four of them here).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.attacks.coded.polar import PolarCode, log_ratio_of_product, signs

_NUM_CHANGED = 4  # least certain symbols of a subtree, all patterns of which are tried


def decode_list(code: PolarCode, log_ratio: Tensor, size: int) -> Tensor:
    """Return the bits of the likeliest code words that were found, the best first.

    Args:
        code: that was sent.
        log_ratio: B N: the logarithm of the likelihood of +1 over that of -1.
        size: L >= 1, of the list.

    Returns:
        B L num_bits, uint8; fewer than L where the code has fewer words.
    """
    paths = _Paths(code, log_ratio, size)
    symbols, _ = paths.decide(log_ratio[:, None], 0)
    order = paths.metric.argsort(1)
    ordered = _follow(symbols, order)
    return code.bits_of(ordered.flatten(0, 1)).view(*order.shape, -1)


def _follow(values: Tensor, parent: Tensor | None) -> Tensor:
    """Return B L M values of each path's parent, B L, out of B L' M; None: of itself."""
    if parent is None:
        return values
    return values.gather(1, parent[..., None].expand(-1, -1, values.shape[2]))


class _Paths:
    """The paths of B blocks while they are decided."""

    def __init__(self, code: PolarCode, log_ratio: Tensor, size: int) -> None:
        self.code = code
        self.size = size
        self.metric = log_ratio.new_zeros(len(log_ratio), 1)
        patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * _NUM_CHANGED)
        self.patterns = patterns.to(log_ratio)

    def decide(self, log_ratio: Tensor, start: int) -> tuple[Tensor, Tensor | None]:
        """Return the symbols of the subtree below ``start``, B L' M, and their paths' parents.

        Args:
            log_ratio: B L M.
            start: the subtree's first bit.
        """
        size = log_ratio.shape[2]
        held = self.code.num_held(start, size)
        if held == 0:
            self.metric = self.metric + F.softplus(-log_ratio).sum(2)
            return torch.ones_like(log_ratio), None
        if held == 1 and self.code.is_information[start + size - 1]:
            costs = [F.softplus(sign * log_ratio).sum(2) for sign in (-1, 1)]
            parent, chosen = self._branch(torch.stack(costs, dim=2))
            return (1.0 - 2 * chosen.to(log_ratio))[..., None].expand(-1, -1, size), parent
        if held >= size - 1 and (held == size or not self.code.is_information[start]):
            return self._change(log_ratio, is_even=held < size)
        half = size // 2
        left, right = log_ratio[..., :half], log_ratio[..., half:]
        first, earlier = self.decide(log_ratio_of_product(left, right), start)
        left, right = _follow(left, earlier), _follow(right, earlier)
        second, later = self.decide(torch.addcmul(right, first, left), start + half)
        symbols = torch.cat([_follow(first, later) * second, second], dim=2)
        if earlier is None or later is None:
            return symbols, earlier if later is None else later
        return symbols, earlier.gather(1, later)

    def _branch(self, cost: Tensor) -> tuple[Tensor, Tensor]:
        """Go on with the best of K decisions a path, costs B L K; return parents and decisions."""
        num_choices = cost.shape[2]
        total = (self.metric[..., None] + cost).flatten(1)
        kept = total.topk(min(self.size, total.shape[1]), dim=1, largest=False)
        self.metric = kept.values
        return kept.indices // num_choices, kept.indices % num_choices

    def _change(self, log_ratio: Tensor, *, is_even: bool) -> tuple[Tensor, Tensor]:
        """Decide by sign, or change the least certain symbols; an even number of -1, or any."""
        symbols, certainty = signs(log_ratio), log_ratio.abs()
        num_changed = min(_NUM_CHANGED, log_ratio.shape[2])
        patterns = self.patterns[: 2**num_changed, -num_changed:]
        weakest = certainty.topk(num_changed, dim=2, largest=False)
        cost = F.softplus(-certainty).sum(2, keepdim=True) + weakest.values @ patterns.T
        if is_even:
            is_odd = symbols.prod(2, keepdim=True) < 0
            cost = cost.masked_fill((patterns.sum(1) % 2 == 1) != is_odd, torch.inf)
        parent, chosen = self._branch(cost)
        place, symbols = _follow(weakest.indices, parent), _follow(symbols, parent)
        changed = symbols.gather(2, place) * (1 - 2 * patterns[chosen])
        return symbols.scatter(2, place, changed), parent
