"""Federated averaging whose clients take steps of AdamW.

Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, Algorithm 2, as torch has
it.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_recon.clients.fedavg import FedAvg
from lightning_recon.errors import InputError


class FedAvgAdamW(FedAvg):
    """Federated averaging by AdamW: every client begins with an empty state in every round.

    No update of it is a sum of gradients, so that attacks which read such ones refuse it.

    Args:
        learning_rate: of AdamW, above 0.
        epochs: local epochs, at least 1.
        minibatch_size: samples of a local step; null: all.
        betas: decay of the means of gradient and squared gradient, each in [0, 1).
        eps: added to the root of the mean square, above 0.
        weight_decay: at least 0; a step shrinks a weight by learning_rate weight_decay of it.
        shuffle: whether the client draws a new order of its samples every epoch.

    Raises:
        InputError: if an argument is out of its range.
    """

    protocol = "fedavg-adamw"

    def __init__(
        self,
        learning_rate: float,
        epochs: int = 1,
        minibatch_size: int | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        shuffle: bool = True,
        label_smoothing: float = 0.0,
        mode: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__(
            learning_rate,
            epochs,
            minibatch_size,
            weight_decay=weight_decay,
            shuffle=shuffle,
            label_smoothing=label_smoothing,
            mode=mode,
        )
        if not all(0 <= beta < 1 for beta in betas):
            raise InputError(f"FedAvgAdamW: betas must be in [0, 1), not {betas[0]}, {betas[1]}")
        if not 0 < eps < float("inf"):
            raise InputError(f"FedAvgAdamW: eps must be a number above 0, not {eps}")
        self.betas = betas
        self.eps = eps

    @property
    def sends_gradient(self) -> bool:
        """It never does."""
        return False

    def step(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], *, in_place: bool = False
    ) -> Tensor:
        """Return a parameter after one step of AdamW; nothing is written to."""
        first, second = self.betas
        if not state:
            state |= {
                "mean": torch.zeros_like(weight),
                "square": torch.zeros_like(weight),
                "taken": 0,
            }
        state["taken"] += 1
        state["mean"] = torch.lerp(state["mean"], gradient, 1 - first)
        state["square"] = second * state["square"] + (1 - second) * gradient.square()
        root = state["square"].sqrt() / (1 - second ** state["taken"]) ** 0.5
        shrunk = (1 - self.learning_rate * self.weight_decay) * weight
        size = self.learning_rate / (1 - first ** state["taken"])
        return torch.addcdiv(shrunk, state["mean"], root + self.eps, value=-size)
