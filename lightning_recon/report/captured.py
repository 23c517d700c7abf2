"""The audit of a capture as a page, for people who run a federation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from lightning_recon.documents import read_json, refusal
from lightning_recon.report.cards import Card, picture, within_budget
from lightning_recon.report.figures import NO_BOUND
from lightning_recon.report.findings import Finding
from lightning_recon.report.page import Table, count, estimate_words, number, share, write_page
from lightning_recon.report.pictures import load_picture
from lightning_recon.schemas import MisfitError, conform

_MAX_CLIENTS = 40  # with pictures
_MAX_PICTURES = 6  # of one client
_MAX_FINDINGS = 12  # at the top of the page
_AGAIN = "audit the capture again, into another folder"
_SEVERITY: dict[str, Literal["alarm", "note"]] = {"contradiction": "alarm", "warning": "note"}
_ORDER = {"leaked": 0, "cannot tell": 1, "not shown": 2}
_STATUS = {
    "leaked": "Images came back",
    "cannot tell": "Nothing shown, nothing excluded",
    "not shown": "No leak shown",
}
_ADVICE = {
    "linear": (
        "The first layer is fully connected and reads the image: its update holds the images "
        "themselves. Put convolutions before it, or do not share that layer."
    ),
    "batch": (
        "Updates of few samples say much of each. Larger batches and more local steps help "
        "against these attacks; they are no guarantee."
    ),
    "noise": (
        "Only clipping with enough noise behind it gives a guarantee: DP-SGD on the client, or "
        "clipping and Gaussian noise on its update, with the noise calibrated exactly. "
        "python cli.py lint tells what a configuration really guarantees (docs/lint.md), and "
        "python cli.py recommend which defense of a list costs least accuracy (docs/defend.md); "
        "docs/privacy.md has what epsilon means here."
    ),
    "look": (
        "A malicious server gets images past much of this. A client can look at a model before it "
        "trains on it: python cli.py detect, or detect_mod in Flower (docs/defend.md)."
    ),
    "secure": (
        "Secure aggregation hides single updates from the server, which is what these attacks read."
    ),
}


class PictureJson(TypedDict):
    """One picture of a client."""

    file: str
    attack: str
    label: int | None
    confidence: float
    evidence: dict[str, float]


class FoundJson(TypedDict):
    """A finding."""

    kind: str
    text: str


class EstimateJson(TypedDict):
    """What a linearised attacker would get of a client, in dB, by mean squared errors."""

    psnr_mean_image: float
    psnr_attack: float
    psnr: float


class _RequiredTruthJson(TypedDict):
    num_images: int
    right: int
    psnr: list[float]
    picture_right: list[bool]


class TruthJson(_RequiredTruthJson, total=False):
    """How right an audit of a client was."""

    local_estimate: EstimateJson


class ClientJson(TypedDict):
    """What an audit says of one client."""

    name: str
    verdict: Literal["leaked", "cannot tell", "not shown"]
    reason: str
    findings: list[FoundJson]
    privacy: dict[str, Any]
    pictures: list[PictureJson]
    controls: list[str]
    num_samples: int | None
    attacks: dict[str, Any]
    truth: TruthJson | None
    fingerprint: str


class SummaryJson(TypedDict):
    """Of all clients."""

    num_clients: int
    leaked: int
    not_shown: int
    cannot_tell: int
    images_with_truth: int
    right: int
    brier: float | None


class AuditJson(TypedDict):
    """``audit.json``; further keys are allowed."""

    capture: str
    source: str | None
    settings: dict[str, Any]
    summary: SummaryJson
    clients: list[ClientJson]
    command: str


def read_stored(kind: Any, path: Path) -> Any:
    """Return what an audit stored, held against its schema.

    Args:
        kind: :class:`AuditJson` or :class:`ClientJson`.
        path: of the file.

    Raises:
        InputError: naming the file, the line and the key; for pictures that lie elsewhere, too.
    """
    content, text = read_json(path, _AGAIN)
    try:
        found = conform(kind, content)
        for client in found["clients"] if kind is AuditJson else [found]:
            _check_client(client)
    except MisfitError as misfit:
        raise refusal(path, text, misfit, _AGAIN) from misfit
    return found


def _check_client(client: ClientJson) -> None:
    files = [*(shown["file"] for shown in client["pictures"]), *client["controls"]]
    for file in files:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise MisfitError(("pictures",), f"name {file!r}, which lies outside of the folder")
    truth = client["truth"]
    if truth is not None and len(truth["picture_right"]) != len(client["pictures"]):
        raise MisfitError(("truth", "picture_right"), "has not one entry for each picture")


def write_audit_report(folder: Path) -> Path:
    """Write ``report.html`` beside ``audit.json``.

    Args:
        folder: of an audit of a capture.

    Returns:
        The path of the page.

    Raises:
        InputError: if there is no ``audit.json``, or it cannot be understood.
    """
    path = folder / "audit.json"
    audit = read_stored(AuditJson, path)
    clients: list[ClientJson] = sorted(
        audit["clients"], key=lambda client: _ORDER[client["verdict"]]
    )
    summary = audit["summary"]
    shown = clients[:_MAX_CLIENTS]
    sections = [_client(folder, client, number) for number, client in enumerate(shown)]
    worst = clients[0]["verdict"]
    findings = [
        Finding(_SEVERITY[finding["kind"]], f"{client['name']}: {finding['text']}")
        for client in clients
        for finding in client["findings"]
        if finding["kind"] in _SEVERITY
    ]
    content = {
        "title": f"{audit['capture']}: audit of a federation",
        "kind": "Audit of a real federation",
        "heading": audit["capture"],
        "about": " · ".join(
            str(part) for part in (audit["source"], audit["settings"].get("model")) if part
        ),
        "is_leak": worst == "leaked",
        "status": _STATUS[worst],
        "verdict": _sentence(summary),
        "caveat": (
            "Without the truth nobody can score an image: each has a confidence, calibrated on "
            "clients whose truth was known (docs/real_federations.md). A client leaked if an image "
            "came back with 90 % or more. An attack that fails does not prove that nothing leaked."
        ),
        "warnings": findings[:_MAX_FINDINGS] + _rest(findings),
        "sections": {
            "figures": "Figures",
            "advice": "What to change",
            "clients": "Clients",
            "table": "All clients",
            "reproduce": "Reproduce",
        },
        "source": f"Made from the files of {folder.resolve().name}; nothing here is fetched.",
        "tiles": _tiles(summary),
        "advice": _advice(clients),
        "clients": sections,
        "more": max(0, len(clients) - len(shown)),
        "table": _table(clients),
        "command": audit["command"],
        "settings": {name: _words(value) for name, value in audit["settings"].items()},
    }
    return write_page(folder / "report.html", "audit.html", content)


def _rest(found: Sequence[Finding]) -> list[Finding]:
    left = len(found) - _MAX_FINDINGS
    return [Finding("note", f"{left:,} more stand at the clients below.")] if left > 0 else []


def _sentence(summary: Mapping[str, Any]) -> str:
    total = count(summary["num_clients"], "client")
    text = (
        f"Of {total}, {summary['leaked']} leaked, of {summary['not_shown']} no leak was shown, and "
        f"of {summary['cannot_tell']} nothing can be told."
    )
    if summary["images_with_truth"]:
        text += (
            f" Where the truth is known, {summary['right']} of "
            f"{count(summary['images_with_truth'], 'image')} came back right."
        )
    return text


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    total = summary["num_clients"]
    tiles = [
        ("Leaked", f"{summary['leaked']} of {total}", "an image came back, 90 % sure"),
        ("No leak shown", f"{summary['not_shown']} of {total}", "obfuscated, nothing came back"),
        ("Cannot tell", f"{summary['cannot_tell']} of {total}", "neither shown nor excluded"),
    ]
    if summary["images_with_truth"]:
        right = summary["right"] / summary["images_with_truth"]
        tiles.append(
            (
                "Right, by the truth",
                share(right),
                f"{summary['right']} of {count(summary['images_with_truth'], 'image')}",
            )
        )
    if summary["brier"] is not None:
        tiles.append(("Brier score", number(summary["brier"], 3), "0 is best, .25 is a coin"))
    return tiles


_LINEAR = {"ExactInversion", "LinearLayerInversion"}


def _advice(clients: Sequence[Mapping[str, Any]]) -> list[str]:
    leaked = [client for client in clients if client["verdict"] == "leaked"]
    if not leaked:
        return [_ADVICE["noise"], _ADVICE["look"], _ADVICE["secure"]]
    attacks = {picture["attack"] for client in leaked for picture in client["pictures"]}
    advice = [_ADVICE["linear"]] if attacks & _LINEAR else [_ADVICE["batch"]]
    return [*advice, _ADVICE["noise"], _ADVICE["look"], _ADVICE["secure"]]


def _client(folder: Path, client: Mapping[str, Any], place: int) -> dict[str, Any]:
    return {
        "anchor": f"client-{place}",
        "name": client["name"],
        "verdict": client["verdict"],
        "is_leak": client["verdict"] == "leaked",
        "reason": client["reason"],
        "findings": client["findings"],
        "privacy": client["privacy"] | _estimated(client["truth"]),
        "attacks": client["attacks"],
        "cards": _cards(folder, client),
    }


def _estimated(truth: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the local estimate between what it is to be read with; nothing without one."""
    found = (truth or {}).get("local_estimate")
    if not found:
        return {}
    words = estimate_words(
        found["psnr_mean_image"], found["psnr_attack"], found["psnr"], "best attack"
    )
    return {"By the mean squared error of its images": f"{words}. {NO_BOUND}"}


def _cards(folder: Path, client: Mapping[str, Any]) -> list[Card]:
    """Return a card for each picture, beside what the attack makes of the shuffled update."""
    truth = client["truth"]

    def make(side: int) -> list[Card]:
        cards = []
        for place, shown in enumerate(client["pictures"][:_MAX_PICTURES]):
            name = f"Image {place + 1}"
            label = f"By {shown['attack']}"
            pictures = [
                picture(load_picture(folder / shown["file"]), label, f"{name}, {label}", side)
            ]
            if place < len(client["controls"]):
                control = load_picture(folder / client["controls"][place])
                pictures.append(picture(control, "Control", f"{name}, of the control", side))
            is_sure = shown["confidence"] >= 0.9
            scores = {"Confidence": share(shown["confidence"])}
            if shown["label"] is not None:
                scores["Class"] = str(shown["label"])
            if truth:
                scores["By the truth"] = "right" if truth["picture_right"][place] else "not right"
            badge = shown.get("mark") or f"{share(shown['confidence'])} sure"
            cards.append(Card(name, badge, is_sure, pictures, scores))
        return cards

    return within_budget(make)


def _table(clients: Sequence[Mapping[str, Any]]) -> Table:
    heads = ["Client", "Verdict", "Surest", "Images", "Samples", "Right", "Findings"]
    rows = [
        [
            client["name"],
            client["verdict"],
            share(max((picture["confidence"] for picture in client["pictures"]), default=None)),
            str(len(client["pictures"])),
            _words(client["num_samples"]),
            f"{client['truth']['right']} of {client['truth']['num_images']}"
            if client["truth"]
            else "no truth",
            str(len(client["findings"])),
        ]
        for client in clients
    ]
    return Table("", heads, rows, is_sortable=True, facets={"Verdict": list(_ORDER)})


def _words(value: Any) -> str:
    return "not known" if value is None else str(value)
