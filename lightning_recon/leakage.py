"""What a federation's updates give away, measured while it trains.

A canary is a batch of the measurer's own: nobody's data are looked at.  Every n rounds its update
is made by the model as it stands, through the clients' protocol and defenses, and two figures are
taken: the local estimate (:mod:`lightning_recon.audit.local_estimate`) along few directions, and
what one cheap attack gets.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_recon.attacks import Attack, LinearLayerInversion
from lightning_recon.attacks.features.spectrum import Spectrum
from lightning_recon.audit.local_estimate import local_estimate
from lightning_recon.audit.matching import match
from lightning_recon.clients import Client, FedSGD
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.federation import Federation
from lightning_recon.functional.image_quality import decibels, psnr
from lightning_recon.observation import Grant
from lightning_recon.randomness import derive_seed
from lightning_recon.targets import ModuleTarget
from lightning_recon.updates import DataSpec, PrivateBatch

_GRANTS = (Grant.LABELS, Grant.NUM_SAMPLES, Grant.CLIENT, Grant.DEFENSES)
_NUMBERS = 2**24  # of the update's derivatives along all directions
_CAP_DB = 100.0  # of an image without an error


class Leakage:
    """Measures what the update of a canary would give away of it.

    Args:
        images: B C H W in [0, 1], of the canary, before any normalisation: public ones.
        labels: B.
        public_images: N C H W in [0, 1], at least 2 others, for the prior.
        num_classes: length of the model's output.
        mean: by which the model's images are normalised before it sees them; null: 0.
        std: by which they are divided then; null: 1.
        client: the clients' protocol; null: FedSGD in eval mode.
        defenses: the clients' defenses, in order.
        attack: what makes an attack that runs in an instant of ``target``, ``client``, ``defenses``
            and ``seed``; where it does not fit the model, its figure is left out.  Null: none.
        num_directions: of an image, along which the local estimate is taken, the coarsest first;
            the finer ones keep the prior's error, which bounds the figure.  Null: 32, and fewer
            for models of more than half a million parameters, at least 8: each costs about as
            much as a gradient.
        seed: of all randomness.

    Raises:
        InputError: if the canary and the other images do not go together.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        public_images: Tensor,
        num_classes: int,
        *,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        attack: Callable[..., Attack] | None = LinearLayerInversion,
        num_directions: int | None = None,
        seed: int = 0,
    ) -> None:
        if images.ndim != 4 or len(images) != len(labels) or not len(images):
            raise InputError("Leakage: the canary should be images, B C H W, and labels, B")
        if len(public_images) < 2 or public_images.shape[1:] != images.shape[1:]:
            raise InputError(
                "Leakage: public_images should hold at least 2 images of the canary's shape, "
                f"{tuple(images.shape[1:])}, not {tuple(public_images.shape)}"
            )
        if num_directions is not None and num_directions < 1:
            raise InputError(f"Leakage: num_directions must be at least 1, not {num_directions}")
        images, public_images = images.detach().cpu().float(), public_images.detach().cpu().float()
        self.batch = PrivateBatch(
            images,
            labels.detach().cpu().long(),
            torch.ones_like(images[:, :1], dtype=torch.bool),
            torch.arange(len(images)),
        )
        self.public_images = public_images
        self.spectrum = Spectrum(public_images.double())
        self.num_classes = num_classes
        self.normalisation = {"mean": mean, "std": std}
        self.client = client or FedSGD(mode="eval")
        self.defenses = list(defenses)
        self.attack = attack
        self.num_directions = num_directions
        self.seed = seed

    def measure(self, model: nn.Module, round_: int = 0) -> dict[str, float]:
        """Return figures of a model as it stands, in dB of PSNR, the mean over the canary.

        Args:
            model: gives B num_classes logits; it is copied, and stays as it is.
            round_: its number, from which the randomness is derived.

        Returns:
            ``leakage/local_estimate``, ``leakage/ATTACK`` by the attack's name if it fits, and
            ``leakage/mean_image``, the control that never saw the update.

        Raises:
            InputError: if the model does not take the canary.
        """
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            target = ModuleTarget(model, self.num_classes, **self.normalisation).cpu()  # type: ignore[arg-type]
            target = target.requires_grad_(False)
            target.check_input(tuple(self.batch.images.shape[1:]))  # type: ignore[arg-type]
            seed = derive_seed(self.seed, round_)
            federation = Federation(target, self.client, self.defenses, seed)
            federation.start(lambda: target, _GRANTS)
            kept = self.num_directions or _affordable(target)
            observation = federation.play(self.batch, 0)
            estimate = local_estimate(observation, self.batch, self.spectrum, num_directions=kept)
            found = {
                "leakage/local_estimate": _decibels(estimate.mse),
                "leakage/mean_image": _decibels(estimate.prior_mse),
            }
            return found | self._attacked(target, seed)

    def _attacked(self, target: ModuleTarget, seed: int) -> dict[str, float]:
        """Return the figure of the attack; none if it does not fit."""
        if self.attack is None:
            return {}
        images = self.batch.images
        shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        try:
            attack = self.attack(
                target=target, client=self.client, defenses=self.defenses, seed=seed
            )
            attack.bind(DataSpec(shape, self.num_classes, len(images)), self.public_images)
            observation = attack.federation.play(self.batch, 0)
        except InputError:  # such as a model without a linear layer that reads the image
            return {}
        with attack.computing():
            found = attack.reconstruct(observation).images
        row = match(found, images).row
        shown = self.public_images.mean(0).expand_as(images).clone()
        shown[row >= 0] = found[row[row >= 0]].float()
        scores = psnr(shown.clamp(0, 1), images).clamp_max(_CAP_DB)
        return {f"leakage/{type(attack).__name__}": float(scores.mean())}


class LightningLeakage(Callback):
    """Logs what the updates give away, beside the loss, every n rounds.

    It draws nothing from the training's random state and changes nothing of the model: a training
    with it ends at the same weights, bit for bit.

    Args:
        leakage: what measures.
        every_n_rounds: of which the first is measured, at least 1.
        round: what a round is: an epoch of the Trainer, or a step.
        module: the attribute of the LightningModule that holds the network, such as ``model``;
            null: the LightningModule itself gives the logits.

    Raises:
        InputError: if an argument is out of its range.
    """

    def __init__(
        self,
        leakage: Leakage,
        every_n_rounds: int = 10,
        round: Literal["epoch", "step"] = "epoch",
        module: str | None = None,
    ) -> None:
        if every_n_rounds < 1 or round not in ("epoch", "step"):
            raise InputError(
                "LightningLeakage: every_n_rounds must be at least 1 and round epoch or step, not "
                f"{every_n_rounds} and {round}"
            )
        self.leakage = leakage
        self.every_n_rounds = every_n_rounds
        self.round = round
        self.module = module
        self.history: list[Mapping[str, float]] = []
        """What was measured, with ``round`` beside it."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure before an epoch that is a round begins."""
        if self.round == "epoch":
            self._measure(trainer, pl_module, trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure before a step that is a round."""
        if self.round == "step":
            self._measure(trainer, pl_module, trainer.global_step)

    def _measure(self, trainer: Trainer, pl_module: LightningModule, round_: int) -> None:
        if round_ % self.every_n_rounds or not trainer.is_global_zero:
            return
        model = pl_module if self.module is None else getattr(pl_module, self.module, None)
        if not isinstance(model, nn.Module):
            raise InputError(
                f"LightningLeakage: {type(pl_module).__name__} has no module {self.module}"
            )
        found = self.leakage.measure(model, round_)
        self.history.append({"round": round_, **found})
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step)


def _affordable(model: nn.Module) -> int:
    """Return a number of directions whose derivatives of the update are cheap."""
    number = sum(parameter.numel() for parameter in model.parameters())
    return max(8, min(32, _NUMBERS // number))


def _decibels(mse: Tensor) -> float:
    """Return errors as PSNR, the mean over images, none above the cap."""
    return min(fmean(decibels(error) for error in mse.tolist()), _CAP_DB)
