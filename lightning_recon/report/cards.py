"""Cards of pictures: which images a page shows, within its budget of bytes."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image

from lightning_recon.audit.scores import Row
from lightning_recon.report.folder import Run
from lightning_recon.report.page import DASH, count, metric_label, number
from lightning_recon.report.pictures import (
    DIFFERENCE_GAIN,
    Pair,
    data_uri,
    has_pictures,
    load_pictures,
)

MAX_WORST, MAX_LEAST = 36, 12
"""Images that a page shows: those that leaked most, and those that leaked least."""

MAX_BYTES = 3_500_000
"""Of all pictures of a page together; larger ones are shrunk further."""

_SIDES = (256, 160, 96, 48)  # pixels a side that are tried one after the other
_SMALL = 64  # pixels a side of a picture whose pixels are to be seen when it is enlarged
_SHOWN_METRICS = {"psnr": "PSNR", "ssim": "SSIM", "psnr_subject": "Subject"}


class Picture(NamedTuple):
    """One picture of a card; without ``source`` a box with the label."""

    label: str
    alternative: str = ""
    source: str = ""
    width: int = 0
    height: int = 0
    is_small: bool = False


class Card(NamedTuple):
    """The pictures of one true image and what is to be said of them."""

    name: str
    badge: str
    is_recovered: bool
    pictures: Sequence[Picture]
    scores: dict[str, str]


def leak(row: Row) -> tuple[bool, float]:
    """Return the key by which images are sorted; larger is a worse leak."""
    psnr = row.get("psnr", math.nan)
    return row.get("recovered") == 1, psnr if math.isfinite(psnr) else -math.inf


def image_name(row: Row) -> str:
    """Return "Client 0, image 3"."""
    return f"Client {row.get('client', 0)}, image {row.get('image', DASH)}"


def cards_of_run(run: Run) -> tuple[list[Card], str]:
    """Return the cards of a run, worst leak first, and a sentence on what is not shown."""
    pictured = [row for row in run.rows if has_pictures(run.pictures, *place(row))]
    pictured.sort(key=leak, reverse=True)
    if not pictured:
        return [], "No pictures were kept."
    shown = pictured
    if len(pictured) > MAX_WORST + MAX_LEAST:
        shown = pictured[:MAX_WORST] + pictured[-MAX_LEAST:]
    pairs = [load_pictures(run.pictures, *place(row)) for row in shown]
    cards = within_budget(
        lambda side: [
            _card(row, pair, side, is_masked=run.results.is_masked)
            for row, pair in zip(shown, pairs, strict=True)
        ]
    )
    return cards, _note(run.rows, pictured, len(shown))


def place(row: Row) -> tuple[int, int]:
    """Return the client and the position in its batch."""
    return int(row.get("client", 0)), int(row.get("image", 0))


def within_budget(make: Callable[[int], list[Card]]) -> list[Card]:
    """Return the cards with the largest pictures that fit into :data:`MAX_BYTES`.

    Args:
        make: returns the cards with pictures of at most so many pixels a side.
    """
    cards: list[Card] = []
    for side in _SIDES:
        cards = make(side)
        if sum(len(picture.source) for card in cards for picture in card.pictures) <= MAX_BYTES:
            break
    return cards


def picture(image: Image.Image, label: str, alternative: str, side: int) -> Picture:
    """Return a picture of at most ``side`` pixels a side."""
    is_small = max(image.size) <= _SMALL
    return Picture(label, alternative, data_uri(image, side), *image.size, is_small)


def _card(row: Row, pair: Pair, side: int, *, is_masked: bool) -> Card:
    """Return the card of one image: truth, reconstruction and difference, with its scores."""
    name = image_name(row)
    lower = name.lower()
    pictures = [picture(pair.truth, "Truth", f"{name}, as the client trained on it", side)]
    if pair.reconstruction is None or pair.difference is None:
        pictures.append(Picture("No reconstruction was matched: scored with the mean image"))
    else:
        gain = f"Difference x{DIFFERENCE_GAIN}"
        pictures += [
            picture(pair.reconstruction, "Reconstruction", f"Reconstruction of {lower}", side),
            picture(pair.difference, gain, f"Amplified difference of {lower}", side),
        ]
    scores = {}
    for metric, label in _SHOWN_METRICS.items():
        if metric in row and (is_masked or not metric.endswith("_subject")):
            _, unit, decimals = metric_label(metric)
            scores[label] = number(row[metric], decimals, unit)
    scores["Mean image"] = number(row.get("psnr_mean_image"), 1, "dB")
    is_recovered = row.get("recovered") == 1
    badge = "recovered" if is_recovered else "not recovered"
    if row.get("certified") == 1:
        badge += ", certified"
    if math.isfinite(row.get("p_value", math.nan)):
        scores["p-value"] = f"{row['p_value']:.1g}"
    return Card(name, badge, is_recovered, pictures, scores)


def _note(rows: Sequence[Row], pictured: Sequence[Row], num_shown: int) -> str:
    """Return what is shown, and what is not."""
    note = "Sorted from the worst leak to the least. The difference is |truth - reconstruction|"
    note += f", made {DIFFERENCE_GAIN} times brighter."
    if num_shown < len(pictured):
        note += (
            f" Of the {count(len(pictured), 'image')} with pictures, the {MAX_WORST} worst leaks "
            f"and the {MAX_LEAST} least are shown; {len(pictured) - num_shown:,} are not."
        )
    if len(pictured) < len(rows):
        note += (
            f" Of {len(rows) - len(pictured):,} of {count(len(rows), 'image')} no picture was kept."
        )
        worst = max(rows, key=leak)
        if leak(worst) > leak(pictured[0]):
            note += (
                f" The worst leak of all is among them: {image_name(worst).lower()}, "
                f"{number(worst.get('psnr'), 1, 'dB')}."
            )
    return note
