"""What images look like, as exchangeable parts of an objective."""

from lightning_recon.priors.base import Prior

__all__ = ["Prior"]
