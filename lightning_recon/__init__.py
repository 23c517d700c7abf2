"""Audit what the updates of federated learning give away about the training images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_recon.audit.in_memory import score as score
    from lightning_recon.in_memory import reconstruct as reconstruct

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the door for Python (docs/python.md) when it is asked for: torch takes a while."""
    if name == "reconstruct":
        from lightning_recon.in_memory import reconstruct

        return reconstruct
    if name == "score":
        from lightning_recon.audit.in_memory import score

        return score
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
