"""The model that the malicious server of the LDP attack sends (You et al., IEEE TIFS 20, 2025).

How it differs from the paper stands in :mod:`lightning_recon.attacks.ldp`.  All rows have the same
weights and a sample reaches one of them: they are an embedding, equal rows share their memory, and
neither the client nor the server holds a gradient of all
(:class:`lightning_recon.rowsparse.RowSparse`).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from lightning_recon.targets import Target

NUM_BIAS_INPUTS = 500
NUM_ACTIVE_BIAS_INPUTS = 100
NUM_STATISTICS = 10
# Scales that bring the statistics of photographs to about 1 each: channel means, variances, mean
# absolute differences of neighbours, row number in [-1/2, 1/2].
STATISTICS_SCALE = (4.0,) * 3 + (10.0,) * 3 + (25.0,) * 3 + (4.0,)


class Statistics(NamedTuple):
    """Statistics of images, and what they are made of."""

    numbers: Tensor
    """... 9: channel means, variances and total variations."""
    centred: Tensor
    """... 3 H W: the images without their channels' means."""
    down: Tensor
    """... 3 H-1 W: differences of vertical neighbours."""
    right: Tensor
    """... 3 H W-1: those of horizontal ones."""


def statistics_of(images: Tensor) -> Statistics:
    """Return the statistics of images.

    Args:
        images: ... 3 H W.  The total variation of a channel is the mean absolute difference of
            vertical neighbours plus that of horizontal ones.
    """
    mean = images.mean((-2, -1))
    centred = images - mean[..., None, None]
    down, right = images[..., 1:, :] - images[..., :-1, :], images[..., 1:] - images[..., :-1]
    variation = down.abs().mean((-2, -1)) + right.abs().mean((-2, -1))
    numbers = torch.cat([mean, centred.square().mean((-2, -1)), variation], dim=-1)
    return Statistics(numbers, centred, down, right)


def image_statistics(images: Tensor) -> Tensor:
    """Return channel means, variances and total variations of B 3 H W images, B 9."""
    return statistics_of(images).numbers


def laplace_thresholds(location: float, scale: float, num_bins: int) -> Tensor:
    """Return the K quantiles (k + 1/2) / K of a Laplace distribution, ascending, float64."""
    centred = (torch.arange(num_bins, dtype=torch.float64) + 0.5) / num_bins - 0.5
    return location - scale * centred.sign() * torch.log1p(-2 * centred.abs())


class LDPPayload(nn.Module):
    """The model with the inference structure in front of it.

    Args:
        model: the target; its output is kept.
        thresholds: K mean brightnesses in [0, 1], ascending.
        image_shape: 3, H, W.
        num_samples: the batch size that the statistics head is made for; a smaller batch is
            padded with zeros.
        row_gain: gain of the rows on the logits.
        statistics_gain: gain of the statistics head on the first sample's logits.
        compress: whether images are 2x2 average-pooled in front of rows and statistics.
    """

    channels: Tensor
    bias_inputs: Tensor
    class_sign: Tensor
    statistics_scale: Tensor

    def __init__(
        self,
        model: Target,
        thresholds: Tensor,
        image_shape: tuple[int, int, int],
        num_samples: int,
        row_gain: float,
        statistics_gain: float,
        compress: bool = False,
    ) -> None:
        super().__init__()
        _, height, width = image_shape
        if compress:
            height, width = height // 2, width // 2
        self.model = model
        self.grid = torch.Size((height, width))  # of the pixels in front of the rows
        self.num_samples = num_samples
        self.row_gain = row_gain
        self.statistics_gain = statistics_gain
        self.compress = compress
        self.num_bins = len(thresholds)
        num_pixels = 3 * height * width
        # An image of median brightness would move the logits by 1 if it passed a threshold of 0;
        # what moves them is the gap to the threshold below, a small part of that.
        weight = 1 / (row_gain * num_pixels * float(thresholds.abs().median()))
        like = next(model.parameters())
        rows = like.new_full((2 * num_pixels,), weight).expand(self.num_bins, -1)
        self.rows = nn.Embedding(self.num_bins, 2 * num_pixels, sparse=True, _weight=rows)
        self.thresholds = skip_init(nn.Linear, NUM_BIAS_INPUTS, self.num_bins, bias=False)  # type: ignore[no-untyped-call]
        self.statistics = nn.Linear(NUM_STATISTICS * num_samples, 1)
        with torch.no_grad():
            per_input = -weight * num_pixels / NUM_ACTIVE_BIAS_INPUTS * thresholds
            self.thresholds.weight.copy_(per_input[:, None].expand(-1, NUM_BIAS_INPUTS))
            self.statistics.weight.zero_()
            self.statistics.bias.zero_()
        inputs = torch.zeros(NUM_BIAS_INPUTS)
        inputs[:NUM_ACTIVE_BIAS_INPUTS] = 1
        sign = torch.ones(model.num_classes)
        sign[1::2] = -1
        self.register_buffer("channels", torch.eye(6, 3).view(6, 3, 1, 1))
        self.register_buffer("bias_inputs", inputs)
        self.register_buffer("class_sign", sign)
        self.register_buffer("statistics_scale", torch.tensor(STATISTICS_SCALE))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B 3 H W images; the structure itself never runs in bfloat16."""
        logits: Tensor = self.model(images)
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(self.channels.dtype)
            if self.compress:
                images = F.avg_pool2d(images, 2)
            activation, row = self._select_rows(images)
            shift = self.row_gain * activation
            head = self.statistics(self._statistics(images, row))
            shift = torch.cat([shift[:1] + self.statistics_gain * head, shift[1:]])
            return logits.to(shift.dtype) + shift[:, None] * self.class_sign

    def _select_rows(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return each sample's smallest positive activation (0 if none) and its row, B each."""
        features = F.conv2d(images, self.channels).flatten(1)
        thresholds = self.thresholds(self.bias_inputs)
        with torch.no_grad():
            positive = F.relu((features @ self.rows.weight[0])[:, None] + thresholds)
            nearest = torch.where(positive > 0, positive, torch.inf).min(dim=1)
            row, is_passed = nearest.indices, nearest.values.isfinite()
        activation = (self.rows(row) * features).sum(1) + thresholds[row]
        return activation * is_passed, row

    def _statistics(self, images: Tensor, row: Tensor) -> Tensor:
        """Return the batch's scaled statistics in one vector of length 10 num_samples."""
        position = row[:, None].to(images) / self.num_bins - 0.5
        numbers = torch.cat([image_statistics(images), position], dim=1) * self.statistics_scale
        return F.pad(numbers.flatten(), (0, NUM_STATISTICS * (self.num_samples - len(images))))
