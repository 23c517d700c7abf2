"""What images look like, as exchangeable parts of an objective."""

from lightning_recon.priors.base import Prior
from lightning_recon.priors.denoiser import DenoiserPrior, FFDNet
from lightning_recon.priors.shrinkage import LocalShrinkage
from lightning_recon.priors.total_variation import TotalVariation
from lightning_recon.priors.wavelet import WaveletSparsity

__all__ = [
    "DenoiserPrior",
    "FFDNet",
    "LocalShrinkage",
    "Prior",
    "TotalVariation",
    "WaveletSparsity",
]
