"""What a refiner is trained against beside the pixels: features of a classifier, a discriminator.

Perceptual loss: Johnson, Alahi & Fei-Fei, "Perceptual losses for real-time style transfer and
super-resolution", ECCV 2016; the distance is that of Zhang et al., "The Unreasonable Effectiveness
of Deep Features as a Perceptual Metric", CVPR 2018, with all weights alike.  Discriminator: Isola,
Zhu, Zhou & Efros, "Image-to-image translation with conditional adversarial networks", CVPR 2017,
with the spectral normalisation of Miyato et al., ICLR 2018.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from lightning_recon.errors import InputError
from lightning_recon.functional.perceptual import lpips
from lightning_recon.targets.base import Target


class PerceptualLoss(nn.Module):
    """The distance of two images in the features of a frozen classifier, all its ReLU layers.

    Args:
        classifier: any; the better it classifies, the more the distance means.

    Raises:
        InputError: if it has no ReLU layers.
    """

    def __init__(self, classifier: Target) -> None:
        super().__init__()
        self.classifier = classifier.eval().requires_grad_(False)
        self._features: list[Tensor] = []
        layers = [module for module in classifier.modules() if isinstance(module, nn.ReLU)]
        if not layers:
            raise InputError(
                "perceptual: the classifier has no ReLU layers to take features from; choose "
                "another, such as TorchvisionClassifier of vgg11, squeezenet1_1 or resnet18"
            )
        for layer in layers:
            layer.register_forward_hook(self._keep)

    def forward(self, images: Tensor, truth: Tensor) -> Tensor:
        """Return the mean distance of a batch, a number of at least 0.

        Args:
            images: B 3 H W in [0, 1]; gradients flow back to them.
            truth: B 3 H W in [0, 1].
        """
        with torch.no_grad():
            wanted = self._layers(truth)
        found = self._layers(images)
        weights = [layer.new_ones(layer.shape[1]) for layer in wanted]
        return lpips(found, wanted, weights).mean() / len(wanted)

    def _layers(self, images: Tensor) -> list[Tensor]:
        self._features = []
        self.classifier(images)
        features, self._features = self._features, []
        return [layer for layer in features if layer.ndim == 4]

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._features.append(output)


class PatchDiscriminator(nn.Module):
    """Tells photographs from refined images, patch by patch.

    Args:
        width: channels of the first layer.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        channels = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers.append(spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1)))
            layers.append(nn.LeakyReLU(0.2))
        layers.append(nn.Conv2d(channels[-1], 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, B 1 H/8 W/8, of being a photograph, of B 3 H W in [0, 1]."""
        logits: Tensor = self.layers(2 * images - 1)
        return logits
