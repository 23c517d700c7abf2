"""Does the malicious payload of LDPAttack cost the federation accuracy?

The same short federated training on CIFAR-10 under four servers that differ in one thing: which
clients get the malicious payload.  Every round each client computes a FedSGD gradient on a batch of
its own shard, clips it and adds noise; the server takes the mean of what it receives for the model
and makes one step of SGD with momentum.  All arms share the initial weights, the shards, the order
of the batches, and the noise on the model's parameters, number by number.

``honest``     no client gets the payload
``one``        one client a round does, each in turn; its update is averaged like any other
``left_out``   as ``one``, but the server leaves the update of the attacked client out of the mean
``all``        all clients do, in every round

Beside them stands the structure's own effect on the trained honest model: how far its logits,
predictions and gradients move when the structure is put in front.

Run from the repository's root::

    python -m benchmarks.federated_accuracy --root data/cifar10.npz --output out/federated_accuracy
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.federated_arms import (
    ARMS,
    Norms,
    Run,
    forward_effect,
    gradient_effect,
    open_federation,
    train,
)
from lightning_recon.errors import InputError
from lightning_recon.files import write_csv, write_json
from lightning_recon.runs.results import versions


def summarize(results: dict[tuple[str, int], Run]) -> dict[str, dict[str, Any]]:
    """Return final accuracies and median norms by arm."""
    final = {key: run.curve[-1]["accuracy"] for key, run in results.items()}
    summary: dict[str, dict[str, Any]] = {}
    for arm in dict.fromkeys(arm for arm, _ in results):
        runs = {seed: run for (name, seed), run in results.items() if name == arm}
        accuracies = [final[arm, seed] for seed in runs]
        differences = [
            final[arm, seed] - final["honest", seed] for seed in runs if ("honest", seed) in final
        ]
        kinds = dict.fromkeys(kind for run in runs.values() for kind in run.norms)
        summary[arm] = {
            "accuracy": {seed: final[arm, seed] for seed in runs},
            "accuracy_untrained": {seed: run.curve[0]["accuracy"] for seed, run in runs.items()},
            "accuracy_mean": mean(accuracies),
            "accuracy_min": min(accuracies),
            "accuracy_max": max(accuracies),
            "difference_to_honest": differences,
            "difference_to_honest_mean": mean(differences) if differences else None,
            "norms": {
                kind: {
                    field: mean(
                        run.norms[kind][field] for run in runs.values() if kind in run.norms
                    )
                    for field in Norms._fields
                }
                for kind in kinds
            },
            "seconds": sum(run.seconds for run in runs.values()),
        }
    return summary


def accuracy_table(summary: dict[str, dict[str, Any]]) -> Table:
    """Return the table of arms."""
    table = Table(title="Accuracy on the test images after the last round, %")
    for column in ("malicious payload", "untrained", "mean", "range", "vs. honest", "by seed"):
        table.add_column(column, justify="left" if column == "malicious payload" else "right")
    for arm, entry in summary.items():
        table.add_row(
            ARMS[arm],
            f"{100 * mean(entry['accuracy_untrained'].values()):.1f}",
            f"{100 * entry['accuracy_mean']:.1f}",
            f"{100 * entry['accuracy_min']:.1f} to {100 * entry['accuracy_max']:.1f}",
            f"{100 * entry['difference_to_honest_mean']:+.1f}",
            " ".join(f"{100 * value:+.1f}" for value in entry["difference_to_honest"]),
        )
    return table


def norm_table(summary: dict[str, dict[str, Any]], noise_norm: float) -> Table:
    """Return the table of what clipping leaves of the model's gradient.

    Args:
        summary: see :func:`summarize`.
        noise_norm: expected L2 norm of the noise on the model's part of one update.
    """
    table = Table(title=f"L2 norm of an update (median); noise on the model: {noise_norm:.3g}")
    for column in ("malicious payload", "client", "whole", "model", "model, clipped"):
        table.add_column(
            column, justify="left" if column in ("malicious payload", "client") else "right"
        )
    for arm, entry in summary.items():
        for kind, norms in entry["norms"].items():
            table.add_row(ARMS[arm], kind, *(f"{norms[field]:.3g}" for field in Norms._fields))
    return table


def effect_table(effects: dict[int, dict[str, float]], images: int) -> Table:
    """Return the table of the structure's own effect on the trained honest model."""
    table = Table(title="The structure in front of the trained honest model")
    table.add_column("")
    for seed in effects:
        table.add_column(f"seed {seed}", justify="right")
    rows = {
        "accuracy without, %": lambda e: f"{100 * e['accuracy_without']:.1f}",
        "accuracy with, %": lambda e: f"{100 * e['accuracy_with']:.1f}",
        f"predictions changed, of {images}": lambda e: f"{e['predictions_changed']:d}",
        "cross-entropy without": lambda e: f"{e['loss_without']:.5f}",
        "cross-entropy with": lambda e: f"{e['loss_with']:.5f}",
        "logits moved by, mean": lambda e: f"{e['shift_mean']:.2g}",
        "logits moved by, largest": lambda e: f"{e['shift_max']:.2g}",
        "margin of the top logit, median": lambda e: f"{e['margin_median']:.2g}",
        "model's gradient: cosine": lambda e: f"{e['gradient_cosine']:.6f}",
        "model's gradient: relative distance": lambda e: f"{e['gradient_distance']:.2g}",
    }
    for name, text in rows.items():
        table.add_row(name, *(text(effect) for effect in effects.values()))
    return table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description="Does the malicious payload of LDPAttack cost the federation accuracy?",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--root",
        required=True,
        help="folder that holds cifar-10-batches-py, or an .npz file with x_train, y_train, ...",
    )
    parser.add_argument("--output", type=Path, help="folder for results.json and curves.csv")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), help="besides honest"
    )
    parser.add_argument("--seeds", type=_count, default=3, help="number of seeds")
    parser.add_argument("--rounds", type=_count, default=300)
    parser.add_argument("--clients", type=_count, default=10, help="all take part in every round")
    parser.add_argument("--batch-size", type=_count, default=64, help="of one client's round")
    parser.add_argument("--num-public", type=_count, default=500, help="images of the server")
    parser.add_argument("--width", type=_count, default=16, help="of the ConvNet")
    parser.add_argument("--num-bins", type=_count, default=256, help="rows of the payload")
    parser.add_argument("--clip-norm", type=float, default=10.0)
    parser.add_argument("--noise-std", type=float, default=0.002)
    parser.add_argument("--lr", type=float, default=0.1, help="the server's; falls to 0 (cosine)")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--eval-every", type=_count, default=50, help="rounds")
    parser.add_argument("--threads", type=_count, default=1, help="of PyTorch")
    args = parser.parse_args(argv)
    if args.clients < 2:
        parser.error("--clients must be at least 2: one is left out of the mean")
    args.arms = [arm for arm in ARMS if arm in {"honest", *args.arms}]
    return args


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run all arms, print the tables, write the files; return the exit status."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    results: dict[tuple[str, int], Run] = {}
    effects: dict[int, dict[str, float]] = {}
    try:
        for seed in range(args.seeds):
            federation = open_federation(args, seed)
            for arm in args.arms:
                run = train(args, federation, arm, seed)
                results[arm, seed] = run
                accuracy = 100 * run.curve[-1]["accuracy"]
                print(f"seed {seed}, {arm}: {accuracy:.1f} %, {run.seconds:.0f} s", flush=True)
            attack = results["honest", seed].attack
            effects[seed] = {
                **forward_effect(attack, federation, args.batch_size),
                **gradient_effect(args, attack, federation, seed),
            }
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    summary = summarize(results)
    parameters = sum(p.numel() for p in results["honest", 0].attack.target.parameters())
    images = {
        "train": sum(len(shard.images) for shard in federation.shards),
        "public": len(federation.public),
        "test": len(federation.test.images),
    }
    console = Console()
    console.print(accuracy_table(summary))
    console.print(norm_table(summary, args.noise_std * parameters**0.5))
    console.print(effect_table(effects, images["test"]))
    if args.output is not None:
        settings = {k: v for k, v in vars(args).items() if k not in ("root", "output")}
        content = {
            "settings": settings,
            "images": images,
            "model_parameters": parameters,
            "arms": summary,
            "structure_on_trained_honest_model": effects,
            "versions": versions(),
        }
        write_json(args.output / "results.json", content)
        write_csv(
            args.output / "curves.csv", [row for run in results.values() for row in run.curve]
        )
        print(f"written: {args.output}/results.json, {args.output}/curves.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
