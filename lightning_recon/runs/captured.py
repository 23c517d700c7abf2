"""The audit of a capture: one client after the other, and what is written."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from lightning_recon.audit.matching import match
from lightning_recon.captures import Capture, Reply, Truth, read_truth
from lightning_recon.documents import read_json
from lightning_recon.errors import InputError
from lightning_recon.files import write_csv, write_json
from lightning_recon.functional.image_quality import decibels, psnr
from lightning_recon.report.captured import ClientJson, read_stored, write_audit_report
from lightning_recon.report.pictures import save_image
from lightning_recon.runs.claiming import held
from lightning_recon.runs.command import command_line
from lightning_recon.runs.results import device_name, versions
from lightning_recon.runs.stopping import Stopped
from lightning_recon.verdict import Auditor, ClientAudit, compare_replies
from lightning_recon.verdict.canary import estimate_canary
from lightning_recon.verdict.evidence import margin

SCHEMA_VERSION = 1
"""Of ``audit.json``."""
AUDIT = "audit.json"
_SETTINGS = "settings.json"
_MAX_CONTROLS = 4  # pictures of the control that are kept of one client


def output_folder(capture: Path, settings: Mapping[str, Any], root: Path) -> Path:
    """Return the folder that an audit writes to: one that was stopped, or a new one, made.

    Args:
        capture: its folder.
        settings: of the audit.
        root: in which the folder of the audit lies.
    """
    number = 1
    while True:
        folder = root / (f"audit_{capture.name}" + (f"_{number}" if number > 1 else ""))
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder
        except FileExistsError:
            if not (folder / AUDIT).exists() and _settings(folder) == settings:
                return folder
        number += 1


def audit_capture(
    capture: Capture,
    auditor: Auditor,
    folder: Path,
    settings: Mapping[str, Any],
    truth: Path | None = None,
) -> dict[str, Any]:
    """Audit every client of a capture, and write ``audit.json``, pictures and the report.

    A client that is done is not done again: an audit that was stopped goes on.

    Args:
        capture: the capture.
        auditor: of its clients.
        folder: of the outputs.
        settings: of the audit, as JSON has them; kept, so that only the same audit goes on.
        truth: folder of what the clients trained on; null: nobody has it.

    Returns:
        What ``audit.json`` says.

    Raises:
        InputError: if the folder holds another audit.
    """
    if folder.exists() and any(folder.iterdir()) and _settings(folder) != settings:
        raise InputError(
            f"{folder} holds something else, or an audit with other settings; choose another "
            "--output"
        )
    with held(folder):
        write_json(folder / _SETTINGS, dict(settings))
        try:
            return _audit_held(capture, auditor, folder, settings, truth)
        except (KeyboardInterrupt, Stopped):
            print("the same command goes on where this one was stopped", file=sys.stderr)  # noqa: T201
            raise


def _audit_held(
    capture: Capture,
    auditor: Auditor,
    folder: Path,
    settings: Mapping[str, Any],
    truth: Path | None,
) -> dict[str, Any]:
    """Audit every client that is not done, in a folder that no other process writes into."""
    started = time.monotonic()
    before = 0.0
    console = Console(stderr=True, soft_wrap=True, markup=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    clients: list[dict[str, Any]] = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("clients", total=len(capture.files))
        for number, path in enumerate(capture.files, 1):
            done = folder / "clients" / f"{path.parent.name}_{path.stem}.json"
            is_done = done.exists()
            if not is_done:
                write_json(done, _audited(capture, path, auditor, folder, settings, truth))
            clients.append(read_stored(ClientJson, done))
            before += clients[-1].get("seconds", 0.0) if is_done else 0.0
            progress.advance(task)
            if not console.is_terminal:
                left = (time.monotonic() - started) / number * (len(capture.files) - number)
                last = clients[-1]
                console.print(
                    f"{number} of {len(capture.files)}: {last['name']}: {last['verdict']}; about "
                    f"{left:.0f} s left"
                )
    alike = compare_replies(
        {client["name"]: client["fingerprint"] for client in clients if client["fingerprint"]}
    )
    for client in clients:
        if client["name"] in alike:
            finding = alike[client["name"]]
            client["findings"].append({"kind": finding.kind, "text": finding.text})
    content = {
        "schema_version": SCHEMA_VERSION,
        "capture": capture.folder.name,
        "source": capture.facts.get("source"),
        "settings": dict(settings),
        "summary": _summary(clients),
        "clients": clients,
        "seconds": round(before + time.monotonic() - started, 1),
        "device": device_name(torch.device("cpu")),
        "versions": versions(),
        "command": command_line(),
    }
    write_csv(folder / "clients.csv", _rows(clients))
    write_json(folder / AUDIT, content)
    write_audit_report(folder)
    return content


def _settings(folder: Path) -> Any:
    try:
        return read_json(folder / _SETTINGS, "")[0]
    except InputError:
        return None


def _audited(
    capture: Capture,
    path: Path,
    auditor: Auditor,
    folder: Path,
    settings: Mapping[str, Any],
    truth: Path | None,
) -> dict[str, Any]:
    """Audit one client, write its pictures, and return what is said of it."""
    base = {"file": str(path.relative_to(capture.folder)), "fingerprint": "", "truth": None}
    try:
        reply = capture.read(path)
    except InputError as error:
        return base | {
            "name": f"{path.parent.name}/{path.stem}",
            "verdict": "cannot tell",
            "reason": str(error),
            "findings": [{"kind": "warning", "text": str(error)}],
            "privacy": {},
            "pictures": [],
            "controls": [],
            "num_samples": None,
            "attacks": {},
        }
    started = time.monotonic()
    audit = auditor.audit(reply)
    stem = f"{path.parent.name}_{path.stem}"
    pictures = []
    for number, picture in enumerate(audit.pictures):
        file = f"reconstructions/{stem}_{number:03d}.png"
        save_image(folder / file, picture.image)
        pictures.append(
            {
                "file": file,
                "attack": picture.attack,
                "label": picture.label,
                "mark": None if picture.mark is None else picture.mark.value,
                "confidence": round(picture.confidence, 4),
                "evidence": {
                    name: float(f"{value:.4g}") for name, value in picture.features.items()
                },
            }
        )
    controls = []
    for number, image in enumerate(audit.controls[:_MAX_CONTROLS]):
        file = f"reconstructions/{stem}_control{number:03d}.png"
        save_image(folder / file, image)
        controls.append(file)
    known = None if truth is None else read_truth(truth, reply)
    return base | {
        "name": audit.name,
        "round": reply.round,
        "client": reply.client,
        "verdict": audit.verdict,
        "reason": audit.reason,
        "findings": [{"kind": found.kind, "text": found.text} for found in audit.findings],
        "privacy": audit.privacy,
        "pictures": pictures,
        "controls": controls,
        "num_samples": audit.num_samples,
        "attacks": audit.attacks,
        "truth": None
        if known is None
        else _score(
            audit, known, reply, auditor, folder, stem, is_estimated=settings.get("estimate", False)
        ),
        "fingerprint": audit.fingerprint,
        "seconds": round(time.monotonic() - started, 2),
    }


def _score(
    audit: ClientAudit,
    truth: Truth,
    reply: Reply,
    auditor: Auditor,
    folder: Path,
    stem: str,
    *,
    is_estimated: bool,
) -> dict[str, Any]:
    """Return how right an audit was, all true images counted."""
    images = truth.images
    if images.shape[1:] != auditor.setting.image_shape:
        raise InputError(
            f"{reply.name}: the truth holds images of {tuple(images.shape[1:])}, but the audit is "
            f"of {auditor.setting.image_shape}"
        )
    judged = judge(audit, images, auditor.setting.public.mean(0))
    for number, image in enumerate(images):
        save_image(folder / "reconstructions" / f"{stem}_truth{number:03d}.png", image)
    return {
        "num_images": len(images),
        "right": sum(judged.right),
        "psnr": [round(value, 2) for value in judged.psnr],
        "picture_right": judged.picture_right,
        **(_estimate(judged, truth, reply, auditor) if is_estimated else {}),
    }


def _estimate(
    judged: "Judgement", truth: Truth, reply: Reply, auditor: Auditor
) -> dict[str, dict[str, float]]:
    """Return mean image, attack and local estimate by their mean squared errors, in dB."""
    try:
        found = estimate_canary(auditor, reply, truth.images, truth.labels)
    except InputError as error:
        print(f"{reply.name} has no local estimate: {error}", file=sys.stderr)  # noqa: T201
        return {}
    mean = auditor.setting.public.mean(0)
    errors = {
        "psnr_mean_image": float((truth.images - mean).square().mean()),
        "psnr_attack": sum(10 ** (-value / 10) for value in judged.psnr) / len(judged.psnr),
        "psnr": float(found.mse.mean()),
    }
    return {
        "local_estimate": {
            name: round(decibels(error, cap=100.0), 2) for name, error in errors.items()
        }
    }


class Judgement(NamedTuple):
    """How right an audit was, by the truth."""

    right: list[bool]
    """Of each true image."""
    psnr: list[float]
    """Likewise, in dB; an image that nothing was matched to counts with the mean image."""
    picture_right: list[bool]
    """Of each picture that came back."""


def judge(audit: ClientAudit, images: Tensor, mean_image: Tensor) -> Judgement:
    """Return how right an audit was, all true images counted.

    Args:
        audit: of the client.
        images: B C H W, the truth.
        mean_image: C H W, of public images: the control, beside what the attacks make of the
            shuffled update.
    """
    found = torch.stack([picture.image for picture in audit.pictures]) if audit.pictures else None
    rows = match(found, images).row.tolist() if found is not None else [-1] * len(images)
    judged = Judgement([], [], [False] * len(audit.pictures))
    for image, row in zip(images, rows, strict=True):
        controls = [mean_image, *audit.controls]
        best = max(float(psnr(one[None].to(image), image[None])) for one in controls)
        value = float(psnr(mean_image[None].to(image), image[None]))
        if row >= 0 and found is not None:
            value = float(psnr(found[row][None].to(image), image[None]))
        is_right = row >= 0 and bool(margin(torch.tensor(value), torch.tensor(best)) >= 0)
        judged.psnr.append(value)
        judged.right.append(is_right)
        if row >= 0:
            judged.picture_right[row] = is_right
    return judged


def _summary(clients: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    verdicts = [client["verdict"] for client in clients]
    scored = [client for client in clients if client["truth"]]
    sure = [
        (picture["confidence"], is_right)
        for client in scored
        for picture, is_right in zip(
            client["pictures"], client["truth"]["picture_right"], strict=True
        )
    ]
    return {
        "num_clients": len(clients),
        "leaked": verdicts.count("leaked"),
        "not_shown": verdicts.count("not shown"),
        "cannot_tell": verdicts.count("cannot tell"),
        "clients_with_truth": len(scored),
        "images_with_truth": sum(client["truth"]["num_images"] for client in scored),
        "right": sum(client["truth"]["right"] for client in scored),
        "brier": sum((value - is_right) ** 2 for value, is_right in sure) / len(sure)
        if sure
        else None,
    }


def _rows(clients: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for every picture, and one for every client without any."""
    rows = []
    for client in clients:
        head = {"client": client["name"], "verdict": client["verdict"]}
        if not client["pictures"]:
            rows.append(head)
        for number, picture in enumerate(client["pictures"]):
            scores = {
                key: picture[key] for key in ("file", "attack", "label", "mark", "confidence")
            }
            is_right = client["truth"]["picture_right"][number] if client["truth"] else None
            right = None if is_right is None else int(is_right)
            rows.append(head | scores | picture["evidence"] | {"right": right})
    return rows
