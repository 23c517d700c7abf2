"""What both recorders hold: it writes what passes, and never fails the federation for it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import Message

from lightning_recon.captures import CaptureWriter, Kind, ModJson
from lightning_recon.integrations.flower.declarations import MODS, declared_by
from lightning_recon.integrations.flower.messages import (
    arrays_of,
    is_training,
    only_warning,
    plain,
    round_of,
)

USUAL_NAMES = {
    "learning_rate": ("learning-rate", "learning_rate", "lr"),
    "momentum": ("momentum",),
    "batch_size": ("batch-size", "batch_size"),
    "epochs": ("local-epochs", "local_epochs", "epochs"),
    "steps": ("local-steps", "local_steps"),
}
"""Under which a server tells a client how to train."""
EXAMPLES = ("num-examples", "num_examples")
"""Under which a client tells how many examples it has."""


class Asked(NamedTuple):
    """What a client was asked."""

    number: int
    """Of the round."""
    payload: str | None
    config: dict[str, Any]


class Tape:
    """Writes payloads and replies of one federation to a capture.

    Args:
        folder: of the capture.
        image_shape: C, H, W of what the model sees; null: not known.
        run_config: the run's settings, which the app's clients read beside the messages; those
            under usual names are told of every reply whose message does not say otherwise.
        kind: what the clients return.
        facts: further keys of the capture's description.

    Raises:
        InputError: if the folder holds something else.
    """

    def __init__(
        self,
        folder: str | Path,
        image_shape: Sequence[int] | None,
        run_config: Mapping[str, Any] | None,
        kind: Kind,
        **facts: Any,
    ) -> None:
        self._writer = CaptureWriter(folder, f"flower {version('flwr')}", **facts)
        self._image_shape = None if image_shape is None else [int(size) for size in image_shape]
        self._run_config = dict(run_config or {})
        self._kind: Kind = kind
        self._asked: dict[int | str, Asked] = {}
        self._round = 0

    def sent(self, messages: Iterable[Message], number: int | None = None) -> None:
        """Write the payloads of messages that are about to be sent.

        Args:
            messages: to clients; those that are not of training are passed over.
            number: of the round; null: as the messages say, else counted: a round begins when a
                client is asked again.
        """
        written: dict[tuple[int, ...], str] = {}  # a strategy sends the same record to everybody
        in_this_round: set[int] = set()
        for message in messages:
            if not is_training(message):
                continue
            node = message.metadata.dst_node_id
            with only_warning(f"what was sent to node {node}"):
                said = round_of(message) if number is None else number
                if said is None:
                    asked_before = node in self._asked and self._asked[node].number >= self._round
                    is_new = self._round == 0 or (asked_before and node not in in_this_round)
                    said = self._round + 1 if is_new else self._round
                self._round = said
                in_this_round.add(node)
                config = plain(message.content.config_records)
                self._asked[node] = Asked(said, None, config)
                key = tuple(map(id, message.content.array_records.values()))
                if key not in written:
                    written[key] = self._writer.add_payload(arrays_of(message))
                self._asked[node] = Asked(said, written[key], config)

    def pushed(self, messages: Sequence[Message], ids: Sequence[str]) -> None:
        """Remember what messages became, so that late replies find what they answer.

        Args:
            messages: that :meth:`sent` was told of.
            ids: theirs, as the grid gave them.
        """
        for message, message_id in zip(messages, ids, strict=False):
            asked = self._asked.get(message.metadata.dst_node_id)
            if message_id and asked is not None:
                self._asked[message_id] = asked

    def received(self, replies: Iterable[Message]) -> None:
        """Write the replies to training; those that hold an error are passed over.

        Args:
            replies: before any strategy saw them, for some change them in place.
        """
        for reply in replies:
            if reply.has_error() or not is_training(reply):
                continue
            node = reply.metadata.src_node_id
            with only_warning(f"the reply of node {node}"):
                asked = self._asked.pop(reply.metadata.reply_to_message_id, None)
                asked = asked or self._asked.get(node)
                records = reply.content.metric_records
                told = next(
                    (r[name] for r in records.values() for name in EXAMPLES if name in r), None
                )
                mods = None
                if MODS in reply.content.config_records:
                    with only_warning(f"what node {node} declares"):
                        mods = declared_by(reply)
                self.write(
                    node,
                    arrays_of(reply),
                    asked or Asked(self._round, None, {}),
                    plain(records),
                    told,
                    mods,
                )

    def add_payload(self, arrays: Mapping[str, Any]) -> str:
        """Write a payload; return its digest."""
        return self._writer.add_payload(arrays)

    def write(
        self,
        client: int | str,
        arrays: Mapping[str, Any],
        asked: Asked,
        metrics: Mapping[str, Any],
        num_examples: Any,
        mods: list[ModJson] | None,
    ) -> None:
        """Write one reply."""
        told = _under_usual_names(self._run_config) | _under_usual_names(asked.config)
        is_count = isinstance(num_examples, int | float) and float(num_examples).is_integer()
        facts: dict[str, Any] = {"num_examples": int(num_examples) if is_count else None, **told}
        epochs, size = told.get("epochs"), told.get("batch_size")
        if "steps" not in told and epochs and size and is_count:
            facts["steps"] = int(epochs * math.ceil(num_examples / size))
        self._writer.add_reply(
            asked.number,
            client,
            arrays,
            self._kind,
            asked.payload,
            config=asked.config,
            metrics=dict(metrics),
            mods=mods,
            image_shape=self._image_shape,
            **facts,
        )


def _under_usual_names(config: Mapping[str, Any]) -> dict[str, int | float]:
    """Return what a server tells of the training, by the format's names."""
    values = dict(config)
    for inner in config.values():  # several records
        values = {**inner, **values} if isinstance(inner, dict) else values
    found = {}
    for fact, names in USUAL_NAMES.items():
        for name in names:
            value = values.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[fact] = value
    return found
