"""Published attacks, one a file."""

from lightning_recon.attacks.base import Attack, OptimizationAttack
from lightning_recon.attacks.ldp import LDPAttack

__all__ = ["Attack", "LDPAttack", "OptimizationAttack"]
