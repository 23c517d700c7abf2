"""The model that the malicious server sends to clients that do several local steps.

After the first step rows are not zero any more.  What is kept out of the way, and how:

- Rows must not change the logits, or the next step's gradients would tell of the rows.  In
  class B, layers that ``torch.nn`` has, a row's pre-activation passes min(max(z, -d), d).  It is 0
  as it is sent; the first hit moves it by far more than d, whatever the sign of the residual, and
  from then on the row is closed: it gets no gradient, and moves a logit by ``MAX_SHIFT``.  In
  class A, any stateless forward, the rows' output minus its own detached value is added, which is
  zero, and every epoch adds to the row.
- The payload of class B looks at every sample by itself, and that of class A at a minibatch alone,
  so that samples may want the same row.  Each is sent twice, to a row of its norm and to one
  chosen by a projection of its code (:mod:`lightning_recon.attacks.spectral.rows`).  Of those that
  want a row at different steps the first one closes it.
- A sample's other row has no place of its norm, so the norm is a number beside the sign's.
- The target's logits are multiplied by ``logit_scale``: steps that hardly move them leave every
  sample's residual at +-1, and the target's own part of the clipped delta is small.
- Momentum multiplies a hit by what is left of the run, so that the samples of the last minibatch
  would have the least energy.  How many rows have been written tells the step (those that have not
  give exactly 0), and the later, the larger the gain.
- Adam moves a coordinate by its learning rate, however large the gradient is, so that the few large
  numbers of a code would be cut off.  ``num_spread`` columns take an orthonormal mixture of all
  numbers (Hadamard, behind random places and signs), which has none.
- From a client's second round on the payload holds what the server knows of its images by then
  (:class:`Known`).  What a sample sends is its difference from the nearest of them, and its rows
  are those of a block that tells which one that is.

Constants are buffers that nothing writes.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.attacks.spectral.code import SpectralCode
from lightning_recon.attacks.spectral.local_steps import LocalSteps
from lightning_recon.attacks.spectral.payload import NUM_HEAD_COLUMNS, Budget, RowsPayload
from lightning_recon.errors import InputError
from lightning_recon.randomness import make_generator
from lightning_recon.targets import Target
from lightning_recon.updates import Update

PayloadClass = Literal["A", "B"]
"""What a forward pass is made of.  A: anything that keeps no state.  B: what the layers of
``torch.nn`` compute, without ``detach`` or ``no_grad``, every sample by itself."""
Places = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""For each of the two tables where a sample stands, B, and the edges between its rows."""
MAX_SHIFT = 1e-5  # of a logit, by one row of class B that is closed
OPEN_SHIFT = 0.1  # the same of a row that stays open, for it never comes near
SHARPNESS = 1e6  # how steeply rows that a sample is not meant for are closed, in units of d
NORM_REACH = 4.0  # standard deviations of the logarithm of the norm that its number tells
NORM_SHARE = 0.01  # of a sample's energy that the number takes at the most
NEAREST = 100.0  # how sharply the nearest of the known images is told, in units of their reach
LEAST_LEVELS = 3  # rows of a block in each table


class Known(NamedTuple):
    """What a payload holds of a client's images."""

    images: Tensor
    """1 + R C H W: the first one is for samples that are none of the R others."""
    marks: Tensor
    """K: which coefficients of an image tell it from others."""
    reach: float
    """Squared distance in those up to which a sample is taken for one of the images."""
    rows_known: int = 0
    """Rows of samples that were one of those, in the rounds so far, and"""
    rows_new: int = 0
    """of samples that were not."""


class LocalPayload(RowsPayload):
    """The model, and rows that local steps write once (class B) or add up (class A).

    Args:
        payload_class: see :data:`PayloadClass`.
        steps: what the rows are made for.
        seed: of the projections.
        known: what earlier rounds told of the client's images; null: this is the first one.

    Raises:
        InputError: if there are too few rows to tell the known images apart.
    """

    signs: Tensor
    bases: Tensor
    marks: Tensor
    norm_edges: Tensor
    code_edges: Tensor
    gains: Tensor
    steps: Tensor
    edges: Tensor
    mixing: Tensor
    places: Tensor
    num_side = 2

    def __init__(
        self,
        model: Target,
        code: SpectralCode,
        logit_scale: float,
        budget: Budget,
        payload_class: PayloadClass,
        steps: LocalSteps,
        seed: int,
        known: Known | None = None,
    ) -> None:
        num_blocks = 1 if known is None else len(known.images)
        num_bins = steps.num_bins
        if known is not None:
            num_levels = num_bins // (2 * num_blocks)
            if num_levels < LEAST_LEVELS:
                raise InputError(
                    f"SpectralLDPAttack: {num_blocks - 1} images that are known after a round need "
                    f"at least {2 * num_blocks * LEAST_LEVELS} rows, not {num_bins}; raise num_bins"
                )
            num_bins = 2 * num_blocks * num_levels
        super().__init__(model, code, num_bins, logit_scale, budget, 2, num_blocks)
        self.known = known
        num_spread = steps.num_spread
        self.payload_class = payload_class
        shift = MAX_SHIFT if steps.closes else OPEN_SHIFT
        self.bound = shift / max(steps.gains)
        self.num_spread = num_spread
        self.norm_size = (NORM_SHARE * budget.energy) ** 0.5
        self.norm_reach = NORM_REACH * max(code.log_norm_std, 1e-3)
        self.num_used = self.num_side + code.num_columns
        num_columns = num_spread or self.num_used
        # what several rounds leave open is in all columns alike
        num_telling = max(NUM_HEAD_COLUMNS, self.num_side + code.num_telling)
        self.num_head = num_spread or min(num_columns, num_telling)
        like = self.class_sign
        self.register_buffer("signs", _random_signs(code.num_columns, seed, "rows").to(like))
        self.register_buffer("mixing", _random_signs(num_spread, seed, "mixing").to(like))
        # numbers that stand beside each other would be mixed into a pattern that repeats itself
        places = torch.randperm(num_spread, generator=make_generator(seed, "places"))
        self.register_buffer("places", places[: self.num_used])
        self.register_buffer("gains", torch.tensor(steps.gains).to(like))
        num_steps = len(steps.gains)
        written = self.copies * steps.num_samples / num_steps  # rows by each step
        self.register_buffer("steps", written * (torch.arange(1, num_steps) - 0.5).to(like))
        # the projection on random signs of a code, whose norm is 1, is about N(0, 1)
        num_second = (self.num_bins - self.num_first) // num_blocks
        quantile = torch.arange(1, num_second, dtype=torch.float64) / num_second
        self.register_buffer("edges", torch.special.ndtri(quantile).to(like))
        if known is not None:
            self.register_buffer("bases", known.images.to(like))
            self.register_buffer("marks", self._marks(self.bases[1:]))
            self.norm_blocks = _Blocks.of(self.thresholds, num_blocks)
            self.code_blocks = _Blocks.of(self.edges, num_blocks)
            self.register_buffer("norm_edges", self.norm_blocks.edges(self.thresholds))
            self.register_buffer("code_edges", self.code_blocks.edges(self.edges))
        self.rows = nn.Parameter(like.new_zeros(self.num_bins, num_columns))

    def forward(self, images: Tensor) -> Tensor:
        """Return the scaled logits of B C H W images; rows that were written hardly move them."""
        logits: Tensor = self.model(images)
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(self.class_sign.dtype)
            if self.known is None:
                code, log_norm = self.code.encode(images)
                places = ((log_norm, self.thresholds), (code @ self.signs, self.edges))
            else:
                nearest = self.nearest(images)
                base = (nearest @ self.bases.flatten(1)).view_as(images)
                code, log_norm = self.code.encode(images - base)
                block = nearest @ torch.arange(nearest.shape[1]).to(nearest)
                places = (
                    (self.norm_blocks.place(log_norm, block), self.norm_edges),
                    (self.code_blocks.place(code @ self.signs, block), self.code_edges),
                )
            sent = self._numbers(code, log_norm)
            if self.num_spread:
                sent = self._spread(sent)
            answer = F.linear(sent, self.rows)
            if self.payload_class == "A":
                shift = self._added(answer, places)
                return self.with_rows(logits, shift - shift.detach())
            return self.with_rows(logits, self._closing(answer, places))

    def nearest(self, images: Tensor) -> Tensor:
        """Return which known image each image, B C H W, is: about 1 there, 0 elsewhere, B (1 + R).

        The first one is what is in nobody's reach.
        """
        assert self.known is not None
        marks, others = self._marks(images), self.marks
        squares = marks.square().sum(1, keepdim=True) + others.square().sum(1)
        distance = F.pad((squares - 2 * marks @ others.T) / self.known.reach, (1, 0), value=1.0)
        return (-NEAREST * distance).softmax(1)

    def _marks(self, images: Tensor) -> Tensor:
        """Return the coefficients of B C H W images that tell them apart, B K."""
        assert self.known is not None
        assert isinstance(self.code, SpectralCode)
        return self.code.transform(images).flatten(1)[:, self.known.marks]

    def block_of(self, row: Tensor) -> Tensor:
        """Return which known image rows of the two tables are for."""
        num_second = (self.num_bins - self.num_first) // (self.num_first // self.num_levels)
        second = (row - self.num_first) // num_second
        return (row // self.num_levels).where(row < self.num_first, second)

    def _added(self, answer: Tensor, places: Places) -> Tensor:
        """Return the sum of a sample's two rows, B, from the answers of all, B K."""
        (norm, thresholds), (projection, edges) = places
        row = [
            torch.bucketize(norm, thresholds),
            torch.bucketize(projection, edges) + self.num_first,
        ]
        gain = self.gains[torch.bucketize((answer != 0).sum(1), self.steps)]
        added: Tensor = gain * answer.gather(1, torch.stack(row, dim=1)).sum(1)
        return added

    def _closing(self, answer: Tensor, places: Places) -> Tensor:
        """Return the same of rows that are open, and next to nothing of the others, B."""
        bound = self.bound
        written = F.hardtanh((F.relu(answer) + F.relu(-answer)) / bound, 0.0, 1.0).sum(1)
        rows = torch.cat([_outside(*place) for place in places], dim=1)
        closed = rows[:, None] + _outside(written, self.steps)[..., None]  # by row and step
        through = F.hardtanh(answer[:, None] + SHARPNESS * bound * closed, -bound, bound)
        # what is closed lies at the upper bound
        shift: Tensor = (through - bound).sum(2) @ self.gains
        return shift

    def closed(self) -> "LocalPayload":
        """Return this payload with rows that nothing reaches."""
        closed = super().closed()
        assert isinstance(closed, LocalPayload)
        closed.norm_size = 0.0
        return closed

    def _numbers(self, code: Tensor, log_norm: Tensor) -> Tensor:
        """Return what a sample puts into each of its rows, B (2 + N)."""
        norm = F.hardtanh((log_norm - self.code.log_norm_mean) / self.norm_reach)
        side = [self.sign_size * torch.ones_like(norm), self.norm_size * norm]
        sent = torch.cat([torch.stack(side, dim=1), self.scale * code], dim=1)
        return sent / math.sqrt(self.copies)

    def log_norm_of(
        self, received: Tensor, amplitude: Tensor, row: Tensor, noise_std: float
    ) -> Tensor:
        """Return the logarithm of the norm of what rows hold, R.

        The second number tells it, and a row of the first table within which edges it lies: far
        from each other where norms are rare.

        Args:
            received: R (2 + N).
            amplitude: R, what the code, of norm 1, was multiplied by on its way.
            row: R, where it was received.
            noise_std: of the noise on ``received``.
        """
        size = amplitude * self.norm_size / self.scale
        norm = (received[:, 1] / size).nan_to_num()
        told = self.code.log_norm_mean + self.norm_reach * norm.clamp(-1, 1)
        variance = (self.norm_reach * noise_std / size).square()
        variance = variance.where(norm.abs() < 1, torch.inf)  # a number at its end tells no more
        low, high = self._edges(row)
        inside = torch.minimum(torch.maximum(told, low), high)
        share = (1 / (1 + (high - low).square() / 12 / variance)).nan_to_num(0.0)  # of the middle
        log_norm: Tensor = inside + share * (self.row_log_norm(row) - inside)
        return log_norm

    def _edges(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """Return between which logarithms of the norm each row's samples lie, R each."""
        edges = F.pad(self.thresholds, (1, 1), value=torch.inf)
        level = row % self.num_levels
        is_first = row < self.num_first
        low = edges[level].where(is_first & (level > 0), -torch.inf)
        return low, edges[level + 1].where(is_first, torch.inf)

    def _spread(self, numbers: Tensor) -> Tensor:
        spread = numbers.new_zeros(len(numbers), self.num_spread)
        return hadamard(spread.index_copy(1, self.places, numbers) * self.mixing)

    def head_of(self, update: Update) -> Tensor:
        """Return the columns by which rows are tested, K n."""
        return update["rows"][:, : self.num_head]

    def read(self, update: Update, rows: Tensor) -> Tensor:
        """Return what an update holds of rows, R: R (2 + N), mixed no more."""
        read = update["rows"][rows]
        if self.num_spread:
            return (hadamard(read) * self.mixing)[:, self.places]
        return read


class _Blocks(NamedTuple):
    """Places of several blocks on one line, so far apart that none is taken for another's."""

    number: int
    middle: float
    width: float

    @classmethod
    def of(cls, edges: Tensor, number: int) -> "_Blocks":
        """Return so many blocks, each with these edges, ascending, between its rows."""
        first, last = float(edges[0]), float(edges[-1])
        return cls(number, (first + last) / 2, 2 * (last - first) + 1)

    def place(self, place: Tensor, block: Tensor) -> Tensor:
        """Return where what has a place in a block stands on the line."""
        reach = 0.4 * self.width
        return F.hardtanh(place - self.middle, -reach, reach) + self.middle + self.width * block

    def edges(self, edges: Tensor) -> Tensor:
        """Return the edges of all blocks and those between them."""
        shift = self.width * torch.arange(self.number)[:, None].to(edges)
        between = edges.new_tensor([self.middle + self.width / 2])
        return (torch.cat([edges, between]) + shift).flatten()[:-1]


def _random_signs(number: int, seed: int, purpose: str) -> Tensor:
    generator = make_generator(seed, purpose)
    return 2.0 * torch.randint(2, (number,), generator=generator) - 1


def _outside(place: Tensor, edges: Tensor) -> Tensor:
    """Return how far each place, B, is from the bin between each pair of edges, B bins."""
    below = F.relu(edges - place[:, None])  # of the bins above an edge
    above = F.relu(place[:, None] - edges)
    return F.pad(below, (1, 0)) + F.pad(above, (0, 1))


def hadamard(numbers: Tensor) -> Tensor:
    """Return B 2^n numbers times the orthonormal Hadamard matrix, which is its own inverse.

    >>> hadamard(torch.tensor([[3.0, 4.0]]) * 2**0.5)
    tensor([[ 7.0000, -1.0000]])
    """
    size = numbers.shape[1]
    for step in range(size.bit_length() - 1):
        pairs = numbers.view(len(numbers), size >> (step + 1), 2, 2**step)
        first, second = pairs.unbind(2)
        numbers = torch.stack([first + second, first - second], dim=2).flatten(1)
    return numbers / math.sqrt(size)
