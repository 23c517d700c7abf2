"""The page of a run without the truth: what an attack made of captured updates."""

import csv
import re
from pathlib import Path
from typing import Any

from lightning_recon.observation import Mark
from lightning_recon.report.cards import MAX_LEAST, MAX_WORST, Card, picture, within_budget
from lightning_recon.report.figures import objective_curves
from lightning_recon.report.findings import findings
from lightning_recon.report.folder import Run
from lightning_recon.report.page import count
from lightning_recon.report.pictures import load_picture

MAX_SHOWN = MAX_WORST + MAX_LEAST
"""Reconstructions that the page shows."""
_NAME = re.compile(r"client(\d+)_reconstruction(\d+)\.png")


def content_of(run: Run) -> dict[str, Any]:
    """Return what a page says of a run that nobody can score; the rest is every run's.

    Args:
        run: whose rows are none.
    """
    results = run.results
    cards, num_pictures = _cards(run)
    clients = count(results.num_clients or 0, "client")
    made = count(results.num_reconstructions or 0, "reconstruction")
    curves = objective_curves(results)
    certified = results.noted("certified")
    proven = "" if certified is None else f" {certified:,} are certified to be exact."
    return {
        "title": f"{run.name}: reconstructions",
        "kind": "Reconstruction from captured updates",
        "is_leak": bool(certified),
        "status": "Images leak, with a proof" if certified else "No truth to score by",
        "verdict": f"{made} from the updates of {clients}.{proven}",
        "caveat": (
            "Nobody has the true images, and so nothing here is a score: a picture that shows a "
            "recognisable image of the client's is a leak, and one that does not proves nothing."
        ),
        "warnings": findings(results),
        "sections": {
            "pictures": "Pictures",
            "setting": "What was attacked",
            "privacy": "Privacy",
            **({"curves": "Curves"} if curves else {}),
            "reproduce": "Reproduce",
        },
        "cards": cards,
        "pictures_note": _note(len(cards), num_pictures),
        "curves": curves,
    }


def _note(num_shown: int, num_pictures: int) -> str:
    if not num_pictures:
        return "The attack put out no image."
    if num_shown == num_pictures:
        return "All that the attack put out, in its own order."
    return (
        f"The first {num_shown:,} of {count(num_pictures, 'reconstruction')}; the folder "
        "reconstructions holds all."
    )


def _cards(run: Run) -> tuple[list[Card], int]:
    """Return the cards of the first reconstructions, and how many there are."""
    found = sorted(path for path in run.pictures.glob("*.png") if _NAME.fullmatch(path.name))
    shown = [(_place(path.name), load_picture(path)) for path in found[:MAX_SHOWN]]
    marks = {
        client: read_marks(run.pictures / f"client{client:05d}_marks.csv")
        for client in {client for (client, _), _ in shown}
    }

    def cards(side: int) -> list[Card]:
        made = []
        for (client, position), image in shown:
            name = f"Client {client}, reconstruction {position}"
            pictures = [picture(image, "Reconstruction", name, side)]
            told = marks[client].get(position)
            badge, p_value = told or ("no truth", None)
            scores = {"p-value": f"{p_value:.1g}"} if p_value is not None else {}
            made.append(Card(name, badge, badge == Mark.CERTIFIED, pictures, scores))
        return made

    return within_budget(cards), len(found)


def read_marks(path: Path) -> dict[int, tuple[str, float | None]]:
    """Return mark and p-value by reconstruction; nothing where the attack has no marks."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {
            int(row["reconstruction"]): (row["mark"], float(row["p_value"] or "nan"))
            for row in csv.DictReader(file)
        }


def _place(name: str) -> tuple[int, int]:
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2])
