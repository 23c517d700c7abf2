"""How an attack's iterations are done: a part that every attack holds.

In ``fit`` a loop does one iteration after the other, so that they can be watched, stopped and
resumed.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from lightning_recon.observation import Observation, Reconstruction

if TYPE_CHECKING:
    from lightning_recon.attacks.base import Attack


class Loop(ABC):
    """What ``fit`` does with one client after the other."""

    iterations: int
    """Steps on one client."""
    iteration: int = 0
    """The step in hand, from 0 on."""
    client: int | None = None
    """The client in hand, or the last one."""
    resumes = False
    """Whether a client that was not finished goes on from a checkpoint."""
    limit: int | None = None
    """Steps after which a client is left by who runs the attack, to try it; None: all are done."""

    @property
    def num_steps(self) -> int:
        """Steps that are done on one client."""
        return self.iterations if self.limit is None else min(self.iterations, self.limit)

    @abstractmethod
    def create(self) -> None:
        """Create what is optimised; called again, do nothing."""

    @abstractmethod
    def configure(self) -> Any:
        """Return optimizers and schedulers as Lightning takes them."""

    @abstractmethod
    def resume(self, client: int) -> None:
        """Go on after :meth:`load`, in the epoch of a client."""

    @abstractmethod
    def begin(self, client: int) -> None:
        """Begin with a client."""

    @abstractmethod
    def step(self, client: int, iteration: int, *, is_logged: bool, has_bar: bool) -> None:
        """Do one iteration on a client.

        Args:
            client: its number.
            iteration: from 0 on.
            is_logged: whether the loggers want figures of this step.
            has_bar: whether a progress bar shows them now and then.
        """

    @abstractmethod
    def estimate(self, observation: Observation) -> float:
        """Return about how many seconds the attack on one observation takes."""

    @abstractmethod
    def current(self) -> Reconstruction:
        """Return the reconstruction as it stands now."""

    @abstractmethod
    def restore(self, client: int) -> Reconstruction | None:
        """Return what a checkpoint holds of a client; None if it is of another one."""

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Keep what :meth:`load` needs."""
        checkpoint["client_index"] = self.client

    @abstractmethod
    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take back what :meth:`save` kept."""


class AtOnce(Loop):
    """One step, which computes the whole reconstruction.

    Args:
        attack: that has nothing to optimise.
    """

    iterations = 1

    def __init__(self, attack: Attack) -> None:
        self._attack = attack
        self._found: Reconstruction | None = None

    def create(self) -> None:
        """Create nothing."""

    def configure(self) -> list[Any]:
        """Return no optimizer."""
        return []

    def resume(self, client: int) -> None:
        """Do nothing: all is computed anew."""

    def begin(self, client: int) -> None:
        """Do nothing: a client is one step."""

    def step(self, client: int, iteration: int, *, is_logged: bool, has_bar: bool) -> None:
        """Attack a client."""
        self.client = client
        self._found = self._attack.attack_client(client)

    def estimate(self, observation: Observation) -> float:
        """Return the seconds of one attack."""
        started = time.monotonic()
        self._attack.reconstruct(observation)
        return time.monotonic() - started

    def current(self) -> Reconstruction:
        """Return what came of the last client."""
        assert self._found is not None
        return self._found

    def restore(self, client: int) -> Reconstruction:
        """Attack a client again: a checkpoint holds nothing that is not computed anew."""
        return self._attack.attack_client(client)

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Do nothing: a checkpoint holds nothing that is not computed anew."""
