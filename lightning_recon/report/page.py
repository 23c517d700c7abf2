"""What all pages have in common: templates, numbers for people, tables.

A page is one file: style, script, pictures and charts are inside, nothing is fetched, and its
content security policy lets no other script run.  All text is escaped by the templates.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lightning_recon import __version__
from lightning_recon.files import write_atomically

INTERVALS = (
    "Intervals are at 95 %: whole clients are resampled, and the ends stretched by Student's t, "
    "for few clients far beyond what they scored."
)
"""How intervals come about, for every page that has some; see ``audit/statistics.py``."""

DASH = "\N{EN DASH}"
"""Shown in place of a value that is not there."""

MAX_TABLE_ROWS = 1500
"""Lines that a table on a page holds at most; the files beside the page hold all."""

METRICS = {
    "psnr": ("PSNR", "dB", 1),
    "ssim": ("SSIM", "", 3),
    "cw_ssim": ("CW-SSIM", "", 3),
    "ms_ssim": ("MS-SSIM", "", 3),
    "lpips": ("LPIPS", "", 3),
    "dists": ("DISTS", "", 3),
    "mse": ("MSE", "", 4),
    "tag_jaccard": ("Tag Jaccard", "", 3),
    "features": ("Features right", "", 3),
    "features_mean_image": ("Features right, mean row", "", 3),
    "features_noise_only": ("Features right, noise only", "", 3),
}
"""Metric: its name for people, its unit and the decimals shown, in the order of the tables."""

_TEMPLATES = Path(__file__).with_name("templates")


class Table(NamedTuple):
    """A table; a sortable one can be filtered, too, by any text and by the columns in facets."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_sortable: bool = False
    facets: Mapping[str, Sequence[str]] = MappingProxyType({})
    """Head of a column, and its values in the page's order; those without a row do no harm."""


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Fill a template and write it.

    Args:
        path: the page's; its folder is made.
        template: name of a file in ``templates``.
        content: what the template needs.

    Returns:
        The path.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    page = environment.get_template(template).render(
        **content,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
    )
    write_atomically(path, page.encode("utf-8", "backslashreplace"))  # a name may hold any byte
    return path


def number(value: Any, decimals: int | None = None, unit: str = "") -> str:
    """Return a number for people: fixed decimals, or three significant digits without them.

    Args:
        value: none and NaN become a dash; what is no number is returned as text.
        decimals: after the point.
        unit: put behind it.
    """
    if value is None or value == "" or value != value:
        return DASH
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if math.isinf(value):
        text = "∞" if value > 0 else "-∞"
    elif decimals is not None:
        text = f"{round(value, decimals) + 0.0:,.{decimals}f}"  # + 0.0: no minus before a zero
    else:
        text = f"{float(f'{value:.3g}'):,g}"
        for long, short in (("e+0", "e"), ("e+", "e"), ("e-0", "e-")):
            text = text.replace(long, short)
    return f"{text} {unit}" if unit else text


def estimate_words(
    mean_image: float | None, attack: float | None, estimate: float | None, attack_name: str
) -> str:
    """Return the local estimate between what it is to be read with; PSNRs in dB."""
    values = {"mean image": mean_image, attack_name: attack, "a linearised attacker": estimate}
    return ", ".join(f"{name} {number(value, 1, 'dB')}" for name, value in values.items())


def guarantee_words(
    statement: str | None, client: float | None, record: float | None, sampling_rate: float = 1.0
) -> str:
    """Return what alone may call an update safe.

    Args:
        statement: on (epsilon, delta).
        client: ReRo bound of all of a client's data, one of 1,000 candidates.
        record: of one record.
        sampling_rate: probability with which that one is drawn.
    """
    drawn = "" if sampling_rate == 1 else f" that is drawn with probability {number(sampling_rate)}"
    bounds = {"all of a client's data": client, f"one record{drawn}": record}
    rero = [f"{number(value)} for {what}" for what, value in bounds.items() if value is not None]
    said = f"Only (epsilon, delta) and ReRo may say safe: {statement or 'nothing is stated'}"
    if not rero:
        return f"{said}."
    most = " and ".join(rero)
    return f"{said}; the right one of 1,000 is found with a probability of at most {most}."


def share(value: Any) -> str:
    """Return a share as a percentage that never rounds to 0 % or 100 % what is not."""
    if not is_number(value):
        return DASH
    percent = 100 * value
    text = f"{percent:.0f}"
    if (text == "0" and percent > 0) or (text == "100" and percent < 100):
        text = f"{min(max(percent, 0.1), 99.9):.1f}"
    return f"{text} %"


def interval(low: Any, high: Any, decimals: int = 1) -> str:
    """Return a confidence interval in words, or a dash where there is none."""
    if low is None or high is None:
        return DASH
    return f"{number(low, decimals)} to {number(high, decimals)}"


def metric_label(name: str) -> tuple[str, str, int]:
    """Return a metric's name for people, its unit and the decimals to show."""
    base = name.removesuffix("_subject")
    label, unit, decimals = METRICS.get(base, (base, "", 3))
    return (label if base == name else f"{label}, subject"), unit, decimals


def metric_names(names: Sequence[str]) -> list[str]:
    """Return the metrics in the order of the tables: known ones, subject-only ones, others."""
    order = [*METRICS, *(f"{name}_subject" for name in METRICS)]
    known = [name for name in order if name in names]
    return known + [name for name in names if name not in order]


def count(number_of: int, noun: str) -> str:
    """Return "1 image", "2,000 images"."""
    return f"{number_of:,} {noun}" if number_of == 1 else f"{number_of:,} {noun}s"


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether the value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def shorten(text: str, length: int) -> str:
    """Return a text of at most that many characters, saying so where some are left out."""
    if len(text) <= length:
        return text
    return f"{text[:length]}\n... {len(text) - length:,} more characters in the file"
