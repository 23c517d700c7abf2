"""Five attacks on one client's clipped and noised update: a grid of pictures and a table.

    python -m benchmarks.seed_figure --root data/imagenet --masks MASKS --figure PATH.jpg

The comparison of You et al. (IEEE TIFS 2025) with our own implementations: 16 ImageNet images with
subject masks, client 0, ResNet-18 untrained, one update each under the same clipping norm and
noise.  Each attack sends its own payload.  The two linear layers of a malicious server stand there
as published, and with the gain at which their rows take most of the clipping budget.
"""

import argparse
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from benchmarks.records import RESULTS, Records, Row, note_absent_peer, parser, records_of
from lightning_recon.attacks import (
    Attack,
    CuriousAbandonHonesty,
    InvertingGradients,
    LDPAttack,
    RobbingTheFed,
    SpectralLDPAttack,
)
from lightning_recon.audit.matching import match
from lightning_recon.audit.scores import score
from lightning_recon.data import ImageNetDataModule
from lightning_recon.data.masks import MaskFolder, SubjectMasks
from lightning_recon.defenses import ClipL2, GaussianNoise
from lightning_recon.files import write_atomically
from lightning_recon.observation import Reconstruction
from lightning_recon.targets import TorchvisionClassifier
from lightning_recon.updates import PrivateBatch

CLIP_NORM = 10.0
NOISE_STD = 0.002
MASKS = SubjectMasks("checkpoints/sam_vit_h_4b8939.pth", on_missing="grabcut")
NUM_ROWS = 256
GAIN = 100.0  # with which the rows' gradient is most of the update
NUM_SHOWN = 8
MALICIOUS = "malicious server"
HONEST = "honest but curious"


def attacks(iterations: int, refinements: int) -> dict[str, tuple[str, Callable[..., Attack]]]:
    """Return threat model and maker of each attack, by its name.

    Args:
        iterations: of Inverting Gradients.
        refinements: of the LDP attack.
    """

    def ldp(target: Any, **kwargs: Any) -> LDPAttack:
        return LDPAttack(
            target,
            num_bins=1024,
            iterations=refinements,
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.02),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(
                optimizer, refinements
            ),
            **kwargs,
        )

    def robbing(**strength: Any) -> Callable[..., Attack]:
        return lambda target, **kwargs: RobbingTheFed(
            target, num_bins=NUM_ROWS, **strength, **kwargs
        )

    def traps(**strength: Any) -> Callable[..., Attack]:
        return lambda target, **kwargs: CuriousAbandonHonesty(
            target, num_rows=NUM_ROWS, **strength, **kwargs
        )

    return {
        "Inverting Gradients": (
            f"{HONEST}; labels known",
            lambda target, **kwargs: InvertingGradients(target, iterations=iterations, **kwargs),
        ),
        "Robbing the Fed": (MALICIOUS, robbing()),
        f"Robbing the Fed, sparse, gain {GAIN:g}": (MALICIOUS, robbing(gain=GAIN, sparse=True)),
        "CAH": (MALICIOUS, traps()),
        f"CAH, gain {GAIN:g}": (MALICIOUS, traps(gain=GAIN)),
        "LDP attack (faithful)": (f"{MALICIOUS}; knows C and sigma", ldp),
        "Spectral attack (ours)": (
            f"{MALICIOUS}; knows C and sigma",
            lambda target, **kwargs: SpectralLDPAttack(target, num_bins=1024, **kwargs),
        ),
    }


def attacked(
    make: Callable[..., Attack], data: ImageNetDataModule
) -> tuple[dict[str, Any], Tensor]:
    """Return scores of an attack on client 0, and what it made of each image, black for nothing."""
    torch.manual_seed(0)
    target = TorchvisionClassifier("resnet18", weights=None)
    defenses = [ClipL2(clip_norm=CLIP_NORM), GaussianNoise(noise_std=NOISE_STD)]
    attack = make(target, defenses=defenses)
    started = time.perf_counter()
    attack.bind(data.spec, data.public_images())
    found = attack.reconstruct(attack.federation.play(data.client(0), 0))
    seconds = time.perf_counter() - started
    return scored(found, data.client(0), data.public_images().mean(0), seconds)


def scored(
    found: Reconstruction, truth: PrivateBatch, missing: Tensor, seconds: float
) -> tuple[dict[str, Any], Tensor]:
    """Return PSNR over all images, subject and null, and the images in the order of the truth."""
    rows = score(found, truth, missing)
    matched = match(found.images, truth.images).row
    shown = torch.zeros_like(truth.images)
    shown[matched >= 0] = found.images[matched[matched >= 0]].clamp(0, 1)
    return {
        "psnr": mean(row["psnr"] for row in rows),
        "subject": mean(row["psnr_subject"] for row in rows),
        "recovered": sum(row["recovered"] for row in rows),
        "given": len(found.images),
        "null": mean(row["psnr_mean_image"] for row in rows),
        "seconds": seconds,
    }, shown


def draw(path: Path, pictures: dict[str, tuple[str, Tensor]], side: int = 112) -> None:
    """Write the grid as a JPEG: a line of pictures under its heading, for each attack.

    Args:
        path: of the file.
        pictures: by the name of the line: what is said of it, and N C H W.
        side: of a picture, in pixels.
    """
    columns = min(NUM_SHOWN, len(next(iter(pictures.values()))[1]))
    dpi, gap, left = 100, 4, 225
    width = left + columns * (side + gap)
    height = len(pictures) * (side + gap)
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="white")
    for line, (name, (words, images)) in enumerate(pictures.items()):
        bottom = 1 - (line + 1) * (side + gap) / height
        figure.text(
            0.008, bottom + 0.5 * side / height, f"{name}\n{words}", fontsize=8, va="center"
        )
        for column in range(columns):
            box = (
                (left + column * (side + gap)) / width,
                bottom,
                side / width,
                side / height,
            )
            axes = figure.add_axes(box)
            axes.imshow(images[column].permute(1, 2, 0).numpy(), interpolation="antialiased")
            axes.axis("off")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    buffer = io.BytesIO()
    Image.open(drawn).convert("RGB").save(buffer, format="JPEG", quality=88)
    write_atomically(path, buffer.getvalue())


def run(options: argparse.Namespace, records: Records) -> Iterator[Row]:
    """Give a row for every attack, and write the grid."""
    is_there = Path(options.root).is_dir()
    if not is_there:
        print(f"no ImageNet at {options.root}: sample photographs in its place")
    iterations = getattr(options, "iterations", None) or (3 if options.quick else 60)
    data = ImageNetDataModule(
        root=options.root if is_there else None,
        on_missing="samples",
        batch_size=4 if options.quick else 16,
        image_size=64 if options.quick else 224,
        masks=MaskFolder(options.masks) if options.masks and is_there else MASKS,
        num_public=64,
    )
    data.setup()
    images = data.client(0).images
    where = options.root if is_there else "samples"
    folder = options.results / ("seed_quick" if options.quick else "seed")
    folder.mkdir(exist_ok=True, parents=True)
    pictures = {"truth": ("", images)}
    made = attacks(iterations, 20 if options.quick else 400)
    for place, (name, (threat, make)) in enumerate(made.items()):
        file = folder / f"{place}.pt"

        def measure(make: Callable[..., Attack] = make, file: Path = file) -> dict[str, Any]:
            found, shown = attacked(make, data)
            torch.save(shown, file)
            return found

        key = f"seed figure {name}, {where}, {options.masks}, {len(images)}, {iterations}"
        found = records.get(key, measure)
        note = (
            f"subject {found['subject']:.1f} dB, {found['recovered']:.0f} of {len(images)} "
            f"recovered, {found['seconds']:.0f} s; {threat}"
        )
        yield Row(f"seed figure: {name}", found["psnr"], unit="dB", note=note)
        if file.is_file():
            pictures[name] = (f"{found['psnr']:.1f} dB", torch.load(file, weights_only=True))
    yield Row("seed figure: mean image", found["null"], unit="dB")
    draw(getattr(options, "figure", None) or options.results / "seed_figure.jpg", pictures)


def main() -> None:
    """Run as a command of its own."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--iterations", type=int, help="of Inverting Gradients; 60 unless told")
    arguments.add_argument("--figure", type=Path, default=RESULTS / "seed_figure.jpg")
    options = arguments.parse_args()
    note_absent_peer()
    records = records_of(options)
    records.publish(run(options, records))


if __name__ == "__main__":
    main()
