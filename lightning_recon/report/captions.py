"""What stands below a figure or above a table of a paper, from what the run itself recorded.

Setting, clients, intervals, seed and command: a reader can run it again, nothing is typed twice.
"""

import re
from collections.abc import Sequence

from lightning_recon.audit.results import Results
from lightning_recon.report.page import DASH, INTERVALS, count, interval, number
from lightning_recon.report.sweep_folder import SweepFolder, at, planned_cells, value_of

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "ε": r"$\varepsilon$",
    "δ": r"$\delta$",
    "∞": r"$\infty$",
    "–": "--",  # noqa: RUF001
    "×": r"$\times$",  # noqa: RUF001
    "·": r"$\cdot$",
}


def escaped(text: str) -> str:
    """Return a text as LaTeX writes it, what stands between backticks in a typewriter's font."""
    parts = text.split("`")
    words = ["".join(_LATEX.get(character, character) for character in part) for part in parts]
    # two dashes are one in a paper's font, and options begin with two
    words[1::2] = [f"\\texttt{{{word.replace('--', '-{}-')}}}" for word in words[1::2]]
    return "".join(words)


def labelled(kind: str, name: str) -> str:
    """Return the label that a paper refers to.

    Args:
        kind: ``fig`` or ``tab``.
        name: of what is shown; what a label cannot hold is left out.
    """
    return rf"\label{{{kind}:{re.sub(r'[^a-z0-9]+', '-', name.lower())}}}"


def of_runs(runs: Sequence[Results], what: str) -> str:
    """Return the caption for one run, or for several; words that all share are said once.

    Args:
        runs: their results.
        what: the first sentence, which says what is shown.
    """
    told: dict[str, Sequence[object]] = {
        "Attack": [one.attack for one in runs],
        "Model": [one.target for one in runs],
        "Data": [one.data.description or one.data.name for one in runs],
        "Defenses": [", ".join(one.defenses) or "none" for one in runs],
        "Granted beside the update": [", ".join(one.oracles) or "nothing" for one in runs],
    }
    setting = [f"{name}: {_joined(values)}." for name, values in told.items()]
    clients = _joined([count(one.num_clients or 0, "client") for one in runs])
    images = _joined([count(one.num_images or 0, "image") for one in runs])
    figures = [_figure(runs[0])] if len(runs) == 1 else []
    seeds = f"{clients}, {images}; seed {_joined([one.seed for one in runs])}."
    commands = [f"`{one.command}`" for one in runs if one.command]
    known = [INTERVALS] if any(one.metric("psnr").ci_low is not None for one in runs) else []
    return " ".join([what, *setting, seeds, *figures, *known, *_run_by(commands)])


def of_sweep(sweep: SweepFolder, what: str) -> str:
    """Return the caption for a sweep.

    Args:
        sweep: as it was read.
        what: the first sentence, which says what is shown.
    """
    configs = [cell.get("config") for cell in planned_cells(sweep.plan)]
    keys = {
        "Attack": ("model", "class_path"),
        "Model": ("model", "init_args", "target", "class_path"),
        "Data": ("data", "class_path"),
    }
    told = {name: [at(config, *path) for config in configs] for name, path in keys.items()}
    setting = [
        f"{name}: {_joined([str(value).rpartition('.')[2] for value in values])}."
        for name, values in told.items()
        if values and None not in values
    ]
    axes = "; ".join(f"{axis.name} {', '.join(axis.values)}" for axis in sweep.axes)
    counts = [
        _range([value_of(cell, name) for cell in sweep.cells], noun)
        for name, noun in (("num_clients", "client"), ("num_images", "image"))
    ]
    seeds = [at(config, "seed_everything") or 0 for config in configs] or [0]
    sizes = f"{' and '.join(filter(None, counts))} a cell; seed {_joined(seeds)}."
    commands = [f"`{sweep.record['command']}`"] if sweep.record.get("command") else []
    known = [INTERVALS] if any(cell.get("psnr_ci_low") for cell in sweep.cells) else []
    return " ".join([what, *setting, f"Axes: {axes}.", sizes, *known, *_run_by(commands)])


def _joined(values: Sequence[object]) -> str:
    """Return what all have, or in order what each has, a value that stands again left out."""
    return "; ".join(dict.fromkeys(DASH if value is None else str(value) for value in values))


def _range(values: Sequence[float | None], noun: str) -> str:
    """Return "4 to 8 clients"; nothing where there are none."""
    there = sorted({int(value) for value in values if value is not None})
    if not there:
        return ""
    least = f"{there[0]:,} to " if len(there) > 1 else ""
    return least + count(there[-1], noun)


def _figure(results: Results) -> str:
    """Return the mean PSNR of a run beside the mean image's."""
    psnr = results.metric("psnr")
    ends = interval(psnr.ci_low, psnr.ci_high)
    certainty = f"interval {ends} dB" if psnr.ci_low is not None else "no interval"
    null = number(results.control("mean_image").psnr, 1)
    return f"PSNR {number(psnr.mean, 1)} dB on average ({certainty}), the mean image {null} dB."


def _run_by(commands: Sequence[str]) -> list[str]:
    return [f"Run by {'; '.join(dict.fromkeys(commands))}."] if commands else []
