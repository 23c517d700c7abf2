"""Sweeps: the product of some axes, run as the clients of one evaluation.

What a sweep's YAML holds stands in :mod:`lightning_recon.runs.cells`.  Every pair of cell and
client is one item, and the items are spread over the devices; each is on disk once it is done.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from rich.console import Console
from rich.table import Table

from lightning_recon.audit.records import ClientRecord, read_records
from lightning_recon.audit.results import Results, view
from lightning_recon.files import write_csv, write_json
from lightning_recon.report import write_sweep_report
from lightning_recon.report.plot import write_sweep_figure
from lightning_recon.report.sweep import sweep_findings
from lightning_recon.report.terminal import print_findings, print_outputs
from lightning_recon.runs.cell_command import about, check_run, folder_name, trainer_of
from lightning_recon.runs.cells import read_cells
from lightning_recon.runs.items import Sweep, list_cells, run_cells
from lightning_recon.runs.results import summarise

_OUTPUTS = ("report.html", "figure.png", "results.csv", "records", "sweep.yaml", "run.json")


def write_results(sweep: Sweep, records: Sequence[ClientRecord]) -> list[dict[str, Any]]:
    """Write ``results.csv``, one row per cell that has records, and return the rows."""
    by_cell: dict[int, list[ClientRecord]] = {}
    for record in records:
        by_cell.setdefault(sweep.items[record.client][0], []).append(record)
    table = []
    for number, cell_records in sorted(by_cell.items()):
        objects = sweep.make(number)
        results = view(summarise(objects.model, cell_records))
        table.append({**sweep.cells[number].labels, **_tidy(results, cell_records)})
    write_csv(sweep.folder / "results.csv", table)
    return table


def _tidy(results: Results, records: Sequence[ClientRecord]) -> dict[str, Any]:
    """Return the figures of one cell; None where there is none."""
    psnr, privacy = results.metric("psnr"), results.privacy
    return {
        "psnr": psnr.mean,
        "psnr_ci_low": psnr.ci_low,
        "psnr_ci_high": psnr.ci_high,
        "psnr_worst": psnr.worst,
        **{name: results.metric(name).mean for name in ("psnr_subject", "ssim", "cw_ssim", "mse")},
        "recovered": results.recovered,
        "recall": results.recall,
        "precision": results.precision,
        "identification": results.identification.rate,
        **{f"null_{name}": control.psnr for name, control in results.null.items()},
        "local_estimate": results.local_estimate.psnr,
        "clip_norm": privacy.clip_norm,
        "noise_std": privacy.noise_std,
        "epsilon_claimed": privacy.claimed.epsilon,
        "epsilon_actual": privacy.actual.epsilon,
        "num_clients": results.num_clients,
        "num_images": results.num_images,
        "num_failed": len(results.failures),
        "noise_only_recovered": results.control("noise_only").recovered,
        "recovered_convincing": results.recovered_convincing,
        "seconds": sum(record.seconds for record in records) / len(records),
    }


def run_sweep(
    config: Path,
    trainer: Trainer,
    resume: Path | None = None,
    *,
    is_dry_run: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Path | None:
    """Run a sweep, or what is missing of one, and write its results.

    Args:
        config: the sweep's YAML.
        trainer: without a logger.
        resume: the folder of a sweep that was interrupted.
        is_dry_run: list the cells and estimate the time; attack nothing.
        options: of the trainer, to hold those of the cells' configurations against.

    Returns:
        The sweep's folder; None after a dry run.

    Raises:
        InputError: if the configuration cannot be used, or is not that of the resumed sweep.
    """
    cells = read_cells(config)
    check_run(cells, config, resume, options)
    sweep = Sweep(cells, Path("lightning_logs", folder_name("sweep", config)))
    if is_dry_run:
        list_cells(sweep, trainer)
        return None
    return run_cells(sweep, "sweep", config, trainer, resume, lambda: _write(sweep))


def _write(sweep: Sweep) -> None:
    """Write and print what is on disk."""
    records = read_records(sweep.folder, sweep.origin, sweep.num_items)
    table = write_results(sweep, records)
    write_json(sweep.folder / "run.json", about(len(records), sweep.num_items))
    write_sweep_report(sweep.folder)
    write_sweep_figure(sweep.folder / "figure.png", table, list(sweep.cells[0].labels))
    _print_table(sweep, table)


def _print_table(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> None:
    figures = {
        "PSNR (dB)": "psnr",
        "mean image": "null_mean_image",
        "recall": "recall",
        "failed": "num_failed",
    }
    names = list(sweep.cells[0].labels)
    table = Table(title=f"{len(rows)} cells, over all images")
    for name in (*names, *figures):
        table.add_column(name, justify="right")
    for row in rows:
        labels = [f"{row[n]:g}" if isinstance(row[n], float) else str(row[n]) for n in names]
        table.add_row(*labels, *(f"{row[name]:.4g}" for name in figures.values()))
    console = Console(markup=False)  # a path may hold brackets
    console.print(table)
    print_findings(console, sweep_findings(sweep.folder))
    print_outputs(console, sweep.folder, _OUTPUTS)


def main(args: Sequence[str]) -> int:
    """Run the command ``sweep``.

    Args:
        args: what stands after the command.

    Returns:
        The exit code, 0.

    Raises:
        InputError: see :func:`run_sweep`.
    """
    config, trainer, options = trainer_of(args, "sweep", "Run the product of some axes.")
    run_sweep(config.config, trainer, config.resume, is_dry_run=config.dry_run, options=options)
    return 0
