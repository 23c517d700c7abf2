"""signSGD: one bit an entry."""

import math

import torch

from lightning_recon.defenses.base import Defense, Encoding, Shapes, dense
from lightning_recon.defenses.rounding import largest
from lightning_recon.updates import Update

_SOFTNESS = 0.3  # of a sign, in mean magnitudes; 0.1 is as good, 1 and 0.03 are worse


class SignSGD(Defense):
    """Sends the sign of every entry, of unit size or scaled to the tensor's mean magnitude.

    Bernstein, Wang, Azizzadenesheli & Anandkumar, "signSGD: Compressed Optimisation for Non-Convex
    Problems", ICML 2018; the scaled form is that of Karimireddy, Rebjock, Stich & Jaggi, "Error
    Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019, without the feedback,
    since one release has no past.  One bit has no room for a 0: its sign is 1, as by Yue et al.
    (USENIX Security 2023).

    Args:
        scaled: times the mean |g| of the tensor; its norm is then at most that of the tensor, and
            the error at most (1 - |g|_1^2 / (d |g|_2^2)) |g|_2^2.
        keep_zeros: a 0 stays 0, for a sparse update such as that of :class:`TopK`, of which the
            mean is then over the entries that are not 0 (Sattler et al., TNNLS 31(9), 2020).
    """

    citation = "Bernstein et al., ICML 2018"

    def __init__(self, scaled: bool = False, keep_zeros: bool = False) -> None:
        super().__init__()
        self.scaled = scaled
        self.keep_zeros = keep_zeros

    def bind(self, norm_bound: float | None) -> float | None:
        """Return the same bound with the scale; without, the norm depends on the size alone."""
        return norm_bound if self.scaled else None

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the signs, in place."""
        for name, tensor in update.items():
            update[name] = tensor = tensor.contiguous()
            size = torch.linalg.vector_norm(tensor, 1, dtype=torch.float64)
            count = tensor.count_nonzero() if self.keep_zeros else tensor.numel()
            tensor.sign_()
            if not self.keep_zeros:
                tensor.masked_fill_(tensor == 0, 1)
            if self.scaled:
                tensor.mul_((size / max(int(count), 1)).to(tensor.dtype))
        return update

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return a sign that is differentiable: tanh(g / (0.3 mean |g|)), as large as observed.

        It knows no size, like the sign.  The mean is part of the gradient; it is over as many
        entries as were observed not to be 0.
        """
        result = {}
        for name, tensor in update.items():
            count = observed[name].count_nonzero().clamp_min(1)
            mean = tensor.abs().sum() / count
            mean = torch.where(mean > 0, mean, torch.inf)  # a layer that is dead stays at 0
            result[name] = largest(observed[name]) * (tensor / (_SOFTNESS * mean)).tanh()
        return result

    def encode(self, encoding: Encoding, shapes: Shapes) -> Encoding:
        """Return a bit for each value, and a scale for each tensor where there is one.

        Zeros that stay cost log2(3) bits a value unless an earlier step names their positions.
        """
        scales = 32.0 * len(shapes) if self.scaled else 0.0
        everything = dense(shapes, 1.0)
        if not self.keep_zeros:
            return everything._replace(overhead=scales)
        if encoding.num_values < everything.num_values:
            return encoding._replace(bits_per_value=1.0, overhead=encoding.overhead + scales)
        return everything._replace(bits_per_value=math.log2(3), overhead=scales)
