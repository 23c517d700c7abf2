"""The client looks at a payload before it trains on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message
from torch import nn

from lightning_recon.errors import InputError
from lightning_recon.integrations.flower.declarations import App, Mod
from lightning_recon.integrations.flower.messages import arrays_of, is_training, log

if TYPE_CHECKING:
    from lightning_recon.detect import Detection

LAST = "lightning_recon.last_payload"
"""Key of the record in a client's state that holds what the server sent the last time."""


def detect_mod(model: nn.Module | None = None, *, refuses: bool = True) -> Mod:
    """Return a client mod that looks at what the server sent, before the app trains on it.

    The last round's payload is kept in the client's own state and compared with.  Only one that
    was found honest becomes the next reference.

    Args:
        model: of the architecture that the app trains; arrays that it has no place for, and those
            that are strange in their layers, are found.  Null: the arrays are looked at alone.
        refuses: whether a suspicious payload is not trained on (InputError, which Flower reports
            to the server as the client's error); else it is a warning in the log.
    """

    def look(message: Message, context: Context, call_next: App) -> Message:
        if is_training(message) and message.content.array_records:
            found = _looked_at(message, context, model)
            if found.verdict == "suspicious":
                strange = "; ".join(f"{one.where}: {one.text}" for one in found.findings[:3])
                said = f"the payload is suspicious (score {found.score:.2f}): {strange}"
                if refuses:
                    raise InputError(f"detect_mod: {said}; nothing was trained or sent")
                log.warning("detect_mod: %s", said)
        return call_next(message, context)

    return look


def _looked_at(message: Message, context: Context, model: nn.Module | None) -> Detection:
    """Return what is said of a message's arrays, and keep them where they are honest."""
    from lightning_recon.detect import detect_sent

    arrays = {name: np.array(array) for name, array in arrays_of(message).items()}
    sent = {name: torch.from_numpy(array) for name, array in arrays.items()}
    last = context.state.array_records.get(LAST)
    reference = None if last is None else dict(last.to_torch_state_dict())
    found = detect_sent(sent, model, reference)
    if found.verdict == "honest":
        context.state[LAST] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return found
