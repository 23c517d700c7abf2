"""The models under attack, and their loading."""

from lightning_recon.targets.base import Target
from lightning_recon.targets.dropout import Dropout
from lightning_recon.targets.efficientnet_lite import EfficientNetLite0
from lightning_recon.targets.module import ModuleTarget
from lightning_recon.targets.plain import MLP, PlainConvNet
from lightning_recon.targets.precode import VariationalBottleneck
from lightning_recon.targets.rog import VGG7, NormFreeResNet18, ResNet9, ROGLeNet
from lightning_recon.targets.small import ConvNet, LeNet, TutorialCNN
from lightning_recon.targets.timm import TimmClassifier
from lightning_recon.targets.torchvision import TorchvisionClassifier
from lightning_recon.targets.vit import TinyViT

__all__ = [
    "MLP",
    "VGG7",
    "ConvNet",
    "Dropout",
    "EfficientNetLite0",
    "LeNet",
    "ModuleTarget",
    "NormFreeResNet18",
    "PlainConvNet",
    "ROGLeNet",
    "ResNet9",
    "Target",
    "TimmClassifier",
    "TinyViT",
    "TorchvisionClassifier",
    "TutorialCNN",
    "VariationalBottleneck",
]
