"""The models under attack, and their loading."""

from lightning_recon.targets.base import Target
from lightning_recon.targets.dropout import Dropout
from lightning_recon.targets.precode import VariationalBottleneck
from lightning_recon.targets.rog import VGG7, NormFreeResNet18, ResNet9, ROGLeNet
from lightning_recon.targets.small import ConvNet, LeNet
from lightning_recon.targets.torchvision import TorchvisionClassifier

__all__ = [
    "VGG7",
    "ConvNet",
    "Dropout",
    "LeNet",
    "NormFreeResNet18",
    "ROGLeNet",
    "ResNet9",
    "Target",
    "TorchvisionClassifier",
    "VariationalBottleneck",
]
