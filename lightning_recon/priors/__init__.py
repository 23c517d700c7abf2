"""What images look like, as exchangeable parts of an objective."""

from lightning_recon.priors.activations import ActivationPrior
from lightning_recon.priors.anisotropic import AnisotropicTotalVariation
from lightning_recon.priors.base import Prior
from lightning_recon.priors.batch_norm import BatchNormStatistics
from lightning_recon.priors.deep_features import DeepFeatures
from lightning_recon.priors.denoiser import DenoiserPrior, FFDNet
from lightning_recon.priors.double_opponent import DoubleOpponentTotalVariation
from lightning_recon.priors.shrinkage import LocalShrinkage
from lightning_recon.priors.squared_norm import SquaredNorm
from lightning_recon.priors.total_variation import TotalVariation
from lightning_recon.priors.wavelet import WaveletSparsity

__all__ = [
    "ActivationPrior",
    "AnisotropicTotalVariation",
    "BatchNormStatistics",
    "DeepFeatures",
    "DenoiserPrior",
    "DoubleOpponentTotalVariation",
    "FFDNet",
    "LocalShrinkage",
    "Prior",
    "SquaredNorm",
    "TotalVariation",
    "WaveletSparsity",
]
