"""Run every shipped configuration on the sample photographs, and compare with what its head tells.

    python -m benchmarks.heads                      # all that take fewer than --limit minutes
    python -m benchmarks.heads --only april ldp_imagenet --fresh

A head tells the figure as ``32.8 dB, 14 of 16 recovered (sample photographs)``, time and memory.
Each command runs as it stands there, in an empty folder, so that no data set is found.  Exit code 1
if a figure is another by more than .1 dB, if a run fails, or if a head tells none.  Time and memory
are printed beside the head's, not judged.  Records are kept in benchmarks/results/heads.jsonl.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.records import RESULTS, ROOT, Records, environment
from lightning_recon.commands.configs import Head, heads

_CLAUSE = re.compile(
    r"([\d.]+) dB(?: [^(),;]*)?(?:, (?:(\d+) of (\d+) recovered)[^();]*)?\(sample photographs"
)
_ALLOWED = 0.1
"""Decibels by which a figure may be another: torch's versions move it by a few hundredths."""


_WITHOUT = "not on the sample photographs"
"""What a head tells whose data cannot be replaced by them."""


class Failed(Exception):  # noqa: N818
    """A run that gave no figure, with the reason."""


class Figure(NamedTuple):
    """What a run on the sample photographs gives."""

    psnr: float
    """Mean over all images, in dB."""
    recovered: int | None
    num_images: int | None

    def __str__(self) -> str:
        """Return the figure as heads tell it."""
        if self.recovered is None:
            return f"{self.psnr:.1f} dB"
        return f"{self.psnr:.1f} dB, {self.recovered} of {self.num_images} recovered"


def told(expected: str) -> Figure | None:
    """Return the figure for the sample photographs that a head tells; None if it tells none."""
    found = _CLAUSE.search(expected)
    if not found:
        return None
    counts = [None if one is None else int(one) for one in found.groups()[1:]]
    return Figure(float(found[1]), *counts)


def agree(told_figure: Figure, found: Figure) -> bool:
    """Return whether a run gives what its head tells; counts are compared where it tells them."""
    is_near = abs(told_figure.psnr - found.psnr) <= _ALLOWED
    return is_near and told_figure.recovered in (None, found.recovered)


def run(head: Head, limit: float) -> dict[str, Any]:
    """Run the command of a head in an empty folder.

    Args:
        head: of a configuration of attacks.
        limit: seconds after which it is stopped.

    Returns:
        ``seconds`` of the whole command, and ``psnr``, ``recovered``, ``num_images`` and
        ``memory`` in bytes.

    Raises:
        Failed: with the last line of a command that did not end well.
    """
    words = shlex.split(head.command)
    words[:2] = [sys.executable, str(ROOT / "cli.py")]
    words[words.index("--config") + 1] = str(ROOT / "configs" / f"{head.name}.yaml")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                words, cwd=folder, capture_output=True, text=True, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"not at its end after {limit / 60:g} minutes") from error
        seconds = time.monotonic() - started
        paths = list(Path(folder).rglob("results.json"))
        if done.returncode or not paths:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise Failed(lines[-1] if lines else f"exit code {done.returncode}")
        results = json.loads(paths[0].read_text())
    return {
        "seconds": seconds,
        "memory": results["peak_memory_bytes"],
        "psnr": results["metrics"]["psnr"]["mean"],
        "recovered": results["recovered"],
        "num_images": results["num_images"],
    }


def _line(head: Head, record: dict[str, Any]) -> tuple[str, bool]:
    """Return a line of the table, and whether the figure is the head's."""
    expected = told(head.expected)
    found = Figure(record["psnr"], record["recovered"], record["num_images"])
    is_well = expected is not None and agree(expected, found)
    mark = "" if is_well else " **(differs)**"
    took = f"{record['seconds']:.0f} s ({head.time})"
    memory = f"{record['memory'] / 1e9:.1f} GB ({head.memory})"
    return f"| {head.name} | {expected or 'none'} | {found}{mark} | {took} | {memory} |", is_well


def main() -> int:
    """Run, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", help="names, such as april")
    parser.add_argument("--leave-out", nargs="*", default=[], help="names")
    parser.add_argument("--limit", type=float, default=10.0, help="minutes a configuration")
    parser.add_argument("--fresh", action="store_true", help="throw the records away")
    options = parser.parse_args()
    records = Records(RESULTS / "heads.jsonl", options.fresh)
    chosen = [
        head
        for head in heads()
        if not head.name.startswith(("train_", "sweeps/", "recommend/"))  # other commands
        if (head.name in options.only if options.only else head.name not in options.leave_out)
    ]
    print("| config | its head | found | seconds | memory |\n| --- | --- | --- | --- | --- |")
    bad = 0
    for head in chosen:
        content = (ROOT / "configs" / f"{head.name}.yaml").read_text()
        body = "\n".join(line for line in content.splitlines() if not line.startswith("#"))
        threads = os.environ.get("OMP_NUM_THREADS", "all")
        digest = hashlib.sha256(body.encode()).hexdigest()[:12]
        key = f"{head.name} {digest} {environment()}, {threads} threads"
        try:
            record = records.get(key, lambda head=head: run(head, 60 * options.limit))
            line, is_well = _line(head, record)
        except Failed as failure:  # not kept
            line, is_well = f"| {head.name} | | {failure} | | |", _WITHOUT in head.expected
        print(line, flush=True)
        bad += not is_well
    print(f"\n{len(chosen) - bad} of {len(chosen)} as their heads tell")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
