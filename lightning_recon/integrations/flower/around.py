"""A strategy around another one, which decides."""

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy


class Around(Strategy):  # type: ignore[misc]
    """Hands everything on to a strategy, and back; subclasses say what they add.

    Args:
        strategy: the one that decides.
    """

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy

    def __getattr__(self, name: str) -> Any:
        """Whatever else is asked is the strategy's."""
        if name == "strategy":  # while a copy is made of this
            raise AttributeError(name)
        return getattr(self.strategy, name)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the strategy's messages."""
        messages: Iterable[Message]
        messages = self.strategy.configure_train(server_round, arrays, config, grid)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return what the strategy makes of the replies."""
        aggregated: tuple[ArrayRecord | None, MetricRecord | None]
        aggregated = self.strategy.aggregate_train(server_round, replies)
        return aggregated

    def configure_evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Return the strategy's messages."""
        return self.strategy.configure_evaluate(*args, **kwargs)

    def aggregate_evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the strategy makes of the replies."""
        return self.strategy.aggregate_evaluate(*args, **kwargs)

    def summary(self) -> None:
        """Log the strategy's summary."""
        self.strategy.summary()
