"""Before a client trains: is what the server sent there to be trained?

Run from the repository's root::

    python examples/detect_payload.py
"""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # not needed where the package is installed

from lightning_recon.detect import detect


class Net(nn.Module):
    """What the server says that it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(16 * 15 * 15, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self.head(self.features(images).flatten(1))
        return logits


class Sent(Net):
    """What it sends: rows of brightness, whose mean is added to every pixel."""

    def __init__(self, num_rows: int = 256) -> None:
        super().__init__()
        self.rows = nn.Linear(3 * 32 * 32, num_rows)
        with torch.no_grad():
            self.rows.weight.fill_(1 / 3072)
            self.rows.bias.copy_(-torch.linspace(0, 1, num_rows))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        shift = self.rows(images.flatten(1)).relu().mean(1)
        return super().forward(images + shift[:, None, None, None])


torch.manual_seed(0)
own = torch.rand(8, 3, 32, 32) * torch.rand(8, 1, 1, 1), torch.arange(8)  # use images of your own
declared = Net()
for name, model in (("the declared model", declared), ("what was sent", Sent())):
    found = detect(model, sample=own)
    sys.stdout.write(f"{name}: {found.verdict} (score {found.score:.2f})\n")
    for one in found.findings:
        sys.stdout.write(f"  {one.where}: {one.text}\n")
