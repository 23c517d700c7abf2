"""What a run leaves behind: ``clients.csv``, ``results.json`` and pictures; all written atomically.

Tools may rely on the keys of ``results.json`` that the README names.
"""

import platform
import resource
import statistics
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch

from lightning_recon.attacks import Attack
from lightning_recon.audit.privacy_statement import privacy_statement
from lightning_recon.audit.records import ClientRecord
from lightning_recon.audit.scores import aggregate
from lightning_recon.data import AuditDataModule, ClientDataModule

MAX_CURVES = 24  # of clients, that results.json keeps
_PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "jsonargparse",
    "segment-anything",
    "numpy",
    "dp-accounting",
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


def describe_attack(attack: Attack, num_samples: int | None = None) -> dict[str, Any]:
    """Return the attack, its threat model, all that the attacker was granted, and the privacy.

    Args:
        attack: as it ran.
        num_samples: of one client; None: not known.
    """
    return {
        "attack": type(attack).__name__,
        "citation": attack.citation,
        "threat_model": f"{attack.threat_model}; protocol {attack.client.protocol}",
        "oracles": list(attack.oracles),
        "target": getattr(attack.target, "name", type(attack.target).__name__),
        "defenses": [type(defense).__name__ for defense in attack.defenses],
        "privacy": privacy_statement(
            attack.federation.defenses,
            client=attack.client,
            num_samples=num_samples,
            sends_buffers="buffers" in attack.oracles,
        ),
        "seed": attack.seed,
    }


def _communication(records: Sequence[ClientRecord]) -> dict[str, float] | None:
    """Return what one client's update costs to send, which stands beside what it leaks."""
    for record in records:
        if "update_bits" in record.notes:
            num_bits, num_parameters = (
                record.notes[name] for name in ("update_bits", "update_parameters")
            )
            return {
                "num_parameters": num_parameters,
                "num_bits": num_bits,
                "bits_per_parameter": num_bits / num_parameters,
            }
    return None


def summarise(
    attack: Attack,
    data: AuditDataModule | None,
    records: Sequence[ClientRecord],
    num_candidates: int | None = None,
) -> dict[str, Any]:
    """Return what ``results.json`` says of the attack, the data and the outcome.

    Args:
        attack: as it ran.
        data: what it ran on, or None to leave it out.
        records: of all clients, at least one.
        num_candidates: among how many images each was to be identified.
    """
    rows = [row for record in records for row in record.rows]
    failures = [record for record in records if record.failure]
    # the last client may hold fewer; where there is no truth the size is not known
    num_samples = max(len(record.rows) for record in records) or None
    curved = [record for record in records if record.curve][:MAX_CURVES]
    results = {
        **describe_attack(attack, num_samples),
        "communication": _communication(records),
        "num_clients": len(records),
        "failures": [{"client": record.client, "reason": record.failure} for record in failures],
        "clients_unrecovered": [
            record.client
            for record in records
            if record.rows
            and not record.failure
            and not any(row["recovered"] for row in record.rows)
        ],
        **aggregate(rows, sum(record.num_reconstructions for record in records), num_candidates),
        "notes": [{"client": record.client, **record.notes} for record in records],
        "curves": [
            {
                "client": record.client,
                "iteration": [iteration for iteration, _ in record.curve],
                "objective": [objective for _, objective in record.curve],
            }
            for record in curved
        ],
        "seconds_per_client": round(statistics.median(record.seconds for record in records), 3),
    }
    if isinstance(data, ClientDataModule):
        results["data"] = {
            "name": data.name,
            "fallback": data.fallback,
            "description": data.describe(),
        }
        results["masks"] = data.mask_summary()
    bounds = [r.controls["prior_free_bound"] for r in records if "prior_free_bound" in r.controls]
    if bounds:
        for name in ("expected_psnr", "expected_psnr_clamped"):
            results["privacy"][name] = statistics.fmean(bound[name] for bound in bounds)
    for name in ("noise_only", "other_client"):
        controls = [record.controls[name] for record in records if name in record.controls]
        if controls:
            results["null"][name] = {
                "psnr": statistics.fmean(control["psnr"] for control in controls)
            }
            if all("recovered" in control for control in controls):
                recovered = int(sum(control["recovered"] for control in controls))
                results["null"][name]["recovered"] = recovered
            failed = sum("failed" in control for control in controls)
            if failed:
                results["null"][name]["failed"] = failed
    return results


def device_name(device: torch.device) -> str:
    """Return the name of what computed the figures."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
