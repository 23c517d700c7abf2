"""Any classifier of torchvision, by name."""

import re

import torch
import torchvision
from torch import Tensor

from lightning_recon.errors import InputError
from lightning_recon.targets.base import Target, load_weights, seeded

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

# the published files of DenseNet are older than the names of its layers
_OLD_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def _today(name: str) -> str:
    return _OLD_DENSE_LAYER.sub(r"\1\2", name)


class TorchvisionClassifier(Target):
    """A torchvision classifier: ResNet, VGG, DenseNet, ViT, ...

    Args:
        name: of the network, one of
            ``torchvision.models.list_models(module=torchvision.models)``.
        weights: a file with the model's tensors, or null for random weights drawn from ``seed``.
            Nothing is ever downloaded.
        num_classes: length of the output.
        normalize: whether the images in [0, 1] are normalised by ImageNet's mean and standard
            deviation first, as torchvision's own weights expect; null: when weights are given.
        seed: of the random weights.

    Raises:
        InputError: if there is no such model, or the weights cannot be used.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str = "resnet18",
        weights: str | None = None,
        num_classes: int = 1000,
        normalize: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes)
        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            close = ", ".join(model for model in known if model[:3] == name[:3].lower()) or known
            raise InputError(f"torchvision has no classifier {name!r}; near it: {close}")
        self.name = name
        with seeded(seed):
            extra = {"init_weights": True} if name in {"googlenet", "inception_v3"} else {}
            self.model = torchvision.models.get_model(
                name, weights=None, num_classes=num_classes, **extra
            )
        load_weights(self.model, weights, _today)
        self.normalize = (weights is not None) if normalize is None else normalize
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B 3 H W images in [0, 1]; auxiliary heads are left out."""
        if self.normalize:
            images = (images - self.mean) / self.std
        output = self.model(images)
        logits: Tensor = getattr(output, "logits", output)
        return logits
