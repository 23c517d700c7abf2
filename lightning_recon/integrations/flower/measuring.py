"""What a federation's updates give away, told beside its metrics while it runs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import nn

from lightning_recon.errors import InputError
from lightning_recon.integrations.flower.around import Around
from lightning_recon.integrations.flower.messages import log, only_warning


class Measures(Protocol):
    """What :class:`lightning_recon.leakage.Leakage` does."""

    def measure(self, model: nn.Module, round_: int = 0) -> Mapping[str, float]:
        """Return figures of a model, by name."""
        ...


def measuring(
    strategy: Strategy,
    leakage: Measures,
    model: nn.Module,
    every_n_rounds: int = 10,
    writer: Any = None,
) -> Strategy:
    """Return a strategy that measures leakage of the model that it sends, every n rounds.

    The figures stand beside the strategy's own training metrics.  What the strategy decides stays
    as it is, bit for bit, and a fault of the measurement is a warning in the log.

    Args:
        strategy: chooses the clients, and aggregates.
        leakage: measures, such as :class:`lightning_recon.leakage.Leakage`.
        model: of the federation; it is copied, and gets the arrays of the round.
        every_n_rounds: of which the first is measured, at least 1.
        writer: TensorBoard's ``SummaryWriter``; null: none.

    Raises:
        InputError: if ``every_n_rounds`` is below 1.
    """
    if every_n_rounds < 1:
        raise InputError(f"measuring: every_n_rounds must be at least 1, not {every_n_rounds}")
    return _Measuring(strategy, leakage, copy.deepcopy(model), every_n_rounds, writer)


class _Measuring(Around):
    def __init__(
        self, strategy: Strategy, leakage: Measures, model: nn.Module, every: int, writer: Any
    ) -> None:
        super().__init__(strategy)
        self.leakage = leakage
        self.model = model
        self.every = every
        self.writer = writer
        self._found: dict[int, Mapping[str, float]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if (server_round - 1) % self.every == 0:
            with only_warning(f"the leakage of round {server_round}"):
                self.model.load_state_dict(arrays.to_torch_state_dict())
                self._found[server_round] = self.leakage.measure(self.model, server_round)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        found = self._found.pop(server_round, None)
        if found:
            metrics = MetricRecord({**dict(metrics or {}), **found})
            log.info("round %s: %s", server_round, found)
            for name, value in found.items() if self.writer is not None else ():
                self.writer.add_scalar(name, value, server_round)
        return arrays, metrics
