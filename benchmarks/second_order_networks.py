"""The networks from whose gradients second order reads images: rows of benchmarks.second_order."""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from lightning_recon.targets import ConvNet, LeNet, ModuleTarget, Target, TinyViT
from lightning_recon.targets.base import seeded


def smooth(activation: type[nn.Module], width: int = 16) -> Target:
    """Return a ConvNet without kinks: another activation, and average pools."""
    target = ConvNet(10, width)
    for place, layer in enumerate(target.features):
        if isinstance(layer, nn.ReLU):
            target.features[place] = activation()
        elif isinstance(layer, nn.MaxPool2d):
            target.features[place] = nn.AvgPool2d(2)
    return target


def lenet(size: int) -> Target:
    """Return the sigmoid LeNet for images of that size."""
    return LeNet(10, size)


def usual_vit(size: int) -> Target:
    """Return a vision transformer that no closed form reads.

    Layer norm and shortcuts are in all blocks, and the patch embedding has no bias; that the
    positions are frozen is the row's defense.
    """
    target = TinyViT(10, size, is_plain=False)
    target.patch_embedding.bias = None
    return target


def convnext(size: int) -> Target:
    """Return torchvision's ConvNeXt in two small stages, without layer scale and random depth.

    Liu et al., "A ConvNet for the 2020s", CVPR 2022: 4x4 patches, depthwise 7x7 convolutions,
    layer norm, GELU.
    """
    with seeded(0):
        stages = [CNBlockConfig(48, 96, 2), CNBlockConfig(96, None, 2)]
        network = ConvNeXt(stages, stochastic_depth_prob=0.0, layer_scale=1.0, num_classes=10)
    return ModuleTarget(network, 10)


def small_stem(size: int) -> Target:
    """Return ResNet-18 as it is used for CIFAR-10: a 3x3 stem and no pool behind it."""
    with seeded(0):
        network = resnet18(num_classes=10)
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return ModuleTarget(network, 10)


def imagenet_stem(size: int) -> Target:
    """Return ResNet-18 as it is used for ImageNet."""
    with seeded(0):
        return ModuleTarget(resnet18(num_classes=10), 10)


class _Block(nn.Module):
    """Two convolutions and a shortcut that has no parameters (option A)."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride = width // before
        self.added = (width - before) // 2
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)))))
        past = maps[:, :, :: self.stride, :: self.stride]
        return F.relu(inner + F.pad(past, (0, 0, 0, 0, self.added, self.added)))


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR-10: He et al., "Deep Residual Learning", CVPR 2016, section 4.2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        before = 16
        for stage, width in enumerate((16, 32, 64), 1):
            blocks = [_Block(before if place == 0 else width, width) for place in range(3)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            before = width
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, B 10, of normalised images."""
        maps = F.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.linear(maps.mean((2, 3)))
        return logits


def trained_resnet20(weights: str) -> Target:
    """Return ResNet-20 with weights that were trained on CIFAR-10, in the usual normalisation."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return ModuleTarget(ResNet20, 10, mean, std, weights)
