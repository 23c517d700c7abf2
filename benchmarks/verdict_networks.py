"""The networks on which the confidence of an audit is fitted, and those on which it is tested."""

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from lightning_recon.targets import MLP, LeNet, ModuleTarget, ROGLeNet, Target

SIDE = 32
"""Of the images."""


class QuickstartNet(nn.Module):
    """The convolutional network of Flower's tutorial, in its layers and sizes."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.linear = nn.Sequential(
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.linear(self.convolutions(images))


class WideTail(nn.Module):
    """One convolution with stride, and linear layers that see its map."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 12, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12 * 16 * 16, 128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.layers(images)


class TwoStrides(nn.Module):
    """Two convolutions with stride, and one linear layer behind their map."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 8 * 8, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.layers(images)


def small_cnn(
    convolutions: Sequence[nn.Module], linear: Sequence[int], *, bias: bool = True
) -> nn.Sequential:
    """Return convolutions, and linear layers of these widths behind them, ReLUs between all."""
    layers: list[nn.Module] = []
    for layer in convolutions:
        layers += [layer, nn.ReLU()] if isinstance(layer, nn.Conv2d) else [layer]
    layers.append(nn.Flatten())
    for before, after in itertools.pairwise(linear):
        layers += [nn.Linear(before, after, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def normalised(module: Callable[[], nn.Module]) -> Target:
    """Return a target that normalises as many tutorials do."""
    return ModuleTarget(module, num_classes=10, mean=0.5, std=0.5)


def by_channel(module: Callable[[], nn.Module]) -> Target:
    """Return a target that normalises by CIFAR-10's channels."""
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    return ModuleTarget(module, num_classes=10, mean=mean, std=std)


def pooled() -> nn.Module:
    """Return padded convolutions and max-pools."""
    body = [nn.Conv2d(3, 8, 5, padding=2), nn.MaxPool2d(2)]
    body += [nn.Conv2d(8, 16, 5, padding=2), nn.MaxPool2d(2)]
    return small_cnn(body, (16 * 8 * 8, 100, 10))


def unpadded() -> nn.Module:
    """Return convolutions without padding, and max-pools."""
    body = [nn.Conv2d(3, 10, 5), nn.MaxPool2d(2), nn.Conv2d(10, 20, 3), nn.MaxPool2d(2)]
    return small_cnn(body, (20 * 6 * 6, 64, 10))


def averaged() -> nn.Module:
    """Return convolutions and average pools, and one linear layer."""
    body = [nn.Conv2d(3, 12, 3, padding=1), nn.AvgPool2d(2)]
    body += [nn.Conv2d(12, 24, 3, padding=1), nn.AvgPool2d(2)]
    return small_cnn(body, (24 * 8 * 8, 10))


def strided() -> nn.Module:
    """Return two convolutions with stride and one without, and one linear layer."""
    body = [nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.Conv2d(12, 24, 3, stride=2, padding=1)]
    return small_cnn([*body, nn.Conv2d(24, 32, 3, padding=1)], (32 * 8 * 8, 10))


def biasless() -> nn.Module:
    """Return convolutions and max-pools, and linear layers without biases."""
    body = [nn.Conv2d(3, 16, 5, padding=2), nn.MaxPool2d(2)]
    body += [nn.Conv2d(16, 32, 5, padding=2), nn.MaxPool2d(2)]
    return small_cnn(body, (32 * 8 * 8, 128, 10), bias=False)


Make = Callable[[], Target]
NETWORKS: dict[str, dict[str, Make]] = {
    "fit": {
        "MLP 400": lambda: MLP(10, SIDE, (400, 100)),
        "ROGLeNet": lambda: ROGLeNet(10, SIDE),
        "LeNet": lambda: LeNet(10, SIDE),
        "WideTail": lambda: normalised(WideTail),
    },
    "wider": {
        "pooled": lambda: by_channel(pooled),
        "MLP tanh": lambda: by_channel(lambda: MLP(10, SIDE, (256, 128), "tanh")),
        "strided": lambda: normalised(strided),
        "unpadded": lambda: ModuleTarget(unpadded, num_classes=10),
        "averaged": lambda: by_channel(averaged),
        "MLP 160": lambda: normalised(lambda: MLP(10, SIDE, (160, 80, 40))),
        "biasless": lambda: normalised(biasless),
    },
    "test": {
        "MLP 200": lambda: normalised(lambda: MLP(10, SIDE, (200,)).requires_grad_(True)),
        "MLP sigmoid": lambda: MLP(10, SIDE, (300, 60), "sigmoid"),
        "ROGLeNet": lambda: normalised(lambda: ROGLeNet(10, SIDE).requires_grad_(True)),
        "Quickstart": lambda: normalised(QuickstartNet),
        "TwoStrides": lambda: ModuleTarget(TwoStrides, num_classes=10),
    },
}
"""By part and name; the fit passes over what is among the test's, too."""
