"""The scores of an audit as torchmetrics modules: they add up over batches, clients and processes.

============================== ============= ====== =======================================
name                           range         better source
============================== ============= ====== =======================================
MSE                            [0, 1]        low
PSNR                           [0, 100] dB   high   mean over images, each capped
RegisteredPSNR                 [0, 100] dB   high   best translation within a bound
SSIM                           [-1, 1]       high   Wang et al. 2004
MultiScaleSSIM                 [0, 1]        high   Wang, Simoncelli, Bovik 2003
ComplexWaveletSSIM             [0, 1]        high   Sampat et al. 2009
LPIPS                          [0, oo)       low    Zhang et al. 2018
DISTS                          [0, 2]        low    Ding et al. 2022
FrechetDistance                [0, oo)       low    Heusel et al. 2017 (FID)
KernelDistance                 (-oo, oo)     low    Bińkowski et al. 2018 (KID)
TagJaccard                     [0, 1]        high   Yue et al. 2023 (ROG)
TopKAgreement                  [0, 1]        high   first class of the truth among k
ImageIdentifiabilityPrecision  [0, 1]        high   Yin et al. 2021 (GradInversion's IIP)
IdentificationRate             [0, 1]        high   nearest neighbour among N candidates
LabelAccuracy                  [0, 1]        high   Zhao et al. 2020 (iDLG), Yin et al. 2021
============================== ============= ====== =======================================

"Better" is for the attacker: what is good for the picture is bad for privacy.  The mathematics is
in :mod:`lightning_recon.functional`; full citations stand with each.

``update(preds, target)`` takes reconstructions and their own truths, B C H W in [0, 1], already
matched; MSE, PSNR, RegisteredPSNR, SSIM and ComplexWaveletSSIM also take ``masks``, B 1 H W, bool,
for the score of the subjects alone (one module for each kind of score).  ``compute()`` is the mean
over ALL images, and ``per_image()`` gives the single values, except for FrechetDistance and
KernelDistance, which know no pairs, and LabelAccuracy, which knows batches.

Over several processes ``compute()`` gives the figure of one process, however unevenly the images
are spread.  Nothing is ever downloaded: networks come from files that the user names.  A metric
that is left to look for its own network and finds none is ``unavailable``: it gives no values, and
an audit says so.
"""

from lightning_recon.metrics.base import PenultimateFeatures, PerImageMetric
from lightning_recon.metrics.distributions import FrechetDistance, KernelDistance
from lightning_recon.metrics.identification import (
    IdentificationRate,
    ImageIdentifiabilityPrecision,
    LabelAccuracy,
)
from lightning_recon.metrics.image_quality import (
    MSE,
    PSNR,
    SSIM,
    ComplexWaveletSSIM,
    MultiScaleSSIM,
    RegisteredPSNR,
)
from lightning_recon.metrics.perceptual import DISTS, LPIPS
from lightning_recon.metrics.semantic import TagJaccard, TopKAgreement

__all__ = [
    "DISTS",
    "LPIPS",
    "MSE",
    "PSNR",
    "SSIM",
    "ComplexWaveletSSIM",
    "FrechetDistance",
    "IdentificationRate",
    "ImageIdentifiabilityPrecision",
    "KernelDistance",
    "LabelAccuracy",
    "MultiScaleSSIM",
    "PenultimateFeatures",
    "PerImageMetric",
    "RegisteredPSNR",
    "TagJaccard",
    "TopKAgreement",
]
