"""What an update of Flower's quickstart CNN gives away: PSNR of attacks beside the mean image's.

    python -m benchmarks.quickstart --cifar CIFAR10.npz [--batches 1 4] [--steps 1]

A client trains TutorialCNN, untrained, by plain SGD on one batch, and sends its weights in float32;
the server knows the number of images and not the labels.  Client k has x_test[64 k:] of the file,
the server x_train as public images.  Means over clients with 95 % intervals (Student's t; a
client's images count as one value), seconds of processor time, and clients whose features were
found exactly.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from benchmarks.records import matched_psnr
from lightning_recon import reconstruct
from lightning_recon.attacks import (
    AnnealedInversion,
    Attack,
    FeatureInversionAttack,
    InvertingGradients,
)
from lightning_recon.clients import FedAvg
from lightning_recon.targets import Target, TutorialCNN

STRIDE = 64  # images from one client to the next
LEARNING_RATE = 0.01
KNOWN = ("num_samples", "client")
ATTACKS: dict[str, Callable[..., Attack]] = {
    "annealed": AnnealedInversion,
    "features": FeatureInversionAttack,
    "inverting": lambda *arguments, **more: InvertingGradients(*arguments, iterations=600, **more),
}


class Found(NamedTuple):
    """What an attack made of a client."""

    psnr: float
    """dB, mean of the client's images."""
    mean_image: float
    """dB, of the mean public image."""
    seconds: float
    """Of processor time."""
    is_separated: bool


def images_of(path: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return test images, N 3 H W in [0, 1], their labels, and the public images."""
    with np.load(path) as held:
        test, public = (
            torch.from_numpy(held[name]).permute(0, 3, 1, 2).float() / 255
            for name in ("x_test", "x_train")
        )
        return test, torch.from_numpy(held["y_test"]).long().flatten(), public


def network() -> TutorialCNN:
    """Return the network with the weights of Flower's class after ``torch.manual_seed(1)``."""
    model = TutorialCNN(10)
    torch.manual_seed(1)
    for layer in (model.conv1, model.conv2, model.fc1, model.fc2, model.fc3):
        layer.reset_parameters()
    return model


def trained(model: Target, images: Tensor, labels: Tensor, steps: int) -> dict[str, Tensor]:
    """Return the state dict after steps of SGD on the whole batch."""
    model = copy.deepcopy(model).requires_grad_()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.state_dict()


def attacked(
    options: argparse.Namespace, name: str, batch_size: int, data: tuple[Tensor, Tensor, Tensor]
) -> Iterator[Found]:
    """Give what an attack finds of one client after the other."""
    test, labels, public = data
    mean = public.mean(0)
    public = public[: options.public]
    for client in range(options.first, options.first + options.clients):
        here = slice(STRIDE * client, STRIDE * client + batch_size)
        model = network()
        attack = ATTACKS[name](
            model, client=FedAvg(LEARNING_RATE, epochs=options.steps), known=KNOWN
        )
        after = trained(model, test[here], labels[here], options.steps)
        started = time.process_time()
        found = reconstruct(
            attack,
            after,
            before=model.state_dict(),
            image_shape=tuple(test.shape[1:]),
            num_samples=batch_size,
            public_images=public,
            client=client,
        )
        yield Found(
            float(np.mean(matched_psnr(found.images, test[here], mean))),
            float(np.mean(matched_psnr(found.images[:0], test[here], mean))),
            time.process_time() - started,
            found.notes.get("separated", 0.0) == 1.0,
        )


def interval(values: Any) -> str:
    """Return the mean of values and the half width of its 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else np.nan
    return f"{np.mean(values):.1f} +- {half:.1f}"


def main() -> None:
    """Print a row for each batch size and attack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", required=True, help="an .npz with x_test, y_test and x_train")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=1, help="local steps on the same batch")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first client")
    parser.add_argument("--public", type=int, default=None, help="public images; all of x_train")
    parser.add_argument("--attacks", nargs="+", default=["annealed"], choices=sorted(ATTACKS))
    options = parser.parse_args()
    data = images_of(options.cifar)
    print("| batch | steps | attack | PSNR, dB | mean image | over it | found | s/client |")
    print("|---|---|---|---|---|---|---|---|")
    for batch_size in options.batches:
        for name in options.attacks:
            found = list(attacked(options, name, batch_size, data))
            psnr, mean = (
                np.array([getattr(one, key) for one in found]) for key in Found._fields[:2]
            )
            words = [
                *(str(batch_size), str(options.steps), name),
                *(interval(psnr), interval(mean), interval(psnr - mean)),
                f"{sum(one.is_separated for one in found)} of {len(found)}",
                f"{np.mean([one.seconds for one in found]):.0f}",
            ]
            print(f"| {' | '.join(words)} |", flush=True)


if __name__ == "__main__":
    main()
