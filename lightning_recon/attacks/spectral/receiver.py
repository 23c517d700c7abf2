"""What the server reads of the rows of :class:`RowsPayload` in one update."""

import math
from typing import NamedTuple

from scipy.stats import chi2
from torch import Tensor, arange, cat, split

from lightning_recon.attacks.spectral.local_payload import LocalPayload
from lightning_recon.attacks.spectral.payload import RowsPayload
from lightning_recon.attacks.spectral.rows import unmix
from lightning_recon.observation import Observation

MISFIT_STDS = 3.5  # of the noise, between a row's sign number and its energy, and
MISFIT = 0.05  # of the number itself: what one sample may show
NUM_TOGETHER = 64  # rows whose energy is taken at a time

Channel = tuple[Tensor, Tensor, Tensor, float]
"""What was received, B N, amplitudes, B, logarithms of norms, B, and the noise's variance."""


class Received(NamedTuple):
    """What was read from one update, for R rows that hold one sample each."""

    received: Tensor
    """R N: the code times the amplitude, plus noise."""
    amplitude: Tensor
    """R, signed."""
    log_norm: Tensor
    """R: the logarithm of the norm that the code was divided by."""
    noise_std: float
    """Of the noise on ``received``."""
    notes: dict[str, float]
    row: Tensor
    """R: where they were read, a row of the first table if they stood there."""
    base: Tensor | None = None
    """R C H W: images of which the codes tell the differences; None: they tell the images."""

    @property
    def channel(self) -> Channel:
        """What the decoder needs."""
        return self.received, self.amplitude, self.log_norm, self.noise_std**2


def read_signs(observation: Observation) -> Received | None:
    """Read all rows of an update whose numbers have one size (signSGD), which tells of no row.

    Args:
        observation: with a :class:`RowsPayload`.

    Returns:
        Every row, or None if the numbers differ in size.
    """
    payload = observation.payload
    assert isinstance(payload, RowsPayload)
    head = payload.head_of(observation.update)
    size = float(head[0, 0].abs())
    if size == 0 or not bool((head.abs() == size).all()):
        return None
    every = arange(len(head), device=head.device)
    received = payload.read(observation.update, every)
    return Received(
        received=received[:, payload.num_side :],
        amplitude=received[:, 0] * (received.shape[1] - 1) ** 0.5,
        log_norm=payload.row_log_norm(every),
        noise_std=0.0,
        notes={"rows_read": len(head), "columns": received.shape[1]},
        row=every,
    )


def find_rows(
    observation: Observation, false_positive_rate: float, *, keeps_sums: bool = False
) -> Received:
    """Find the rows that were hit, without the truth.

    Args:
        observation: with a :class:`RowsPayload`.
        false_positive_rate: probability that noise alone makes any row count as hit.
        keeps_sums: whether rows are kept that look as if they held several samples, for a code
            that tells so by itself.
    """
    payload = observation.payload
    assert isinstance(payload, RowsPayload)
    head = payload.head_of(observation.update)
    num_head = head.shape[1]
    energy = cat([part.double().square().sum(1) for part in split(head, NUM_TOGETHER)])
    # most rows hold noise and nothing else
    noise_std = float(energy.median() / chi2.median(num_head)) ** 0.5
    rate = false_positive_rate / payload.num_bins
    critical = float(chi2.isf(rate, num_head))
    hit = (energy > critical * noise_std**2).nonzero().squeeze(1)
    if observation.num_samples is not None:
        most = observation.num_samples * payload.copies
        hit = hit[energy[hit].argsort(descending=True)[:most]]

    received = payload.read(observation.update, hit)
    is_local = isinstance(payload, LocalPayload)
    row, num_shared, num_unmixed = hit, 0, 0
    if payload.copies == 2:
        found = unmix(received, hit < payload.num_first, noise_std**2, rate, keeps_alone=is_local)
        received, row = found.received, hit[found.first]
        num_shared, num_unmixed = found.num_shared, int(found.is_mixed.sum())
    num_columns = received.shape[1]
    row_energy = received.double().square().sum(1) - num_columns * noise_std**2
    row_energy = row_energy.clamp_min(noise_std**2).to(received.dtype)
    norm = row_energy.sqrt()
    # one sample puts a fixed share of the row's norm into the first column; several do not
    expected = norm * payload.sign_size / math.hypot(payload.scale, payload.sign_size)
    misfit = (received[:, 0].abs() - expected).abs()
    is_single = misfit <= MISFIT_STDS * noise_std + MISFIT * expected
    if keeps_sums:
        is_single = is_single.new_ones(len(is_single))
    if observation.num_samples is not None:  # a sample may show twice where copies do not agree
        most = norm.where(is_single, 0).argsort(descending=True)[: observation.num_samples]
        is_single &= is_single.new_zeros(len(is_single)).index_fill(0, most, True)
    amplitude = expected * (payload.scale / payload.sign_size) * received[:, 0].sign()
    if isinstance(payload, LocalPayload):
        log_norm = payload.log_norm_of(received, amplitude, row, noise_std)
    else:
        log_norm = payload.row_log_norm(row)
    return Received(
        received=received[is_single, payload.num_side :],
        amplitude=amplitude[is_single],
        log_norm=log_norm[is_single],
        noise_std=noise_std,
        notes={
            "rows_hit": len(hit),
            "rows_colliding": num_shared + int((~is_single).sum()),
            "samples_unmixed": num_unmixed,
            "noise_std_estimate": noise_std,
            "false_positive_rate": false_positive_rate,
            "columns": num_columns,
        },
        row=row[is_single],
    )
