"""The code that is optimal for the clipped, noisy channel, and the attack that sends it."""

from lightning_recon.attacks.spectral.attack import SpectralLDPAttack

__all__ = ["SpectralLDPAttack"]
