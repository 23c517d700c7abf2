"""Training of a denoiser that serves as a prior.

After Zhang, Zuo & Zhang, "FFDNet: toward a fast and flexible solution for CNN-based image
denoising", IEEE Transactions on Image Processing 27, 2018: white Gaussian noise whose level is
uniform in a range ([0, 75] of 255 there) and is told to the network, nothing clamped, and the
squared error

    L = 1 / (2 N) * sum_i || F(y_i, sigma_i) - x_i ||^2,    y_i = x_i + sigma_i n_i,

minimised with Adam.  Here the error is averaged over pixels and channels too and is not halved:
the minimum is the same, and Adam does not see a constant factor (but for its epsilon).  Not done
here: the orthogonal filters, the merging of batch normalisation into the convolutions, and the
hand-made schedule of the learning rate; any scheduler can be named instead.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.priors.denoiser import FFDNet
from lightning_recon.randomness import make_generator
from lightning_recon.training.weights import check_same_network, save_weights


class DenoiserTraining(LightningModule):
    """Trains a denoiser on clean patches to which it adds the noise itself.

    Batches are ... x 3 x H x W in [0, 1].  At the end ``fit`` writes ``weights.pth``, the
    denoiser's own ``state_dict``, into the folder of the run and prints its path;
    ``FFDNet(weights=PATH)`` reads it.  These are the weights of the last step, not of the best
    epoch: let the learning rate fall to the end.

    Args:
        denoiser: what is trained; weights given to it are where training begins.
        noise_std: lowest and highest standard deviation of the noise, of images in [0, 1]; each
            patch draws its own in between.
        val_noise_stds: levels at which the PSNR is measured on the pictures kept for validation.
        optimizer: of the denoiser's parameters.
        lr_scheduler: stepped once an epoch; one that waits for a plateau looks at the training
            error. Null: a constant rate.
        seed: of the noise.

    Raises:
        InputError: A noise level is out of its range.
    """

    def __init__(
        self,
        denoiser: FFDNet,
        noise_std: tuple[float, float] = (0.0, 0.294),
        val_noise_stds: tuple[float, ...] = (0.02, 0.05, 0.1),
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        low, high = noise_std
        if not (0 <= low <= high and high > 0):
            raise InputError(
                f"noise_std must be a lowest level of at least 0 and a highest above 0 that is no "
                f"lower, not {low} and {high}"
            )
        for level in val_noise_stds:
            if not level > 0:
                raise InputError(f"val_noise_stds must be above 0, not {level}")
        self.denoiser = denoiser.requires_grad_(True).train()  # Lightning leaves modes as they are
        self.noise_std = noise_std
        self.val_noise_stds = val_noise_stds
        self.seed = seed
        self._make_optimizer = optimizer
        self._make_scheduler = lr_scheduler

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the mean squared error of the denoised patches."""
        images = batch.flatten(0, -4)
        path = (self.seed, "train", self.global_step, self.global_rank)
        generator = make_generator(*path, device=images.device)
        low, high = self.noise_std
        uniform = torch.rand(len(images), generator=generator, device=images.device)
        std = low + (high - low) * uniform
        noisy = images + std.view(-1, 1, 1, 1) * _noise_like(images, generator)
        loss = F.mse_loss(self.denoiser(noisy, std), images)
        self.log("loss", loss, prog_bar=True)
        self.log("mean_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the PSNR before and after, in dB, mean over the patches; clamped to [0, 1]."""
        images = batch.flatten(0, -4)
        path = (self.seed, "val", batch_idx, self.global_rank)
        noise = _noise_like(images, make_generator(*path, device=images.device))
        figures = {}
        for std in self.val_noise_stds:
            noisy = images + std * noise
            denoised = self.denoiser(noisy, noisy.new_tensor([std]))
            for name, result in (("psnr", denoised), ("noisy_psnr", noisy)):
                figures[f"{name}/{std:g}"] = psnr(result.clamp(0, 1).float(), images).mean()
        self.log_dict(figures, batch_size=len(images), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Optimise the denoiser."""
        optimizer = self._make_optimizer(self.denoiser.parameters())
        if self._make_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self._make_scheduler(optimizer), "monitor": "mean_loss"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise InputError if the checkpoint is of another network."""
        remedy = "the num_layers and num_features that it was trained with"
        check_same_network(self, checkpoint, "denoiser", remedy)

    def on_fit_end(self) -> None:
        """Write the weights and say where they are.

        Raises:
            InputError: they are not finite.
        """
        save_weights(self, self.denoiser, self.val_noise_stds, "noisy_psnr")


def _noise_like(images: Tensor, generator: torch.Generator) -> Tensor:
    """White Gaussian noise of standard deviation 1."""
    return torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
