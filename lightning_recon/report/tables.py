"""Runs side by side, or the cells of a sweep, as tables for papers: LaTeX (booktabs), Markdown."""

import re
from collections.abc import Sequence
from pathlib import Path

from lightning_recon.errors import InputError
from lightning_recon.report.captions import escaped, labelled, of_runs, of_sweep
from lightning_recon.report.page import DASH, Table
from lightning_recon.report.sides import read_runs, tables
from lightning_recon.report.sweep import cells_table
from lightning_recon.report.sweep_folder import is_sweep, read_sweep, title

_RUN_COLUMNS = (
    *("Run", "Attack", "Defenses", "Images", "Recovered", "PSNR, dB", "95 % interval"),
    *("Subject", "SSIM", "Mean image, dB", "Noise only, dB"),
)
_CELL_COLUMNS = (
    *("PSNR, dB", "from", "to", "SSIM", "Recall", "Mean image, dB", "Noise only, dB", "Actual ε"),
)
"""Beside the axes; what a paper has room for."""
_MAX_NARROW = 5  # columns of a table that stands in one of two columns of a page


def paper_tables(folders: Sequence[Path], *, is_latex: bool, is_markdown: bool) -> str:
    """Return the tables of several runs, or of a sweep.

    Runs have two: each one's figures over all its images, and the paired differences on the images
    that all share.  A sweep has a line for every cell.  Columns without a figure are left out.

    Args:
        folders: of two to 26 runs, or of one sweep.
        is_latex: LaTeX, for which the document loads ``booktabs``.
        is_markdown: or Markdown.

    Raises:
        InputError: if both forms are asked for, or a sweep is not named alone; see also
            :func:`~lightning_recon.report.comparison.compare_runs`.
    """
    if is_latex and is_markdown:
        raise InputError("a table is printed in one form: --latex or --markdown")
    sweeps = [folder for folder in folders if is_sweep(folder)]
    if sweeps and len(folders) > 1:
        raise InputError(f"{sweeps[0]} is a sweep, which makes a table of its own; name it alone")
    write = _latex if is_latex else _markdown
    if sweeps:
        sweep = read_sweep(sweeps[0])
        columns = [*(axis.name for axis in sweep.axes), *_CELL_COLUMNS]
        table = _narrowed(cells_table(sweep.cells, sweep.axes), columns)
        caption = of_sweep(sweep, "PSNR over all images of every cell.")
        return write(table, caption, title(sweeps[0]))
    runs = read_runs(folders)
    figures, differences = tables(runs)
    results = [run.results for run in runs]
    is_masked = any(one.is_masked for one in results)
    kept = [name for name in _RUN_COLUMNS if is_masked or name != "Subject"]
    caption = of_runs(results, "Each run over all of its images.")
    return "\n\n".join(
        [
            write(_narrowed(figures, kept), caption, "runs"),
            write(differences, differences.caption, "differences"),
        ]
    )


def _narrowed(table: Table, names: Sequence[str]) -> Table:
    """Return the columns of these names that hold anything; of two of one name the later one."""
    places = {head: place for place, head in enumerate(table.heads)}
    kept = [places[name] for name in names if name in places]
    kept = [i for i in kept if any(row[i] not in ("", DASH) for row in table.rows)]
    rows = [[row[i] for i in kept] for row in table.rows]
    return table._replace(heads=[table.heads[i] for i in kept], rows=rows)


def _latex(table: Table, caption: str, label: str) -> str:
    columns = "".join(
        "r" if _is_numeric(column) else "l" for column in zip(*table.rows, strict=True)
    )
    # across both columns of a page; what is wider than that is made smaller
    kind = "table" if len(columns) <= _MAX_NARROW else "table*"
    lines = [
        rf"\begin{{{kind}}}[t]",
        r"  \centering",
        rf"  \caption{{{escaped(caption)}}}",
        rf"  {labelled('tab', label)}",
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        f"    {_row(table.heads)}",
        r"    \midrule",
        *(f"    {_row(row)}" for row in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}}",
        rf"\end{{{kind}}}",
    ]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"


def _is_numeric(column: Sequence[str]) -> bool:
    """Return whether a column is set to the right: figures, with or without a unit or interval."""
    return all(re.match(r"[-–\d∞]", cell) or not cell for cell in column)  # noqa: RUF001


def _markdown(table: Table, caption: str, _label: str) -> str:
    rows = [[cell.replace("|", r"\|") for cell in row] for row in (table.heads, *table.rows)]
    rules = ["---:" if _is_numeric(column) else "---" for column in zip(*table.rows, strict=True)]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], rules, *rows[1:])]
    return "\n".join([*lines, "", caption])
