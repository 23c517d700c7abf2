"""What a client does to its update before it sends it."""

from lightning_recon.defenses.base import (
    Defense,
    LocalRandomizer,
    apply_chain,
    bind_chain,
    chain_variance,
    expected_chain,
    num_update_bits,
    stand_in_chain,
)
from lightning_recon.defenses.clip import ClipL2
from lightning_recon.defenses.dpsgd_noise import DPSGDNoise
from lightning_recon.defenses.duchi import Duchi
from lightning_recon.defenses.frozen_layers import FrozenLayers
from lightning_recon.defenses.gaussian import GaussianNoise
from lightning_recon.defenses.hybrid import Hybrid
from lightning_recon.defenses.laplace import Laplace
from lightning_recon.defenses.laplace_noise import LaplaceNoise
from lightning_recon.defenses.piecewise import Piecewise
from lightning_recon.defenses.powersgd import PowerSGD
from lightning_recon.defenses.privunit import PrivUnit2
from lightning_recon.defenses.privunit_gaussian import PrivUnitG
from lightning_recon.defenses.qsgd import QSGD
from lightning_recon.defenses.random_k import RandomK
from lightning_recon.defenses.sign_sgd import SignSGD
from lightning_recon.defenses.terngrad import TernGrad
from lightning_recon.defenses.top_k import TopK
from lightning_recon.defenses.uniform_quantiser import UniformQuantiser

__all__ = [
    "QSGD",
    "ClipL2",
    "DPSGDNoise",
    "Defense",
    "Duchi",
    "FrozenLayers",
    "GaussianNoise",
    "Hybrid",
    "Laplace",
    "LaplaceNoise",
    "LocalRandomizer",
    "Piecewise",
    "PowerSGD",
    "PrivUnit2",
    "PrivUnitG",
    "RandomK",
    "SignSGD",
    "TernGrad",
    "TopK",
    "UniformQuantiser",
    "apply_chain",
    "bind_chain",
    "chain_variance",
    "expected_chain",
    "num_update_bits",
    "stand_in_chain",
]
