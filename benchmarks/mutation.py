"""How many small wrong changes of the privacy, matching and defense code the tests notice.

A sample of mutants (:mod:`benchmarks.mutants`), each against the tests that run its file, those
that run its lines first::

    python -m benchmarks.mutation --seed 0 --num 300

The tests run once as they are, with coverage, which says which test runs what; then every mutant
in a process of its own, forked from one that has loaded torch.  A test that takes
half a minute counts as failed.  Results go to ``results/mutation.jsonl`` as they come: a run that
was stopped goes on, and ``--again`` tries what survived once more, for tests that were added.
"""

import argparse
import importlib
import importlib.util
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import pytest

from benchmarks.mutants import Mutant, mutants_of, mutated

ROOT = Path(__file__).parents[1]
PACKAGE = "lightning_recon"
PLACES = tuple(f"{PACKAGE}/{name}" for name in ("privacy", "audit/matching.py", "defenses"))
TESTS = tuple(
    f"tests/test_{name}.py"
    for name in (
        "matching",
        "privacy",
        "defenses",
        "ldp_mechanisms",
        "compression",
        "rowsparse",
        "dpsgd",
        "client_defenses",
        "scores",
        "audit",
    )
)
LOADED = (  # before the forks; nothing of lightning_recon, which each loads with its own change
    *("torch", "torchvision", "torchmetrics", "pytorch_lightning", "scipy.optimize", "scipy.stats"),
    *("dp_accounting.pld", "dp_accounting.rdp", "skimage.data", "sklearn.datasets", "PIL.Image"),
)
TEST_SECONDS = 30  # the longest test takes three
MEMORY = 16 * 2**30  # bytes of addresses; a wrong size must not take the machine down


class Outcome(NamedTuple):
    """What the tests made of a mutant."""

    status: str
    """``killed``, ``timeout`` or ``survived``."""
    by: str
    """The first test that failed; empty where the tests could not even be loaded."""
    num_tests: int
    """How many ran."""
    seconds: float


def sources() -> dict[str, str]:
    """Return the text of every file that is mutated, by its path below the root."""
    found = [
        path
        for place in PLACES
        for path in ([ROOT / place] if place.endswith(".py") else sorted((ROOT / place).iterdir()))
        if path.suffix == ".py"
    ]
    return {str(path.relative_to(ROOT)): path.read_text() for path in found}


def sample(mutants: Mapping[str, Sequence[Mutant]], num: int, seed: int) -> list[Mutant]:
    """Return a random sample of which every file has the share that it has of all mutants.

    Args:
        mutants: by file.
        num: of the sample; all of them if there are no more.
        seed: of the sample.
    """
    total = sum(map(len, mutants.values()))
    num = min(num, total)
    shares = {file: num * len(those) / total for file, those in mutants.items()}
    counts = {file: int(share) for file, share in shares.items()}
    by_rest = sorted(shares, key=lambda file: counts[file] - shares[file])
    for file in by_rest[: num - sum(counts.values())]:
        counts[file] += 1
    draw = random.Random(seed)
    chosen = [one for file, those in mutants.items() for one in draw.sample(those, counts[file])]
    draw.shuffle(chosen)
    return chosen


def lines_of_tests() -> dict[str, dict[str, set[int]]]:
    """Run the tests as they are; return the lines that each runs, by file and test.

    Raises:
        SystemExit: if a test fails.
    """
    from coverage import CoverageData

    with tempfile.TemporaryDirectory() as folder:
        data_file = os.path.join(folder, "coverage")
        options = ["-q", "-p", "no:cacheprovider", f"--cov={PACKAGE}", "--cov-report="]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-n", "0", *options, "--cov-context=test", *TESTS],
            cwd=ROOT,
            env=os.environ | {"COVERAGE_FILE": data_file},
        )
        if done.returncode:
            raise SystemExit("the tests fail without any mutant")
        data = CoverageData(data_file)
        data.read()
        found: dict[str, dict[str, set[int]]] = {}
        for file in sources():
            tests = found[file] = defaultdict(set)
            for line, contexts in data.contexts_by_lineno(str(ROOT / file)).items():
                for context in filter(None, contexts):
                    tests[context.rsplit("|", 1)[0]].add(line)
    return found


def ordered_tests(mutant: Mutant, lines: Mapping[str, Collection[int]]) -> dict[str, int]:
    """Return the rank of each test of the file: 0 if it runs a line of the mutant, else 1.

    Args:
        mutant: whose lines count.
        lines: of its file that each test runs.
    """
    changed = range(mutant.line, mutant.last_line + 1)
    return {test: int(not any(line in ran for line in changed)) for test, ran in lines.items()}


class Chosen:
    """A plugin of pytest: runs the chosen tests in order, and remembers the first that fails.

    Args:
        ranks: of the tests to run, by node id.
    """

    def __init__(self, ranks: Mapping[str, int]) -> None:
        self.ranks = ranks
        self.failed = ""
        self.num_run = 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep what was chosen."""
        kept = [item for item in items if item.nodeid in self.ranks]
        items[:] = sorted(kept, key=lambda item: self.ranks[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Let the system end the process if the test hangs."""
        signal.alarm(TEST_SECONDS)
        self.num_run += 1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember the first failure."""
        if report.failed and not self.failed:
            self.failed = report.nodeid


class Loader(SourceFileLoader):
    """Loads a module from a syntax tree in place of its file."""

    code: CodeType

    def get_code(self, fullname: str) -> CodeType:
        """Return the mutated code; nothing is cached."""
        return self.code


class Finder:
    """Finds the mutated module before the real one.

    Args:
        file: of the real module, below the root.
        code: compiled from the mutant.
    """

    def __init__(self, file: str, code: CodeType) -> None:
        self.file, self.code = file, code
        self.name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load the mutated module, None for any other one."""
        if name != self.name:
            return None
        loader = Loader(name, str(ROOT / self.file))
        loader.code = self.code
        return importlib.util.spec_from_file_location(name, ROOT / self.file, loader=loader)


def run_forked(mutant: Mutant, source: str, ranks: Mapping[str, int]) -> Outcome:
    """Run tests against a mutant in a process of its own.

    Args:
        mutant: to run.
        source: of its file.
        ranks: of the tests, by node id.
    """
    start = time.monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = _run_tests(mutant, source, ranks)
            os.write(writing, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answered = pipe.read()
    _, status = os.waitpid(child, 0)
    seconds = round(time.monotonic() - start, 1)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return Outcome("timeout", "", 0, seconds)
    if not answered:  # the process died of the mutant
        return Outcome("killed", "", 0, seconds)
    code, failed, num_tests = json.loads(answered)
    return Outcome("killed" if code else "survived", failed, num_tests, seconds)


def _run_tests(mutant: Mutant, source: str, ranks: Mapping[str, int]) -> tuple[int, str, int]:
    """Return pytest's exit code, the first test that failed and how many ran; in the child."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.alarm(2 * TEST_SECONDS)
    code = compile(mutated(mutant, source), str(ROOT / mutant.file), "exec")
    sys.meta_path.insert(0, Finder(mutant.file, code))
    chosen = Chosen(ranks)
    files = [file for file in TESTS if any(test.startswith(file + "::") for test in ranks)]
    exit_code = pytest.main(
        ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *files], plugins=[chosen]
    )
    if exit_code == pytest.ExitCode.NO_TESTS_COLLECTED:
        exit_code = pytest.ExitCode.OK
    return int(exit_code), chosen.failed, chosen.num_run


class Results:
    """Outcomes in a file of JSON lines; what stands there is not run again.

    Args:
        path: of the file.
        texts: of the mutated files: an outcome is of one text.
        with_survivors: whether outcomes that say ``survived`` count.
    """

    def __init__(self, path: Path, texts: Mapping[str, str], with_survivors: bool) -> None:
        self.path = path
        self.hashes = {file: sha256(text.encode()).hexdigest()[:8] for file, text in texts.items()}
        self.held: dict[str, Outcome] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.is_file() else []:
            record: dict[str, Any] = json.loads(line)
            self.held[record["key"]] = Outcome(*(record[name] for name in Outcome._fields))
        if not with_survivors:
            held = self.held.items()
            self.held = {key: one for key, one in held if one.status != "survived"}

    def key(self, mutant: Mutant) -> str:
        """Return what names a mutant of this text of its file."""
        return f"{mutant.file} {self.hashes[mutant.file]} {mutant.node}.{mutant.choice}"

    def put(self, mutant: Mutant, outcome: Outcome) -> None:
        """Keep an outcome, and write it at once."""
        key = self.key(mutant)
        self.held[key] = outcome
        record = {"key": key, "mutant": str(mutant), **outcome._asdict()}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def print_table(mutants: Iterable[Mutant], results: Results) -> None:
    """Print mutants and killed ones by file, then all survivors."""
    by_file: dict[str, list[str]] = defaultdict(list)
    survivors = []
    for mutant in sorted(mutants, key=lambda one: (one.file, one.line, one.node)):
        outcome = results.held[results.key(mutant)]
        by_file[mutant.file].append(outcome.status)
        if outcome.status == "survived":
            survivors.append(mutant)
    statuses = [status for those in by_file.values() for status in those]
    print("| file | mutants | killed | of these hung |\n|---|---|---|---|")
    for name, those in [*by_file.items(), ("all", statuses)]:
        killed = len(those) - those.count("survived")
        print(f"| {name} | {len(those)} | {killed} | {those.count('timeout') or ''} |")
    print(f"\n{1 - len(survivors) / len(statuses):.1%} killed; survivors:")
    for mutant in survivors:
        print(mutant)


def main() -> None:
    """Run the sample and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--num", type=int, default=300, help="of mutants")
    parser.add_argument("--again", action="store_true", help="run what survived once more")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/mutation.jsonl")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    texts = sources()
    mutants = {file: mutants_of(file, text) for file, text in texts.items()}
    chosen = sample(mutants, options.num, options.seed)
    print(f"{len(chosen)} of {sum(map(len, mutants.values()))} mutants", flush=True)
    results = Results(options.results, texts, not options.again)
    missing = [mutant for mutant in chosen if results.key(mutant) not in results.held]
    if missing:
        lines = lines_of_tests()
        for name in LOADED:
            importlib.import_module(name)
    for place, mutant in enumerate(missing, start=1):
        ranks = ordered_tests(mutant, lines[mutant.file])
        outcome = run_forked(mutant, texts[mutant.file], ranks)
        results.put(mutant, outcome)
        print(f"{place}/{len(missing)} {outcome.status} {outcome.seconds} s {mutant}", flush=True)
    print_table(chosen, results)


if __name__ == "__main__":
    main()
