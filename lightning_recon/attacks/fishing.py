"""One sample out of a large batch: a last layer that is sure of all others.

Wen, Geiping, Fowl, Goldblum, Goldstein, "Fishing for User Data in Large-Batch Federated Learning
via Gradient Magnification", ICML 2022, arXiv 2202.00580.

The layers below the last linear one get the sum over the batch of (p - y)^T W times their own
Jacobian.  The server keeps one row of W, that of the class it fishes for, and sets all others to
zero; their biases are so large that the model never says that class.

- ``class``: a sample of another class then adds p_c W_c, which is nothing, and one of the class
  adds -W_c, all it can.  Where the batch holds one sample of the class, the gradient below the last
  layer is that sample's, whatever the size of the batch.
- ``feature``: the samples are of one class.  The kept row is steep, and its bias such that the
  model is sure of the class for all but the sample that lies furthest along the row; what samples
  add falls exponentially, so that the first outweighs the second.  Samples of other classes would
  add what those of the class do not.

The single sample is found by Inverting Gradients (Geiping et al., NeurIPS 2020, :mod:`.
inverting_gradients`), its label being the class.

What differs: the last layer's own gradient holds all samples and is left out of the comparison.
The paper takes one feature and looks for the threshold in several rounds; here it is the row of the
model, and its sign, along which the first of a batch usually leads most, on public images, and one
round.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_recon.attacks.base import check_counts
from lightning_recon.attacks.features.decoding import teaching_images
from lightning_recon.attacks.gradient_matching import GradientMatching
from lightning_recon.attacks.inverting_gradients import grey_noise, published_adam
from lightning_recon.attacks.schedules import step_decay
from lightning_recon.clients.base import randomness
from lightning_recon.errors import InputError
from lightning_recon.functional.gradient_distance import Distance
from lightning_recon.functional.labels.last_layer import dummy_forward, last_linear_layer
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.observation import Observation
from lightning_recon.priors import ActivationPrior, AnisotropicTotalVariation, Prior
from lightning_recon.randomness import derive_seed, make_generator
from lightning_recon.targets import Target
from lightning_recon.updates import Update

NEVER = 200.0
"""Bias of the classes that are not fished for: exp(-NEVER) is 0 in float32 beside 1."""
LEAD = 6.0  # by which the first sample's logit is to differ from the second's, usually
_NUM_DRAWN = 256  # batches of public images on which the lead is measured
_PART = 64


class Fishing(GradientMatching):
    """A malicious server's last layer that lets one sample of the batch through.

    Args:
        target: a model that ends in a linear layer with a bias.
        known: what is granted, of ``client`` and ``buffers``; neither labels nor their number are
            needed.
        fish: ``class``: a batch with one sample of the class; ``feature``: a batch of one class.
        target_class: the class, from 0 on.
        num_samples: of the batch, that a feature's threshold is set for; null: the data's.
        distance: between the updates below the last layer; ``cosine``, for the batch's size scales
            the observed one.
        priors: penalties on the image; null: total variation of weight .01, as in the paper of
            Inverting Gradients.
        signed: whether Adam sees only the sign of the gradient.
        iterations: steps on the image of one client.
        optimizer: makes the optimizer of the image; by default Adam of the paper's rate.
        lr_scheduler: makes its schedule; null: a tenth at 3/8, 5/8 and 7/8 of the iterations.
        **kwargs: the options of :class:`GradientMatching`.

    Raises:
        InputError: if an argument is out of its range.
    """

    threat_model = (
        "a malicious server sets the last layer, and sees one update; it fishes for one sample"
    )
    citation = "Wen et al., ICML 2022, arXiv 2202.00580"

    def __init__(
        self,
        target: Target,
        known: Sequence[str] = (),
        fish: Literal["class", "feature"] = "class",
        target_class: int = 0,
        num_samples: int | None = None,
        distance: Distance = "cosine",
        priors: Sequence[Prior | ActivationPrior] | None = None,
        signed: bool = True,
        iterations: int = 4800,
        optimizer: OptimizerCallable = published_adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            target,
            known=known,
            distance=distance,
            priors=[AnisotropicTotalVariation(0.01)] if priors is None else priors,
            iterations=iterations,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler or partial(step_decay, iterations=iterations),
            **kwargs,
        )
        check_counts("Fishing", num_samples=(num_samples, 2))
        if fish not in ("class", "feature"):
            raise InputError(f"Fishing: fish must be class or feature, not {fish!r}")
        if not 0 <= target_class < target.num_classes:
            raise InputError(
                f"Fishing: target_class must be from 0 to {target.num_classes - 1}, the target's "
                f"classes, not {target_class}"
            )
        self.fish = fish
        self.target_class = target_class
        self.num_samples = num_samples
        self.signed = signed

    def learn_public(self, images: Tensor) -> None:
        """Learn along which row of the last layer the first of a batch leads.

        Raises:
            InputError: if the model ends in no linear layer with a bias.
        """
        super().learn_public(images)
        seed = derive_seed(self.seed, "fishing")
        public, _ = teaching_images(images, self.spec.image_shape, seed)
        with (
            torch.no_grad(),
            randomness(seed, public.device),
            left_as_found(self.target, training=self.mode == "train"),
        ):
            weight, bias = last_linear_layer(self.target, public[:1])
            if bias is None:
                raise InputError(
                    f"Fishing: the last layer of {self.target.name} has no bias, which hides the "
                    "other classes; choose a target that has one"
                )
            self.last = (weight, bias)
            if self.fish == "class":
                return
            parts = [
                dummy_forward(self.target, part).features for part in torch.split(public, _PART)
            ]
        rows = dict(self.target.named_parameters())[weight].detach()
        along = (torch.cat(parts) @ rows.T).double()
        size = min(len(along), max(2, self.num_samples or self.spec.max_batch_size))
        generator = make_generator(self.seed, "fishing")
        drawn = torch.stack(
            [torch.randperm(len(along), generator=generator)[:size] for _ in range(_NUM_DRAWN)]
        )
        both = torch.cat([along, -along], 1)  # N 2K
        first, second = both[drawn.to(both.device)].topk(2, dim=1).values.unbind(1)
        lead = (first - second).median(0).values
        best = int((lead / both.std(0).clamp_min(1e-12)).argmax())
        sign = 1 if best < along.shape[1] else -1
        slope = LEAD / float(lead[best].clamp_min(1e-12))
        # the first is half believed; the further behind, the surer is the model of the class
        self.row = (-sign * slope * rows[best % along.shape[1]],)
        self.threshold = slope * float(first[:, best].median())

    def server_payload(self, model: Target) -> Target:
        """Return the model with another last layer."""
        payload = copy.deepcopy(model)
        parameters = dict(payload.named_parameters())
        weight, bias = (parameters[name] for name in self.last)
        with torch.no_grad():
            row = weight[self.target_class].clone()
            weight.zero_()
            weight[self.target_class] = row
            bias.fill_(NEVER)
            bias[self.target_class] = 0
            if self.fish == "feature":
                weight[self.target_class] = self.row[0]
                bias[self.target_class] = NEVER + self.threshold
        return payload

    def labels_to_begin(self, observation: Observation) -> tuple[Tensor, dict[str, float]]:
        """Return the class that is fished for: one sample."""
        device = next(iter(observation.update.values())).device
        return torch.tensor([self.target_class], device=device), {}

    def start(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Return Gaussian noise around grey, num_samples C H W, cut off at 0 and 1."""
        return grey_noise(num_samples, self.dummy_shape, generator)

    def compare(self, simulated: Update, observed: Update) -> Tensor:
        """Return the distance of what lies below the last layer."""
        below = [name for name in observed if name not in self.last]
        return super().compare(
            {name: simulated[name] for name in below}, {name: observed[name] for name in below}
        )

    def adjust(self, gradient: Tensor) -> None:
        """Leave the sign of the gradient."""
        if self.signed:
            gradient.sign_()
