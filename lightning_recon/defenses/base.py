"""What every defense is: a change of the update, and an honest word on what it guarantees."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from lightning_recon.structures import Update


class Defense(nn.Module, ABC):
    """One step of the chain that an update passes on the client before it is sent."""

    def bind(self, norm_bound: float | None) -> float | None:
        """Learn the L2 bound of what reaches this defense; return the bound of what leaves it.

        Args:
            norm_bound: the L2 norm that no incoming update exceeds, or None if there is none.

        Raises:
            InputError: if the defense needs a bound and there is none.
        """
        return None

    @abstractmethod
    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the protected update.

        Args:
            update: what reaches the defense.  It is consumed: the tensors may be changed in
                place, since an update can be larger than the rest of the run together.
            generator: the source of all randomness, on the update's device.
        """

    @property
    @abstractmethod
    def guarantee(self) -> str:
        """What holds for one released update, or ``"no formal guarantee"``."""


def bind_chain(defenses: Sequence[Defense]) -> None:
    """Tell every defense of a chain the L2 bound that the ones before it ensure."""
    norm_bound: float | None = None
    for defense in defenses:
        norm_bound = defense.bind(norm_bound)


@torch.no_grad()
def apply_chain(
    defenses: Sequence[Defense], update: Update, *, generator: torch.Generator
) -> Update:
    """Pass ``update`` through all defenses, in order; the update is consumed."""
    for defense in defenses:
        update = defense(update, generator=generator)
    return update
