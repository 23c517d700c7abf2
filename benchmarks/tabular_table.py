"""The table of docs/exact.md on rows of tables: linear algebra, TabLeak, and their controls.

    python -m benchmarks.tabular_table [--parts exact tableak] [--clients N] [--cache FILE]

The synthetic table, an untrained network of two hidden layers of 100, one gradient.  A line appears
as it is done; with ``--cache`` what is done is kept, and a run that was stopped goes on.
"Features" are the share that is right (TabLeak's count), with a 95 % interval over clients,
``rows`` those without a fault; ``mean row`` is right where the most frequent values and the means
are, ``noise`` what the same attack makes of noise of the update's size, ``other`` what is right of
another client's rows.  "Wrong" are certificates of rows of which a place is off by more than half a
level of 255.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from torch import Tensor

from benchmarks.malicious_table import noisy
from lightning_recon.attacks import ExactInversion, InvertingGradients, TabLeak
from lightning_recon.attacks.base import Attack
from lightning_recon.audit.guesses import shown
from lightning_recon.data import TabularDataModule
from lightning_recon.functional.tables import features_right
from lightning_recon.observation import HALF_LEVEL, Mark
from lightning_recon.targets import MLP

MAX_CLIENTS = 50
NUM_NULLS = 2  # clients of each line that are played with noise as well
Record = dict[str, float]


class Case(NamedTuple):
    """One line."""

    name: str
    batch_size: int
    clients: int
    make: Callable[[MLP], Attack]


def cases(parts: list[str]) -> Iterator[Case]:
    """Return the lines."""
    if "exact" in parts:
        for size, clients in ((8, 50), (16, 20), (32, 20), (48, 20), (64, 20)):
            yield Case("ExactInversion", size, clients, ExactInversion)
    if "tableak" in parts:
        for restarts in (1, 30):
            yield Case(
                f"TabLeak, {restarts} restart{'s' if restarts > 1 else ''}",
                8,
                10,
                lambda target, restarts=restarts: TabLeak(target, num_restarts=restarts),
            )
        yield Case("Inverting Gradients", 8, 10, InvertingGradients)


def measure(case: Case, client: int) -> Record:
    """Attack one client."""
    data = TabularDataModule(batch_size=case.batch_size, num_clients=MAX_CLIENTS, seed=0)
    attack = case.make(MLP(2, 11, (100, 100), in_channels=1, seed=client))
    public = data.public_images()
    attack.bind(data.spec, public)
    truth, mean_row = data.client(client).images, public.mean(0)
    other = data.client((client + 1) % MAX_CLIENTS).images
    seen = data.play(attack.federation, client)
    started = time.perf_counter()
    found = attack.reconstruct(seen)
    seconds = time.perf_counter() - started
    assert data.spec.columns is not None

    def right(images: Tensor, of: Tensor = truth) -> Tensor:
        assert data.spec.columns is not None
        return features_right(shown(images.float(), of, mean_row), of, data.spec.columns)

    certified = [mark == Mark.CERTIFIED for mark in found.marks or ()]
    off = found.images.flatten(1).double()[:, None] - truth.flatten(1).double()
    off = off.abs().amax(2).amin(1)
    record = {
        "features": float(right(found.images).float().mean()),
        "rows": float(right(found.images).all(1).float().mean()),
        "certified": float(sum(certified)),
        "wrong": float(sum(c and d > HALF_LEVEL for c, d in zip(certified, off, strict=True))),
        "mean row": float(
            features_right(mean_row.expand_as(truth), truth, data.spec.columns).float().mean()
        ),
        "other": float(right(found.images, other).float().mean()),
        "seconds": seconds,
    }
    if client < NUM_NULLS:
        record["noise"] = float(
            right(attack.reconstruct(noisy(seen, client)).images).float().mean()
        )
    return record


def report(case: Case, records: list[Record]) -> None:
    """Print one line."""

    def mean_of(name: str) -> float:
        return mean(one[name] for one in records if name in one)

    values = [one["features"] for one in records]
    error = 1.96 * stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    certified = sum(one["certified"] for one in records)
    cells = [case.name, str(case.batch_size), str(len(records))]
    cells += [f"{mean(values):.3f} ± {error:.3f}", f"{mean_of('rows'):.3f}"]
    cells += [f"{certified:.0f}", f"{sum(one['wrong'] for one in records):.0f}"]
    cells += [f"{mean_of(name):.3f}" for name in ("mean row", "noise", "other")]
    print("| " + " | ".join([*cells, f"{mean_of('seconds'):.1f}"]) + " |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = ("exact", "tableak")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--clients", type=int, default=MAX_CLIENTS, help="of a line, at the most")
    parser.add_argument("--only", default="", help="lines whose name holds this")
    parser.add_argument("--cache", type=Path, help="file that keeps what is done, a line a client")
    arguments = parser.parse_args()
    done: dict[str, Record] = {}
    if arguments.cache and arguments.cache.is_file():
        done = dict(json.loads(one) for one in arguments.cache.read_text().splitlines())
    heads = ("attack", "B", "clients", "features", "rows", "certified", "wrong")
    heads += ("mean row", "noise", "other", "seconds")
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads), flush=True)
    for case in cases(arguments.parts):
        if arguments.only not in case.name:
            continue
        records = []
        for client in range(min(case.clients, arguments.clients)):
            key = f"{case.name}/{case.batch_size}/{client}"
            if key not in done:
                done[key] = measure(case, client)
                if arguments.cache:
                    with arguments.cache.open("a") as file:
                        file.write(json.dumps([key, done[key]]) + "\n")
            records.append(done[key])
        report(case, records)


if __name__ == "__main__":
    main()
