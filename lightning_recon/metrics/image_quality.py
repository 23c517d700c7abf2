"""MSE, PSNR, registered PSNR, SSIM, MS-SSIM and CW-SSIM: means over images.

Thin modules around :mod:`lightning_recon.functional.image_quality` and
:mod:`lightning_recon.functional.registration`, which say what each value is.
"""

from torch import Tensor

from lightning_recon.functional import image_quality
from lightning_recon.functional.registration import registered_psnr
from lightning_recon.metrics.base import PerImageMetric


class MSE(PerImageMetric):
    """Mean squared error."""

    higher_is_better = False

    def update(self, preds: Tensor, target: Tensor, masks: Tensor | None = None) -> None:
        """Take in B reconstructions and their truths, B C H W, and perhaps masks, B 1 H W."""
        self.append(image_quality.mse(preds, target, masks))


class PSNR(PerImageMetric):
    """Peak signal-to-noise ratio in dB: each image's own, then the mean.

    Args:
        cap: what an exact copy counts as, in dB.
    """

    higher_is_better = True

    def __init__(self, cap: float = 100.0) -> None:
        super().__init__()
        self.cap = cap

    def update(self, preds: Tensor, target: Tensor, masks: Tensor | None = None) -> None:
        """Take in B reconstructions and their truths, B C H W, and perhaps masks, B 1 H W."""
        self.append(image_quality.psnr(preds, target, masks, self.cap))


class RegisteredPSNR(PerImageMetric):
    """PSNR in dB of each image after the best whole-pixel translation, then the mean.

    Args:
        max_shift: the largest move in either direction, in pixels; null: an eighth of the shorter
            side.
        fit_colours: whether each image's colours are mapped to its truth's, too.
        cap: what an exact copy counts as, in dB.
    """

    higher_is_better = True

    def __init__(
        self, max_shift: int | None = None, fit_colours: bool = False, cap: float = 100.0
    ) -> None:
        super().__init__()
        self.max_shift = max_shift
        self.fit_colours = fit_colours
        self.cap = cap

    def update(self, preds: Tensor, target: Tensor, masks: Tensor | None = None) -> None:
        """Take in B reconstructions and their truths, B C H W, and perhaps masks, B 1 H W."""
        self.append(
            registered_psnr(preds, target, masks, self.max_shift, self.fit_colours, self.cap)
        )


class SSIM(PerImageMetric):
    """Structural similarity."""

    higher_is_better = True

    def update(self, preds: Tensor, target: Tensor, masks: Tensor | None = None) -> None:
        """Take in B reconstructions and their truths, B C H W, and perhaps masks, B 1 H W."""
        self.append(image_quality.ssim(preds, target, masks))


class MultiScaleSSIM(PerImageMetric):
    """Multi-scale structural similarity; small images have fewer scales."""

    higher_is_better = True

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in B reconstructions and their truths, B C H W."""
        self.append(image_quality.ms_ssim(preds, target))


class ComplexWaveletSSIM(PerImageMetric):
    """Complex-wavelet structural similarity, which forgives small moves."""

    higher_is_better = True

    def update(self, preds: Tensor, target: Tensor, masks: Tensor | None = None) -> None:
        """Take in B reconstructions and their truths, B C H W, and perhaps masks, B 1 H W."""
        self.append(image_quality.cw_ssim(preds, target, masks))
