"""The table of docs/spectral.md: the spectral attack, the faithful one and the reference.

    python -m benchmarks.spectral_table --root data/imagenet --masks MASKS --clients 20

Runs ``python cli.py test`` for every noise level, with masks and without, reads its results.json,
and prints a Markdown table; lines appear as they are done.  Seconds are the median over clients of
what a client's own computation and the attack on it take, without what the run does once.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.linear_code import RECOVERED_PSNR, SIGMAS, load, reference

TARGETS = {
    "masks": dict(zip(SIGMAS, (51, 40.5, 30.5, 26, 22.5), strict=True)),
    "whole": dict(zip(SIGMAS, (46.5, 35.5, 26, 22, 19), strict=True)),
}
ROOT = Path(__file__).parents[1]


def run(config: str, sigma: float, root: str, masks: str | None, clients: int) -> dict[str, Any]:
    """Return the results.json of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, str(ROOT / "cli.py"), "test"),
            *("--config", str(ROOT / "configs" / config)),
            *("--model.init_args.defenses", json.dumps(_defenses(sigma))),
            *("--data.init_args.root", root),
            *("--data.init_args.num_clients", str(clients)),
            *("--trainer.default_root_dir", folder),
            *("--trainer.enable_progress_bar", "false"),
            *("--audit.null_controls", "false"),
        ]
        if masks is None:
            command += ["--data.init_args.masks", "null"]
        else:
            source = {"class_path": "MaskFolder", "init_args": {"folder": masks}}
            command += ["--data.init_args.masks", json.dumps(source)]
        finished = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
        if finished.returncode:
            sys.exit(finished.stderr[-2000:])
        (path,) = Path(folder).rglob("results.json")
        results: dict[str, Any] = json.loads(path.read_text())
        return results


def _defenses(sigma: float) -> list[dict[str, Any]]:
    # what the configuration sets would stay otherwise
    rule = {"calibration": None, "epsilon": None, "num_records": None}
    return [
        {"class_path": "ClipL2", "init_args": {"clip_norm": 10.0}},
        {"class_path": "GaussianNoise", "init_args": {"noise_std": sigma, **rule}},
    ]


def line(cells: list[str]) -> None:
    """Print a line of the table at once."""
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="ImageNet, folders by WordNet id")
    parser.add_argument("--masks", required=True, help="folder with subject masks")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--faithful", type=int, default=0, help="clients of ldp_imagenet.yaml")
    parser.add_argument("--only", choices=["masks", "whole"], help="one half of the table")
    parser.add_argument("--sigmas", type=float, nargs="+", default=SIGMAS)
    arguments = parser.parse_args()
    names = ["images", "sigma", "PSNR", "asked for", "reference", "faithful", "mean image"]
    names += ["subject PSNR", "put out of 16", "recovered", "reference recovered", "precision"]
    names += ["seconds a client", "MB over imports"]
    line(names)
    line(["---"] * len(names))
    for kind in [arguments.only] if arguments.only else TARGETS:
        masks = arguments.masks if kind == "masks" else None
        clients, public = load(arguments.root, masks, arguments.clients)
        for sigma in arguments.sigmas:
            found = run("ldp_spectral.yaml", sigma, arguments.root, masks, arguments.clients)
            faithful = "not run"
            if arguments.faithful:
                plain = run("ldp_imagenet.yaml", sigma, arguments.root, masks, arguments.faithful)
                faithful = f"{plain['metrics']['psnr']['mean']:.2f}"
            known_rows = reference(clients, public, sigma)
            memory = found["peak_memory_bytes"] - found["import_memory_bytes"]
            line(
                [
                    kind,
                    f"{sigma:g}",
                    f"{found['metrics']['psnr']['mean']:.2f}",
                    f"{TARGETS[kind][sigma]:g}" if sigma in TARGETS[kind] else "",
                    f"{known_rows.mean():.2f}",
                    faithful,
                    f"{found['null']['mean_image']['psnr']:.2f}",
                    f"{found['metrics']['psnr_subject']['mean']:.2f}",
                    f"{found['num_reconstructions'] / arguments.clients:.2f}",
                    f"{found['recovered'] / arguments.clients:.2f}",
                    f"{16 * (known_rows >= RECOVERED_PSNR).mean():.2f}",
                    f"{found['precision']:.3f}",
                    f"{found['seconds_per_client']:.1f}",
                    f"{memory / 1e6:.0f}",
                ]
            )


if __name__ == "__main__":
    main()
