"""The networks from whose gradients second order reads images: rows of benchmarks.second_order."""

from torch import nn
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
