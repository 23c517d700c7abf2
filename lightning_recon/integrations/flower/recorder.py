"""The server's side of a capture: around a strategy, or around a grid."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from lightning_recon.captures import Kind
from lightning_recon.integrations.flower.around import Around
from lightning_recon.integrations.flower.messages import only_warning, plain
from lightning_recon.integrations.flower.tape import Asked, Tape


class Recorder(Around):
    """Around a strategy: writes what is sent to clients for training, and what they return.

    Results are those of the strategy alone, bit for bit, and a fault of the recorder is a warning
    in the log; nothing of an evaluation is recorded.  Stay outermost: strategies that clip on the
    server change replies in place.

    A strategy of the message API (``flwr.serverapp.strategy``) or an older one
    (``flwr.server.strategy``), whose arrays have no names.  Whatever else is asked of the recorder
    is the strategy's.

    Args:
        strategy: the one that decides.
        folder: of the capture; it is made, or gone on with if it is one.
        image_shape: C, H, W of what the model sees; null: not known.
        run_config: the run's settings (``context.run_config``), where learning rate, epochs or
            batch size stand in them instead of in the messages; null: none.
        names: of the arrays of an older strategy, in order, as ``list(net.state_dict())``; null:
            their places, "0", "1", and so on.
        kind: what clients return.

    Raises:
        InputError: if the folder holds something else.
    """

    def __init__(
        self,
        strategy: Any,
        folder: str | Path,
        *,
        image_shape: Sequence[int] | None = None,
        run_config: Mapping[str, Any] | None = None,
        names: Sequence[str] | None = None,
        kind: Kind = "weights",
    ) -> None:
        super().__init__(strategy)
        self.names = None if names is None else list(names)
        self._tape = Tape(folder, image_shape, run_config, kind, strategy=type(strategy).__name__)
        self._legacy: dict[str, Asked] = {}

    # --- the message API -----------------------------------------------------------------------

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run the strategy's own loop, be it its author's, on a grid that is recorded."""
        return self.strategy.start(_RecordingGrid(grid, self._tape), *args, **kwargs)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the strategy's messages."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._tape.sent(messages, server_round)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return what the strategy makes of the replies."""
        replies = list(replies)
        self._tape.received(replies)
        return super().aggregate_train(server_round, replies)

    # --- older strategies ----------------------------------------------------------------------

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        """Return the strategy's instructions."""
        instructions = self.strategy.configure_fit(server_round, parameters, client_manager)
        written: dict[int, str] = {}
        for proxy, fit in instructions:
            with only_warning(f"what was sent to client {proxy.cid}"):
                config = plain({"": fit.config})
                self._legacy[proxy.cid] = Asked(server_round, None, config)
                if id(fit.parameters) not in written:
                    payload = self._tape.add_payload(self._named(fit.parameters))
                    written[id(fit.parameters)] = payload
                digest = written[id(fit.parameters)]
                self._legacy[proxy.cid] = Asked(server_round, digest, config)
        return instructions

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """Return what the strategy makes of the results."""
        for proxy, result in results:
            with only_warning(f"the reply of client {proxy.cid}"):
                asked = self._legacy.get(proxy.cid) or Asked(server_round, None, {})
                metrics = plain({"": result.metrics})
                arrays = self._named(result.parameters)
                self._tape.write(proxy.cid, arrays, asked, metrics, result.num_examples, None)
        return self.strategy.aggregate_fit(server_round, results, failures)

    def _named(self, parameters: Any) -> dict[str, Any]:
        from flwr.common import parameters_to_ndarrays

        arrays = parameters_to_ndarrays(parameters)
        names = self.names or [str(place) for place in range(len(arrays))]
        return dict(zip(names, arrays, strict=True))


def recording_grid(
    grid: Grid,
    folder: str | Path,
    *,
    image_shape: Sequence[int] | None = None,
    run_config: Mapping[str, Any] | None = None,
    kind: Kind = "weights",
) -> Grid:
    """Return a grid that records: for server apps with a loop of their own, without a strategy.

    A round's number is the message's ``server-round`` or ``group_id``, else rounds are counted: one
    begins when a client is asked again.

    Args:
        grid: the one that sends.
        folder: of the capture; it is made, or gone on with if it is one.
        image_shape: see :class:`Recorder`.
        run_config: see :class:`Recorder`.
        kind: what clients return.

    Raises:
        InputError: if the folder holds something else.
    """
    return _RecordingGrid(grid, Tape(folder, image_shape, run_config, kind))


class _RecordingGrid(Grid):  # type: ignore[misc]
    def __init__(self, grid: Grid, tape: Tape) -> None:
        self.grid = grid
        self._tape = tape

    def __getattr__(self, name: str) -> Any:
        """Whatever else is asked is the grid's."""
        if name == "grid":
            raise AttributeError(name)
        return getattr(self.grid, name)

    def set_run(self, run: Any) -> None:
        """Tell the grid."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """The grid's."""
        return self.grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return the grid's message."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the grid's."""
        return list(self.grid.get_node_ids())

    def get_nodes(self) -> Iterable[Any]:
        """Return the grid's."""
        return list(self.grid.get_nodes())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push, after what is sent was written."""
        messages = list(messages)
        self._tape.sent(messages)
        ids = list(self.grid.push_messages(messages))
        self._tape.pushed(messages, ids)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull, and write what came."""
        replies = list(self.grid.pull_messages(message_ids))
        self._tape.received(replies)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send after what is sent was written, receive, and write what came."""
        messages = list(messages)
        self._tape.sent(messages)
        replies = list(self.grid.send_and_receive(messages, timeout=timeout))
        self._tape.received(replies)
        return replies
