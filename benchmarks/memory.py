"""Whether memory grows from client to client.

    python -m benchmarks.memory [--clients 2000]

Runs ``test`` on so many clients of one random image, and notes what the process holds after each.
Writes the section "Memory" of docs/reliability.md.  One or two minutes on a quiet core.
"""

import argparse
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.reliability import write_section
from lightning_recon.commands.lightning import main as run
from lightning_recon.runs import callback

SIZE, SETTLED = 16, 100
"""Side of the images; clients after which growth counts."""
CONFIGS: dict[str, dict[str, Any]] = {
    "an analytic attack": {
        "class_path": "LinearLayerInversion",
        "init_args": {
            "target": {"class_path": "MLP", "init_args": {"image_size": SIZE, "hidden": [32]}}
        },
    },
    "gradient matching, two iterations": {
        "class_path": "InvertingGradients",
        "init_args": {
            "iterations": 2,
            "target": {"class_path": "LeNet", "init_args": {"image_size": SIZE}},
        },
    },
}


def held() -> int:
    """Return the memory that this process holds, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(model: dict[str, Any], num_clients: int) -> list[int]:
    """Return the memory held after each client of a run in the working folder, in bytes."""
    images = np.random.default_rng(0).integers(0, 256, (num_clients, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez("images.npz", x_test=images, y_test=np.arange(num_clients) % 10)
    config = {
        "model": model,
        "data": {
            "class_path": "ArrayDataModule",
            "init_args": {
                "root": "images.npz",
                "batch_size": 1,
                "num_clients": num_clients,
                "num_public": 0,
            },
        },
        "audit": {"num_candidates": 0, "null_controls": False},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "logger": False},
    }
    Path("memory.yaml").write_text(yaml.safe_dump(config))
    found: list[int] = []
    append = callback.append_record

    def watched(*arguments: Any) -> None:
        append(*arguments)
        found.append(held())

    callback.append_record = watched
    try:
        if code := run(["test", "--config", "memory.yaml"]):
            raise SystemExit(code)
    finally:
        callback.append_record = append
    return found


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    home, lines = Path.cwd(), []
    for name, model in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                found = measure(model, arguments.clients)
            finally:
                os.chdir(home)
        settled, last = found[SETTLED - 1], found[-1]
        growth = 100 * (last - settled) / settled
        lines.append(
            f"| {name} | {len(found):,} | {settled / 2**20:.1f} | {last / 2**20:.1f} | "
            f"{growth:.2f} % |"
        )
        print(lines[-1], flush=True)
    text = [
        f"`python -m benchmarks.memory --clients {arguments.clients}`: `test` on clients of one",
        f"{SIZE}x{SIZE} image, one process; torch {torch.__version__}.",
        "",
        f"| attack | clients | MiB after {SETTLED} | MiB after the last | growth |",
        "|---|---|---|---|---|",
        *lines,
    ]
    write_section("## Memory\n", "\n".join(text))


if __name__ == "__main__":
    main()
