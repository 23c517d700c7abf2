"""Exact recovery with certificates."""

from lightning_recon.attacks.exact.inversion import ExactInversion

__all__ = ["ExactInversion"]
