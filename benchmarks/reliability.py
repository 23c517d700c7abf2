"""Kill runs, resume them, and compare the figures with those of runs that were never stopped.

    python -m benchmarks.reliability [--random 100] [--aimed 100] [--signals 40] [--pairs 20]

Writes the section "Kills" of docs/reliability.md, once all trials are done.  With ``--minutes`` it
stops after so many, and the same command goes on: what was found is kept in ``--kept``.  Every
number is drawn from ``--seed`` and the trial's own, but what a random kill meets depends on the
machine.  A kill is SIGKILL.  It
is aimed if it comes right before or after one of the calls that change what is on disk: the
renaming of a file, the making of a folder, the end of a file or a record, of which a part is left
then.
Each run is a child of this process, which imports the libraries once.
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

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
Found = tuple[str, str, list[str]]
"""Of a trial: the command, how it went on, what is wrong."""


def folder_of(name: str) -> Path:
    """Return where the runs of a command lie, in the working folder."""
    return Path("lightning_logs", "sweep" if name == "sweep" else "")


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


def figures(folder: Path) -> str:
    """Return what a run found, as JSON."""
    return json.dumps([(one.client, one.rows, one.curve) for one in read_records(folder)])


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
            os.ftruncate(handle, max(0, os.fstat(handle).st_size - 40))
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


def faults(name: str, whole: str, went_on: bool, code: int) -> list[str]:
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
        kept: a file: what uninterrupted runs found, then a line a trial; what is in it is not done
            again.
    """

    def __init__(self, seed: int, home: Path, kept: Path) -> None:
        self.seed, self.home, self.kept = seed, home, kept.absolute()
        lines = list(map(json.loads, kept.read_text().splitlines() if kept.is_file() else []))
        self.done: dict[tuple[str, int], dict[str, Any]] = {
            (line["kind"], line["trial"]): line for line in lines[1:]
        }
        if lines:
            self.whole, self.seconds, self.calls = lines[0]
            return
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
            if self.whole[name] == "[]":
                raise SystemExit(f"{name} left no records: there is nothing to compare")
            self.calls[name] = int((self.home / "count").read_text())
        self.keep([self.whole, self.seconds, self.calls])

    def keep(self, line: Any) -> None:
        """Append a line to what is kept."""
        with self.kept.open("a") as file:
            file.write(json.dumps(line) + "\n")

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

    def run(self, kind: str, number: int, until: float) -> bool:
        """Do the trials of a kind that are not done yet; return whether all are.

        Args:
            kind: of :data:`KINDS`.
            number: of trials.
            until: on the clock of ``time.monotonic``.
        """
        for trial in range(number):
            if (kind, trial) in self.done:
                continue
            if time.monotonic() > until:
                return False
            self.fresh()
            chance = random.Random(f"{self.seed} {kind} {trial}")
            name, end, found = KINDS[kind].do(self, kind, trial, chance)
            line = {"kind": kind, "trial": trial, "of": name, "end": end, "wrong": found}
            if found:
                print(line, Path("out").read_text()[-2000:], sep="\n", flush=True)
            self.keep(line)
            self.done[kind, trial] = line
        return True

    def stop(self, kind: str, trial: int, chance: random.Random) -> Found:
        """Stop a run, go on, and compare."""
        name = COMMANDS[trial % len(COMMANDS)]
        found: list[str] = []
        if kind == "aimed":
            at, how = chance.randint(1, self.calls[name]), chance.choice(["before", "after"])
            code = wait(start(words_of(name), lambda: aim(at, how, Path())))
        else:
            sent = signal.SIGKILL if kind == "random" else signal.SIGTERM
            child = start(words_of(name))
            time.sleep(chance.uniform(0, self.seconds[name]))
            os.kill(child, sent)
            code = wait(child)
            if kind == "signals" and code not in (0, 143, -signal.SIGTERM):
                found.append(f"exit code {code} after SIGTERM")
        words = going_on(name)
        went_on = words != words_of(name)
        end = "done by then" if code == 0 else "gone on" if went_on else "begun anew"
        if code:
            code = wait(start(words))
        return name, end, found + faults(name, self.whole[name], went_on, code)

    def pair(self, kind: str, trial: int, chance: random.Random) -> Found:
        """Start two runs together, of the same or of different commands."""
        names = [COMMANDS[trial % 4], COMMANDS[(trial + trial // 4) % 4]]
        children = [start(words_of(name)) for name in names]
        found = [f"exit code {code}" for code in map(wait, children) if code]
        folders = [path for root in set(map(folder_of, names)) for path in root.glob("ver*")]
        if sorted(map(figures, folders)) != sorted(self.whole[name] for name in names):
            found.append("figures mixed or lost")
        return " and ".join(names), "each in its own folder", found

    def resume_twice(self, kind: str, trial: int, chance: random.Random) -> Found:
        """Resume a stopped run twice at once: one does it, one is refused in a line."""
        wait(start([*words_of("test"), "--trainer.limit_test_batches", "1"]))
        whole = ["--trainer.limit_test_batches", "1.0"]
        words = ["test", "--resume", "lightning_logs/version_0", *whole]
        codes = sorted(map(wait, [start(words), start(words)]))
        refused = Path("out").read_text().count("another process writes into")
        found = [] if codes == [0, 2] and refused == 1 else [f"exit codes {codes}"]
        if figures(folder_of("test") / "version_0") != self.whole["test"]:
            found.append("other figures")
        return "test", "one refused", found


class Kind(NamedTuple):
    """A kind of trials."""

    what: str
    number: int
    """By default."""
    do: Callable[[Trials, str, int, random.Random], Found]


KINDS = {
    "aimed": Kind("SIGKILL right before or after a call that changes the disk", 100, Trials.stop),
    "random": Kind("SIGKILL at a random moment", 100, Trials.stop),
    "signals": Kind("SIGTERM at a random moment", 40, Trials.stop),
    "pairs": Kind("two runs started together", 20, Trials.pair),
    "resumes": Kind("one stopped run resumed twice at once", 5, Trials.resume_twice),
}


def write_section(heading: str, text: str) -> None:
    """Put a section into the document, in the place of the one under the same heading."""
    whole = DOCUMENT.read_text()
    before, _, after = whole.partition(heading)
    following = re.search(r"\n(<!--|## )", after)  # what another benchmark writes
    kept = after[following.start() :] if following else ""
    DOCUMENT.write_text(f"{before.rstrip()}\n\n{heading}\n{text.rstrip()}\n{kept}")


def table(done: list[dict[str, Any]], seed: int) -> str:
    """Return the section on kills."""
    numbers = {kind: sum(line["kind"] == kind for line in done) for kind in KINDS}
    flags = " ".join(f"--{kind} {number}" for kind, number in numbers.items())
    lines = []
    for kind, (what, _, _) in KINDS.items():
        ends = Counter(line["end"] for line in done if line["kind"] == kind)
        told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
        wrong = sum(bool(line["wrong"]) for line in done if line["kind"] == kind)
        lines.append(f"| {what} | {numbers[kind]} | {told} | {wrong} |")
    wrong = [f"- {one['kind']}, {one['of']}: {', '.join(one['wrong'])}" for one in done
             if one["wrong"]]  # fmt: skip
    return "\n".join(
        [
            f"`python -m benchmarks.reliability {flags} --seed {seed}`:",
            f"{CLIENTS} clients of one image, {', '.join(COMMANDS)} in turn, on one process; torch "
            f"{torch.__version__}.",
            "Wrong is: another figure than that of the run that was never stopped, a second",
            "folder, a stray file, a traceback, a run that goes on and does not exit with 0.",
            "",
            "| what | trials | how it went on | wrong |",
            "|---|---|---|---|",
            *lines,
            *(["", *wrong] if wrong else []),
        ]
    )


def main() -> int:
    """Run the trials that are not done yet; write the section when all are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, kind in KINDS.items():
        parser.add_argument(f"--{name}", type=int, default=kind.number)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", type=Path, help="file of the trials that are done")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which it stops")
    parser.add_argument("--dry", action="store_true", help="print the section, write nothing")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    torch.set_num_threads(1)
    photographs.open_picture = cache(photographs.open_picture)  # decoded once, for all children
    source = photographs.PhotographSource()
    for index in range(len(source)):
        source.image(index)
    with tempfile.TemporaryDirectory() as home:
        trials = Trials(arguments.seed, Path(home), arguments.kept or Path(home, "kept.jsonl"))
        is_done = all(trials.run(kind, getattr(arguments, kind), until) for kind in KINDS)
        os.chdir("/")
    asked = [line for line in trials.done.values() if line["trial"] < vars(arguments)[line["kind"]]]
    if not is_done:
        print(f"{len(asked)} trials are done; the same command goes on")
        return 75
    text = table(asked, arguments.seed)
    print(text, flush=True) if arguments.dry else write_section(HEADING, text)
    return int(any(line["wrong"] for line in asked))


if __name__ == "__main__":
    sys.exit(main())
