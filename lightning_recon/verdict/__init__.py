"""What can be said of a captured update without the truth."""

from lightning_recon.verdict.client import Auditor, ClientAudit, Picture, Verdict
from lightning_recon.verdict.finding import Finding
from lightning_recon.verdict.plan import Effort, Setting
from lightning_recon.verdict.preflight import compare_replies

__all__ = [
    "Auditor",
    "ClientAudit",
    "Effort",
    "Finding",
    "Picture",
    "Setting",
    "Verdict",
    "compare_replies",
]
