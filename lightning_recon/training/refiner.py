"""Training of refiners on simulated reconstructions.

A clean picture is brought to the latent that comes closest to it, noise of a random level like that
which attacks leave is put on the latent, and the refiner learns to undo both.  The objective is
that of Yue et al., "Gradient Obfuscation Gives a False Sense of Security in Federated Learning",
USENIX Security 2023 (absolute error + perceptual + adversarial), each part with a weight.  Where we
differ: reconstructions are simulated, since each batch of real ones costs a minute of matching.

The noise is like what ROG's matching loop leaves on the latent under QSGD with 16 levels, measured
on 16 pictures of 128x128: of its power 15 % are an offset of a whole channel, 45 % are white and
40 % rise with the fourth power of the frequency; colours correlate by about a third; the standard
deviation is .04 to .07.  Without obfuscation it is the same, a little lower.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.randomness import make_generator
from lightning_recon.refiners.base import TrainableRefiner, decode, encode
from lightning_recon.targets.base import Target, seeded
from lightning_recon.targets.torchvision import TorchvisionClassifier
from lightning_recon.training.losses import PatchDiscriminator, PerceptualLoss
from lightning_recon.training.weights import check_same_network, save_weights


def simulate(images: Tensor, scale: int, noise_std: Tensor, generator: torch.Generator) -> Tensor:
    """Return what an attack on a latent might have reconstructed, B C H W in [0, 1].

    Args:
        images: B C H W in [0, 1], whose sides are multiples of ``scale``.
        scale: a side of the image over a side of the latent.
        noise_std: B, the standard deviation of the noise on the latent.
        generator: of the noise.
    """
    latents = encode(images, scale)
    count, channels, height, width = latents.shape
    # one more channel, which the colours share, and one more pixel, the offset
    shape = (count, channels + 1, height * width + 1)
    draws = torch.randn(shape, generator=generator, device=images.device, dtype=images.dtype)
    draws = (2 / 3) ** 0.5 * draws[:, :-1] + (1 / 3) ** 0.5 * draws[:, -1:]
    rows = torch.fft.fftfreq(height, device=images.device)
    columns = torch.fft.fftfreq(width, device=images.device)
    fourth = (rows[:, None] ** 2 + columns**2) ** 2
    gain = (0.45 + 0.4 * fourth / fourth.mean()).sqrt()
    noise = torch.fft.ifft2(torch.fft.fft2(draws[..., :-1].unflatten(-1, (height, width))) * gain)
    noise = noise.real + 0.15**0.5 * draws[..., -1:, None]
    return decode(latents + noise_std[:, None, None, None] * noise, scale)


class RefinerTraining(LightningModule):
    """Trains a refiner on clean patches, of which it simulates the reconstructions itself.

    Batches are ... x 3 x H x W in [0, 1], or such and labels.  At the end ``fit`` writes
    ``weights.pth``, the refiner's own ``state_dict``, into the folder of the run and prints its
    path; the refiner's ``weights: PATH`` reads it.  These are the weights of the last step, not of
    the best epoch: let the learning rate fall to the end.

    Args:
        refiner: what is trained; weights given to it are where training begins.
        noise_std: lowest and highest standard deviation of the noise on the latent, of images in
            [0, 1]; each patch draws its own in between.
        val_noise_stds: levels at which the PSNR is measured on the pictures kept for validation.
        l1_weight: of the mean absolute error of the pixels.
        perceptual_weight: of the distance between features.
        adversarial_weight: of the discriminator's verdict.
        perceptual: the classifier whose features are compared; null: a SqueezeNet of random
            weights, which is a weak stand-in for a trained one.
        label_dropout: share of the steps in which a conditional refiner is not told the labels, so
            that it serves without them too.
        optimizer: of the refiner's parameters, and of the discriminator's.
        lr_scheduler: of the refiner's rate, stepped once an epoch; one that waits for a plateau
            looks at the training loss. Null: a constant rate.
        seed: of the noise and of the networks beside the refiner.

    Raises:
        InputError: if a number is out of its range.
    """

    def __init__(
        self,
        refiner: TrainableRefiner,
        noise_std: tuple[float, float] = (0.0, 0.15),
        val_noise_stds: tuple[float, ...] = (0.02, 0.06, 0.1),
        l1_weight: float = 1.0,
        perceptual_weight: float = 0.0,
        adversarial_weight: float = 0.0,
        perceptual: Target | None = None,
        label_dropout: float = 0.1,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        low, high = noise_std
        if not 0 <= low <= high:
            raise InputError(
                "noise_std must be a lowest level of at least 0 and a highest that is no lower, "
                f"not {low} and {high}"
            )
        for level in val_noise_stds:
            if not level >= 0:
                raise InputError(f"val_noise_stds must be at least 0, not {level}")
        weights = (l1_weight, perceptual_weight, adversarial_weight)
        if not (min(weights) >= 0 and max(weights) > 0):
            raise InputError(
                "l1_weight, perceptual_weight and adversarial_weight must be at least 0 and one of "
                f"them above, not {', '.join(f'{weight:g}' for weight in weights)}"
            )
        if not 0 <= label_dropout <= 1:
            raise InputError(f"label_dropout must be between 0 and 1, not {label_dropout}")
        self.automatic_optimization = False  # two optimisers, where there is a discriminator
        self.refiner = refiner.requires_grad_(True).train()  # Lightning leaves modes as they are
        self.noise_std = noise_std
        self.val_noise_stds = val_noise_stds
        self.l1_weight = l1_weight
        self.perceptual_weight = perceptual_weight
        self.adversarial_weight = adversarial_weight
        self.label_dropout = label_dropout
        self.seed = seed
        self._make_optimizer = optimizer
        self._make_scheduler = lr_scheduler
        self.perceptual: PerceptualLoss | None = None
        self.discriminator: PatchDiscriminator | None = None
        if perceptual_weight > 0:
            if perceptual is None:
                rank_zero_warn(
                    "perceptual: no classifier is named, so the perceptual loss uses one with "
                    "random weights; give TorchvisionClassifier with weights for a better one"
                )
                perceptual = TorchvisionClassifier("squeezenet1_1", normalize=True, seed=seed)
            self.perceptual = PerceptualLoss(perceptual)
        if adversarial_weight > 0:
            with seeded(seed):
                self.discriminator = PatchDiscriminator()

    def training_step(self, batch: Tensor | list[Tensor], batch_idx: int) -> None:
        """Move the refiner by one step, and the discriminator, where there is one, by another."""
        images, labels = self._take(batch)
        path = (self.seed, "train", self.global_step, self.global_rank)
        generator = make_generator(*path, device=images.device)
        low, high = self.noise_std
        uniform = torch.rand(len(images), generator=generator, device=images.device)
        std = low + (high - low) * uniform
        if torch.rand((), generator=generator, device=images.device) < self.label_dropout:
            labels = None
        found = self.refiner(simulate(images, self.refiner.scale, std, generator), labels)
        optimizers: Any = self.optimizers(use_pl_optimizer=True)
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]

        parts = {"l1": self.l1_weight * F.l1_loss(found, images)}
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual_weight * self.perceptual(found, images)
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
            verdict = -F.logsigmoid(self.discriminator(found)).mean()
            parts["adversarial"] = self.adversarial_weight * verdict
            self.discriminator.requires_grad_(True)
        loss = torch.stack(list(parts.values())).sum()
        self._step(optimizers[0], loss)
        if self.discriminator is not None:
            real, fake = self.discriminator(images), self.discriminator(found.detach())
            verdict = -(F.logsigmoid(real).mean() + F.logsigmoid(-fake).mean()) / 2
            self._step(optimizers[1], verdict)
            self.log("discriminator", verdict)
        if len(parts) > 1:
            self.log_dict(parts)
        self.log("loss", loss, prog_bar=True)
        self.log("mean_loss", loss, on_step=False, on_epoch=True, sync_dist=True)

    def on_train_epoch_end(self) -> None:
        """Step the scheduler."""
        scheduler: Any = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(self.trainer.callback_metrics["mean_loss"])
        elif scheduler is not None:
            scheduler.step()

    def validation_step(self, batch: Tensor | list[Tensor], batch_idx: int) -> None:
        """Log the PSNR before and after, in dB, mean over the patches."""
        images, labels = self._take(batch)
        figures = {}
        for level in self.val_noise_stds:
            path = (self.seed, "val", batch_idx, self.global_rank)
            generator = make_generator(*path, device=images.device)
            std = images.new_full((len(images),), level)
            before = simulate(images, self.refiner.scale, std, generator)
            after = self.refiner(before, labels)
            for name, result in (("psnr", after), ("unrefined_psnr", before)):
                figures[f"{name}/{level:g}"] = psnr(result.float(), images).mean()
        self.log_dict(figures, batch_size=len(images), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Optimise the refiner, and the discriminator, where there is one."""
        optimizer = self._make_optimizer(self.refiner.parameters())
        optimizers = [optimizer]
        if self.discriminator is not None:
            optimizers.append(self._make_optimizer(self.discriminator.parameters()))
        schedulers = [] if self._make_scheduler is None else [self._make_scheduler(optimizer)]
        return optimizers, schedulers

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise InputError if the checkpoint is of another network."""
        remedy = "the class and the sizes that it was trained with, and the same losses"
        check_same_network(self, checkpoint, "refiner", remedy)

    def on_fit_end(self) -> None:
        """Write the weights and say where they are.

        Raises:
            InputError: they are not finite.
        """
        save_weights(self, self.refiner, self.val_noise_stds, "unrefined_psnr")

    def _take(self, batch: Tensor | list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The patches, B 3 H W, and their labels, if the refiner makes use of them."""
        if isinstance(batch, Tensor):
            if self.refiner.is_conditional:
                raise InputError(
                    f"{type(self.refiner).__name__} needs labels: set labels: true in the data"
                )
            return batch.flatten(0, -4), None
        images, labels = batch
        labels = labels.repeat_interleave(images.shape[1]) if images.ndim == 5 else labels
        return images.flatten(0, -4), labels if self.refiner.is_conditional else None

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
