"""The malicious server, played by who may: a payload of this project in a federation of Flower.

Weights alone cannot add a layer, since a client loads them into the class that it has.  But the app
that ``flwr run`` ships holds the clients' code too, so that who writes it decides on that class:
:func:`inject` on the server and :func:`load_payload` on the client are the two halves.  A SuperNode
that was started with ``--trusted-entities`` runs no app without a signature of those that it names.
"""

from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import nn

from lightning_recon.errors import InputError
from lightning_recon.integrations.flower.around import Around
from lightning_recon.integrations.flower.messages import log


def inject(strategy: Strategy, payload: nn.Module, *, red_team: bool = False) -> Strategy:
    """Return a strategy that sends a malicious model to the clients in place of the federation's.

    Every round is logged as a warning.  Put a :class:`.Recorder` around it for what comes back.

    Args:
        strategy: chooses the clients, and aggregates.
        payload: of an attack that is bound, ``attack.federation.payload``.
        red_team: says, if true, that the clients' owners have agreed.

    Raises:
        InputError: without the flag.
    """
    if not red_team:
        raise InputError(
            "inject sends a manipulated model to every client; where their owners have agreed to "
            "that, pass red_team=True"
        )
    return _Injecting(strategy, payload)


def payload_arrays(payload: nn.Module) -> ArrayRecord:
    """Return a payload's parameters as arrays, by name: what is sent, and what is sent back."""
    return ArrayRecord(
        {
            name: Array(parameter.detach().cpu().contiguous().numpy())
            for name, parameter in payload.named_parameters()
        }
    )


def load_payload(payload: nn.Module, arrays: ArrayRecord) -> nn.Module:
    """Return a payload with the parameters that were sent, all of them to be trained.

    Args:
        payload: made by the client's app as the server made its own; it is changed.
        arrays: of the message.

    Raises:
        InputError: if they are not the payload's.
    """
    sent = arrays.to_torch_state_dict()
    own = dict(payload.named_parameters())
    if {name: tensor.shape for name, tensor in sent.items()} != {
        name: parameter.shape for name, parameter in own.items()
    }:
        raise InputError("load_payload: the arrays are not those of this payload")
    for name, parameter in own.items():
        # a new tensor: rows that share their memory cannot be trained
        parameter.data = sent[name].to(parameter)
    for parameter in payload.parameters():
        parameter.requires_grad_()
    return payload


class _Injecting(Around):
    def __init__(self, strategy: Strategy, payload: nn.Module) -> None:
        super().__init__(strategy)
        self.payload = payload

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        with torch.no_grad():
            sent = payload_arrays(self.payload)
        messages = list(super().configure_train(server_round, sent, config, grid))
        log.warning(
            "RED TEAM: round %s: %s is sent to %s clients in place of the model",
            *(server_round, type(self.payload).__name__, len(messages)),
        )
        return messages

    def configure_evaluate(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        """Return no message: the evaluation of a payload tells nobody anything."""
        return []

    def aggregate_evaluate(self, *args: Any, **kwargs: Any) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        log.warning("RED TEAM: a malicious model is sent in place of the federation's")
        super().summary()
