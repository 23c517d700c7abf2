"""What a run prints at its end."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_recon.audit.results import Results
from lightning_recon.report.findings import Finding, findings
from lightning_recon.report.page import DASH, count, estimate_words, guarantee_words, number
from lightning_recon.report.run import communication, shown_metrics, verdict

_STYLES = {"alarm": "bold red", "note": "yellow"}
_OUTPUTS = (
    *("report.html", "results.json", "clients.csv", "reconstructions", "records", "config.yaml"),
    "checkpoints",
)


def print_summary(results: Results, folder: Path) -> None:
    """Print the figures, what they are to be read with, and the outputs that are there."""
    console = Console(markup=False)  # a path or a reason may hold brackets
    if results.num_images:
        console.print(_figures(results))
    else:
        images = count(results.num_reconstructions or 0, "reconstruction")
        clients = count(results.num_clients or 0, "client")
        console.print(f"{results.experiment}: {images} of {clients}; no truth to score them by")
    if certified := results.noted("certified"):
        wrong = results.noted("certified_wrong")
        checked = "" if wrong is None else f"; by the truth {wrong:,} of them are wrong"
        console.print(f"proven   {count(certified, 'image')}{checked}", highlight=False)
    if estimated := _estimated(results):
        console.print(f"estimate {estimated}", highlight=False)
    print_findings(console, findings(results))
    console.print(f"data     {number(results.data.description)}", highlight=False)
    console.print(f"privacy  {number(results.privacy.statement)}", highlight=False)
    if (sent := communication(results)) != DASH:
        console.print(f"sent     {sent}", highlight=False)
    console.print(f"granted  {', '.join(results.oracles) or 'nothing'} to the attacker")
    print_outputs(console, folder, _OUTPUTS)


def print_findings(console: Console, found: Sequence[Finding]) -> None:
    """Print what keeps the figures from meaning what they seem to mean, alarms in red."""
    for finding in found:
        console.print(
            f"{finding.severity}: {finding.text}", style=_STYLES[finding.severity], highlight=False
        )


def print_outputs(console: Console, folder: Path, names: Sequence[str]) -> None:
    """Print a folder, and which of some files and folders it holds."""
    paths = [folder / name for name in names]
    there = [f"{path.name}/" if path.is_dir() else path.name for path in paths if _is_written(path)]
    console.print(f"outputs  {folder}/ ({', '.join(there)})", highlight=False)


def _is_written(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file()


def _figures(results: Results) -> Table:
    table = Table(
        title=f"{results.experiment}: {verdict(results)}",
        title_style="bold",
        caption="worst leak: of the image that came out best, the worst for privacy",
    )
    table.add_column("over all images")
    for name in ("mean", "median", "worst leak"):
        table.add_column(name, justify="right")
    for name in shown_metrics(results):
        metric = results.metrics[name]
        digits = 4 if name.startswith("mse") else 2 if "psnr" in name else 3
        table.add_row(
            name + (" (dB)" if "psnr" in name else ""),
            *(number(value, digits) for value in (metric.mean, metric.median, metric.worst)),
        )
    for name, control in results.null.items():
        table.add_row(f"null control: {name}, psnr (dB)", number(control.psnr, 2), "", "")
    return table


def _estimated(results: Results) -> str:
    """Return the local estimate between what it is to be read with; empty without one."""
    found = results.local_estimate
    if found.psnr is None:
        return ""
    words = estimate_words(found.psnr_mean_image, found.psnr_attack, found.psnr, "this attack")
    by = f"{words}, by the mean squared error of {count(found.num_images or 0, 'image')}"
    privacy = results.privacy
    safe = guarantee_words(privacy.statement, privacy.rero_1000, privacy.rero_record_1000)
    return f"{by}. {safe}"
