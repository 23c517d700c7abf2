"""The noise of DP-SGD, in units of what one sample can do."""

from typing import Any

from lightning_recon.defenses.base import positive
from lightning_recon.defenses.gaussian import GaussianNoise
from lightning_recon.errors import InputError
from lightning_recon.privacy.gaussian import gaussian_std
from lightning_recon.privacy.sensitivity import Adjacency, record_sensitivity


class DPSGDNoise(GaussianNoise):
    """Adds the noise that makes per-sample clipping into DP-SGD: N(0, (z C / B)^2).

    Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar & Zhang, "Deep Learning with Differential
    Privacy", CCS 2016, Algorithm 1, for the mean over the batch.  It goes with the client
    :class:`~lightning_recon.clients.DPSGD`, which clips; with any other client nothing bounds what
    a sample can do, and it protects no record.  The guarantee is for one record of the batch
    (record level), under ``replace`` with sensitivity 2C/B, under ``add_remove`` with C/B and a
    batch size that is no secret; for all of a client's data together it is far weaker, see
    :func:`~lightning_recon.audit.privacy_statement.privacy_statement`.

    Give either ``noise_multiplier`` or ``epsilon``, which is exact for one release (Balle & Wang,
    ICML 2018).

    Args:
        clip_norm: the C of the client.
        num_samples: the client's batch size B.
        noise_multiplier: z, above 0, as DP-SGD's accountants count it: 1 is the norm of a clipped
            gradient.
        epsilon: of one release, for one record, above 0.
        delta: in (0, 1).
        adjacency: what the record-level guarantee compares.
    """

    citation = "Abadi et al., CCS 2016"

    def __init__(
        self,
        clip_norm: float,
        num_samples: int,
        noise_multiplier: float | None = None,
        epsilon: float | None = None,
        delta: float = 1e-5,
        adjacency: Adjacency = "replace",
    ) -> None:
        sensitivity = record_sensitivity(clip_norm, num_samples, adjacency)
        if (noise_multiplier is None) == (epsilon is None):
            raise InputError("DPSGDNoise: give either noise_multiplier or epsilon")
        if noise_multiplier is not None:
            std = positive(self, "noise_multiplier", noise_multiplier) * clip_norm / num_samples
        else:
            assert epsilon is not None
            std = gaussian_std(epsilon, sensitivity, delta)
        super().__init__(noise_std=std)
        self.clip_norm = clip_norm
        self.num_samples = num_samples
        if not 0 < delta < 1:
            raise InputError(f"DPSGDNoise: delta must lie between 0 and 1, not {delta}")
        self.delta = delta
        self.adjacency = adjacency
        self.record_epsilon = epsilon

    @property
    def claimed(self) -> dict[str, Any] | None:
        """The epsilon that the noise was calibrated to, for one record."""
        if self.record_epsilon is None:
            return None
        return {
            "epsilon": self.record_epsilon,
            "rule": f"analytic Gaussian for one record under {self.adjacency}",
            "level": "record",
            "adjacency": self.adjacency,
            "delta": self.delta,
        }
