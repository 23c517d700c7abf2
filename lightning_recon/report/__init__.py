"""Pages that people read, made from what runs and sweeps leave behind."""

from lightning_recon.report.run import verdict, write_report
from lightning_recon.report.sweep import write_sweep_report

__all__ = ["verdict", "write_report", "write_sweep_report"]
