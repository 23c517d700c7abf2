"""The models under attack, and their loading."""

from lightning_recon.targets.base import Target
from lightning_recon.targets.small import ConvNet, LeNet
from lightning_recon.targets.torchvision import TorchvisionClassifier

__all__ = ["ConvNet", "LeNet", "Target", "TorchvisionClassifier"]
