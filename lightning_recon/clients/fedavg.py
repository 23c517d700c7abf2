"""Federated averaging.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, Algorithm 1.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_recon.clients.base import Client, Gradient, LocalLoss, plain
from lightning_recon.errors import InputError
from lightning_recon.updates import Update

OptimizerState = dict[str, dict[str, Any]]
"""What the local optimizer remembers, by parameter and by name of its own."""


class FedAvg(Client):
    """Federated averaging: the update is the change of the weights by local SGD, w_tau - w_0.

    Every epoch walks through the client's batch in minibatches; the last one of an epoch may be
    smaller.  With ``minibatch_size`` null an epoch is one step on the whole batch, so that tau
    local steps are ``epochs: tau``.  SGD is torch's: with momentum, v <- momentum v + g and
    w <- w - learning_rate v; weight decay adds weight_decay w to g.

    Args:
        learning_rate: of the local SGD, above 0.
        epochs: local epochs, at least 1.
        minibatch_size: samples of a local step; null: all.
        momentum: in [0, 1).
        weight_decay: at least 0.
        shuffle: whether the client draws a new order of its samples every epoch; an attacker who
            simulates the client does not know it and keeps to one order.

    Raises:
        InputError: if an argument is out of its range.
    """

    protocol = "fedavg"

    def __init__(
        self,
        learning_rate: float,
        epochs: int = 1,
        minibatch_size: int | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        shuffle: bool = True,
        label_smoothing: float = 0.0,
        mode: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__(label_smoothing, mode)
        if not 0 < learning_rate < math.inf:
            raise InputError(f"FedAvg: learning_rate must be a number above 0, not {learning_rate}")
        if epochs < 1:
            raise InputError(f"FedAvg: epochs must be at least 1, not {epochs}")
        if minibatch_size is not None and minibatch_size < 1:
            raise InputError(f"FedAvg: minibatch_size must be at least 1, not {minibatch_size}")
        if not 0 <= momentum < 1:
            raise InputError(f"FedAvg: momentum must be in [0, 1), not {momentum}")
        if not 0 <= weight_decay < math.inf:
            raise InputError(f"FedAvg: weight_decay must be at least 0, not {weight_decay}")
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.minibatch_size = minibatch_size
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.shuffle = shuffle

    @property
    def gradient_scale(self) -> float:
        """Minus one over the learning rate; the sum of the local gradients is left."""
        return -1 / self.learning_rate

    @property
    def sends_gradient(self) -> bool:
        """Whether it is one step on the whole batch, without weight decay."""
        return self.epochs == 1 and self.minibatch_size is None and not self.weight_decay

    def num_steps(self, num_samples: int) -> int:
        """Return the number of local steps on so many samples."""
        return self.epochs * -(-num_samples // (self.minibatch_size or num_samples))

    def fewest_samples(self, num_samples: int) -> int:
        """Return the samples of the smallest minibatch."""
        size = self.minibatch_size or num_samples
        return num_samples % size or size

    def gradient_weights(self, num_samples: int) -> list[float]:
        """Return for each local step 1 + momentum + momentum^2 + ..., a term a step to the end."""
        left = range(self.num_steps(num_samples), 0, -1)
        return [sum(self.momentum**age for age in range(steps)) for steps in left]

    def local_update(
        self,
        loss: LocalLoss,
        parameters: Update,
        images: Tensor,
        labels: Tensor,
        *,
        gradient: Gradient,
    ) -> Update:
        """Return the change of the weights, samples taken in the order in which they stand.

        Raises:
            InputError: if a minibatch is to hold more samples than there are, or if the payload's
                gradients are sparse and there are several steps.
        """
        order = torch.arange(len(images))
        return self._train(loss, parameters, images, labels, [order] * self.epochs, gradient)

    def respond(
        self, loss: LocalLoss, parameters: Update, images: Tensor, labels: Tensor
    ) -> Update:
        """Return the change of the weights, samples in an order of the client's own."""
        orders = [
            torch.randperm(len(images)) if self.shuffle else torch.arange(len(images))
            for _ in range(self.epochs)
        ]
        return self._train(loss, parameters, images, labels, orders, plain)

    def _train(
        self,
        loss: LocalLoss,
        parameters: Update,
        images: Tensor,
        labels: Tensor,
        orders: list[Tensor],
        gradient: Gradient,
    ) -> Update:
        size = self.minibatch_size or len(images)
        if size > len(images):
            raise InputError(
                f"FedAvg: minibatch_size {size} is more than the {len(images)} samples of the "
                "client; lower it, or take larger batches"
            )
        weights = dict(parameters)
        reuses = gradient is plain  # nothing is left to differentiate, and memory can be reused
        state: OptimizerState = {}
        sparse: Update = {}  # the only step on what has sparse gradients
        for order in orders:
            for chosen in torch.split(order.to(images.device), size):
                step = dict(gradient(loss, weights, images[chosen], labels[chosen]))
                while step:  # nothing of it is held while the next one is computed
                    name, change = step.popitem()
                    if change.is_sparse:
                        if not self.sends_gradient:
                            raise InputError(
                                "FedAvg: this attack's model has sparse gradients, of which more "
                                "than one local step makes dense weights; use FedSGD, or epochs 1 "
                                "without minibatch_size and weight_decay"
                            )
                        sparse[name] = -self.learning_rate * change
                        continue
                    held = state.setdefault(name, {})
                    is_held = reuses and weights[name] is not parameters[name]
                    weights[name] = self.step(weights[name], change, held, in_place=is_held)
                    del change
        return {
            name: sparse[name] if name in sparse else weights[name] - parameters[name]
            for name in parameters
        }

    def step(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], *, in_place: bool = False
    ) -> Tensor:
        """Return a parameter after one step of the local optimizer.

        Args:
            weight: before it.
            gradient: of the loss, of the same shape.
            state: what the optimizer remembers of this parameter, empty at the first step; it is
                changed.
            in_place: whether ``weight`` and ``state`` are of an earlier step and may be written to.
        """
        if self.weight_decay:
            gradient = torch.add(gradient, weight, alpha=self.weight_decay)
        if self.momentum:
            velocity = state.get("velocity")
            if velocity is not None:
                out = velocity if in_place and state["is_own"] else None
                gradient = torch.add(gradient, velocity, alpha=self.momentum, out=out)
            # what autograd gave may be another parameter's, too
            state["is_own"] = velocity is not None or self.weight_decay > 0
            state["velocity"] = gradient
        return torch.sub(
            weight, gradient, alpha=self.learning_rate, out=weight if in_place else None
        )
