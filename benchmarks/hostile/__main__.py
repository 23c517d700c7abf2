"""Counts what hostile and careless input does, and writes the counts into docs/reliability.md.

    python -m benchmarks.hostile [--configs 2000] [--parts numbers configs ...] [--output FILE]

A case runs, or is refused in one line; a fault is anything else: a traceback, code that ran, a
change that nobody noticed.  Seeded, in one process, half an hour on a quiet core; --configs 100
takes a few minutes.
"""

import argparse
import collections
import contextlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.hostile import inputs, mutations, numbers
from benchmarks.hostile.numbers import CLASSES, SIZE, Outcome, attempt_call, limited
from lightning_recon.audit.records import Origin, configuration_hash, read_records
from lightning_recon.captures import Capture, CaptureWriter
from lightning_recon.captures.loading import load_arrays, load_torch
from lightning_recon.commands.early import check_early
from lightning_recon.commands.lightning import main as run
from lightning_recon.data import CapturedUpdatesDataModule, ImageFolderDataModule
from lightning_recon.documents import read_text
from lightning_recon.files import write_atomically
from lightning_recon.priors import FFDNet
from lightning_recon.refiners import SuperResolution
from lightning_recon.report import write_report
from lightning_recon.targets import LeNet

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests/conf/ldp_tiny.yaml"
BEGIN, END = "<!-- hostile: begin -->", "<!-- hostile: end -->"
Cases = Iterator[tuple[str, Outcome]]


def tried(do: Callable[[], object]) -> Outcome:
    """Return what came of something that may be refused."""
    with limited():
        outcome = attempt_call(do)
    return Outcome("fault", "code ran") if Path(inputs.MARK).exists() else outcome


def number_cases(folder: Path, options: argparse.Namespace) -> Cases:
    """Try every number of every listed class at eight values."""
    numbers.prepare(folder)
    for case in numbers.cases(folder):
        yield case.name, numbers.attempt(case.config, plays=False)


def config_cases(folder: Path, options: argparse.Namespace) -> Cases:
    """Try configurations in which one thing was changed."""
    for case in mutations.mutated(ROOT / "configs", options.seed, options.configs):
        yield case.name, numbers.attempt(case.config, plays=False)


def yaml_cases(folder: Path, options: argparse.Namespace) -> Cases:
    """Try YAML that no configuration is."""
    for name, text in inputs.yamls():
        path = folder / "given.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        words = ["test", "--config", str(path)]
        yield name, tried(lambda words=words: _command(words))


def _command(words: list[str]) -> None:
    """Run a command as cli.py does; what it prints of bad input is one line."""
    check_early(words)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = run(words)
    lines = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    if code and len(lines) == 1:
        from lightning_recon.errors import InputError

        raise InputError(lines[0])


def picture_cases(folder: Path, options: argparse.Namespace) -> Cases:
    """Try pictures that are none, or that say too much of themselves."""
    for place, (name, content) in enumerate(inputs.pictures(options.seed)):
        root = folder / f"pictures{place}"
        inputs.save_picture(root / "a.png", content)
        settings = {"batch_size": 5, "num_clients": 1, "image_size": SIZE, "num_public": 0}
        data = ImageFolderDataModule(root=str(root), resize="crop", **settings)
        yield name, tried(lambda data=data: data.client(0))


def pickle_cases(folder: Path, options: argparse.Namespace) -> Cases:
    """Try pickles wherever a file of tensors is read."""
    for name, path in inputs.pickles(folder):
        only = folder / f"only_{name}"
        only.mkdir()
        shutil.copy(path, only / "one.pt")
        doors: dict[str, Callable[[], object]] = {
            "torch": lambda path=path: load_torch(path),
            "arrays": lambda path=path: load_arrays(path),
            "captured": lambda only=only: CapturedUpdatesDataModule(str(only)).setup(),
            "weights": lambda path=path: LeNet(CLASSES, SIZE, weights=str(path)),
            "denoiser": lambda path=path: FFDNet(str(path)),
            "refiner": lambda path=path: SuperResolution(weights=str(path)),
            "checkpoint": lambda path=path: _command(
                [
                    "fit",
                    "--config",
                    str(ROOT / "tests/conf/ldp_tiny.yaml"),
                    "--ckpt_path",
                    str(path),
                ]
            ),
        }
        for door, do in doors.items():
            outcome = tried(do)
            if outcome.kind == "ran":
                outcome = Outcome("fault", "was read")
            yield f"{name} as {door}", outcome


def record_cases(folder: Path, options: argparse.Namespace) -> Cases:
    """Change the files of a run: reading it again must notice, but for a line that breaks off."""
    run(["test", "--config", str(TINY)])
    whole = folder / "lightning_logs/version_0"
    files = ["results.json", "clients.csv", "records/process0000.jsonl"]
    for file in files:
        content = (whole / file).read_bytes()
        for number, damaged in enumerate(inputs.flipped(content, options.seed, options.flips)):
            if not damaged.endswith(b"\n"):
                continue  # a line that breaks off was being written
            changed = folder / "changed"
            shutil.rmtree(changed, ignore_errors=True)
            shutil.copytree(whole, changed, ignore=shutil.ignore_patterns("checkpoints", "*.png"))
            (changed / file).write_bytes(damaged)
            outcome = tried(lambda changed=changed: write_report(changed))
            yield f"{file}, bit {number}", _noticed(outcome)
            if file.startswith("records"):
                yield (
                    f"{file}, bit {number}, resumed",
                    _noticed(tried(lambda changed=changed: _resume(changed))),
                )


def _resume(folder: Path) -> None:
    text = read_text(folder / "config.yaml")
    read_records(folder, Origin(configuration_hash(text)), 100)


def _noticed(outcome: Outcome) -> Outcome:
    return Outcome("fault", "nobody noticed") if outcome.kind == "ran" else outcome


def capture_cases(folder: Path, options: argparse.Namespace) -> Cases:
    """Damage what a federation sent: it is refused, or what is read is of the format."""
    model = LeNet(CLASSES, SIZE)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    writer = CaptureWriter(folder / "capture", "test")
    payload = writer.add_payload(state)
    writer.add_reply(1, "a", state, "weights", payload, batch_size=2, steps=1)
    whole = folder / "capture"
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        for number, damaged in enumerate(
            inputs.flipped(path.read_bytes(), options.seed, options.flips // 2)
        ):
            # a folder for each, since payloads that were read are remembered by their path
            changed = folder / f"{path.name} {number}"
            shutil.copytree(whole, changed)
            (changed / path.relative_to(whole)).write_bytes(damaged)
            outcome = tried(lambda changed=changed: _read(changed))
            has_checksum = path.suffix == ".safetensors"
            outcome = _noticed(outcome) if has_checksum else outcome
            yield f"{path.name[-20:]}, bit {number}", outcome


def _read(folder: Path) -> None:
    capture = Capture(folder)
    for path in capture.files:
        capture.read(path)


PARTS = {
    "numbers": (number_cases, "every number of every listed class at -1, 0, 2^31, 2^63, NaN, "
                              "infinity, a text and null: parsed, constructed, bound"),
    "configs": (config_cases, "configurations of `configs/` with one thing changed"),
    "yaml": (yaml_cases, "YAML that no configuration is: nested, anchored, tagged, not UTF-8"),
    "pictures": (picture_cases, "pictures that are none, or that say too much of themselves"),
    "pickles": (pickle_cases, "pickles that would run a command, at every door for tensors"),
    "records": (record_cases, "a bit of `results.json`, `clients.csv` or a record flipped: report "
                              "and resume notice"),
    "captures": (capture_cases, "a bit of a capture flipped"),
}  # fmt: skip


def main() -> None:
    """Run the parts, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--configs", type=int, default=2000)
    parser.add_argument("--flips", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/reliability.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started, home = time.monotonic(), Path.cwd()
    for name in options.parts:
        cases, what = PARTS[name]
        tally: collections.Counter[str] = collections.Counter()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # nothing of a case is left
            try:
                for case, outcome in cases(Path(folder), options):
                    tally[outcome.kind] += 1
                    if outcome.kind == "fault":
                        print(f"{name}: {case}: {outcome.text}", flush=True)
            finally:
                os.chdir(home)
        counts = " | ".join(f"{tally[kind]:,}" for kind in ("ran", "refused", "fault"))
        row = f"| {what} | {tally.total():,} | {counts} |"
        print(row, flush=True)
        write_row(options.output, what, row, options.seed)
    print(f"{time.monotonic() - started:.0f} s")


def write_row(path: Path, what: str, row: str, seed: int) -> None:
    """Put a row into the table between the marks; other parts' rows, and the rest, stay."""
    text = path.read_text(encoding="utf-8") if path.is_file() else "# Reliability\n"
    before, mark, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END) if mark else ("", "", "\n")
    known = [f"| {name} |" for _, name in PARTS.values()]
    rows = [line for line in old.splitlines() if any(name in line for name in known)]
    rows = [line for line in rows if f"| {what} |" not in line]
    section = "\n".join(
        [
            *(BEGIN, "## Hostile and careless input", ""),
            f"`python -m benchmarks.hostile`, seed {seed}.  A fault is a traceback, a hang, code",
            "that ran, or a change that nobody noticed.  What can be used is right to run.",
            *("", "| tried | cases | ran | refused in a line | faults |", "|---|---|---|---|---|"),
            *(*rows, row, END),
        ]
    )
    write_atomically(path, f"{before.rstrip()}\n\n{section}{after}")


if __name__ == "__main__":
    main()
