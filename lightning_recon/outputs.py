"""What a run leaves behind: ``clients.csv``, ``results.json`` and pictures; all written atomically.

Tools may rely on the keys of ``results.json`` that the README names.
"""

import csv
import io
import json
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_recon.attacks import Attack
from lightning_recon.defenses import ClipL2, GaussianNoise
from lightning_recon.files import write_atomically
from lightning_recon.scores import Row

_PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "jsonargparse",
    "segment-anything",
    "numpy",
)


def peak_memory_bytes() -> int:
    """Return the largest memory that this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


IMPORT_MEMORY_BYTES = peak_memory_bytes()
"""What the libraries alone take: measured when this module was imported."""


def versions() -> dict[str, str]:
    """Return the versions of what a figure may depend on."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **found}


def describe_privacy(defenses: nn.ModuleList) -> dict[str, Any]:
    """Return what the chain of defenses claims, and what really holds for one update."""
    clips = [defense for defense in defenses if isinstance(defense, ClipL2)]
    noises = [defense for defense in defenses if isinstance(defense, GaussianNoise)]
    statements = [str(defense.guarantee) for defense in defenses]
    return {
        "clip_norm": min((clip.clip_norm for clip in clips), default=None),
        "noise_std": noises[-1].std if noises else None,
        "claimed": noises[-1].claimed if noises else None,
        "actual": noises[-1].actual if noises else None,
        "statement": "; then ".join(statements) or "no defense: no formal guarantee",
    }


def describe_attack(attack: Attack) -> dict[str, Any]:
    """Return the attack, its threat model and all that the attacker was granted."""
    return {
        "attack": type(attack).__name__,
        "citation": attack.citation,
        "threat_model": f"{attack.threat_model}; protocol {attack.client.protocol}",
        "oracles": list(attack.oracles),
        "target": getattr(attack.target, "name", type(attack.target).__name__),
        "defenses": [type(defense).__name__ for defense in attack.defenses],
        "privacy": describe_privacy(attack.defenses),
        "seed": attack.seed,
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as JSON."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows under the names of their keys; none at all if there are no rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    if rows:
        writer.writeheader()
        writer.writerows(rows)
    write_atomically(path, text.getvalue())


def device_name(device: torch.device) -> str:
    """Return the name of what computed the figures."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
