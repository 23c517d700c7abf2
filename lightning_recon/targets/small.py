"""Small networks of the gradient-inversion literature and of tutorials."""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.functional.image_size import height_width
from lightning_recon.targets.base import Target, load_weights, seeded


class LeNet(Target):
    """The sigmoid LeNet of Zhu et al., "Deep Leakage from Gradients", NeurIPS 2019.

    Four 5x5 convolutions of 12 channels (strides 2, 2, 1, 1), a sigmoid after each, and one linear
    layer; weights and biases uniform in [-0.5, 0.5], without which the attack there fails.

    Args:
        num_classes: length of the output.
        image_size: height and width of the images, one number or ``[H, W]``; the linear layer
            depends on it.
        in_channels: channels of the images.
        weights: a file with the tensors, or null for random weights drawn from ``seed``.
        seed: of the random weights.
    """

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int | list[int] = 32,
        in_channels: int = 3,
        weights: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes)
        with seeded(seed):
            self.features = nn.Sequential(
                nn.Conv2d(in_channels, 12, 5, padding=2, stride=2),
                nn.Sigmoid(),
                nn.Conv2d(12, 12, 5, padding=2, stride=2),
                nn.Sigmoid(),
                nn.Conv2d(12, 12, 5, padding=2),
                nn.Sigmoid(),
                nn.Conv2d(12, 12, 5, padding=2),
                nn.Sigmoid(),
            )
            height, width = (-(-side // 4) for side in height_width(image_size))
            self.classifier = nn.Linear(12 * height * width, num_classes)
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)
        load_weights(self, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B C H W images in [0, 1]."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class ConvNet(Target):
    """A small convolutional network with batch norm, for images of 32x32 and up.

    Three blocks of 3x3 convolution, batch norm, ReLU and 2x2 max-pool (width, 2 width, 4 width
    channels), the mean over what is left, and one linear layer.

    Args:
        num_classes: length of the output.
        width: channels of the first block.
        in_channels: channels of the images.
        weights: a file with the tensors, or null for random weights drawn from ``seed``.
        seed: of the random weights.
    """

    def __init__(
        self,
        num_classes: int = 10,
        width: int = 32,
        in_channels: int = 3,
        weights: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes)
        with seeded(seed):
            blocks: list[nn.Module] = []
            channels = in_channels
            for out_channels in (width, 2 * width, 4 * width):
                blocks += [
                    nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out_channels),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                ]
                channels = out_channels
            self.features = nn.Sequential(*blocks)
            self.classifier = nn.Linear(channels, num_classes)
        load_weights(self, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B C H W images in [0, 1]."""
        features = F.adaptive_avg_pool2d(self.features(images), 1).flatten(1)
        logits: Tensor = self.classifier(features)
        return logits


class TutorialCNN(Target):
    """The network with which the tutorials of PyTorch and of Flower classify CIFAR-10.

    PyTorch's "Training a classifier" and Flower's "quickstart-pytorch": two 5x5 convolutions of 6
    and 16 channels, a ReLU and a 2x2 max-pool after each, linear layers of 120, 84 and num_classes
    outputs, ReLUs between them; pixels are normalised by mean and standard deviation .5.

    Args:
        num_classes: length of the output.
        image_size: height and width of the images, one number or ``[H, W]``, at least 16; the first
            linear layer depends on it.
        in_channels: channels of the images.
        weights: a file with the tensors, or null for random weights drawn from ``seed``.
        seed: of the random weights.
    """

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int | list[int] = 32,
        in_channels: int = 3,
        weights: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes)
        height, width = (((side - 4) // 2 - 4) // 2 for side in height_width(image_size))
        with seeded(seed):
            self.conv1 = nn.Conv2d(in_channels, 6, 5)
            self.pool = nn.MaxPool2d(2, 2)
            self.conv2 = nn.Conv2d(6, 16, 5)
            self.fc1 = nn.Linear(16 * height * width, 120)
            self.fc2 = nn.Linear(120, 84)
            self.fc3 = nn.Linear(84, num_classes)
        load_weights(self, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B C H W images in [0, 1]."""
        maps = self.pool(F.relu(self.conv1((images - 0.5) / 0.5)))
        maps = self.pool(F.relu(self.conv2(maps)))
        hidden = F.relu(self.fc2(F.relu(self.fc1(maps.flatten(1)))))
        logits: Tensor = self.fc3(hidden)
        return logits
