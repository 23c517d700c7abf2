"""The audit as one page that a person can read: ``report.html``, and a grid of pictures.

The page is self-contained (pictures inline, no script, nothing fetched), follows the reader's
light or dark preference and works from a phone to a desktop.  Files are written under a temporary
name and then renamed, so that a reader never meets half a file.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from lightning_recon.files import write_atomically
from lightning_recon.scores import Row

_TEMPLATE = Path(__file__).with_name("report_template.html")

_DASH = "\N{EN DASH}"
"""Shown in place of a value that is not there."""

MAX_PICTURES = 64
"""With more images than this, the page shows half as many of the worst and of the least leaks."""

_METRICS = {
    "psnr": ("PSNR", "dB", 1),
    "ssim": ("SSIM", "", 3),
    "cw_ssim": ("CW-SSIM", "", 3),
    "mse": ("MSE", "", 4),
    "psnr_subject": ("PSNR, subject", "dB", 1),
    "ssim_subject": ("SSIM, subject", "", 3),
    "cw_ssim_subject": ("CW-SSIM, subject", "", 3),
    "mse_subject": ("MSE, subject", "", 4),
}
"""Metric: its name for people, its unit and the decimals shown, in the order of the tables."""


class AuditedImage(TypedDict):
    """What the page shows of one true image."""

    truth: Tensor
    """C H W in [0, 1]."""
    reconstruction: Tensor | None
    """C H W in [0, 1], or None where no reconstruction was matched."""
    row: Row
    """Its scores, from :func:`lightning_recon.scores.score`."""


def write_report(
    folder: Path, results: Mapping[str, Any], rows: Sequence[Row], images: Sequence[AuditedImage]
) -> Path:
    """Write ``report.html`` into the folder and return its path.

    Args:
        folder: Created if it is missing.
        results: The content of ``results.json``; a missing key leaves a gap, not an error.
        rows: The scores of every image of the audit; a caller with several clients adds the key
            ``client`` to each row, and the page names it.
        images: The images to show, each with its row.  More than :data:`MAX_PICTURES` are thinned
            to the worst and the least leaks, which the page says.

    Returns:
        The path of the page.
    """
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"{results.get('experiment') or 'Audit'}: privacy audit"),
        heading=escape(str(results.get("experiment") or "Privacy audit")),
        verdict=escape(verdict(results, rows)),
        warnings=_warnings(results),
        setting=_setting(results),
        privacy=_privacy(results),
        figures=_key_figures(results),
        pictures=_pictures(images),
        scores=_score_table(rows),
        reproduce=_reproduce(results),
    )
    path = folder / "report.html"
    write_atomically(path, page)
    return path


def save_grid(path: Path, truth: Tensor, reconstruction: Tensor) -> None:
    """Write a PNG of pairs, each true image above its reconstruction, eight pairs in a line.

    Args:
        path: The file to write; its folder is created if it is missing.
        truth: B C H W in [0, 1], C 1 or 3, B at least 1.
        reconstruction: B C H W in [0, 1], in the order of ``truth``; NaNs are shown black.

    Raises:
        ValueError: If the shapes disagree or B is 0.
    """
    if truth.ndim != 4 or truth.shape != reconstruction.shape or not len(truth):
        raise ValueError(
            "a grid needs truth and reconstruction of one shape B C H W, B at least 1; got "
            f"{tuple(truth.shape)} and {tuple(reconstruction.shape)}"
        )
    truth, reconstruction = (
        images.detach().cpu().float().nan_to_num(0.0).clamp(0.0, 1.0)
        for images in (truth, reconstruction)
    )
    gap = 2
    pairs = torch.cat([F.pad(truth, (0, 0, 0, gap), value=1.0), reconstruction], dim=2)
    grid = make_grid(pairs, nrow=8, padding=4 * gap, pad_value=1.0)
    write_atomically(path, _png(grid))


def save_image(path: Path, image: Tensor) -> None:
    """Write one image as a PNG.

    Args:
        path: Where to; the folder is made.
        image: C H W in [0, 1].
    """
    write_atomically(path, _png(image))


def verdict(results: Mapping[str, Any], rows: Sequence[Row] = ()) -> str:
    """Return the audit's outcome as one sentence.

    Args:
        results: The content of ``results.json``.
        rows: The scores of every image; with them the PSNR named is that of the recovered images.

    Returns:
        Plain text, not escaped.
    """
    num_images = results.get("num_images") or 0
    if not num_images:
        return "No image was audited."
    recovered = results.get("recovered") or 0
    images = "1 image" if num_images == 1 else f"{num_images} images"
    null = _number(_get(results, "null", "mean_image", "psnr"), 1)
    overall = _number(_get(results, "metrics", "psnr", "mean"), 1)
    if not recovered:
        return f"None of {images} recovered: PSNR {overall} dB on average (mean image: {null} dB)."
    values = [row["psnr"] for row in rows if row.get("recovered")]
    psnr = _number(sum(values) / len(values), 1) if values else overall
    return f"{recovered} of {images} recovered, at {psnr} dB on average (mean image: {null} dB)."


def _warnings(results: Mapping[str, Any]) -> str:
    """Return the red boxes: all that keeps the figures from meaning what they seem to mean."""
    messages = []
    if fallback := _get(results, "data", "fallback"):
        name = _get(results, "data", "name") or "the configured data set"
        messages.append(
            f"The data set {name} was not found. This audit ran on a stand-in ({fallback}); its "
            "figures say nothing about the data set itself."
        )
    if _get(results, "masks", "method") == "grabcut":
        messages.append(
            "The subject masks come from the GrabCut fallback, not from Segment Anything: "
            "subject-only figures are less certain."
        )
    if false_finds := _get(results, "null", "noise_only", "recovered"):
        messages.append(
            f"The attack also recovers {false_finds} image(s) from noise alone, with no client "
            "behind it: what it finds cannot all come from the update."
        )
    if not messages:
        return ""
    items = "".join(f"<p>{escape(message)}</p>" for message in messages)
    return f'<aside class="warning" aria-label="Warning"><h2>Read this first</h2>{items}</aside>'


def _setting(results: Mapping[str, Any]) -> str:
    """Return who attacks what: threat model, oracles, data, masks and the chain of defenses."""
    oracles = results.get("oracles") or []
    data = [_get(results, "data", key) for key in ("name", "description")]
    facts = {
        "Attack": results.get("attack"),
        "The attacker sees": results.get("threat_model"),
        "Given beyond that (oracles)": ", ".join(map(str, oracles)) or "nothing",
        "Data": ": ".join(str(part) for part in data if part),
        "Subject masks": _masks(results),
    }
    steps = ["Client's update", *(results.get("defenses") or ["no defense"]), "Attacker"]
    chain = "".join(f"<li>{escape(str(step))}</li>" for step in steps)
    return f'{_definitions(facts)}<h3>Defense chain</h3><ol class="chain">{chain}</ol>'


def _masks(results: Mapping[str, Any]) -> str:
    """Return a description of the subject masks."""
    method = _get(results, "masks", "method")
    if method in (None, "none"):
        return "none: the subject is the whole image"
    text = f"{method}"
    area = _get(results, "masks", "mean_area")
    if area is not None:
        text += f", {_number(100 * area, 0)} % of the image on average"
    if replaced := _get(results, "masks", "replaced"):
        text += f", {replaced} implausible and replaced"
    return text


def _privacy(results: Mapping[str, Any]) -> str:
    """Return the privacy that is claimed beside the one that holds."""
    claimed, actual = _get(results, "privacy", "claimed"), _get(results, "privacy", "actual")
    claimed_epsilon = _get(results, "privacy", "claimed", "epsilon")
    actual_epsilon = _get(results, "privacy", "actual", "epsilon")
    facts = {
        "Clipping norm": _number(_get(results, "privacy", "clip_norm")),
        "Noise, standard deviation": _number(_get(results, "privacy", "noise_std")),
        "Claimed": "no claim"
        if not claimed
        else f"ε = {_number(claimed_epsilon)} ({claimed.get('rule') or 'rule not stated'})",
        "Actual": "no formal guarantee"
        if not actual
        else f"ε = {_number(actual_epsilon)} at δ = {_number(actual.get('delta'))}",
        "Statement": _get(results, "privacy", "statement"),
    }
    comparison = ""
    if claimed_epsilon and actual_epsilon and actual_epsilon > claimed_epsilon:
        ratio = _number(actual_epsilon / claimed_epsilon)
        comparison = (
            f'<p class="leak">The actual ε is {ratio} times the claimed one: the claim promises '
            "more privacy than the mechanism gives.</p>"
        )
    return _definitions(facts) + comparison


def _key_figures(results: Mapping[str, Any]) -> str:
    """Return the counts and the table of metrics over all images beside the null controls."""
    counts = {
        "Images": results.get("num_images"),
        "Reconstructions put out": results.get("num_reconstructions"),
        "Recovered": results.get("recovered"),
        "Recall": _number(results.get("recall"), 2),
        "Precision": _number(results.get("precision"), 2),
        "Recovered from noise only": _get(results, "null", "noise_only", "recovered"),
    }
    body = []
    for name, (label, unit, decimals) in _METRICS.items():
        values = [
            *(_get(results, "metrics", name, column) for column in ("mean", "median", "worst")),
            *(_get(results, "null", control, name) for control in ("mean_image", "noise_only")),
        ]
        if any(value is not None for value in values):
            head = f"{label} ({unit})" if unit else label
            body.append([head, *(_number(value, decimals) for value in values)])
    table = _table(
        "Recall is the recovered share of the images, precision that of the reconstructions put "
        "out. The metrics are over all images; one that was not recovered counts too. Worst means "
        "worst for privacy: the image that leaked most. The last two columns are controls: "
        "guessing the data set's mean image, and the same attack on noise without a client.",
        ["Metric", "Mean", "Median", "Worst", "Control: mean image", "Control: noise only"],
        body,
    )
    return _definitions(counts, "tiles") + table


def _pictures(images: Sequence[AuditedImage]) -> str:
    """Return the pictures, worst leak first: recovered before others, then by PSNR."""
    ordered = sorted(images, key=_leak, reverse=True)
    note = "Sorted from the worst leak to the least. The difference is |truth - reconstruction|."
    if len(ordered) > MAX_PICTURES:
        half = MAX_PICTURES // 2
        note += (
            f" Of {len(ordered)} images, the {half} worst leaks and the {half} least are shown; "
            "the table below the pictures has all."
        )
        ordered = ordered[:half] + ordered[-half:]
    cards = "".join(_card(image) for image in ordered)
    return f'<p>{escape(note)}</p><div class="cards">{cards}</div>'


def _leak(image: AuditedImage) -> tuple[bool, float]:
    """Return the key by which images are sorted; larger is a worse leak."""
    psnr = image["row"].get("psnr", -math.inf)
    return bool(image["row"].get("recovered")), psnr if math.isfinite(psnr) else -math.inf


def _card(image: AuditedImage) -> str:
    """Return one image: truth, reconstruction and difference, with its scores."""
    row, truth, shown = image["row"], image["truth"], image["reconstruction"]
    recovered = bool(row.get("recovered"))
    name = f"Image {row.get('image', _DASH)}"
    if "client" in row:
        name += f" of client {row['client']}"
    pictures = [_picture(truth, "Truth", f"{name}, as the client trained on it")]
    if shown is None:
        pictures.append('<div class="missing">no reconstruction matched</div>')
    else:
        difference = (truth.detach().cpu().float() - shown.detach().cpu().float()).abs()
        pictures += [
            _picture(shown, "Reconstruction", f"Reconstruction of {name.lower()}"),
            _picture(difference, "Difference", f"Absolute difference of {name.lower()}"),
        ]
    scores = {
        label: _number(row[metric], decimals) + (f" {unit}" if unit else "")
        for metric, (label, unit, decimals) in _METRICS.items()
        if metric in row
    }
    scores["Mean image, PSNR"] = f"{_number(row.get('psnr_mean_image'), 1)} dB"
    scores["Subject's share"] = f"{_number(100 * row.get('mask_area', math.nan), 0)} %"
    details = _definitions(scores, "tiles")
    scored = "" if shown is not None else "<p>Scored with the mean image.</p>"
    return (
        f'<figure class="{"recovered" if recovered else "unrecovered"}"><figcaption>'
        f'<h3>{escape(name)} <span class="badge">{"recovered" if recovered else "not recovered"}'
        f"</span></h3><p>data set index {escape(str(row.get('index', _DASH)))}, label "
        f"{escape(str(row.get('label', _DASH)))}</p></figcaption>"
        f'<div class="triple">{"".join(pictures)}</div>{scored}{details}</figure>'
    )


def _picture(image: Tensor, label: str, alternative: str) -> str:
    """Return C H W in [0, 1] as an inline PNG with a label below it."""
    data = base64.b64encode(_png(image)).decode()
    height, width = image.shape[-2:]
    return (
        f'<div><img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(alternative)}"><span>{escape(label)}</span></div>'
    )


def _score_table(rows: Sequence[Row]) -> str:
    """Return every image's scores as a table behind a disclosure."""
    if not rows:
        return ""
    whole = ("client", "image", "index", "label", "matched", "recovered")
    names = [name for name in (*whole, *_METRICS) if name in rows[0]]
    body = [
        [_number(row.get(name), 0 if name in whole else _METRICS[name][2]) for name in names]
        for row in rows
    ]
    heads = [_METRICS[name][0] if name in _METRICS else name.capitalize() for name in names]
    caption = "One line for every true image. Matched is the reconstruction's number, -1 for none."
    return (
        f"<details><summary>All {len(rows)} images as a table</summary>"
        f"{_table(caption, heads, body)}</details>"
    )


def _reproduce(results: Mapping[str, Any]) -> str:
    """Return the command, the seed, the versions and the cost of the run."""
    facts = {
        "Seed": results.get("seed"),
        "Wall time": _with_unit(results.get("wall_seconds"), 1, "s"),
        "Peak memory": _with_unit(results.get("peak_memory_bytes"), 2**30, "GiB"),
        "Memory after import": _with_unit(results.get("import_memory_bytes"), 2**30, "GiB"),
        **{f"Version of {name}": value for name, value in (results.get("versions") or {}).items()},
    }
    command = escape(str(results.get("command") or "command not recorded"))
    return (
        f'<pre tabindex="0" aria-label="Command"><code>{command}</code></pre>{_definitions(facts)}'
    )


def _definitions(facts: Mapping[str, Any], layout: str = "lines") -> str:
    """Return names and values as a definition list; values of None or "" are shown as a dash.

    The layout is "lines" (a fact a line, for sentences) or "tiles" (side by side, for numbers).
    """
    items = "".join(
        f"<div><dt>{escape(name)}</dt>"
        f"<dd>{escape(_DASH if value in (None, '') else str(value))}</dd></div>"
        for name, value in facts.items()
    )
    return f'<dl class="{layout}">{items}</dl>'


def _table(caption: str, heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls sideways by itself, also by keyboard."""
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    lines = "".join(
        f'<tr><th scope="row">{escape(line[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in line[1:])
        + "</tr>"
        for line in body
    )
    return (
        f'<p>{escape(caption)}</p><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(heads[0])} table"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _get(results: Mapping[str, Any], *keys: str) -> Any:
    """Return the value at a path of keys, or None where the path ends early."""
    value: Any = results
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def _number(value: float | None, decimals: int | None = None) -> str:
    """Return a number for people: fixed decimals, or three significant digits without them."""
    if value is None or math.isnan(value):
        return _DASH
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{float(f'{value:.3g}'):,g}" if decimals is None else f"{value:.{decimals}f}"


def _with_unit(value: float | None, size: float, unit: str) -> str | None:
    """Return a number in a unit of the given size, or None where there is no number."""
    return None if value is None else f"{_number(value / size, 2)} {unit}"


def _png(image: Tensor) -> bytes:
    """Return C H W in [0, 1] as a PNG: in colour for three channels, else the channels' mean."""
    image = image.detach().cpu().float().nan_to_num(0.0).clamp(0.0, 1.0)
    if len(image) != 3:
        image = image.mean(dim=0, keepdim=True)
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels if len(image) == 3 else pixels[..., 0]).save(buffer, format="PNG")
    return buffer.getvalue()
