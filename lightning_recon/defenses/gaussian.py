"""Gaussian noise on every coordinate of an update."""

from typing import Literal

import torch

from lightning_recon.defenses.base import Defense, Encoding, Shapes, dense
from lightning_recon.errors import InputError
from lightning_recon.rowsparse import RowSparse
from lightning_recon.updates import Update

_CHUNK = 2**24  # numbers drawn at once: bounds the memory that the noise takes


class GaussianNoise(Defense):
    """Adds independent noise of N(0, std^2) to every coordinate.

    Either ``noise_std`` is given, or it is calibrated from ``epsilon``:

    ``record_mean``
        std = 2 C / (m epsilon), the rule of You et al. (TIFS 2025), after Wei et al. (NbAFL, IEEE
        TIFS 15, 2020): C is the bound of the :class:`ClipL2` in front and m the number of records
        that the client is said to average over.  The rule has no delta, and 2 C / m is not the
        sensitivity of one client's update, which is 2 C: its "epsilon" is a label and no
        guarantee.  Every run states what really holds.

    Args:
        noise_std: standard deviation, at least 0; excludes the three others.
        calibration: the rule that turns ``epsilon`` into a standard deviation.
        epsilon: the claimed privacy budget, greater than 0.
        num_records: the m of the rule, at least 1.
    """

    def __init__(
        self,
        noise_std: float | None = None,
        calibration: Literal["record_mean"] | None = None,
        epsilon: float | None = None,
        num_records: int | None = None,
    ) -> None:
        super().__init__()
        if epsilon is not None and not 0 < epsilon < float("inf"):
            raise InputError(f"GaussianNoise: epsilon must be a number above 0, not {epsilon}")
        if noise_std is not None:
            if not 0 <= noise_std < float("inf"):
                raise InputError(f"GaussianNoise: noise_std must be at least 0, not {noise_std}")
            if (calibration, epsilon, num_records) != (None, None, None):
                raise InputError(
                    f"GaussianNoise: noise_std={noise_std:g} was given together with calibration, "
                    "epsilon or num_records; give either noise_std alone or those three"
                )
        elif calibration is None or epsilon is None:
            raise InputError(
                "GaussianNoise: give either noise_std, or calibration, epsilon and num_records"
            )
        elif calibration != "record_mean":
            raise InputError(f"GaussianNoise: calibration must be record_mean, not {calibration!r}")
        elif num_records is None or not num_records >= 1:
            raise InputError(
                f"GaussianNoise: calibration {calibration} needs num_records of at least 1, "
                f"not {num_records}"
            )
        self.noise_std = noise_std
        self.calibration = calibration
        self.epsilon = epsilon
        self.num_records = num_records

    def bind(self, norm_bound: float | None) -> float | None:
        """Calibrate the noise to the bound of the update; noise has no bound itself."""
        if self.calibration is not None:
            if norm_bound is None:
                raise InputError(
                    f"GaussianNoise: calibration {self.calibration} needs the norm bound of a "
                    "ClipL2 in front of it; add one, or give noise_std"
                )
            assert self.epsilon is not None
            assert self.num_records is not None
            self.noise_std = 2 * norm_bound / (self.num_records * self.epsilon)
        return None

    @property
    def std(self) -> float:
        """The standard deviation in use; known once the chain is bound.

        Raises:
            RuntimeError: if it is to be calibrated and the chain was never bound.
        """
        if self.noise_std is None:
            raise RuntimeError("GaussianNoise.std is read before bind_chain() calibrated it")
        return self.noise_std

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the update with noise added, in place.

        The noise is drawn in float32 whatever the update's type, so that float32 and float64
        runs see the same noise.
        """
        if self.std == 0:
            return update
        for name, tensor in update.items():
            if isinstance(tensor, RowSparse):
                tensor.add_noise_(self.std, generator)
                continue
            tensor = tensor.contiguous()
            for chunk in torch.split(tensor.view(-1), _CHUNK):
                noise = torch.randn(chunk.shape, generator=generator, device=chunk.device)
                chunk.add_(noise, alpha=self.std)
            update[name] = tensor
        return update

    def variance(self, update: Update, observed: Update) -> Update | None:
        """Return std^2 for every number; None without noise."""
        if self.std == 0:
            return None
        return {name: torch.full_like(observed[name], self.std**2) for name in update}

    def encode(self, encoding: Encoding, shapes: Shapes) -> Encoding:
        """Return 32 bits for each value: noise has no zeros and no levels."""
        return dense(shapes) if self.std > 0 else encoding

    @property
    def claimed(self) -> dict[str, float | str] | None:
        """The epsilon that the configuration claims, and the rule behind it."""
        if self.epsilon is None:
            return None
        return {"epsilon": self.epsilon, "rule": f"{self.calibration}: std = 2C/(m epsilon)"}
