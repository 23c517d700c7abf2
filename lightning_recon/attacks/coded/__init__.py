"""Compressed images through the clipped, noisy channel, and the attack that sends them."""

from lightning_recon.attacks.coded.attack import CodedLDPAttack

__all__ = ["CodedLDPAttack"]
