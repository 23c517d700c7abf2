"""Whether an audit's confidence is right: clients whose truth is known, audited without it.

Each client trains one of several networks on real images behind one of several defenses, and is
audited as a capture is (:mod:`lightning_recon.verdict`).  The fit sees CIFAR-10's training images
on networks of its own, in two parts, and says how it does on each network by a fit on the others;
the test has CIFAR-10's test images and ImageNet's, on networks that the fit never saw::

    python -m benchmarks.verdict clients --part fit --num 160
    python -m benchmarks.verdict clients --part wider --num 64
    python -m benchmarks.verdict fit
    python -m benchmarks.verdict clients --part test --num 500
    python -m benchmarks.verdict table --figure docs/verdict_reliability.png

``clients`` goes on where it was stopped; ``--share 0 2`` and ``--share 1 2`` are for two processes.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.verdict_networks import NETWORKS, SIDE
from lightning_recon.audit.statistics import bootstrap_interval
from lightning_recon.captures import Reply
from lightning_recon.clients import FedAvg
from lightning_recon.defenses import (
    QSGD,
    ClipL2,
    Defense,
    GaussianNoise,
    SignSGD,
    TopK,
    apply_chain,
)
from lightning_recon.defenses.base import bind_chain
from lightning_recon.randomness import make_generator
from lightning_recon.runs.captured import judge
from lightning_recon.targets import Target
from lightning_recon.updates import PrivateBatch
from lightning_recon.verdict import Auditor, Setting
from lightning_recon.verdict.confidence import SURE, confidence, terms

ROOT = Path(__file__).parents[1]
CALIBRATION = ROOT / "lightning_recon" / "verdict" / "calibration.json"
RESULTS = Path(__file__).with_name("results")
LEARNING_RATE = 0.01
NUM_PUBLIC = 256
PENALTY = 5e-5
"""On the squared weights of the regression."""


DEFENSES: dict[str, Callable[[float], list[Defense]]] = {
    "none": lambda norm: [],
    "small noise": lambda norm: [GaussianNoise(noise_std=2e-4 * norm)],
    "medium noise": lambda norm: [GaussianNoise(noise_std=2e-3 * norm)],
    "DP noise": lambda norm: [ClipL2(norm), GaussianNoise(noise_std=norm)],
    "QSGD": lambda norm: [QSGD(num_levels=16)],
    "top 10 %": lambda norm: [TopK(sparsity=0.9)],
    "signs": lambda norm: [SignSGD(scaled=True)],
}
"""By name, from the norm of the update before: noise in its units."""
HOPELESS = ("DP noise", "signs")
"""Behind which next to nothing comes back that a fit could learn of; the wider part has none."""
SIZES = (1, 1, 2, 4, 4)
STEPS = (1, 1, 1, 5)


def images_of(part: str, data: Path) -> list[tuple[str, Tensor]]:
    """Return the images of a part, by the name of the data set."""
    arrays = np.load(data / "cifar10-sample.npz")

    def cifar(name: str) -> Tensor:
        return torch.from_numpy(arrays[name]).permute(0, 3, 1, 2).float() / 255

    if part != "test":
        return [("CIFAR-10", cifar("x_train")[2000:])]
    from lightning_recon.data import ImageFolderDataModule

    folder = ImageFolderDataModule(
        root=str(data / "imagenet-sample"),
        image_size=SIDE,
        resize="stretch",
        batch_size=1,
        num_clients=1,
        num_public=300,
    )
    folder.setup()
    small = (folder.public_images() * 255).round() / 255
    return [("CIFAR-10", cifar("x_test")), ("ImageNet", small)]


def client_of(
    part: str, number: int, pools: Sequence[tuple[str, Tensor]]
) -> tuple[dict[str, Any], Target, Reply, Tensor]:
    """Return what a client is, its network, what it sent, and its images."""
    generator = make_generator(number, part, "verdict")

    def draw(size: int) -> int:
        return int(torch.randint(size, (1,), generator=generator))

    networks = NETWORKS[part]
    network = list(networks)[number % len(networks)]
    defenses = [name for name in DEFENSES if part != "wider" or name not in HOPELESS]
    defense = defenses[(number // len(networks)) % len(defenses)]
    size, steps = SIZES[draw(len(SIZES))], STEPS[draw(len(STEPS))]
    name, pool = pools[draw(len(pools))]
    images = pool[torch.randperm(len(pool), generator=generator)[:size]]
    labels = torch.randint(10, (size,), generator=generator)
    target = networks[network]().requires_grad_(True)
    client = FedAvg(LEARNING_RATE, epochs=steps, shuffle=False)
    batch = PrivateBatch(images, labels, torch.ones(size, 1, SIDE, SIDE).bool(), labels)
    update = client.run(target, batch, seed=number)[0]
    norm = sum(float(value.square().sum()) for value in update.values()) ** 0.5
    chain = DEFENSES[defense](norm)
    bind_chain(chain, None)
    sent = apply_chain(chain, update, generator=make_generator(number, part, "defense"))
    payload = {key: value.detach().clone() for key, value in target.state_dict().items()}
    returned = {
        key: payload[key] + sent[key].detach() if key in sent else payload[key] for key in payload
    }
    facts: Any = {"kind": "weights", "batch_size": size, "mods": None}
    if number % 2:
        facts |= {"learning_rate": LEARNING_RATE, "steps": steps}
    told = {"network": network, "defense": defense, "size": size, "steps": steps, "data": name}
    return told, target, Reply(1, str(number), returned, payload, facts), images


def run_clients(part: str, num: int, output: Path, data: Path, share: tuple[int, int]) -> None:
    """Audit clients, one line of JSON each."""
    pools = images_of(part, data)
    arrays = np.load(data / "cifar10-sample.npz")
    public = torch.from_numpy(arrays["x_train"][:NUM_PUBLIC]).permute(0, 3, 1, 2).float() / 255
    done = set()
    if output.exists():
        done = {json.loads(line)["number"] for line in output.read_text().splitlines()}
    output.parent.mkdir(parents=True, exist_ok=True)
    auditors: dict[str, Auditor] = {}
    for number in range(share[0], num, share[1]):
        if number in done:
            continue
        told, target, reply, images = client_of(part, number, pools)
        network = told["network"]
        if network not in auditors:
            auditors[network] = Auditor(target, 10, Setting((3, SIDE, SIDE), public))
        started = time.monotonic()
        audit = auditors[network].audit(reply)
        judged = judge(audit, images, public.mean(0))
        line = {
            "number": number,
            **told,
            "verdict": audit.verdict,
            "right": judged.right,
            "psnr": [round(value, 2) for value in judged.psnr],
            "pictures": [
                {
                    "attack": picture.attack,
                    "confidence": picture.confidence,
                    "right": is_right,
                    "features": picture.features,
                }
                for picture, is_right in zip(audit.pictures, judged.picture_right, strict=True)
            ],
            "attacks": audit.attacks,
            "seconds": round(time.monotonic() - started, 1),
        }
        with output.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(number, told, audit.verdict, line["psnr"], line["seconds"], flush=True)


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the clients of some files."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def fit(paths: Sequence[Path]) -> None:
    """Fit the confidence, and write it into the package; show it on networks that are left out."""
    pictures = [
        (client["network"], picture)
        for client in read(paths)
        for picture in client["pictures"]
        if client["network"] not in NETWORKS["test"] and not _is_certified(picture)
    ]
    names = list(terms(pictures[0][1]["features"]))
    inputs = torch.tensor(
        [list(terms(picture["features"]).values()) for _, picture in pictures], dtype=torch.float64
    )
    right = torch.tensor([picture["right"] for _, picture in pictures], dtype=torch.float64)
    networks = np.array([network for network, _ in pictures])
    chance = torch.zeros_like(right)
    for network in dict.fromkeys(networks):
        out = torch.from_numpy(networks == network)
        weights, offset = _regression(inputs[~out], right[~out])
        chance[out] = torch.sigmoid(inputs[out] @ weights + offset)
    sure = chance >= SURE
    print(f"each network by a fit on the {len(set(networks)) - 1} others: ", end="")
    print(f"right of those called sure {right[sure].mean():.3f}, ", end="")
    print(f"called sure of those right {sure[right == 1].double().mean():.3f}, ", end="")
    print(f"Brier score {(chance - right).square().mean():.3f}")
    weights, offset = _regression(inputs, right)
    content = {
        "command": "python -m benchmarks.verdict fit",
        "offset": round(float(offset), 4),
        "weights": {
            name: round(float(weight), 4) for name, weight in zip(names, weights, strict=True)
        },
        "num_images": len(pictures),
    }
    CALIBRATION.write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps(content, indent=2))


def _regression(inputs: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights and offset of a logistic regression, regularised."""
    weights = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    offset = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, offset], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(inputs @ weights + offset, right)
        value = value + PENALTY * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach(), offset.detach()


def table(paths: Sequence[Path], figure: Path | None) -> None:
    """Print how right the confidence is, with intervals by client; all clients counted."""
    clients = read(paths)
    images = sum(len(client["right"]) for client in clients)
    pictures = [(client["number"], one) for client in clients for one in client["pictures"]]
    chance = np.array([_chance(one) for _, one in pictures])
    truth = np.array([float(one["right"]) for _, one in pictures])
    who = np.array([number for number, _ in pictures])
    sure = chance >= SURE
    is_right = truth == 1

    def shown(values: Any, owners: Any) -> str:
        if not len(values):
            return "none"
        low, high = bootstrap_interval(values, owners)[:2]
        return f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}]"

    print(f"{len(clients)} clients, {images} images, {len(truth)} returned, {sum(is_right)} right")
    proven = np.array([_is_certified(one) for _, one in pictures])
    print(f"certified: {proven.sum()}, of them right {int(truth[proven].sum())}")
    print(f"right of those called sure: {shown(truth[sure], who[sure])}, of {sure.sum()}")
    print(f"called sure of those right: {shown(sure[is_right].astype(float), who[is_right])}")
    print(f"Brier score: {shown((chance - truth) ** 2, who)}")
    for key in ("network", "defense", "data"):
        heads = [key, "clients", "leaked", "images right", "called sure", "sure and right"]
        print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
        for value in dict.fromkeys(client[key] for client in clients):
            print("| " + " | ".join([value, *_row([c for c in clients if c[key] == value])]) + " |")
    if figure is not None:
        _draw(chance, truth, who, figure)


def _row(clients: Sequence[dict[str, Any]]) -> list[str]:
    """Return the counts of some clients."""
    leaked = sum(any(_is_sure(one) for one in client["pictures"]) for client in clients)
    images = [is_right for client in clients for is_right in client["right"]]
    certain = [one["right"] for client in clients for one in client["pictures"] if _is_sure(one)]
    counts = f"{sum(images)} of {len(images)}"
    return [str(len(clients)), str(leaked), counts, str(len(certain)), str(sum(certain))]


def _chance(picture: dict[str, Any]) -> float:
    """Return the confidence of the fit as it is now, or that of a certificate."""
    return (
        float(picture["confidence"]) if _is_certified(picture) else confidence(picture["features"])
    )


def _is_certified(picture: dict[str, Any]) -> bool:
    return "p_value" in picture["features"]


def _is_sure(picture: dict[str, Any]) -> bool:
    return _chance(picture) >= SURE


def _draw(chance: Any, truth: Any, who: Any, path: Path) -> None:
    """Draw the reliability diagram."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    edges = np.array([0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0])
    canvas, (upper, lower) = plt.subplots(
        2, 1, figsize=(5, 6), height_ratios=[3, 1], sharex=True, layout="constrained"
    )
    upper.plot([0, 1], [0, 1], color="grey", linestyle="--", label="calibrated")
    for low, high in itertools.pairwise(edges):
        here = (chance >= low) & ((chance < high) | (high == 1))
        if not here.any():
            continue
        mean = truth[here].mean()
        below, above = bootstrap_interval(truth[here], who[here])[:2]
        upper.errorbar(
            chance[here].mean(),
            mean,
            [[max(mean - below, 0)], [max(above - mean, 0)]],
            fmt="o",
            color="tab:blue",
            capsize=3,
        )
    upper.set_ylabel("share that is right")
    upper.legend()
    lower.hist(chance, bins=20, range=(0, 1), color="tab:blue")
    lower.set_yscale("log")
    lower.set_xlabel("confidence")
    lower.set_ylabel("images")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=120)


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    clients = commands.add_parser("clients")
    clients.add_argument("--part", choices=list(NETWORKS), required=True)
    clients.add_argument("--num", type=int, default=500)
    clients.add_argument("--output", type=Path)
    clients.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    clients.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("FIRST", "OF"))
    for name in ("fit", "table"):
        one = commands.add_parser(name)
        parts = ("fit", "wider") if name == "fit" else ("test",)
        files = [RESULTS / f"verdict_{part}.jsonl" for part in parts]
        one.add_argument("files", type=Path, nargs="*", default=files)
        one.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "clients":
        output = options.output or RESULTS / f"verdict_{options.part}.jsonl"
        run_clients(options.part, options.num, output, options.data, options.share)
    elif options.command == "fit":
        fit(options.files)
    else:
        table(options.files, options.figure)


if __name__ == "__main__":
    main()
