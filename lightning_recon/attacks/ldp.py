"""Sample reconstruction under local differential privacy.

You, Dong, Li, Liu, Ma, Shen, "Local Differential Privacy is Not Enough: A Sample Reconstruction
Attack against Federated Learning with Local Differential Privacy", IEEE TIFS 20:1519-1534, 2025,
arXiv 2502.08151.

A malicious server puts an inference structure in front of the model (:class:`LDPPayload`).  Every
training image falls into one of K rows of a linear layer, by its brightness, and the row's gradient
is a multiple of the image.  Clipping scales that multiple down and noise is added; what the server
receives is decoded (:meth:`LDPAttack.initialize`) and refined by optimisation.

What is the paper's: the 1x1 convolution with three zero channels, whose weights' gradient is pure
noise and shows its level; the rows of equal weights with thresholds at the quantiles of a Laplace
distribution; thresholds that come from 500 inputs of which 100 are one, so that a row's bias
gradient is seen 100 times; the minimum over the positive activations, so that a sample reaches
one row only; image = weight gradient / mean bias gradient; the 99 % interval filter; the statistics
head of ten numbers a sample; Adam on the image until its statistics match.

What differs, and why:

- Gradients are real.  The published structure adds one number to all logits, along which
  cross-entropy is constant: what is released there is float32's rounding error times 1e8.  Here
  it is added to the logits of half of the classes and taken from the other half, so the gradient
  of every sample is about +1 or -1 for a network that is not yet sure, in any precision.  Its sign
  tells the half in which the label lies, and row tests are two-sided.
- The rows are found from the observation alone: a row counts as hit when its averaged bias gradient
  exceeds what noise reaches in any of the K rows with probability ``false_positive_rate``.  The
  released code takes them from the victim's own forward pass.
- The tenth statistic, the row's number, is decoded and pairs statistics with rows (Hungarian method
  on row number, channel means and variances).  A row whose content fits the statistics of no
  sample holds the sum of several: it is counted as a collision and not returned, and so is one
  whose gain is a small part of the others'.  The released code pairs by the truth.
- The statistics reach the server through the logits of the batch's first sample alone.  Through
  all samples' logits the signs of their gradients would cancel.
- The thresholds' location and scale are fitted on public images, when there are some.
- The objective is the mismatch of the dummy images with the whole observed update: with their rows'
  gradients, weighted by the noise, and with the statistics.  The published one knows the statistics
  alone and starts from the filtered row.
- The gain is what the clipping norm needs and not 1e8: the logits of an honest sample move by about
  a hundredth, and the model's own output is kept.
- The interval filter looks at the three channels of a pixel together.
- The convolution's weights are buffers: a gradient of their own would spend the clipping budget.
- All rows have equal weights, and a sample's own is found without multiplying with every one: they
  are an embedding of which the client holds the rows that its samples reach
  (:class:`lightning_recon.rowsparse.RowSparse`).
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from scipy.optimize import linear_sum_assignment
from scipy.stats import chi2, norm
from torch import Tensor

from lightning_recon.attacks.base import check_counts
from lightning_recon.attacks.ldp_mismatch import MIN_STD, Mismatch, Observed, mismatch, parts_of
from lightning_recon.attacks.ldp_payload import (
    NUM_ACTIVE_BIAS_INPUTS,
    NUM_STATISTICS,
    STATISTICS_SCALE,
    LDPPayload,
    image_statistics,
    laplace_thresholds,
)
from lightning_recon.attacks.optimization import OptimizationAttack
from lightning_recon.clients import Client
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.rowsparse import read_rows
from lightning_recon.targets import Target

FAINT_GAIN = 0.25  # of the median gain: fainter rows are the remainder of a cancellation
NUM_SILENT = 2**22  # numbers, about, from which the noise's level is read
MISFIT_RATE = 1e-12  # nominal; low, since the errors of a gain are shared by several statistics


class LDPEvidence(NamedTuple):
    """What the decoder read from one update, for R rows that hold one sample each."""

    rows: Tensor
    """R 3 h w: the rows' weight gradients over their bias gradients; h w halved by compress."""
    row_std: Tensor
    """R 1 1 1: standard deviation of the noise on ``rows``."""
    statistics: Tensor
    """R 9: channel means, variances, total variations."""
    statistics_std: Tensor
    """9: standard deviation of the noise on ``statistics``."""
    notes: dict[str, float]


class LDPAttack(OptimizationAttack):
    """The malicious server of You et al. (TIFS 2025) against clipped and noised updates.

    Args:
        target: the model that the federation trains.
        client: the clients' protocol; null: FedSGD.  FedAvg of one step on the whole batch will do:
            all that is read is a ratio, and -learning_rate falls out.
        defenses: the clients' defenses, in order.
        num_bins: rows K; one image is held by each.
        bin_location: location of the Laplace distribution of mean brightness in [0, 1]; null:
            the median over the public images.
        bin_scale: its scale; null: the mean absolute deviation over the public images.
        num_samples: batch size that the payload is made for; null: the data's.
        gain: of the rows on the logits; large against the norm of the model's own gradient, so
            that the clipping budget is the rows'.
        statistics_share: part of the squared clipping norm that the statistics head may use.
        false_positive_rate: probability that noise alone makes any row count as hit.
        filter_confidence: of the interval around 0 in which a pixel is taken for background.
        compress: 2x2 average pooling in the payload, interpolated back: less noise, less detail.
        tv_weight: weight of the total variation's relative mismatch against the rows' likelihood,
            both per pixel.
        iterations: steps on the dummy images.
        optimizer: of the dummy images.
        lr_scheduler: of the optimizer, or null.
        seed: of all randomness.

    Raises:
        InputError: if an argument is out of its range.
    """

    threat_model = (
        "a malicious server sends a modified model (payload of class A, any stateless forward "
        "pass) and sees one protected update of the client"
    )
    protocols = ("fedsgd",)
    instead = (
        "take SpectralLDPAttack, whose rows close after one hit: those of LDPAttack bend under a "
        "second step, and so does the choice between them"
    )
    oracles = ("num_samples",)
    citation = "You et al., IEEE TIFS 20:1519-1534, 2025"

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        num_bins: int = 1024,
        bin_location: float | None = None,
        bin_scale: float | None = None,
        num_samples: int | None = None,
        gain: float = 1e4,
        statistics_share: float = 0.05,
        false_positive_rate: float = 1e-3,
        filter_confidence: float = 0.99,
        compress: bool = False,
        tv_weight: float = 1.0,
        iterations: int = 400,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            target,
            client,
            defenses,
            iterations=iterations,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            seed=seed,
        )
        for name, value in (
            ("statistics_share", statistics_share),
            ("false_positive_rate", false_positive_rate),
            ("filter_confidence", filter_confidence),
        ):
            if not 0 < value < 1:
                raise InputError(f"LDPAttack: {name} must lie between 0 and 1, not {value}")
        check_counts("LDPAttack", num_bins=(num_bins, 2), num_samples=(num_samples, 1))
        if not 0 < gain < math.inf or not 0 <= tv_weight < math.inf:
            raise InputError(
                "LDPAttack: gain must be above 0 and tv_weight at least 0, not "
                f"{gain} and {tv_weight}"
            )
        if bin_scale is not None and bin_scale <= 0:
            raise InputError(f"LDPAttack: bin_scale must be above 0, not {bin_scale}")
        self.num_bins = num_bins
        self.bin_location = bin_location
        self.bin_scale = bin_scale
        self.num_samples = num_samples
        self.gain = gain
        self.statistics_share = statistics_share
        self.false_positive_rate = false_positive_rate
        self.filter_confidence = filter_confidence
        self.compress = compress
        self.tv_weight = tv_weight

    # --- the server's part ---------------------------------------------------------------------

    @property
    def dummy_shape(self) -> tuple[int, int, int]:
        """C, H, W of the dummy images: what the rows see."""
        channels, height, width = self.spec.image_shape
        return (channels, height // 2, width // 2) if self.compress else (channels, height, width)

    def learn_public(self, images: Tensor) -> None:
        """Fit location and scale of the thresholds, and the images' energy.

        Raises:
            InputError: if neither public images nor both parameters are given, or the images
                have an odd size in compress mode.
        """
        _, channels, height, width = images.shape
        if channels != 3:
            raise InputError(
                f"LDPAttack takes images of 3 channels, not {channels}; SpectralLDPAttack takes "
                "grey ones, too"
            )
        if self.compress and (height % 2 or width % 2):
            raise InputError(f"LDPAttack: compress needs an even image size, not {height}x{width}")
        brightness = images.mean((1, 2, 3))
        location, scale = self.bin_location, self.bin_scale
        if location is None or scale is None:
            if len(images) < 2:
                raise InputError(
                    "LDPAttack has fewer than two public images to fit its bins on; set "
                    "bin_location and bin_scale, or take data with public images (num_public)"
                )
            location = float(brightness.median()) if location is None else location
            scale = float((brightness - location).abs().mean()) if scale is None else scale
        self.location, self.scale = location, max(scale, 1e-6)
        # How large the gradients of the two parts will be.  Without public images: the bright
        # pixels are about half as bright as white, and scaled statistics are about 1.
        seen = F.avg_pool2d(images, 2) if self.compress else images
        self.row_energy = seen.shape[1:].numel() * location / 2
        self.statistics_energy = float(NUM_STATISTICS)
        if len(seen):
            numbers = image_statistics(seen) * seen.new_tensor(STATISTICS_SCALE[:9])
            self.row_energy = float(seen.square().sum((1, 2, 3)).mean())
            self.statistics_energy = float(numbers.square().sum(1).mean())
            self.statistics_energy += STATISTICS_SCALE[9] ** 2 / 12  # the row's number

    def server_payload(self, model: Target) -> LDPPayload:
        """Return the target behind the inference structure."""
        num_samples = self.num_samples or self.spec.max_batch_size
        share = self.statistics_share / (1 - self.statistics_share)
        rows_energy = num_samples * (self.row_energy + NUM_ACTIVE_BIAS_INPUTS)
        head_energy = 1 + num_samples * self.statistics_energy
        parameter = next(model.parameters())
        return LDPPayload(
            model,
            laplace_thresholds(self.location, self.scale, self.num_bins),
            self.spec.image_shape,
            num_samples,
            row_gain=self.gain,
            statistics_gain=self.gain * (share * rows_energy / head_energy) ** 0.5,
            compress=self.compress,
        ).to(parameter.device, parameter.dtype)

    # --- decoding ------------------------------------------------------------------------------

    def initialize(self, observation: Observation) -> tuple[Tensor, LDPEvidence]:
        """Decode the rows that hold one sample each; start from the filtered rows."""
        payload = observation.payload
        assert isinstance(payload, LDPPayload)
        update = observation.update
        bias = update["thresholds.weight"]
        shape = (2, 3, *payload.grid)
        # the gradients behind the zero channels are zero: what came back there is the noise, and
        # a few rows tell its level
        num_read = min(self.num_bins, -(-NUM_SILENT // (3 * payload.grid.numel())))
        silent = read_rows(update["rows.weight"], torch.arange(num_read)).view(-1, *shape)[:, 1]
        noise_std = float(silent.double().square().mean()) ** 0.5
        gain = bias[:, :NUM_ACTIVE_BIAS_INPUTS].mean(1)
        gain_std = noise_std / NUM_ACTIVE_BIAS_INPUTS**0.5

        critical = float(norm.isf(self.false_positive_rate / (2 * self.num_bins)))
        hit = (gain.abs() > critical * gain_std).nonzero().squeeze(1)
        statistics, statistics_std = self._decode_statistics(observation, noise_std)
        hit = hit[gain[hit].abs().argsort(descending=True)[: len(statistics)]]
        content = read_rows(update["rows.weight"], hit).view(-1, *shape)[:, 0]
        rows = content / gain[hit, None, None, None]
        row_std = noise_std / gain[hit].abs()

        sample = self._assign_statistics(hit, rows, row_std, statistics, statistics_std)
        # samples of opposite sign in a row cancel but for a remainder; what it shows is neither,
        # and its noise is so large that any statistics fit
        is_faint = gain[hit].abs() < FAINT_GAIN * gain[hit].abs().median() if len(hit) else hit > 0
        single = (sample >= 0) & ~is_faint
        num_rows = int(single.sum())
        evidence = LDPEvidence(
            rows=rows[single],
            row_std=row_std[single].clamp_min(MIN_STD)[:, None, None, None],
            statistics=statistics[sample[single], :9],
            statistics_std=statistics_std[:9],
            notes={
                "rows_hit": len(hit),
                "rows_colliding": len(hit) - num_rows,
                "samples_not_recovered": len(statistics) - num_rows,
                "noise_std_estimate": noise_std,
                "false_positive_rate": self.false_positive_rate,
                "bin_location": self.location,
                "bin_scale": self.scale,
            },
        )
        return self._filtered(evidence, noise_std > 0), evidence

    def _decode_statistics(
        self, observation: Observation, noise_std: float
    ) -> tuple[Tensor, Tensor]:
        """Return the samples' ten statistics, B 10, and the noise's standard deviation on each."""
        weight = observation.update["statistics.weight"].view(-1, NUM_STATISTICS)
        gain = float(observation.update["statistics.bias"])
        scale = weight.new_tensor(STATISTICS_SCALE)
        weight = weight[: observation.num_samples]
        # a gain that drowns in the noise decodes to nothing: statistics 0, of no weight
        std = torch.ones_like(scale) * max(noise_std, 1e-9) / max(abs(gain), 1e-9) / scale
        return (weight / gain if gain else torch.zeros_like(weight)) / scale, std

    def _assign_statistics(
        self,
        hit: Tensor,
        rows: Tensor,
        row_std: Tensor,
        statistics: Tensor,
        statistics_std: Tensor,
    ) -> Tensor:
        """Pair the rows that were hit with the statistics of samples.

        Row number, channel means and channel variances are known from both sides; the pairs
        minimise their squared mismatch in units of the noise.  The sum of several samples fits the
        statistics of none, so a row that collided stays without a partner.

        Returns:
            For each row the sample that it holds, or -1, R.
        """
        num_pixels = rows.shape[2:].numel()
        noise = row_std.square()[:, None]
        # relative errors of the gains: one scales all that is read from a row or from the head
        row_error = (row_std / NUM_ACTIVE_BIAS_INPUTS**0.5)[:, None]
        head_error = statistics_std[9] * STATISTICS_SCALE[9]

        number = (hit.to(rows) / self.num_bins - 0.5)[:, None]
        mean = rows.mean((2, 3))
        variance = (rows - mean[..., None, None]).square().mean((2, 3))
        from_row = torch.cat([number, mean, variance - noise], dim=1)
        from_row_variance = torch.cat(
            [
                torch.full_like(number, 0.5 / self.num_bins).square(),
                noise / num_pixels + (mean * row_error).square(),
                2 * noise.square() / num_pixels + (2 * variance * row_error).square(),
            ],
            dim=1,
        )
        order = [9, 0, 1, 2, 3, 4, 5]
        from_head = statistics[:, order]
        from_head_variance = statistics_std[order].square() + (from_head * head_error).square()

        difference = from_row[:, None] - from_head[None]
        variances = from_row_variance[:, None] + from_head_variance[None] + MIN_STD**2
        limit = float(chi2.isf(MISFIT_RATE, len(order)))
        cost = (difference.square() / variances).sum(2).clamp_max(limit)
        sample = torch.full((len(hit),), -1, device=hit.device)
        for row, column in zip(*linear_sum_assignment(cost.cpu().numpy()), strict=True):
            if cost[row, column] < limit:
                sample[row] = int(column)
        return sample

    def _filtered(self, evidence: LDPEvidence, is_noisy: bool) -> Tensor:
        """Return the rows with all pixels at 0 that noise alone explains, R 3 h w."""
        images = evidence.rows
        if is_noisy:
            bound = float(chi2.ppf(self.filter_confidence, 3))
            energy = (images / evidence.row_std).square().sum(1, keepdim=True)
            images = torch.where(energy < bound, 0.0, images)
        return images.clamp(0, 1)

    # --- refinement ----------------------------------------------------------------------------

    def objective(self, dummy: Tensor, evidence: LDPEvidence) -> dict[str, Tensor]:
        """Return the mismatch with the observed update, per pixel, in units of its noise.

        The rows' and the statistics' terms are log-likelihoods under the noise.  The total
        variation has a weight of its own: it stands for the prior that images are smooth, with the
        amount taken from the statistic.
        """
        return parts_of([one.parts for one in self._mismatches(dummy, evidence)], dummy)

    def differentiate(
        self, dummy: Tensor, evidence: LDPEvidence
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of the objective and its gradient."""
        gradient = torch.zeros_like(dummy)
        found = []
        for place, one in enumerate(self._mismatches(dummy, evidence)):
            gradient[place] = one.gradient  # its memory is free for the next image's
            found.append(one.parts)
        return parts_of(found, dummy), gradient

    def _mismatches(self, dummy: Tensor, evidence: LDPEvidence) -> Iterator[Mismatch]:
        """Give the mismatch of each image of which the evidence tells."""
        rows = zip(evidence.rows, evidence.row_std.flatten(), evidence.statistics, strict=True)
        for image, observed in zip(dummy.detach(), rows, strict=False):  # more may be held
            yield mismatch(image, Observed(*observed, evidence.statistics_std), self.tv_weight)

    def finish(self, dummy: Tensor, evidence: LDPEvidence) -> Reconstruction:
        """Return the images with their objective as the score."""
        with torch.no_grad():
            parts = self.objective(dummy, evidence)
        images = dummy.clamp(0, 1)
        if self.compress:
            images = F.interpolate(images, scale_factor=2, mode="bilinear")
        return Reconstruction(
            images=images,
            labels=None,
            score=torch.stack(list(parts.values())).sum(0),
            notes=evidence.notes,
        )
