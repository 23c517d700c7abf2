"""Networks that refine what an attack has reconstructed."""

from lightning_recon.refiners.base import Refiner, TrainableRefiner
from lightning_recon.refiners.combined import AverageRefiner, ChainedRefiner, DenoisingRefiner
from lightning_recon.refiners.generator import ConditionalGenerator, UNetDenoiser
from lightning_recon.refiners.super_resolution import SuperResolution

__all__ = [
    "AverageRefiner",
    "ChainedRefiner",
    "ConditionalGenerator",
    "DenoisingRefiner",
    "Refiner",
    "SuperResolution",
    "TrainableRefiner",
    "UNetDenoiser",
]
