"""A model as a federation has it: a plain module, which knows nothing of lightning_recon."""

import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Two convolutions with batch norm, and a linear layer.

    Args:
        num_classes: length of the output.
        width: channels of the first convolution.
    """

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(2 * width * 16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B 3 H W images."""
        images = F.relu(self.bn1(self.conv1(images)))
        images = F.relu(self.bn2(self.conv2(images)))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(images, 4).flatten(1))
        return logits
