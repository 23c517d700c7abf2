"""Flower (``pip install flwr``): capture, defend, measure and test a federation; docs/flower.md."""

try:
    import flwr  # noqa: F401
except ImportError as error:
    raise ImportError(
        "lightning_recon.integrations.flower needs Flower: pip install flwr, on Python 3.11 or "
        f"later ({error})"
    ) from error

from lightning_recon.integrations.flower.declarations import App, Mod, declare, declared
from lightning_recon.integrations.flower.defending import defense_mod
from lightning_recon.integrations.flower.guarding import detect_mod
from lightning_recon.integrations.flower.measuring import measuring
from lightning_recon.integrations.flower.recorder import Recorder, recording_grid
from lightning_recon.integrations.flower.red_team import inject, load_payload, payload_arrays
from lightning_recon.integrations.flower.truth import truth_mod

__all__ = [
    "App",
    "Mod",
    "Recorder",
    "declare",
    "declared",
    "defense_mod",
    "detect_mod",
    "inject",
    "load_payload",
    "measuring",
    "payload_arrays",
    "recording_grid",
    "truth_mod",
]
