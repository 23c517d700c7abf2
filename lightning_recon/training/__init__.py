"""Everything that ``fit`` trains on public images: denoisers and refiners."""

from lightning_recon.training.denoiser import DenoiserTraining
from lightning_recon.training.patches import PatchDataModule
from lightning_recon.training.refiner import RefinerTraining

__all__ = ["DenoiserTraining", "PatchDataModule", "RefinerTraining"]
