"""Honest and malicious payloads before the detector: the tables of docs/defend.md.

Static checks alone: no sample, no reference.  Every payload is looked at twice: as a module, with
its graph, and as tensors alone, by names that are drawn at random.  Thresholds are chosen on honest
models of four fifths of the families of architectures, and reported on those of the last fifth;
malicious payloads take no part in the choosing, so that every attack is left out of it.  A run that
was stopped goes on where it was.

Run from the repository's root (some minutes)::

    python -m benchmarks.detect_table --cifar data/cifar10.npz --weights checkpoints
"""

import argparse
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from scipy.stats import beta
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks.detect_malicious import malicious
from benchmarks.detect_payloads import Case, honest
from benchmarks.records import RESULTS, Records
from lightning_recon.audit.statistics import bootstrap_interval
from lightning_recon.data import CIFAR10DataModule
from lightning_recon.detect import detect
from lightning_recon.detect.checking import THRESHOLDS
from lightning_recon.detect.scoring import FLOORS, chosen, strength

FOLDS = 5
LOOKS = {"graph": "weights and graph", "tensors": "tensors alone, in order"}


class Judged(NamedTuple):
    """A payload with a strength by thresholds that its family took no part in."""

    case: Case
    strength: float


def main() -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", default="data/cifar10", help="CIFAR-10, folder or .npz")
    parser.add_argument("--weights", type=Path, default=Path("checkpoints"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the records go")
    parser.add_argument("--fresh", action="store_true", help="throw the records away")
    parser.add_argument("--minutes", type=float, help="stop measuring after so long")
    options = parser.parse_args()
    records = Records(options.results / "detect.jsonl", options.fresh)
    data = CIFAR10DataModule(root=options.cifar, split="train", num_clients=1, num_public=0)
    data.batch_size = len(data.source)
    data.setup()
    train = data.client(0)
    all_cases = [*malicious(train), *honest(train, options.weights)]
    all_cases.sort(key=lambda case: "trained for" in case.variant)  # the slow ones come last
    started = time.monotonic()
    measured: list[tuple[Case, Mapping[str, Mapping[str, float]]]] = []
    for case in all_cases:
        if options.minutes is None or time.monotonic() - started < 60 * options.minutes:
            measured.append((case, records.get(case.key, partial(looked_at, case))))
        elif records.held(case.key) is not None:
            measured.append((case, records.held(case.key)))
    if len(measured) < len(all_cases):
        print(f"{len(measured)} of {len(all_cases)} payloads are measured; start again for all")
    for look, words in LOOKS.items():
        print(f"\n## {words}\n")
        report([(case, values[look]) for case, values in measured])


def looked_at(case: Case) -> dict[str, dict[str, float]]:
    """Return the statistics of a payload, as a module and as tensors alone."""
    payload = case.make()
    state = payload.state_dict() if isinstance(payload, nn.Module) else payload
    alone = detect(renamed(state)).statistics
    whole = detect(payload).statistics if isinstance(payload, nn.Module) else alone
    return {"graph": whole, "tensors": alone}


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in their order by names that say nothing."""
    names = random.Random(len(state)).sample(range(10**6), len(state))
    return {f"x{name}": part for name, part in zip(names, state.values(), strict=True)}


def folds(families: Sequence[str]) -> list[set[str]]:
    """Return the families in parts, as many of them in each."""
    ordered = sorted(set(families))
    return [set(ordered[start::FOLDS]) for start in range(FOLDS)]


def judged(measured: Sequence[tuple[Case, Mapping[str, float]]]) -> list[Judged]:
    """Return every payload by thresholds of the other folds' honest models."""
    found = []
    for held_out in folds([case.family for case, _ in measured]):
        thresholds = chosen(
            values
            for case, values in measured
            if not case.is_malicious and case.family not in held_out
        )
        found += [
            Judged(case, strength(values, thresholds))
            for case, values in measured
            if case.family in held_out
        ]
    return found


def report(measured: Sequence[tuple[Case, Mapping[str, float]]]) -> None:
    """Print what the detector reaches."""
    found = judged(measured)
    honest = [one for one in found if not one.case.is_malicious]
    bad = [one for one in found if one.case.is_malicious]
    level = sorted(one.strength for one in honest)[-max(1, len(honest) // 100 + 1)]
    architectures = len({one.case.architecture for one in honest})
    families = len({one.case.family for one in honest})
    print(f"{len(honest)} honest ({architectures} architectures of {families} families), ", end="")
    print(f"{len(bad)} malicious")
    auc = roc_auc_score([one.case.is_malicious for one in found], [one.strength for one in found])
    print(f"area under the ROC: {auc:.4f}")
    print("| measure | value | interval |\n|---|---|---|")
    print(f"| false alarms, at the thresholds | {_share(honest, 1.0)} |")
    print(f"| true positives, at the thresholds | {_share(bad, 1.0)} |")
    print(f"| true positives at one false alarm in 100 | {_share(bad, level, strict=True)} |")
    print("\n| attack | payloads | found | median strength | least |\n|---|---|---|---|---|")
    for attack in sorted({_attack(one) for one in bad}):
        some = [one for one in bad if _attack(one) == attack]
        strengths = [one.strength for one in some]
        print(
            f"| {attack} | {len(some)} | {_share(some, 1.0).replace(' |', ',')} | "
            f"{statistics.median(strengths):.2g} | {min(strengths):.2g} |"
        )
    print("\nnearest to an alarm, honest:")
    for one in sorted(honest, key=lambda one: -one.strength)[:8]:
        print(f"  {one.strength:.2f} {one.case.key}")
    print("least strange, malicious:")
    for one in sorted(bad, key=lambda one: one.strength)[:5]:
        print(f"  {one.strength:.2f} {one.case.key}")
    _print_thresholds(measured)


def _print_thresholds(measured: Sequence[tuple[Case, Mapping[str, float]]]) -> None:
    """Print the thresholds of all honest models, and what drives those above the floors."""
    honest = [(case, values) for case, values in measured if not case.is_malicious]
    for code, threshold in chosen(values for _, values in honest).items():
        if threshold > FLOORS[code] or threshold != THRESHOLDS[code]:
            case, _ = max(honest, key=lambda one: one[1].get(code, 0.0))
            print(f"threshold {code}: {threshold:.3g} (shipped {THRESHOLDS[code]:.3g}): {case.key}")


def _attack(one: Judged) -> str:
    return one.case.variant.split(",")[0]


def _share(some: Sequence[Judged], level: float, strict: bool = False) -> str:
    """Return how many are at a level, with an interval over families of architectures.

    Where all are alike a bootstrap shows nothing: the interval is Clopper and Pearson's then, of
    the families.
    """
    hits = [float(one.strength > level if strict else one.strength >= level) for one in some]
    share = sum(hits) / len(hits)
    families = [one.case.family for one in some]
    number = len(set(families))
    if share in (0.0, 1.0):
        tail = float(beta.ppf(0.025, number, 1))  # all of so many
        low, high = (tail, 1.0) if share else (0.0, 1 - tail)
    else:
        interval = bootstrap_interval(hits, families)
        low, high = (0.0, 1.0) if interval is None else (max(interval[0], 0.0), min(interval[1], 1))
    return f"{sum(hits):.0f} of {len(hits)} ({share:.1%}) | {low:.1%} to {high:.1%}"


if __name__ == "__main__":
    main()
