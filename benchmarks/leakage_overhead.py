"""What LightningLeakage adds to a training that it measures at every tenth round.

A round is ten clients' local training, here one after the other in one epoch.  A measurement and a
round are timed in the same process, one after the other, in pairs; the figure is the median of the
pairs' ratios, over ten.

Run from the repository's root (some minutes)::

    python -m benchmarks.leakage_overhead --cifar data/cifar10.npz
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from statistics import median

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.records import cifar
from lightning_recon import targets
from lightning_recon.defenses import ClipL2, GaussianNoise
from lightning_recon.leakage import Leakage

ROUNDS, CLIENTS, STEPS, BATCH = 10, 10, 20, 64
MODELS: dict[str, Callable[[], nn.Module]] = {
    "MLP": lambda: targets.MLP(10, 32, (1000, 100)),
    "TutorialCNN": lambda: targets.TutorialCNN(10),
    "ConvNet": lambda: targets.ConvNet(10),
}
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # its tips


class Training(pl.LightningModule):
    """Local training of one client.

    Args:
        net: gives logits.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], place: int) -> Tensor:
        """Return the loss."""
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Use plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def round_seconds(net: nn.Module, loader: DataLoader[tuple[Tensor, ...]]) -> float:
    """Return what a round takes, in seconds of the processor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        started = time.process_time()
        trainer.fit(Training(net), loader)
    return time.process_time() - started


def measure_seconds(net: nn.Module, leakage: Leakage) -> float:
    """Return what a measurement takes, likewise."""
    started = time.process_time()
    leakage.measure(net)
    return time.process_time() - started


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", default="data/cifar10", help="CIFAR-10, folder or .npz")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    data = cifar(options, split="train", batch_size=STEPS * BATCH, num_public=200, num_clients=1)
    batch, public = data.client(0), data.public_images()
    images, labels = batch.images.repeat(CLIENTS, 1, 1, 1), batch.labels.repeat(CLIENTS)
    loader = DataLoader(TensorDataset(images, labels), batch_size=BATCH)
    print(f"rounds of {CLIENTS} clients, {STEPS} steps of {BATCH} images; one in {ROUNDS} measured")
    noisy = [ClipL2(1.0), GaussianNoise(0.001)]
    leakage = Leakage(public[:1], torch.zeros(1), public[1:], 10, defenses=noisy)
    for name, make in MODELS.items():
        net = make()
        leakage.measure(net)  # what is done once a process
        pairs = [
            (measure_seconds(net, leakage), round_seconds(net, loader))
            for _ in range(options.pairs)
        ]
        ratio = median(one / whole for one, whole in pairs) / ROUNDS
        print(f"{name}: {ratio:.1%} more ({pairs[0][0]:.2g} s in {ROUNDS} x {pairs[0][1]:.3g} s)")


if __name__ == "__main__":
    main()
