"""What a client does to its update before it sends it."""

from lightning_recon.defenses.base import (
    Defense,
    LocalRandomizer,
    apply_chain,
    bind_chain,
    num_update_bits,
    stand_in_chain,
)
from lightning_recon.defenses.clip import ClipL2
from lightning_recon.defenses.dpsgd_noise import DPSGDNoise
from lightning_recon.defenses.duchi import Duchi
from lightning_recon.defenses.gaussian import GaussianNoise
from lightning_recon.defenses.hybrid import Hybrid
from lightning_recon.defenses.laplace import Laplace
from lightning_recon.defenses.piecewise import Piecewise
from lightning_recon.defenses.privunit import PrivUnit2
from lightning_recon.defenses.privunit_gaussian import PrivUnitG

__all__ = [
    "ClipL2",
    "DPSGDNoise",
    "Defense",
    "Duchi",
    "GaussianNoise",
    "Hybrid",
    "Laplace",
    "LocalRandomizer",
    "Piecewise",
    "PrivUnit2",
    "PrivUnitG",
    "apply_chain",
    "bind_chain",
    "num_update_bits",
    "stand_in_chain",
]
