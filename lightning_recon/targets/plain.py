"""Networks without pooling, normalisation or shortcuts, from which closed forms read the input."""

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.functional.image_size import height_width
from lightning_recon.targets.base import Target, load_weights, seeded

Activation = Literal["leaky_relu", "relu", "sigmoid", "tanh"]


def _activation(name: Activation) -> nn.Module:
    return {
        "leaky_relu": nn.LeakyReLU(0.2),
        "relu": nn.ReLU(),
        "sigmoid": nn.Sigmoid(),
        "tanh": nn.Tanh(),
    }[name]


class MLP(Target):
    """Fully connected layers with biases on the flat image.

    Args:
        num_classes: length of the output.
        image_size: height and width of the images, one number or ``[H, W]``.
        hidden: widths of the hidden layers.
        activation: behind each hidden layer.
        in_channels: channels of the images.
        first_std: standard deviation of the first layer's weights, drawn from a normal distribution
            (0.5 in Boenisch et al., EuroS&P 2023); null: as PyTorch draws them.
        weights: a file with the tensors, or null for random weights drawn from ``seed``.
        seed: of the random weights.

    Raises:
        InputError: if there is no hidden layer, or ``first_std`` is not above 0.
    """

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int | list[int] = 32,
        hidden: Sequence[int] = (1000, 100),
        activation: Activation = "relu",
        in_channels: int = 3,
        first_std: float | None = None,
        weights: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes)
        if not hidden:
            raise InputError("MLP: hidden must hold at least one width")
        if first_std is not None and not first_std > 0:
            raise InputError(f"MLP: first_std must be above 0, not {first_std}")
        with seeded(seed):
            layers: list[nn.Module] = [nn.Flatten()]
            width = in_channels * prod(height_width(image_size))
            for next_width in hidden:
                layers += [nn.Linear(width, next_width), _activation(activation)]
                width = next_width
            self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))
            if first_std is not None:
                nn.init.normal_(self.layers[1].weight, std=first_std)  # type: ignore[arg-type]
        load_weights(self, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B C H W images in [0, 1]."""
        logits: Tensor = self.layers(images)
        return logits


class PlainConvNet(Target):
    """Strided 4x4 and 3x3 convolutions and one linear layer: pooling-free.

    A network in the manner of the CNN6 of Zhu & Blaschko (R-GAP, ICLR 2021), with a bias in the
    last layer alone: a 4x4 convolution of stride 2 first, 3x3 ones after it.  With the default
    widths the systems of R-GAP have full rank for images of 32x32.

    Args:
        num_classes: length of the output.
        image_size: height and width of the images, one number or ``[H, W]``; the linear layer
            depends on it.
        channels: of each convolution.
        strides: of each convolution.
        activation: behind each convolution.
        in_channels: channels of the images.
        weights: a file with the tensors, or null for random weights drawn from ``seed``.
        seed: of the random weights.

    Raises:
        InputError: if ``channels`` and ``strides`` do not go together.
    """

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int | list[int] = 32,
        channels: Sequence[int] = (12, 36, 36, 64),
        strides: Sequence[int] = (2, 2, 1, 2),
        activation: Activation = "leaky_relu",
        in_channels: int = 3,
        weights: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes)
        if not channels or len(channels) != len(strides):
            raise InputError(
                f"PlainConvNet: channels and strides must be lists of one length, not "
                f"{list(channels)} and {list(strides)}"
            )
        with seeded(seed):
            layers: list[nn.Module] = []
            width = in_channels
            for place, (next_width, stride) in enumerate(zip(channels, strides, strict=True)):
                kernel, padding = (4, 2) if place == 0 else (3, 1)
                layers += [
                    nn.Conv2d(width, next_width, kernel, stride, padding, bias=False),
                    _activation(activation),
                ]
                width = next_width
            self.features = nn.Sequential(*layers)
            size = self.features(torch.zeros(1, in_channels, *height_width(image_size))).numel()
            self.classifier = nn.Linear(size, num_classes)
        load_weights(self, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B C H W images in [0, 1]."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
