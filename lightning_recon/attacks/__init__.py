"""Published attacks, one a file."""

from lightning_recon.attacks.base import Attack
from lightning_recon.attacks.gradient_matching import GradientMatching
from lightning_recon.attacks.ldp import LDPAttack
from lightning_recon.attacks.optimization import OptimizationAttack
from lightning_recon.attacks.rog import ROGAttack
from lightning_recon.attacks.spectral import SpectralLDPAttack

__all__ = [
    "Attack",
    "GradientMatching",
    "LDPAttack",
    "OptimizationAttack",
    "ROGAttack",
    "SpectralLDPAttack",
]
