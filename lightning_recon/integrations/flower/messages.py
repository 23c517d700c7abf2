"""What is read from Flower's messages, on either side."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.app import Message, MessageType

log = logging.getLogger("lightning_recon.integrations.flower")


def is_training(message: Message) -> bool:
    """Return whether a message is of training, be it under an action's name (``train.NAME``)."""
    return bool(message.metadata.message_type.split(".")[0] == MessageType.TRAIN)


def round_of(message: Message) -> int | None:
    """Return the round as the server tells it, in its config or as the message's group.

    Args:
        message: to a client, or from one.
    """
    configs = message.content.config_records.values() if message.has_content() else ()
    said = next((config["server-round"] for config in configs if "server-round" in config), None)
    if isinstance(said, int):
        return said
    group = message.metadata.group_id
    return int(group) if group.isdecimal() else None


def arrays_of(message: Message) -> dict[str, Any]:
    """Return a message's arrays by name.

    Those of the first record have their own names; those of others, which few strategies send,
    are named RECORD:NAME.
    """
    found: dict[str, Any] = {}
    for key, record in message.content.array_records.items():
        prefix = f"{key}:" if found else ""
        found |= {f"{prefix}{name}": array.numpy() for name, array in record.items()}
    return found


def plain(records: Mapping[str, Any]) -> dict[str, Any]:
    """Return records of settings or metrics for JSON: one as it is, several by their keys."""
    contents = {
        key: {name: _plain_value(value) for name, value in record.items()}
        for key, record in records.items()
    }
    return next(iter(contents.values())) if len(contents) == 1 else contents


def _plain_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, list | tuple):
        return [_plain_value(one) for one in value]
    return value


@contextmanager
def only_warning(what: str) -> Iterator[None]:
    """Within this context a fault is a line in the log: a federation never fails for its audit."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        log.warning("not recorded: %s: %s: %s", what, type(error).__name__, reason)
