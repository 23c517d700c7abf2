"""What a client does to its update before it sends it."""

from lightning_recon.defenses.base import Defense, apply_chain, bind_chain
from lightning_recon.defenses.clip import ClipL2
from lightning_recon.defenses.gaussian import GaussianNoise

__all__ = ["ClipL2", "Defense", "GaussianNoise", "apply_chain", "bind_chain"]
