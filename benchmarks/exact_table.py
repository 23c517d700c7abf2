"""The tables of docs/exact.md: what is certified, how much of it is wrong, and the null controls.

    python -m benchmarks.exact_table --root data/cifar10.npz [--parts peeling soliton ...]

Clients hold images of CIFAR-10's training set, each its own network 3072-1000-ReLU-10 whose first
layer has weights N(0, .5^2).  A line appears as it is done; with ``--cache`` what is done is kept,
and a run that was stopped goes on.  "Exact" is every pixel within half a level, by the truth;
"wrong" are certified images that are none of the client's.  Of the controls, one is a client that
sent noise of its update's size, the other a client with other images, to whose truth the certified
are compared.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import beta
from torch import Tensor, nn

from lightning_recon.attacks import ExactInversion, LinearLayerInversion, SolitonBiases
from lightning_recon.attacks.base import Attack
from lightning_recon.audit.scores import exact_pairs
from lightning_recon.clients import Client, FedAvg, FedSGD
from lightning_recon.data.arrays import read_npz
from lightning_recon.defenses import QSGD, ClipL2, Defense, GaussianNoise, TopK
from lightning_recon.errors import InputError
from lightning_recon.observation import Mark
from lightning_recon.randomness import make_generator
from lightning_recon.targets import MLP, ModuleTarget, Target
from lightning_recon.updates import DataSpec, PrivateBatch

SHAPE = (3, 32, 32)
NUM_PUBLIC = 2000  # the last images of the set; clients hold others
HEADS = ("setting", "B", "clients", "certified", "wrong", "exact", "noise", "other", "seconds")
NUM_NULLS = 2  # clients of each line that send noise as well
Make = Callable[..., Attack]


class Case(NamedTuple):
    """One line."""

    name: str
    size: int
    make: Make = ExactInversion
    target: Callable[[int], Target] = lambda seed: MLP(10, 32, (1000,), first_std=0.5, seed=seed)
    dtype: torch.dtype = torch.float32
    client: Callable[[], Client] = FedSGD
    defenses: Callable[[], Sequence[Defense]] = tuple
    change: Callable[[PrivateBatch], PrivateBatch] = lambda batch: batch


class Sample(NamedTuple):
    """CIFAR-10."""

    images: Tensor
    """N C H W, uint8."""
    labels: Tensor

    def batch(self, seed: int, size: int, *, other: bool = False) -> PrivateBatch:
        """Return a client's images, or as many that it does not hold."""
        generator = make_generator(seed, "exact table")
        order = torch.randperm(len(self.images) - NUM_PUBLIC, generator=generator)
        places = order[size : 2 * size] if other else order[:size]
        images = self.images[places].float() / 255
        masks = torch.ones(size, 1, *SHAPE[1:], dtype=torch.bool)
        return PrivateBatch(images, self.labels[places], masks, places)

    @property
    def public(self) -> Tensor:
        """Images of the server."""
        return self.images[-NUM_PUBLIC:].float() / 255


def usual(seed: int) -> Target:
    """Return the network with PyTorch's weights."""
    return MLP(10, 32, (1000,), seed=seed)


def trained(seed: int, sample: Sample, kind: Callable[[int], Target] = usual) -> Target:
    """Return a network after five epochs on public images."""
    model = kind(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    images, labels = sample.public, sample.labels[-NUM_PUBLIC:]
    for _ in range(5):
        order = torch.randperm(len(images), generator=make_generator(seed, "trained"))
        for places in order.split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[places]), labels[places]).backward()
            optimizer.step()
    return model


def gelu(seed: int) -> Target:
    """Return the usual network with a GELU in place of the ReLU."""
    model = MLP(10, 32, (1000,), first_std=0.5, seed=seed)
    model.layers[2] = nn.GELU()
    return model


def cases(sample: Sample) -> dict[str, list[Case]]:
    """Return the lines of each table."""
    sizes = (64, 128, 256, 300)
    wide = partial(MLP, 10, 32, first_std=0.5)
    raw = partial(ExactInversion, snap=False)
    alone = partial(ExactInversion, sparsity=False, independence=False)
    return {
        "peeling": [
            Case(f"peeling, float{bits}", size, alone, dtype=getattr(torch, f"float{bits}"))
            for bits in (32, 64) for size in sizes
        ] + [Case("peeling and gates", size) for size in sizes[2:]]
        + [Case("not set to levels, float32", size, raw) for size in sizes[:2]]
        + [Case("LinearLayerInversion", size, LinearLayerInversion) for size in sizes],
        "soliton": [Case("soliton", size, SolitonBiases) for size in sizes]
        + [
            Case("soliton, public images", size, partial(SolitonBiases, uses_public=True))
            for size in sizes
        ],
        "networks": [
            Case("usual weights, ReLU", 16, target=usual),
            Case("trained, ReLU", 16, target=lambda seed: trained(seed, sample)),
            Case("two hidden layers", 64, target=lambda seed: wide((1000, 100), seed=seed)),
            Case("GELU", 16, target=gelu),
            Case("Sigmoid", 16, target=lambda seed: wide((1000,), "sigmoid", seed=seed)),
            Case("GELU, pixels normalised", 16, target=lambda seed: centred(seed, kind=nn.GELU)),
            Case("GELU, pixels normalised", 64, target=lambda seed: centred(seed, kind=nn.GELU)),
            Case("no bias", 16, target=without_bias),
            Case("one label", 64, change=lambda batch: batch._replace(labels=0 * batch.labels)),
            Case("every image twice", 64, change=twice),
            Case("pixels without levels", 16, change=without_levels),
            Case("the same, not set to levels", 16, raw, change=without_levels),
        ],
        "sparsity": [
            Case("rows alone", 24, partial(ExactInversion, sparsity=False), centred),
            *(Case("gates", size, target=centred)
              for size in (16, 20, 24, 25, 65, 100, 128, 150, 200, 250)),
            *(Case("gates, trained", size, target=lambda seed: trained(seed, sample, centred))
              for size in (24, 65, 128)),
            *(Case("sparsity, two hidden layers", size, target=deep)
              for size in (16, 20, 24, 25, 32)),
        ],
        "channels": [
            Case("clipped to norm 1", 64, defenses=lambda: [ClipL2(1.0)]),
            Case("FedAvg, one step", 64, client=lambda: FedAvg(0.01)),
            Case("FedAvg, 5 epochs, lr 1e-3", 64, client=lambda: FedAvg(1e-3, epochs=5)),
            Case("FedAvg, minibatches of 8", 64, client=lambda: FedAvg(1e-3, minibatch_size=8)),
            *(
                Case(f"Gaussian noise {std:g}", 16, defenses=lambda std=std: [GaussianNoise(std)])
                for std in (1e-8, 1e-7, 1e-6, 1e-4)
            ),
            Case("QSGD, 16 levels", 16, defenses=lambda: [QSGD()]),
            Case("top 50 %", 16, defenses=lambda: [TopK(0.5)]),
        ],
    }  # fmt: skip


def centred(
    seed: int, hidden: Sequence[int] = (1000,), kind: Callable[[], nn.Module] = nn.ReLU
) -> Target:
    """Return the usual network behind pixels that are normalised, as most networks read them."""

    def layers() -> nn.Module:
        made: list[nn.Module] = [nn.Flatten()]
        for width, length in zip((3072, *hidden), hidden, strict=False):
            made += [nn.Linear(width, length), kind()]
        return nn.Sequential(*made, nn.Linear(hidden[-1], 10))

    return ModuleTarget(layers, 10, mean=0.47, std=0.25, seed=seed)


def without_bias(seed: int) -> Target:
    """Return the network of PyTorch's weights whose first layer has no bias."""

    def layers() -> nn.Module:
        first = nn.Linear(3072, 1000, bias=False)
        return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(1000, 10))

    return ModuleTarget(layers, 10, seed=seed)


def deep(seed: int) -> Target:
    """Return one with two hidden layers, which is not linear behind the first ReLUs."""
    return centred(seed, (1000, 100))


def twice(batch: PrivateBatch) -> PrivateBatch:
    """Return a batch whose second half is its first."""
    return PrivateBatch(*(torch.cat([part[: len(part) // 2]] * 2) for part in batch))


def without_levels(batch: PrivateBatch) -> PrivateBatch:
    """Return a batch of images that no 8 bits hold."""
    return batch._replace(images=batch.images**1.1)


def measure(case: Case, sample: Sample, seed: int, *, with_null: bool) -> dict[str, Any]:
    """Return what comes of one client."""
    batch = case.change(sample.batch(seed, case.size))
    batch = batch._replace(images=batch.images.to(case.dtype))
    target = case.target(seed).to(case.dtype)
    attack = case.make(target, client=case.client(), defenses=case.defenses(), seed=seed)
    attack.bind(DataSpec(SHAPE, 10, case.size), sample.public)
    started = time.perf_counter()
    try:
        found = attack.reconstruct(attack.federation.play(batch, seed))
    except InputError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - started
    other = sample.batch(seed, case.size, other=True).images.to(case.dtype)
    certified = [mark == Mark.CERTIFIED for mark in found.marks or ()]
    pairs = exact_pairs(found.images.double(), batch.images.double())
    proven = pairs[torch.tensor(certified, dtype=torch.bool)] if certified else pairs[:0]
    foreign = exact_pairs(found.images[: len(proven)].double(), other.double())
    return {
        "images": case.size,
        "certified": len(proven),
        "covered": int(proven.any(0).sum()),
        "wrong": int((~proven.any(1)).sum()),
        "exact": int(pairs.any(0).sum()),
        "null": noise_client(attack, batch, seed) if with_null else 0,
        "nulls": int(with_null),
        "foreign": int(foreign.any(1).sum()),
        "seconds": seconds,
    }


def noise_client(attack: Attack, batch: PrivateBatch, seed: int) -> int:
    """Return how many images are certified of a client that sent noise of its update's size."""
    sent = attack.federation.play(batch, seed)
    generator = make_generator(seed, "null client")
    noise = {
        name: part.std() * torch.randn(part.shape, generator=generator).to(part)
        for name, part in sent.update.items()
    }
    found = attack.reconstruct(sent._replace(update=noise))
    return sum(mark == Mark.CERTIFIED for mark in found.marks or ())


def wanted(lines: list[Case], sizes: list[int] | None, name: str) -> list[Case]:
    """Return the lines of some sizes whose name holds what was asked for."""
    return [case for case in lines if name in case.name and (not sizes or case.size in sizes)]


def line(cells: Sequence[str]) -> None:
    """Print a line of the table at once."""
    print("| " + " | ".join(cells) + " |", flush=True)


def upper_limit(wrong: int, total: int) -> float:
    """Return the upper end of the one-sided 95 % interval of a share (Clopper and Pearson)."""
    return float(beta.ppf(0.95, wrong + 1, total - wrong)) if total > wrong else 1.0


def report(case: Case, found: list[dict[str, Any]]) -> None:
    """Print what came of the clients of one case."""
    if refused := [one["refused"] for one in found if "refused" in one]:
        line([case.name, str(case.size), str(len(found)), f"refused: {refused[0]}"])
        return
    total = {key: sum(one[key] for one in found) for key in found[0]}
    spread = torch.tensor([one["exact"] / one["images"] for one in found]).double()
    error = float(spread.std() / len(found) ** 0.5) if len(found) > 1 else float("nan")
    line(
        [
            case.name,
            str(case.size),
            str(len(found)),
            f"{total['covered'] / total['images']:.3f}",
            f"{total['wrong']} of {total['certified']}",
            f"{total['exact'] / total['images']:.3f} ± {error:.3f}",
            f"{total['null']} ({total['nulls']})",
            str(total["foreign"]),
            f"{total['seconds'] / len(found):.1f}",
        ]
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help=".npz file of CIFAR-10 with x_train, y_train")
    parts = ("peeling", "soliton", "networks", "sparsity", "channels", "count")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--sizes", type=int, nargs="+", help="batch sizes; default: all")
    parser.add_argument("--only", default="", help="lines whose name holds this")
    parser.add_argument("--count", type=int, default=3000, help="certified images of part count")
    parser.add_argument("--cache", type=Path, help="file that keeps what is done, a line a client")
    arguments = parser.parse_args()
    images, labels = read_npz(Path(arguments.root), "train")
    sample = Sample(torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels))
    done: dict[str, Any] = {}
    if arguments.cache and arguments.cache.is_file():
        lines = arguments.cache.read_text().splitlines()
        done = dict(json.loads(one) for one in lines)

    def once(part: str, case: Case, number: int) -> dict[str, Any]:
        seed = 10 + number if part != "count" else 1000 + number

        key = f"{part}/{case.name}/{case.size}/{seed}"
        if key not in done:
            done[key] = measure(case, sample, seed, with_null=number < NUM_NULLS)
            if arguments.cache:
                with arguments.cache.open("a") as file:
                    file.write(json.dumps([key, done[key]]) + "\n")
        return done[key]

    tables = cases(sample)
    everything: list[dict[str, Any]] = []
    for part in arguments.parts:
        line(HEADS)
        line(["---"] * len(HEADS))
        if part == "count":
            case, found = Case("one client after the other", 64), []
            while sum(one["certified"] for one in found) < arguments.count:
                found.append(once(part, case, len(found)))
            report(case, found)
            everything += found
            continue
        for case in wanted(tables[part], arguments.sizes, arguments.only):
            found = [once(part, case, number) for number in range(arguments.clients)]
            report(case, found)
            everything += found
    wrong, total = (sum(one.get(key, 0) for one in everything) for key in ("wrong", "certified"))
    limit = upper_limit(wrong, total)
    print(f"\nwrong: {wrong} of {total} certified, one-sided upper 95 % limit {limit:.2g}")


if __name__ == "__main__":
    main()
