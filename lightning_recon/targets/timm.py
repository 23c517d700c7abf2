"""Any classifier of timm (PyTorch Image Models), by name."""

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from lightning_recon.errors import InputError
from lightning_recon.targets.base import Target, load_weights, seeded


class TimmClassifier(Target):
    """A classifier of the package timm, which is not among the requirements.

    Args:
        name: of the network, one of ``timm.list_models()``.
        weights: a file with the model's tensors, or null for random weights drawn from ``seed``.
            Nothing is ever downloaded.
        num_classes: length of the output.
        normalize: whether the images in [0, 1] are normalised first by the mean and standard
            deviation that timm states for the model; null: when weights are given.
        seed: of the random weights.

    Raises:
        InputError: if timm is not installed, has no such model, or the weights cannot be used.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        num_classes: int = 1000,
        normalize: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes)
        if find_spec("timm") is None:
            raise InputError("TimmClassifier: timm is not installed; pip install timm")
        timm = import_module("timm")
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"{name[:5]}*")[:10]) or "see timm.list_models()"
            raise InputError(f"timm has no model {name!r}; near it: {close}")
        self.name = name
        with seeded(seed):
            self.model = timm.create_model(name, pretrained=False, num_classes=num_classes)
        load_weights(self.model, weights)
        self.normalize = (weights is not None) if normalize is None else normalize
        config = timm.data.resolve_model_data_config(self.model)
        self.image_size = int(config["input_size"][-1])
        """Height and width of the images that the model is made for."""
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(config[key]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B 3 H W images in [0, 1]."""
        if self.normalize:
            images = (images - self.mean) / self.std
        logits: Tensor = self.model(images)
        return logits
