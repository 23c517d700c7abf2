"""The model that the malicious server of :class:`SpectralLDPAttack` sends for one gradient.

It is of class A, any stateless forward pass: it uses ``no_grad`` and hands out rows across the
batch.
"""

import copy
import math
from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.attacks.spectral.code import ChannelCode
from lightning_recon.clients.aggregate import ClientPayload
from lightning_recon.rowsparse import read_rows
from lightning_recon.targets import Target
from lightning_recon.updates import Update

NUM_HEAD_COLUMNS = 2048  # those of the highest energy, by which rows are tested
NUM_FOLDS = 64  # of the sum of a code, about N(0, 1), by which rows of the second table are chosen
SPREAD = 1.5  # of the rows' thresholds over that of the public images: their tails are unknown
SIGN_STDS = 20.0  # size of the sign's number in standard deviations of the noise
MAX_SIGN_SHARE = 0.005  # of an image's energy that the sign may take


class Budget(NamedTuple):
    """What one sample of the batch may use of the squared clipping norm."""

    energy: float
    sign_size: float
    """The number that tells the sign of a row; its square is part of the energy."""

    @classmethod
    def of(
        cls, clip_norm: float, noise_std: float, num_samples: int, clips_samples: bool
    ) -> "Budget":
        """Return the share of one of ``num_samples`` samples.

        Args:
            clip_norm: C.
            noise_std: of the noise on every entry.
            num_samples: B.
            clips_samples: whether C bounds each sample's gradient, whose mean is sent, and not
                the mean.
        """
        share = num_samples**2 if clips_samples else num_samples
        energy = clip_norm**2 / share
        return cls(energy, min(SIGN_STDS * noise_std, (MAX_SIGN_SHARE * energy) ** 0.5))

    @property
    def code(self) -> float:
        """What is left for the code."""
        return self.energy - self.sign_size**2


def half_signs(num_classes: int) -> Tensor:
    """Return +1 for one half of the classes, even ones, and -1 for the other."""
    sign = torch.ones(num_classes)
    sign[1::2] = -1
    return sign


class RowsPayload(ClientPayload):
    """The model with rows beside it, and what the server reads of them.

    All clients of a round are sent the same, unless ``place`` is that of the one whose rows are
    open: nothing of the others' samples reaches theirs.

    Args:
        model: the target.
        code: the code in front of the rows.
        num_bins: rows K.
        logit_scale: what the target's logits are multiplied by.
        budget: squared norm of what a sample puts into its row.
        copies: 2 sends every sample to a row of a second table, too, at half the energy each.
        num_blocks: of the first table's rows, each with thresholds of its own.
    """

    class_sign: Tensor
    thresholds: Tensor
    num_side = 1
    """Numbers in front of the code: the first one tells the sign."""
    place: int | None = None
    """Of the client whose rows are open, in its round; None: those of all are."""

    def __init__(
        self,
        model: Target,
        code: ChannelCode,
        num_bins: int,
        logit_scale: float,
        budget: Budget,
        copies: int,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        self.model = model
        self.code = code
        self.num_bins = num_bins
        self.logit_scale = logit_scale
        self.sign_size = budget.sign_size
        self.scale = budget.code**0.5
        self.copies = copies
        self.num_first = num_bins // copies
        self.num_levels = self.num_first // num_blocks
        like = next(model.parameters())
        quantile = torch.arange(1, self.num_levels, dtype=torch.float64) / self.num_levels
        spread = SPREAD * max(code.log_norm_std, 1e-3) * 3**0.5 / math.pi
        self.register_buffer(
            "thresholds", (code.log_norm_mean + spread * quantile.logit()).to(like)
        )
        self.register_buffer("class_sign", half_signs(model.num_classes).to(like))

    def for_client(self, place: int) -> "RowsPayload":
        """Return what the client of a place is sent."""
        return self if self.place in (None, place) else self.closed()

    def closed(self) -> "RowsPayload":
        """Return this payload with rows that nothing reaches; the parameters are the same."""
        closed = copy.copy(self)
        closed.scale = closed.sign_size = 0.0
        return closed

    @abstractmethod
    def head_of(self, update: Update) -> Tensor:
        """Return the columns by which rows are tested, those of the highest energy, K n."""

    @abstractmethod
    def read(self, update: Update, rows: Tensor) -> Tensor:
        """Return what an update holds of rows, R: R (num_side + N), copied."""

    def with_rows(self, logits: Tensor, shift: Tensor) -> Tensor:
        """Return logits, B classes, with +shift, B, on one half of them and -shift on the other."""
        scaled = self.logit_scale * logits.to(shift.dtype)
        return scaled + shift[:, None] * self.class_sign

    def row_log_norm(self, row: Tensor) -> Tensor:
        """Return the logarithm of the norm that a row stands for: its thresholds' middle."""
        padded = torch.cat([self.thresholds[:1], self.thresholds, self.thresholds[-1:]])
        row = row.clamp_max(self.num_first - 1) % self.num_levels
        return (padded[row] + padded[row + 1]) / 2


class SpectralPayload(RowsPayload):
    """The model, and rows that change none of its logits, for clients that send one gradient.

    Args:
        gain: of the rows on the logits.
    """

    def __init__(
        self,
        model: Target,
        code: ChannelCode,
        num_bins: int,
        logit_scale: float,
        budget: Budget,
        gain: float,
        copies: int = 1,
    ) -> None:
        super().__init__(model, code, num_bins, logit_scale, budget, copies)
        self.gain = gain
        num_columns = self.num_side + code.num_columns
        num_head = min(num_columns, NUM_HEAD_COLUMNS)
        like = self.class_sign
        self.head = nn.Parameter(like.new_zeros(num_bins, num_head))
        # equal rows share their memory
        self.rows = nn.Parameter(like.new_zeros(num_columns - num_head).expand(num_bins, -1))

    def head_of(self, update: Update) -> Tensor:
        """Return the columns by which rows are tested, K n."""
        return update["head"]

    def read(self, update: Update, rows: Tensor) -> Tensor:
        """Return what an update holds of rows, R: R (1 + N)."""
        return torch.cat([update["head"][rows], read_rows(update["rows"], rows)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scaled logits of B C H W images; only the gradients know of the rows."""
        logits: Tensor = self.model(images)
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                code, log_norm = self.code.encode(images.to(self.class_sign.dtype))
                sent = F.pad(self.scale * code, (1, 0), value=self.sign_size)
                sent = sent[:, None] / self.copies**0.5
                row = self.choose_rows(log_norm)[:, None]
                if self.copies == 2:
                    row = torch.cat([row, self.choose_second_rows(code)[:, None]], dim=1)
            num_head = self.head.shape[1]
            first = sent[..., :num_head] * F.embedding(row, self.head)
            rest = sent[..., num_head:] * F.embedding(row, self.rows, sparse=True)
            shift: Tensor = self.gain * (first.sum((1, 2)) + rest.sum((1, 2)))
            return self.with_rows(logits, shift)

    def choose_rows(self, log_norm: Tensor) -> Tensor:
        """Return the row of each sample, B: that of its norm, or the nearest one that is free."""
        ordered, order = log_norm.sort(stable=True)
        wanted = torch.bucketize(ordered, self.thresholds)
        place = torch.arange(len(wanted), device=wanted.device)
        row = (wanted - place).cummax(0).values + place  # strictly ascending
        row = torch.minimum(row, self.num_first - len(row) + place)  # and inside
        return torch.empty_like(row).scatter_(0, order, row)

    def choose_second_rows(self, code: Tensor) -> Tensor:
        """Return the row of each code, B N, in the second table, B: any one, but its own."""
        num_second = self.num_bins - self.num_first
        folded = (NUM_FOLDS * code.sum(1)).remainder(1)
        row: Tensor = (num_second * folded).long().clamp_max(num_second - 1)
        return row.add(self.num_first)
