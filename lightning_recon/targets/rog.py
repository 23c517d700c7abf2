"""The networks of ROG: no batch norm, 1000 classes, torch's default start.

Yue et al., "Gradient Obfuscation Gives a False Sense of Security in Federated Learning", USENIX
Security 2023.  The paper names LeNet, VGG7 and ResNet-9/18.  Its LeNet is exact here; of the others
it leaves the widths open, and ours stand with each class.
"""

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.targets.base import Target, load_weights, seeded


class ROGLeNet(Target):
    """Two 5x5 convolutions of 32 and 64 channels and two linear layers.

    A ReLU and a 2x2 max-pool stand after each convolution; the hidden linear layer has 512
    features and a ReLU.

    Args:
        num_classes: length of the output.
        image_size: height and width of the images, a multiple of 4; the hidden layer depends on it.
        in_channels: channels of the images.
        num_features: of the hidden linear layer.
        bias: whether the linear layers have one, which they have not in the paper.
        weights: a file with the tensors, or null for random weights drawn from ``seed``.
        seed: of the random weights.

    Raises:
        InputError: if ``image_size`` is no multiple of 4.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        image_size: int = 128,
        in_channels: int = 3,
        num_features: int = 512,
        bias: bool = False,
        weights: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes)
        _check_size(self, image_size, 4)
        with seeded(seed):
            self.features = nn.Sequential(
                nn.Conv2d(in_channels, 32, 5, padding=2),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(32, 64, 5, padding=2),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
            self.hidden = nn.Linear(64 * (image_size // 4) ** 2, num_features, bias=bias)
            self.classifier = nn.Linear(num_features, num_classes, bias=bias)
        load_weights(self, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B C H W images in [0, 1]."""
        hidden = F.relu(self.hidden(self.features(images).flatten(1)))
        logits: Tensor = self.classifier(hidden)
        return logits


class VGG7(Target):
    """Six 3x3 convolutions in pairs (width, 2 width, 4 width channels) and one linear layer.

    A ReLU stands after each convolution, a 2x2 max-pool after each pair; the linear layer has no
    bias.

    Args:
        num_classes: length of the output.
        image_size: height and width of the images, a multiple of 8; the linear layer depends on it.
        width: channels of the first pair.
        in_channels: channels of the images.
        weights: a file with the tensors, or null for random weights drawn from ``seed``.
        seed: of the random weights.

    Raises:
        InputError: if ``image_size`` is no multiple of 8.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        image_size: int = 128,
        width: int = 32,
        in_channels: int = 3,
        weights: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes)
        _check_size(self, image_size, 8)
        with seeded(seed):
            layers: list[nn.Module] = []
            channels = in_channels
            for out_channels in (width, 2 * width, 4 * width):
                for _ in range(2):
                    layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU()]
                    channels = out_channels
                layers.append(nn.MaxPool2d(2))
            self.features = nn.Sequential(*layers)
            self.classifier = nn.Linear(channels * (image_size // 8) ** 2, num_classes, bias=False)
        load_weights(self, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B C H W images in [0, 1]."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class ResNet9(Target):
    """The nine-layer residual network of Page's DAWNBench entry (2018), without batch norm.

    3x3 convolutions of width, 2 width, 4 width and 8 width channels, each with a ReLU, the last
    three with a 2x2 max-pool; a residual pair after the second and after the fourth; the mean over
    what is left, and one linear layer.

    Args:
        num_classes: length of the output.
        width: channels of the first convolution.
        in_channels: channels of the images.
        weights: a file with the tensors, or null for random weights drawn from ``seed``.
        seed: of the random weights.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width: int = 32,
        in_channels: int = 3,
        weights: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes)
        with seeded(seed):
            self.features = nn.Sequential(
                _convolution(in_channels, width),
                _convolution(width, 2 * width),
                nn.MaxPool2d(2),
                _Residual(2 * width),
                _convolution(2 * width, 4 * width),
                nn.MaxPool2d(2),
                _convolution(4 * width, 8 * width),
                nn.MaxPool2d(2),
                _Residual(8 * width),
            )
            self.classifier = nn.Linear(8 * width, num_classes)
        load_weights(self, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B C H W images in [0, 1]."""
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


class NormFreeResNet18(Target):
    """torchvision's ResNet-18 without batch norm, its convolutions at torch's default start.

    He's start, torchvision's own, would double the variance with every block.

    Args:
        num_classes: length of the output.
        weights: a file with the tensors, or null for random weights drawn from ``seed``.
        seed: of the random weights.
    """

    def __init__(self, num_classes: int = 1000, weights: str | None = None, seed: int = 0) -> None:
        super().__init__(num_classes)
        with seeded(seed):
            self.network = torchvision.models.resnet18(
                num_classes=num_classes, norm_layer=nn.Identity
            )
            for module in self.network.modules():
                if isinstance(module, nn.Conv2d):
                    module.reset_parameters()
        load_weights(self, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B 3 H W images in [0, 1]."""
        logits: Tensor = self.network(images)
        return logits


class _Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            _convolution(channels, channels), _convolution(channels, channels)
        )

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = images + self.block(images)
        return result


def _convolution(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU())


def _check_size(target: Target, image_size: int, multiple: int) -> None:
    if image_size < multiple or image_size % multiple:
        raise InputError(
            f"{type(target).__name__}: image_size must be a multiple of {multiple}, not "
            f"{image_size}"
        )
