"""What a run prints at its end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_recon.report.run import verdict


def print_summary(results: Mapping[str, Any], folder: Path) -> None:
    """Print the figures and where the outputs are."""
    console = Console(markup=False)  # a path or a reason may hold brackets
    if results["num_images"]:
        table = Table(title=f"{results['experiment']}: {verdict(results)}", title_style="bold")
        table.add_column("over all images")
        for name in ("mean", "median", "worst leak"):
            table.add_column(name, justify="right")
        for name, values in results["metrics"].items():
            digits = 4 if name.startswith("mse") else 2 if "psnr" in name else 3
            table.add_row(
                name + (" (dB)" if "psnr" in name else ""),
                *(f"{values[key]:.{digits}f}" for key in ("mean", "median", "worst")),
            )
        for name, values in results["null"].items():
            table.add_row(f"null control: {name}, psnr (dB)", f"{values['psnr']:.2f}", "", "")
        console.print(table)
    for note in warnings(results):
        console.print(note, style="bold red")
    data = results.get("data", {})
    console.print(f"data     {data.get('description', 'captured updates')}", highlight=False)
    console.print(f"privacy  {results['privacy']['statement']}", highlight=False)
    if sent := results.get("communication"):
        size = f"{sent['num_bits'] / 8e6:.3g} MB, {sent['bits_per_parameter']:.3g} bits a parameter"
        console.print(f"sent     {size}", highlight=False)
    console.print(f"granted  {', '.join(results['oracles']) or 'nothing'} to the attacker")
    console.print(f"outputs  {folder}/ (report.html, results.json, clients.csv, reconstructions/)")


def warnings(results: Mapping[str, Any]) -> list[str]:
    """Return what a reader of the figures must know: failures, and what stood in for data."""
    notes = []
    if results.get("failures"):
        first = results["failures"][0]
        notes.append(
            f"THE ATTACK FAILED on {len(results['failures'])} of {results['num_clients']} clients, "
            f"first on client {first['client']}: {first['reason']}"
        )
    if results.get("data", {}).get("fallback"):
        notes.append("SAMPLE PHOTOGRAPHS were attacked: the data set was not found")
    if results.get("masks", {}).get("method") == "grabcut":
        notes.append("GRABCUT made the subject masks: no SAM checkpoint was found")
    for name, reason in (results.get("unavailable_metrics") or {}).items():
        notes.append(f"METRIC {name} IS UNAVAILABLE: {reason}")
    return notes
