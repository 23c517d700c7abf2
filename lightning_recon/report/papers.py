"""Figures of a run, of several runs or of a sweep for a paper: PDF and SVG, and the LaTeX around.

Serif letters of Times' shape that come with matplotlib, embedded as TrueType (type 42, which
publishers ask for), in the width of a column; the same run makes the same bytes.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from lightning_recon.audit.scores import Row
from lightning_recon.errors import InputError, instead
from lightning_recon.files import write_atomically
from lightning_recon.report.captions import escaped, labelled, of_runs, of_sweep
from lightning_recon.report.folder import Run, read_run
from lightning_recon.report.page import is_number, number
from lightning_recon.report.pictures import has_pictures, load_pictures
from lightning_recon.report.plot import is_numeric, sweep_figure
from lightning_recon.report.sweep_folder import SweepFolder, is_sweep, number_of, read_sweep, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES = {"column": 3.5, "page": 7.16}  # of IEEE's two-column format
_STYLE: Any = {
    "font.family": "serif",
    "font.serif": ["STIXGeneral"],
    "mathtext.fontset": "stix",
    "font.size": 8,
    "lines.linewidth": 1,
    "lines.markersize": 3,
    "axes.linewidth": 0.6,
    "pdf.fonttype": 42,
    "svg.hashsalt": "lightning_recon",
}
_MAX_IMAGES = 8  # of a grid for which none were chosen


def write_figures(
    folders: Sequence[Path],
    output: Path | None = None,
    width: str = "column",
    images: Sequence[str] | None = None,
    along: str | None = None,
    panels: str | None = None,
) -> str:
    """Write the figures of runs or of a sweep, each as STEM.pdf, STEM.svg and STEM.tex.

    Runs have the share of images above a PSNR and, where pictures were kept, STEM_images: truth
    above what each run made of it.  A sweep has its PSNR along an axis.

    Args:
        folders: of one to 26 runs, or of one sweep.
        output: the stem; by default ``figure``, in the folder if it is one.
        width: ``column`` or ``page``.
        images: those of the grid, each ``CLIENT:IMAGE``; by default the first with pictures.
        along: of a sweep, the numeric axis to draw along; by default the first.
        panels: of a sweep, the axis that has a panel for each value.

    Returns:
        The names of the files and the captions, for people.

    Raises:
        InputError: if a folder cannot be read, or what was chosen is not there.
    """
    if find_spec("matplotlib") is None:
        raise InputError("figures need matplotlib; run: pip install matplotlib")
    from matplotlib import rc_context

    sweeps = [folder for folder in folders if is_sweep(folder)]
    if sweeps and len(folders) > 1:
        raise InputError(f"{sweeps[0]} is a sweep, which is drawn alone; leave out the others")
    if len(folders) > len(ascii_uppercase):
        raise InputError(f"figure draws up to {len(ascii_uppercase)} runs, not {len(folders)}")
    stem = output or (folders[0] if len(folders) == 1 else Path()) / "figure"
    with rc_context(_STYLE):
        if sweeps:
            if images:
                raise InputError(f"{sweeps[0]} is a sweep, without pictures; leave out --images")
            sweep = read_sweep(sweeps[0])
            drawn = {"": _of_sweep(sweep, along, panels, _INCHES[width])}
            name = title(sweeps[0])
        else:
            if wrong := [n for n, v in (("along", along), ("panels", panels)) if v]:
                raise InputError(f"--{wrong[0]} names an axis of a sweep; these are runs")
            drawn = _of_runs([read_run(folder) for folder in folders], images, _INCHES[width])
            name = folders[0].resolve().name if len(folders) == 1 else "comparison"
        said = []
        for suffix, (figure, caption) in drawn.items():
            path = stem.with_name(stem.name + suffix)
            _write(figure, path, caption, f"{name}{suffix}", is_wide=width == "page")
            said.append(f"{path}.pdf, .svg, .tex\n  {caption.replace('`', '')}")
    return "\n".join(said)


def _write(figure: "Figure", path: Path, caption: str, label: str, *, is_wide: bool) -> None:
    """Write a figure and the LaTeX that puts it into a paper."""
    for kind, metadata in (("pdf", {"CreationDate": None}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=metadata)
        write_atomically(path.with_name(f"{path.name}.{kind}"), buffer.getvalue())
    kind, line = ("figure*", "textwidth") if is_wide else ("figure", "columnwidth")
    lines = [
        rf"\begin{{{kind}}}[t]",
        r"  \centering",
        rf"  \includegraphics[width=\{line}]{{{path.name}.pdf}}",
        rf"  \caption{{{escaped(caption)}}}",
        rf"  {labelled('fig', label)}",
        rf"\end{{{kind}}}",
    ]
    tex = "\n".join([*lines, ""])
    write_atomically(path.with_name(f"{path.name}.tex"), tex.encode())


def _of_sweep(
    sweep: SweepFolder, along: str | None, panels: str | None, width: float
) -> tuple["Figure", str]:
    """Return a sweep's figure and caption."""
    rows = [{name: _typed(text) for name, text in cell.items()} for cell in sweep.cells]
    rows = [row for row in rows if row["psnr"] is not None]
    names = [axis.name for axis in sweep.axes]
    for option, given in (("along", along), ("panels", panels)):
        if given is not None and given not in names:
            raise InputError(f"--{option}: there is no axis {given}{instead(given, names)}")
    numeric = [name for name in names if is_numeric(rows, name) and name != panels]
    axis = along or next(iter(numeric), None)
    if axis not in numeric:
        what = f"axis {axis} is" if axis else "there is"
        left = f"; there are {', '.join(numeric)}" if numeric else ""
        raise InputError(f"{what} no number to draw along, of several values{left}")
    figure = sweep_figure(rows, axis, [name for name in names if name != axis], panels, width)
    what = f"PSNR over all images against {axis}"
    what += f", a panel for each {panels}." if panels else "."
    what += " Bands: 95 % intervals of the mean. Broken lines: null controls."
    return figure, of_sweep(sweep, what)


def _typed(text: str) -> Any:
    value = number_of(text)
    return value if value is not None else text or None


def _of_runs(
    runs: Sequence[Run], images: Sequence[str] | None, width: float
) -> dict[str, tuple["Figure", str]]:
    """Return the figures of runs with their captions, by what is put behind the stem."""
    for run in runs:
        if not run.rows:
            raise InputError(f"{run.folder} has no scores in clients.csv; there is none to draw")
    labels = ["found"]
    if len(runs) > 1:
        labels = [
            f"{letter} {run.name}" for letter, run in zip(ascii_uppercase, runs, strict=False)
        ]
    by_label = dict(zip(labels, runs, strict=True))
    results = [run.results for run in runs]
    words = "Share of images above a PSNR; dashed: the mean image, dotted: the nearest public one."
    drawn = {"": (_shares(by_label, width), of_runs(results, words))}
    chosen = [_place(image) for image in images or []] or _first(runs)
    if chosen:
        which = "chosen" if images else "the first"
        text = f"Images {', '.join(f'{c}:{i}' for c, i in chosen)} (client:image, {which})"
        text += "; truth above, PSNR in dB below each; black: none was matched."
        text += f" {', '.join(labels)}." if len(runs) > 1 else ""
        drawn["_images"] = _grid(by_label, chosen, width), of_runs(results, text)
    return drawn


def _place(text: str) -> tuple[int, int]:
    """Return the client and the image that ``CLIENT:IMAGE`` names."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found:
        raise InputError(f"--images takes CLIENT:IMAGE, two numbers such as 0:3, not {text}")
    return int(found[1]), int(found[2])


def _first(runs: Sequence[Run]) -> list[tuple[int, int]]:
    """Return the first images of which every run kept pictures."""
    places = [(int(row.get("client", 0)), int(row["image"])) for row in runs[0].rows]
    there = [p for p in places if all(has_pictures(run.pictures, *p) for run in runs)]
    return there[:_MAX_IMAGES]


def _shares(runs: Mapping[str, Run], width: float) -> "Figure":
    """Draw the share of images above each PSNR, and that of the controls of the first run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 0.62 * min(width, 4.5)), layout="constrained")
    plot = figure.add_subplot()
    for place, (label, run) in enumerate(runs.items()):
        values = _finite(run.rows, "psnr")
        plot.ecdf(values, complementary=True, color=f"C{place}", label=label)
    first = next(iter(runs.values())).rows
    for name, label, dashes in (
        ("psnr_mean_image", "mean image", "--"),
        ("psnr_nearest_public", "nearest public image", ":"),
    ):
        if values := _finite(first, name):
            plot.ecdf(values, complementary=True, color="0.4", linestyle=dashes, label=label)
    plot.set_xlabel("PSNR (dB)")
    plot.set_ylabel("share of images above")
    plot.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2 if width < 5 else 4)
    return figure


def _finite(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows if is_number(row.get(name))]


def _grid(runs: Mapping[str, Run], places: Sequence[tuple[int, int]], width: float) -> "Figure":
    """Draw images, each below the other: the truth, and what each run made of it."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    height = (len(runs) + 1) * (width / len(places) + 0.14)
    near = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    figure = Figure(figsize=(width, height), layout=near)
    grid = figure.subplots(len(runs) + 1, len(places), squeeze=False)
    for plot in grid.flat:
        plot.set(xticks=[], yticks=[])
    for column, (client, image) in enumerate(places):
        for line, run in enumerate(runs.values(), start=1):
            if not has_pictures(run.pictures, client, image):
                raise InputError(f"{run.folder} has no picture of client {client}, image {image}")
            pair = load_pictures(run.pictures, client, image)
            if line == 1:
                grid[0, column].imshow(pair.truth, interpolation="nearest")
            if pair.reconstruction is not None:
                grid[line, column].imshow(pair.reconstruction, interpolation="nearest")
            else:
                grid[line, column].set(facecolor="black", aspect="equal", xlim=(0, 1), ylim=(0, 1))
            grid[line, column].set_xlabel(number(_psnr(run, client, image), 1), labelpad=2)
    for line, label in enumerate(["truth", *runs]):
        words = label if len(runs) == 1 or not line else label.split()[0]
        grid[line, 0].set_ylabel(words, labelpad=2)
    return figure


def _psnr(run: Run, client: int, image: int) -> float:
    """Return the score of an image, NaN where there is none."""
    found = (row for row in run.rows if (row.get("client", 0), row["image"]) == (client, image))
    return next((row["psnr"] for row in found), math.nan)
