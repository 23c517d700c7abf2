"""The tables of docs/exact.md on malicious servers, each beside its baseline and null controls.

    python -m benchmarks.malicious_table --root data/cifar10.npz [--parts loki fishing ...]

Rounds hold images of CIFAR-10's test set; what a server may know, its public images, are of the
training set.  A line appears as it is done; with ``--cache`` what is done is kept, and a run that
was stopped goes on.  "Exact" is every pixel within half a level.  Of the controls, ``noise`` is
what is found exactly where the server sees noise of the update's size, ``other`` what it finds of
images that no client of the round holds.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.malicious_rounds import (
    NUM_NULLS,
    Case,
    Images,
    Record,
    bound,
    count_exact,
    exact_record,
    matched,
    noisy,
)
from lightning_recon.attacks import (
    ExactInversion,
    Fishing,
    InvertingGradients,
    Loki,
    ModelInconsistency,
    RobbingTheFed,
    ScaleMIA,
    Seer,
)
from lightning_recon.attacks.base import Attack
from lightning_recon.attacks.features.linear_stack import run_features
from lightning_recon.audit.scores import exact_pairs
from lightning_recon.clients import Aggregate, Client, FedAvg, FedSGD
from lightning_recon.data.arrays import read_npz
from lightning_recon.functional.image_quality import psnr
from lightning_recon.observation import Mark, Observation
from lightning_recon.targets import MLP, LeNet, ROGLeNet, TutorialCNN
from lightning_recon.updates import PrivateBatch

SHARE = 8  # images of a client
NUM_PUBLIC = 1000
SEER_PUBLIC = 4000
SEER_FOUND = 0.1  # as FOUND, beside the distance from the mean public vector
FOUND = 1e-2  # relative error of a latent vector that counts as found


def local_steps() -> Client:
    """Return the protocol of several local steps."""
    return FedAvg(0.01, epochs=10, minibatch_size=4)  # of 8 images


def loki(data: Images) -> Iterator[Case]:
    """Return the lines of Loki and of Robbing the Fed."""

    def line(make: Callable[..., Attack], client: Client, clients: int) -> Callable[[int], Record]:
        def measure(seed: int) -> Record:
            size = clients * SHARE
            attack = make(TutorialCNN(10), client=Aggregate(client, clients))
            attack = bound(attack, size, data.public)
            return exact_record(attack, *data.drawn(seed, size), seed)

        return measure

    for protocol, client in (("one step", FedSGD()), ("20 local steps", local_steps())):
        # what served the baseline best on images of the training set
        best: Any = {} if protocol == "one step" else {"sparse": True, "gain": 100.0}
        for clients, rounds in ((2, 50), (10, 10), (100, 1)):
            name, rows = f"{protocol}, {clients} clients", 4 * SHARE
            yield Case(f"Loki, {rows} rows; {name}", rounds, line(Loki, client, clients))
            for scaling, gain in () if protocol == "one step" else ((1.0, 1.0), (10.0, 0.01)):
                make = partial(Loki, apart=False, scaling=scaling, gain=gain)
                yield Case(
                    f"Loki as published, scaling {scaling:.0f}; {name}",
                    rounds,
                    line(make, client, clients),
                )
            for wide in (rows, rows * clients):
                make = partial(RobbingTheFed, num_bins=wide, bins="empirical", **best)
                yield Case(
                    f"RobbingTheFed, {wide} rows; {name}", rounds, line(make, client, clients)
                )


def inconsistency(data: Images) -> Iterator[Case]:
    """Return the lines of model inconsistency and of an honest server."""

    def line(make: Any, clients: int) -> Callable[[int], Record]:
        def measure(seed: int) -> Record:
            batch, other = data.drawn(seed, clients * SHARE)
            target = MLP(10, 32, (1000,), first_std=0.5, seed=seed)
            attack = bound(make(target, Aggregate(FedSGD(), clients)), len(batch.images), other[:0])
            started = time.perf_counter()
            seen = attack.federation.play(batch, seed)
            found = attack.reconstruct(seen)
            seconds = time.perf_counter() - started
            noise = attack.reconstruct(noisy(seen, seed)) if seed < NUM_NULLS else None
            certified = [mark == Mark.CERTIFIED for mark in found.marks]
            right = exact_pairs(found.images.double(), batch.images.double()).any(1)
            return {
                "images": SHARE,
                "exact": count_exact(found.images, batch.images[:SHARE]),
                "wrong": int((torch.tensor(certified) & ~right).sum()) if certified else 0,
                "noise": sum(mark == Mark.CERTIFIED for mark in noise.marks) if noise else 0,
                "other": count_exact(found.images, other),
                "seconds": seconds,
            }

        return measure

    for clients, rounds in ((2, 50), (10, 20), (100, 5)):
        yield Case(
            f"ModelInconsistency, {clients} clients", rounds, line(ModelInconsistency, clients)
        )
        if clients < 100:
            yield Case(f"ExactInversion, {clients} clients", rounds, line(ExactInversion, clients))


def scale_mia(data: Images) -> Iterator[Case]:
    """Return the lines of Scale-MIA; what is learned of public images is learned once."""
    learned: dict[tuple[int, int], ScaleMIA] = {}

    def line(clients: int, share: int) -> Callable[[int], Record]:
        def measure(seed: int) -> Record:
            size = clients * share
            batch, other = data.drawn(seed, size)
            if (clients, share) not in learned:
                target = ROGLeNet(10, 32, num_features=512, bias=True)
                attack = ScaleMIA(target, Aggregate(FedSGD(), clients), decoder_steps=300)
                learned[clients, share] = bound(attack, size, data.public)
            attack = learned[clients, share]
            seen = attack.federation.play(batch, seed)
            started = time.perf_counter()
            found = attack.reconstruct(seen)
            seconds = time.perf_counter() - started
            with torch.no_grad():
                true = run_features(attack.target, attack.stack, batch.images)
            best = attack.decode(true)
            latent = attack.read_latent(seen)[0]
            error = torch.cdist(true, latent).amin(1) / true.norm(dim=1)
            mean = data.public.mean(0).expand_as(batch.images)
            noise = attack.reconstruct(noisy(seen, seed)).images
            return {
                "images": size,
                "exact": int((error < FOUND).sum()),
                "psnr": float(matched(found.images, batch.images, mean).sum()),
                "best": float(psnr(best, batch.images).sum()),
                "mean": float(psnr(mean, batch.images).sum()),
                "noise": float(matched(noise, batch.images, mean).sum()),
                "other": float(matched(found.images, other[:size], mean).sum()),
                "seconds": seconds,
            }

        return measure

    yield Case("ScaleMIA, 1 client of 64", 12, line(1, 64))
    for clients, rounds in ((2, 50), (10, 10), (50, 2)):
        yield Case(f"ScaleMIA, {clients} clients of {SHARE}", rounds, line(clients, SHARE))


def alike(attack: Fishing, one: Observation, other: Observation) -> float:
    """Return the cosine between two updates below the last layer."""
    parts = [
        torch.cat([part.flatten() for name, part in seen.update.items() if name not in attack.last])
        for seen in (one, other)
    ]
    return float(torch.nn.functional.cosine_similarity(*parts, dim=0))


def seer(data: Images, public: Tensor) -> Iterator[Case]:
    """Return the lines of SEER, and of Robbing the Fed's one bin on the same images."""
    learned: dict[tuple[int, int], Seer] = {}

    def trained(clients: int, share: int) -> Seer:
        if (clients, share) not in learned:
            target = ROGLeNet(10, 32, num_features=512, bias=True)
            attack = Seer(target, Aggregate(FedSGD(), clients))
            learned[clients, share] = bound(attack, clients * share, public)
        return learned[clients, share]

    def line(clients: int, share: int) -> Callable[[int], Record]:
        def measure(seed: int) -> Record:
            batch, other = data.drawn(seed, clients * share)
            attack = trained(clients, share)
            brightness = batch.images.mean((1, 2, 3))
            one = batch.images[brightness.argmax()][None]
            stranger = other[other.mean((1, 2, 3)).argmax()][None]
            seen = attack.federation.play(batch, seed)
            started = time.perf_counter()
            found = attack.reconstruct(seen).images
            seconds = time.perf_counter() - started
            with torch.no_grad():
                true, usual = (
                    run_features(attack.target, attack.stack, some)
                    for some in (one, public[:NUM_PUBLIC])
                )
            error = (attack.read_latent(seen) - true).norm() / (true - usual.mean(0)).norm()
            mean = public.mean(0)[None]
            noise = attack.reconstruct(noisy(seen, seed)).images
            return {
                "images": 1,
                "alone": int((brightness > attack.threshold).sum() == 1),
                "exact": int(len(found) > 0 and error < SEER_FOUND),
                "psnr": float(matched(found, one, mean)),
                "best": float(psnr(attack.decode(true), one)),
                "mean": float(psnr(mean, one)),
                "noise": float(matched(noise, one, mean)),
                "other": float(matched(found, stranger, mean)),
                "dsnr": largest_share(seen.payload, batch) if seed < NUM_NULLS else 0.0,
                "seconds": seconds,
            }

        return measure

    def bin_of_one(clients: int, share: int) -> Callable[[int], Record]:
        def measure(seed: int) -> Record:
            size = clients * share
            batch, other = data.drawn(seed, size)
            target = ROGLeNet(10, 32, num_features=512, bias=True)
            attack: Attack = RobbingTheFed(
                target, Aggregate(FedSGD(), clients), bins="empirical", one_shot=True
            )
            attack = bound(attack, size, public)
            record = exact_record(attack, batch, other, seed)
            dsnr = largest_share(attack.federation.payload, batch) if seed < NUM_NULLS else 0.0
            return record | {"images": 1, "dsnr": dsnr}

        return measure

    for clients, share in ((1, 8), (1, 32), (2, 8), (10, 8)):
        name = f"{clients} client{'s' * (clients > 1)} of {share}"
        yield Case(f"Seer, {name}", 50, line(clients, share))
        yield Case(f"RobbingTheFed, one bin, {name}", 50, bin_of_one(clients, share))


def largest_share(payload: torch.nn.Module, batch: PrivateBatch) -> float:
    """Return SEER's disaggregation signal-to-noise ratio, by which a client may tell an attack.

    The largest, over weights, of the largest norm of a sample's gradient over the sum of all
    others' norms (the paper's public code).
    """
    weights = [part for part in payload.parameters() if part.ndim > 1]
    norms = []
    for image, label in zip(batch.images, batch.labels, strict=True):
        with torch.enable_grad():
            for part in weights:
                part.requires_grad_()
            loss = torch.nn.functional.cross_entropy(payload(image[None]), label[None])
            parts = torch.autograd.grad(loss, weights)
        norms.append(torch.stack([part.norm() for part in parts]))
    for part in weights:
        part.requires_grad_(False)
    of_all = torch.stack(norms)
    most = of_all.amax(0)
    return float((most / (of_all.sum(0) - most).clamp_min(1e-6 * most.clamp_min(1e-30))).max())


def fishing(data: Images, iterations: int) -> Iterator[Case]:
    """Return the lines of fishing, and of Inverting Gradients on the same batches."""

    def line(fish: Any, size: int, *, inverts: bool) -> Callable[[int], Record]:
        def measure(seed: int) -> Record:
            batch, wanted, other = data.fished(seed, size, one_class=fish == "feature")
            attack = Fishing(
                LeNet(10, seed=seed), fish=fish, target_class=wanted, iterations=iterations
            )
            bound(attack, size, data.public)
            started = time.perf_counter()
            seen = attack.federation.play(batch, seed)
            doubt = -torch.expm1(
                seen.payload.double()(batch.images.double()).log_softmax(1)[:, wanted]
            ).float()
            weight = doubt.where(batch.labels == wanted, 1 - doubt).detach()
            seen.payload.float()
            record = {
                "images": 1,
                "share": float(weight.max() / weight.sum()),
                "exact": int(weight.max() / weight.sum() > 0.9),
            }
            place = int(weight.argmax())
            if not inverts:
                single = PrivateBatch(*(part[place : place + 1] for part in batch))
                alone, stranger = (attack.federation.play(held, seed) for held in (single, other))
                return record | {
                    "alike": alike(attack, seen, alone),
                    "noise": alike(attack, noisy(seen, seed), alone),
                    "other": alike(attack, seen, stranger),
                    "seconds": time.perf_counter() - started,
                }
            one = batch.images[place][None]
            found = attack.reconstruct(seen).images
            record |= {
                "psnr": float(psnr(found, one)),
                "other": float(psnr(found, other.images)),
                "mean": float(psnr(data.public.mean(0)[None], one)),
            }
            if seed < NUM_NULLS:
                noise = attack.reconstruct(noisy(seen, seed)).images
                record["noise"] = float(psnr(noise, one))
            return record | {"seconds": time.perf_counter() - started}

        return measure

    def honest(size: int) -> Callable[[int], Record]:
        def measure(seed: int) -> Record:
            batch, _, _ = data.fished(seed, size, one_class=False)
            attack = InvertingGradients(LeNet(10, seed=seed), iterations=iterations)
            bound(attack, size, data.public)
            started = time.perf_counter()
            found = attack.reconstruct(attack.federation.play(batch, seed)).images
            mean = data.public.mean(0).expand_as(batch.images)
            one = matched(found, batch.images, mean)[:1]
            return {
                "images": 1,
                "share": 1 / size,
                "exact": 0,
                "psnr": float(one),
                "mean": float(psnr(mean[:1], batch.images[:1])),
                "seconds": time.perf_counter() - started,
            }

        return measure

    for size in (16, 64):
        yield Case(f"class, {size} images", 50, line("class", size, inverts=False))
        yield Case(f"feature, {size} images of one class", 50, line("feature", size, inverts=False))
    steps = f"{iterations} iterations"
    for size in (16, 64):
        yield Case(f"class, of {size}, {steps}", 50, line("class", size, inverts=True))
    yield Case(f"InvertingGradients, of 16, {steps}", 10, honest(16))


HEADS = (
    "setting",
    "rounds",
    "images",
    "found",
    "noise",
    "other",
    "PSNR",
    "best",
    "mean",
    "seconds",
)
COUNTED = ("noise", "other")


def line(cells: tuple[str, ...]) -> None:
    """Print a line of the table at once."""
    print("| " + " | ".join(cells) + " |", flush=True)


def report(case: Case, found: list[Record]) -> None:
    """Print what came of the rounds of one case, with a 95 % interval over images."""
    total = {key: sum(one.get(key, 0.0) for one in found) for one in found for key in one}
    number = total["images"]
    share = total["exact"] / number
    error = 1.96 * (share * (1 - share) / number) ** 0.5

    def mean(key: str) -> str:
        if key not in total:
            return ""
        if key in COUNTED and not total.keys() & {"psnr", "share"}:
            return f"{total[key]:.0f}"
        return f"{total[key] / sum(one['images'] for one in found if key in one):.2f}"

    middle = f"{share:.3f} ± {error:.3f}"
    if "share" in total:
        shares = torch.tensor([one["share"] for one in found])
        middle = f"{middle} (median share {float(shares.median()):.3f})"
    if "alike" in total:
        cosines = torch.tensor([one["alike"] for one in found])
        middle = f"{middle}, median cosine {float(cosines.median()):.3f}"
    if "alone" in total:
        hits = sum(one["exact"] for one in found if one["alone"])
        middle = f"{middle} ({hits:.0f} of {total['alone']:.0f} rounds with one)"
    if "dsnr" in total:
        middle = f"{middle}, D-SNR {max(one['dsnr'] for one in found):.2g}"
    seconds = f"{total['seconds'] / len(found):.1f}"
    cells = (mean("noise"), mean("other"), mean("psnr"), mean("best"), mean("mean"), seconds)
    line((case.name, str(len(found)), f"{number:.0f}", middle, *cells))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help=".npz file of CIFAR-10")
    parts = ("loki", "inconsistency", "scale_mia", "seer", "fishing")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--only", default="", help="lines whose name holds this")
    parser.add_argument("--rounds", type=int, help="of a line, at the most")
    parser.add_argument("--iterations", type=int, default=1000, help="of fishing's inversion")
    parser.add_argument("--cache", type=Path, help="file that keeps what is done, a line a round")
    arguments = parser.parse_args()
    root = Path(arguments.root)
    images, labels = read_npz(root, "test")
    train = torch.from_numpy(read_npz(root, "train")[0][-SEER_PUBLIC:]).permute(0, 3, 1, 2)
    public = train.float() / 255
    data = Images(
        torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels), public[-NUM_PUBLIC:]
    )
    tables = {
        "loki": loki(data),
        "inconsistency": inconsistency(data),
        "scale_mia": scale_mia(data),
        "seer": seer(data, public),
        "fishing": fishing(data, arguments.iterations),
    }
    done: dict[str, Record] = {}
    if arguments.cache and arguments.cache.is_file():
        done = dict(json.loads(one) for one in arguments.cache.read_text().splitlines())
    for part in arguments.parts:
        line(HEADS)
        line(("---",) * len(HEADS))
        for case in tables[part]:
            if arguments.only not in case.name:
                continue
            found = []
            for number in range(min(case.rounds, arguments.rounds or case.rounds)):
                key = f"{part}/{case.name}/{number}"
                if key not in done:
                    done[key] = case.measure(number)
                    if arguments.cache:
                        with arguments.cache.open("a") as file:
                            file.write(json.dumps([key, done[key]]) + "\n")
                found.append(done[key])
            report(case, found)


if __name__ == "__main__":
    main()
