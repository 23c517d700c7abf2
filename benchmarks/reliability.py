"""Kill runs, resume them, and compare the figures with those of runs that were never stopped.

    python -m benchmarks.reliability [--random 100] [--aimed 100] [--signals 40] [--pairs 20]

Writes the section "Kills" of docs/reliability.md, after each kind of trials.  Every number is
drawn from ``--seed``, but what a random kill meets depends on the machine.  A kill is SIGKILL.  It
is aimed if it comes right before or after one of the calls that change what is on disk: the
renaming of a file, the making of a folder, the end of a record, of which half a line is left then.
Each run is a child of this process, which imports the libraries once.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_recon.__main__ import command
from lightning_recon.audit.records import read_records
from lightning_recon.commands import lightning  # noqa: F401  (the children find it imported)
from lightning_recon.data import photographs

DOCUMENT = Path(__file__).parents[1] / "docs" / "reliability.md"
COMMANDS = ("test", "fit", "predict", "sweep")
CLIENTS = 4
LIMIT = 120  # seconds after which a run hangs
CONFIG = {
    "model": {
        "class_path": "InvertingGradients",
        "init_args": {
            "iterations": 12,
            "target": {"class_path": "LeNet", "init_args": {"num_classes": 20, "image_size": 16}},
        },
    },
    "data": {
        "class_path": "SampleImagesDataModule",
        "init_args": {"batch_size": 1, "num_clients": CLIENTS, "image_size": 16, "num_public": 2},
    },
    "audit": {"null_controls": False, "num_candidates": 0},
    "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
}
SWEEP = {
    "base": "tiny.yaml",
    "axes": {"seed": {"key": "seed_everything", "values": [0, 1]}},
    "set": {"data.init_args.num_clients": CLIENTS // 2},
    "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
}
HEADING = "## Kills\n"


def folder_of(name: str) -> Path:
    """Return where the runs of a command lie, in the working folder."""
    return Path("lightning_logs", "sweep_sweep" if name == "sweep" else "")


def words_of(name: str) -> list[str]:
    """Return the command line of a run."""
    every = ["--checkpoint.every_n_train_steps", "5"] if name == "fit" else []
    return [name, "--config", "sweep.yaml" if name == "sweep" else "tiny.yaml", *every]


def start(words: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Start a run in a child, which writes into ``out``, and return its number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        out = os.open("out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = ["cli.py", *words]
        prepare()
        code = command()
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:  # a traceback is what is looked for
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(child: int) -> int:
    """Return the exit code of a child, negative for a signal; kill one that hangs: -99."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -99


def figures(folder: Path) -> list[tuple[Any, ...]]:
    """Return what a run found."""
    return [(one.client, one.rows, one.curve) for one in read_records(folder)]


def aim(at: int | None, how: str, count: Path) -> None:
    """Have this process kill itself at a call that changes the disk; None: count the calls."""
    seen = [0]

    def hit(before: bool) -> None:
        if before:
            seen[0] += 1
            if at is None:
                count.write_text(str(seen[0]))
        if seen[0] == at and before == (how == "before"):
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            hit(True)
            found = function(*args, **kwargs)
            hit(False)
            return found

        return call

    os.replace, os.mkdir = watched(os.replace), watched(os.mkdir)
    tempfile.mkstemp = watched(tempfile.mkstemp)
    fsync = os.fsync

    def torn(handle: int) -> None:
        hit(True)
        if seen[0] == at:  # in the place of "after": half of the line is there
            os.ftruncate(handle, os.fstat(handle).st_size - 40)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    os.fsync = torn


def going_on(name: str) -> list[str]:
    """Return the command line that goes on with what a killed run left, or begins anew."""
    folder = folder_of(name) / "version_0"
    if name == "fit" and (folder / "checkpoints/last.ckpt").is_file():
        return [*words_of(name), "--ckpt_path", str(folder / "checkpoints/last.ckpt")]
    if name in ("test", "predict") and (folder / "config.yaml").is_file():
        return [name, "--resume", str(folder)]
    if name == "sweep" and (folder / "sweep.yaml").is_file():
        return [*words_of(name), "--resume", str(folder)]
    return words_of(name)


def faults(name: str, whole: list[tuple[Any, ...]], went_on: bool, code: int) -> list[str]:
    """Return what is wrong after a run was killed and gone on with."""
    found = []
    versions = sorted(folder_of(name).glob("version_*"))
    if code != 0:
        found.append(f"exit code {code} of the second run")
    elif not versions or figures(versions[-1]) != whole:
        found.append("other figures")
    if went_on and len(versions) != 1:
        found.append("another folder")
    last = versions[-1] if versions else Path()
    if any(path.suffix == ".tmp" or path.name == ".lock" for path in last.rglob(".*")):
        found.append("stray files")
    text = Path("out").read_text()
    if "Traceback" in text:
        found.append("a traceback")
    return found


class Trials:
    """Runs that are stopped, one after the other, and what came of them.

    Args:
        seed: of what is drawn.
        home: an empty folder.
    """

    def __init__(self, seed: int, home: Path) -> None:
        self.random, self.home = random.Random(seed), home
        self.rows: list[tuple[str, int, str, int]] = []
        self.wrong: list[str] = []
        self.whole, self.seconds, self.calls = {}, {}, {}
        for name in COMMANDS:
            self.fresh()
            for attempt in range(2):  # the first fills caches
                self.fresh()
                began = time.monotonic()
                child = start(words_of(name), self.count if attempt else lambda: None)
                if code := wait(child):
                    raise SystemExit(f"{name} ends with {code}: {Path('out').read_text()}")
                self.seconds[name] = time.monotonic() - began
            self.whole[name] = figures(folder_of(name) / "version_0")
            self.calls[name] = int((self.home / "count").read_text())

    def count(self) -> None:
        """Have a child count its calls that change the disk."""
        aim(None, "", self.home / "count")

    def fresh(self) -> None:
        """Begin in an empty folder."""
        os.chdir(self.home)
        shutil.rmtree(self.home / "trial", ignore_errors=True)
        (self.home / "trial").mkdir()
        os.chdir(self.home / "trial")
        Path("tiny.yaml").write_text(yaml.safe_dump(CONFIG))
        Path("sweep.yaml").write_text(yaml.safe_dump(SWEEP))

    def note(self, kind: str, name: str, found: list[str]) -> None:
        """Keep and print what is wrong with a trial."""
        if found:
            self.wrong.append(f"{kind}, {name}: {', '.join(found)}")
            print(self.wrong[-1], Path("out").read_text()[-2000:], sep="\n", flush=True)

    def stop(self, kind: str, number: int) -> None:
        """Stop so many runs by ``kind``: random, aimed or signal; go on, and compare."""
        ends: Counter[str] = Counter()
        began = len(self.wrong)
        for trial in range(number):
            name = COMMANDS[trial % len(COMMANDS)]
            self.fresh()
            found: list[str] = []
            if kind == "aimed":
                at = self.random.randint(1, self.calls[name])
                how = self.random.choice(["before", "after"])
                code = wait(start(words_of(name), lambda at=at, how=how: aim(at, how, Path())))
            else:
                sent = signal.SIGKILL if kind == "random" else signal.SIGTERM
                child = start(words_of(name))
                time.sleep(self.random.uniform(0, self.seconds[name]))
                os.kill(child, sent)
                code = wait(child)
                if kind == "signal" and code not in (0, 143, -signal.SIGTERM):
                    found.append(f"exit code {code} after SIGTERM")
            words = going_on(name)
            went_on = words != words_of(name)
            ends["done by then" if code == 0 else "gone on" if went_on else "begun anew"] += 1
            if code:
                code = wait(start(words))
            self.note(kind, name, found + faults(name, self.whole[name], went_on, code))
        told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
        self.rows.append((kind, number, told, len(self.wrong) - began))
        print(f"{kind}: {number}: {told}; wrong: {len(self.wrong) - began}", flush=True)

    def pairs(self, number: int) -> None:
        """Start two runs together, of the same or of different commands."""
        began = len(self.wrong)
        for trial in range(number):
            self.fresh()
            names = [COMMANDS[trial % 4], COMMANDS[(trial + trial // 4) % 4]]
            children = [start(words_of(name)) for name in names]
            found = [f"exit code {code}" for code in map(wait, children) if code]
            folders = [path for root in set(map(folder_of, names)) for path in root.glob("ver*")]
            have = sorted(json.dumps(figures(path)) for path in folders)
            if have != sorted(json.dumps(self.whole[name]) for name in names):
                found.append("figures mixed or lost")
            self.note("pair", " and ".join(names), found)
        self.rows.append(("pair", number, "each in its own folder", len(self.wrong) - began))

    def resumes(self, number: int) -> None:
        """Resume a stopped run twice at once: one does it, one is refused in a line."""
        began = len(self.wrong)
        for _ in range(number):
            self.fresh()
            wait(start([*words_of("test"), "--trainer.limit_test_batches", "1"]))
            whole = ["--trainer.limit_test_batches", "1.0"]
            words = ["test", "--resume", "lightning_logs/version_0", *whole]
            codes = sorted(map(wait, [start(words), start(words)]))
            refused = Path("out").read_text().count("another process writes into")
            found = [] if codes == [0, 2] and refused == 1 else [f"exit codes {codes}"]
            if figures(folder_of("test") / "version_0") != self.whole["test"]:
                found.append("other figures")
            self.note("two resumes", "test", found)
        self.rows.append(("two resumes", number, "one refused", len(self.wrong) - began))


def write_section(heading: str, text: str) -> None:
    """Put a section into the document, in the place of the one under the same heading."""
    whole = DOCUMENT.read_text()
    before, _, after = whole.partition(heading)
    following = after.partition("\n## ")
    kept = f"\n## {following[2]}" if following[1] else ""
    DOCUMENT.write_text(f"{before.rstrip()}\n\n{heading}\n{text.rstrip()}\n{kept}")


def table(trials: Trials, arguments: argparse.Namespace) -> str:
    """Return the section on kills."""
    what = {
        "random": "SIGKILL at a random moment",
        "aimed": "SIGKILL right before or after a call that changes the disk",
        "signal": "SIGTERM at a random moment",
        "pair": "two runs started together",
        "two resumes": "one stopped run resumed twice at once",
    }
    lines = [f"| {what[kind]} | {n} | {told} | {wrong} |" for kind, n, told, wrong in trials.rows]
    return "\n".join(
        [
            f"`python -m benchmarks.reliability --random {arguments.random} --aimed "
            f"{arguments.aimed} --signals {arguments.signals} --pairs {arguments.pairs} "
            f"--resumes {arguments.resumes} --seed {arguments.seed}`:",
            f"{CLIENTS} clients of one image, {', '.join(COMMANDS)} in turn, on one process; torch "
            f"{torch.__version__}.",
            "Wrong is: another figure than that of the run that was never stopped, a second",
            "folder, a stray file, a traceback, a run that goes on and does not exit with 0.",
            "",
            "| what | trials | how it went on | wrong |",
            "|---|---|---|---|",
            *lines,
            *(["", *(f"- {line}" for line in trials.wrong)] if trials.wrong else []),
        ]
    )


def main() -> int:
    """Run all trials, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, number in (("random", 100), ("aimed", 100), ("signals", 40), ("pairs", 20)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--resumes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="print the section, write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photographs.open_picture = cache(photographs.open_picture)  # decoded once, for all children
    source = photographs.PhotographSource()
    for index in range(len(source)):
        source.image(index)
    with tempfile.TemporaryDirectory() as home:
        trials = Trials(arguments.seed, Path(home))
        for kind, number in (
            ("aimed", arguments.aimed),
            ("random", arguments.random),
            ("signal", arguments.signals),
            ("pairs", arguments.pairs),
            ("resumes", arguments.resumes),
        ):
            if kind in ("pairs", "resumes"):
                getattr(trials, kind)(number)
            else:
                trials.stop(kind, number)
            text = table(trials, arguments)
            print(text, flush=True) if arguments.dry else write_section(HEADING, text)
        os.chdir("/")
    return int(bool(trials.wrong))


if __name__ == "__main__":
    sys.exit(main())
