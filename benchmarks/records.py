"""What all parts share: arguments, data, records that survive a stop, and the table and figure."""

import argparse
import csv
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_recon.audit.matching import match
from lightning_recon.data import CIFAR10DataModule
from lightning_recon.functional.image_quality import psnr

RESULTS = Path(__file__).with_name("results")
ROOT = Path(__file__).parents[1]
COLUMNS = ("name", "ours", "peer", "ratio", "unit")


class Row(NamedTuple):
    """A line of results/latest.csv, and what was asked of it."""

    name: str
    """``part: what``."""
    ours: float | None
    peer: float | None = None
    ratio: float | None = None
    unit: str = ""
    asked: float | None = None
    """Of the ratio; of ours, where there is no ratio."""
    is_most: bool = False
    """Whether ``asked`` is the most that is allowed, and not the least."""
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the row is as asked; None where nothing was asked or measured."""
        value = self.ours if self.ratio is None else self.ratio
        if self.asked is None or value is None:
            return None
        return value <= self.asked if self.is_most else value >= self.asked

    def __str__(self) -> str:
        """Return the row as a line for people."""
        words = [f"{self.name}: {_number(self.ours) or 'nothing'}"]
        if self.peer is not None:
            words.append(f"against {_number(self.peer)}")
        words.append(self.unit)
        if self.ratio is not None:
            words.append(f"ratio {_number(self.ratio)}")
        if self.asked is not None:
            verdict = {True: "met", False: "MISSED", None: "not measured"}[self.is_met]
            least = "at most" if self.is_most else "at least"
            words.append(f"(asked {least} {_number(self.asked)}: {verdict})")
        return " ".join(word for word in [*words, self.note] if word)


class Records:
    """Measurements in a file of JSON lines; what stands there is not measured again.

    Args:
        path: of the file.
        is_fresh: whether what it holds is thrown away.
    """

    def __init__(self, path: Path, is_fresh: bool = False) -> None:
        self.path = path
        path.parent.mkdir(exist_ok=True, parents=True)
        if is_fresh:
            path.unlink(missing_ok=True)
        self._held: dict[str, Any] = {}
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        for line in lines:
            if line.endswith("\n"):  # a line cut off by the stop is measured again
                record = json.loads(line)
                self._held[record["key"]] = record["value"]
        if self._held:
            print(f"{len(self._held)} records in {path} are kept (--fresh: measure all again)")
        if lines and not lines[-1].endswith("\n"):
            path.write_text("".join(lines[:-1]))

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return the record of a key; it is measured, and written at once, if it is missing.

        Args:
            key: names the measurement and all that it depends on.
            measure: gives what JSON can hold.
        """
        if key not in self._held:
            self._put(key, measure())
        return self._held[key]

    def held(self, key: str) -> Any:
        """Return the record of a key; None if there is none."""
        return self._held.get(key)

    def _put(self, key: str, value: Any) -> None:
        self._held[key] = value
        with self.path.open("a") as file:
            file.write(json.dumps({"key": key, "value": value}) + "\n")

    def publish(self, rows: Iterable[Row]) -> None:
        """Print and keep rows as they come; then write latest.csv and latest.png of all kept."""
        for row in rows:
            print(row, flush=True)
            self._put(f"row {row.name}", row._asdict())
        held = [Row(**value) for key, value in self._held.items() if key.startswith("row ")]
        with (self.path.parent / "latest.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for row in held:
                numbers = (_number(number) for number in (row.ours, row.peer, row.ratio))
                writer.writerow([row.name, *numbers, row.unit])
        draw(self.path.parent / "latest.png", held)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Draw the ratios as bars, and a line across each where it was asked to be.

    Args:
        path: of the PNG.
        rows: those without a ratio are left out; without any, nothing is drawn.
    """
    shown = [row for row in rows if row.ratio is not None and row.ratio > 0][::-1]
    if not shown:
        return
    figure = Figure(figsize=(8, 0.6 + 0.27 * len(shown)), layout="constrained")
    plot = figure.add_subplot()
    colors = {True: "tab:blue", False: "tab:orange", None: "0.7"}
    # bars begin at a ratio of 1: what is better than the peer is on the right, times on the left
    for place, row in enumerate(shown):
        assert row.ratio is not None
        plot.barh(place, row.ratio - 1, left=1, color=colors[row.is_met], height=0.7)
        if row.asked is not None:
            plot.plot([row.asked, row.asked], [place - 0.45, place + 0.45], color="black", lw=2)
    plot.set_xscale("log")
    plot.axvline(1, color="0.4", lw=0.8)
    names = [row.name + (" (at most)" if row.is_most else "") for row in shown]
    plot.set_yticks(range(len(shown)), names, fontsize="small")
    plot.set_xlabel("ours / peer")
    words = "black line: asked; blue: as asked; orange: missed; grey: nothing asked"
    figure.supxlabel(words, fontsize="small")
    ticks = [0.05, 0.1, 0.2, 0.33, 0.5, 1, 2, 5, 10, 20, 50]
    low = min(min(row.ratio or 1, row.asked or 1) for row in shown)
    high = max(max(row.ratio or 1, row.asked or 1) for row in shown)
    plot.set_xlim(min(low, 0.9) * 0.85, max(high, 1.1) * 1.2)
    ticks = [tick for tick in ticks if min(low, 0.9) * 0.85 <= tick <= max(high, 1.1) * 1.2]
    plot.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    plot.minorticks_off()
    plot.set_ylim(-0.7, len(shown) - 0.3)
    plot.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)


def parser(doc: str) -> argparse.ArgumentParser:
    """Return the arguments that every part has."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="small sizes: all parts in ten minutes")
    made.add_argument("--fresh", action="store_true", help="throw the records away and begin anew")
    made.add_argument("--pairs", type=int, default=5, help="of which a timed ratio is the median")
    made.add_argument(
        "--cifar",
        default="data/cifar10",
        help="folder that holds cifar-10-batches-py, or .npz; without it, sample photographs",
    )
    made.add_argument("--root", default="data/imagenet", help="ImageNet, folders by WordNet id")
    made.add_argument("--masks", help="folder of subject masks, .png named like the images")
    made.add_argument("--results", type=Path, default=RESULTS, help="where records and table go")
    return made


def records_of(options: argparse.Namespace) -> Records:
    """Return the records that the arguments name; those of --quick stand by themselves."""
    name = "quick.jsonl" if options.quick else "full.jsonl"
    return Records(options.results / name, options.fresh)


Part = Callable[[argparse.Namespace, Records], Iterator[Row]]


def run_alone(doc: str | None, part: Part) -> None:
    """Run one part as a command of its own."""
    options = parser(doc or "").parse_args()
    note_absent_peer()
    records = records_of(options)
    records.publish(part(options, records))


def note_absent_peer() -> None:
    """Say so in one line if the peer is not installed."""
    from benchmarks.peer import is_installed

    if not is_installed():
        print(
            "breaching is not installed: pip install -r benchmarks/requirements.txt; its column "
            "stays empty",
            file=sys.stderr,
        )


def cifar(options: argparse.Namespace, **changes: Any) -> CIFAR10DataModule:
    """Return clients with CIFAR-10's test images; sample photographs where there are none.

    Args:
        options: for the path.
        changes: arguments of the data module.
    """
    is_there = Path(options.cifar).exists()
    root = options.cifar if is_there else None
    if not is_there and not getattr(options, "has_said", False):
        options.has_said = True
        print(f"no CIFAR-10 at {options.cifar}: sample photographs in its place", file=sys.stderr)
    data = CIFAR10DataModule(root=root, on_missing="samples", **changes)
    data.setup()
    return data


def paired(
    ours: Callable[[], float], peer: Callable[[], float] | None, pairs: int
) -> tuple[float, float | None, float | None]:
    """Return the medians of ours, of the peer's, and of the ratio, of pairs side by side."""
    mine, theirs = [], []
    for _ in range(pairs):
        mine.append(ours())
        if peer is not None:
            theirs.append(peer())
    if peer is None:
        return statistics.median(mine), None, None
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return statistics.median(mine), statistics.median(theirs), statistics.median(ratios)


def matched_psnr(found: Tensor, truth: Tensor, missing: Tensor) -> list[float]:
    """Return the PSNR of every true image, in dB, capped at 100.

    Args:
        found: R C H W.
        truth: B C H W.
        missing: C H W, what an image counts with that was not recovered.
    """
    row = match(found, truth).row
    shown = missing.expand_as(truth).clone()
    shown[row >= 0] = found[row[row >= 0]].clamp(0, 1)
    return [float(value) for value in psnr(shown, truth)]


def environment() -> str:
    """Return what timed figures depend on, for the keys of their records."""
    threads = torch.get_num_threads()
    return f"torch {torch.__version__}, {threads} of {os.cpu_count()} cores"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
