"""What calibrations claim and what holds: the tables of docs/privacy.md.

Four tables in Markdown: the published attack's settings, how much noise an epsilon takes, what
rounds do, and the errors of the mechanisms for local differential privacy.  A few seconds, no data
but the sample photographs.  Run from the repository's root::

    python -m benchmarks.privacy_table
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from lightning_recon.audit.privacy_statement import privacy_statement
from lightning_recon.data import SampleImagesDataModule
from lightning_recon.defenses import ClipL2, GaussianNoise, bind_chain
from lightning_recon.defenses.privunit import privunit_cap
from lightning_recon.defenses.privunit_gaussian import privunitg_cap
from lightning_recon.errors import InputError
from lightning_recon.privacy.accounting import pld_epsilon, rdp_epsilon
from lightning_recon.privacy.gaussian import classical_std, gaussian_epsilon, gaussian_std
from lightning_recon.privacy.reconstruction import clamped_psnr, expected_psnr, rero_gaussian

DELTA = 1e-5
NUM_RECORDS = 1000  # the m of the published calibration
CLAIMED = (2.5, 5.0, 7.5, 10.0, 12.5, 15.0, 17.5, 20.0)
EPSILONS = (0.1, 0.5, 1.0, 2.0, 5.0, 8.0, 10.0, 20.0, 50.0, 100.0, 1000.0)
DIMENSION = 11_689_512  # parameters of a ResNet-18 with 1000 classes


def main() -> None:
    """Print all tables."""
    images = sample_images()
    mean_square = float(images.double().square().mean())
    print("### The published setting\n")
    print(
        f"C = 10, std = 2C/(m epsilon), m = {NUM_RECORDS}, delta = {DELTA:g}.  PSNR of the best "
        f"attack without a prior on the {len(images)} sample photographs, {images.shape[-1]}x"
        f"{images.shape[-1]}, whole (mean square {mean_square:.3f}), one clip of the batch.\n"
    )
    print_table(
        [
            "claimed epsilon",
            "std",
            "actual epsilon",
            "zCDP rho",
            "ReRo, 1 of 1000",
            "expected PSNR (dB)",
            "clamped to [0, 1] (dB)",
        ],
        (published(claimed, images) for claimed in CLAIMED),
    )
    print("\n### Noise for an honest epsilon\n")
    print(
        f"Standard deviation over sensitivity at delta = {DELTA:g}; the last three columns are "
        "of the analytic one.\n"
    )
    print_table(
        [
            "epsilon",
            "analytic (exact)",
            "classical formula",
            "true epsilon of the classical",
            "RDP upper bound",
            "PLD",
            "ReRo, 1 of 1000",
        ],
        (calibration(epsilon) for epsilon in EPSILONS),
    )
    print("\n### Rounds\n")
    print(f"Epsilon of T releases at delta = {DELTA:g}, std / sensitivity in front.\n")
    rounds = (1, 10, 100, 1000)
    print_table(
        ["std / sensitivity", *(f"T = {n}" for n in rounds), "T = 1000, RDP upper bound"],
        (
            [
                multiplier,
                *(gaussian_epsilon(1, multiplier, DELTA, n) for n in rounds),
                rdp_epsilon(multiplier, DELTA, 1000),
            ]
            for multiplier in (1e-4, 0.5, 3.731, 30.0, 118.0)
        ),
    )
    print("\n### Mechanisms for a whole update\n")
    print(
        f"Root mean square error of each of d = {DIMENSION:,} coordinates (a ResNet-18) of an "
        "update in the L2 ball of radius 1; of an update in the cube [-1, 1]^d for the sampled "
        "ones (at 0).  Gaussian: at delta = 1e-5.\n"
    )
    print_table(
        ["epsilon", "Gaussian", "PrivUnit2", "PrivUnitG", "Duchi", "Piecewise", "Hybrid"],
        (mechanisms(epsilon) for epsilon in (1.0, 2.0, 5.0, 8.0, 10.0, 20.0, 50.0, 100.0)),
    )


def sample_images() -> Tensor:
    """Return a batch of 16 photographs."""
    data = SampleImagesDataModule(batch_size=16, num_clients=1, image_size=224)
    data.prepare_data()
    data.setup()
    return data.client(0).images


def published(claimed: float, images: Tensor) -> list[float]:
    """Return a row of the first table."""
    chain = [
        ClipL2(10.0),
        GaussianNoise(calibration="record_mean", epsilon=claimed, num_records=NUM_RECORDS),
    ]
    bind_chain(chain)
    told = privacy_statement(chain, delta=DELTA)
    multiplier = told["noise_std"] / told["clip_norm"]
    energy = float(images.double().square().sum())
    clamped = clamped_psnr(
        images, multiplier, generator=torch.Generator().manual_seed(0), num_draws=2
    )
    return [
        claimed,
        told["noise_std"],
        told["actual"]["epsilon"],
        told["zcdp_rho"],
        told["rero_1000"],
        expected_psnr(multiplier, energy, images[0].numel()),
        float(clamped.mean()),
    ]


def calibration(epsilon: float) -> list[float]:
    """Return a row of the second table."""
    std = gaussian_std(epsilon, 1.0, DELTA)
    classical = classical_std(epsilon, 1.0, DELTA)
    return [
        epsilon,
        std,
        classical,
        gaussian_epsilon(1.0, classical, DELTA),
        rdp_epsilon(std, DELTA),
        _or_nan(lambda: pld_epsilon(std, DELTA)),
        rero_gaussian(1.0, std),
    ]


def mechanisms(epsilon: float) -> list[float]:
    """Return a row of the last table."""
    count = max(1, min(DIMENSION, int(epsilon / 2.5)))
    root, power = math.exp(epsilon / count / 2), math.exp(epsilon / count)
    piecewise = (root + 3) / (3 * (root - 1) ** 2)
    duchi = ((power + 1) / (power - 1)) ** 2
    share = 1 - 1 / root if epsilon / count > 0.61 else 0.0
    second_moments = (duchi, piecewise, share * piecewise + (1 - share) * duchi)
    return [
        epsilon,
        gaussian_std(epsilon, 2.0, DELTA),
        1 / privunit_cap(epsilon, DIMENSION + 1).gain / math.sqrt(DIMENSION),
        1 / privunitg_cap(epsilon).gain,
        *(math.sqrt(DIMENSION / count * moment) for moment in second_moments),
    ]


def _or_nan(call: Callable[[], float]) -> float:
    try:
        return call()
    except InputError:
        return math.nan


def print_table(columns: Sequence[str], rows: Iterable[Sequence[float]]) -> None:
    """Print a table in Markdown, numbers to four digits."""
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join("" if math.isnan(x) else f"{x:.4g}" for x in row) + " |")


if __name__ == "__main__":
    main()
