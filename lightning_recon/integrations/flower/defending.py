"""This project's defenses as a client mod of Flower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message

from lightning_recon.errors import InputError
from lightning_recon.integrations.flower.declarations import App, Mod, declare
from lightning_recon.integrations.flower.messages import is_training

if TYPE_CHECKING:
    from lightning_recon.defenses import Defense


def defense_mod(chain: Sequence[Defense]) -> Mod:
    """Return a client mod that passes what a client changed through defenses before it is sent.

    The update is what all float arrays of the reply, 0-d ones and batch norm's statistics among
    them, differ by from those that the server sent; after the chain it is added to these again.
    Single whole numbers, such as ``num_batches_tracked``, are sent as they are.  All randomness is
    fresh and from the operating system's seed.  What the update has passed is declared to the
    server.

    It fails closed: a reply that it cannot protect is not sent (InputError, which Flower reports to
    the server as the client's error), be it that reply and message do not hold one record each of
    the same arrays, that the update is not finite, or that an array of other numbers changed.

    Args:
        chain: in the order in which the update passes them; none: the update is sent as it is.

    Raises:
        InputError: if a defense of the chain needs a bound, and none stands in front of it.
    """
    return _DefenseMod(chain)


class _DefenseMod:
    declares_itself = True

    def __init__(self, chain: Sequence[Defense]) -> None:
        from lightning_recon.defenses import bind_chain

        self.chain = list(chain)
        bind_chain(self.chain)

    def __call__(self, message: Message, context: Context, call_next: App) -> Message:
        if not is_training(message):
            return call_next(message, context)
        # copied before the app runs, which may train in place
        sent = {name: array.numpy().copy() for name, array in _record(message, "message").items()}
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        record = _record(reply, "reply")
        key = next(iter(reply.content.array_records))
        reply.content[key] = self._protected(record, sent)
        declare(reply)  # an empty chain is said, too
        for defense in self.chain:
            declare(reply, type(defense).__name__, **_facts(defense))
        return reply

    def _protected(self, record: ArrayRecord, sent: dict[str, Any]) -> ArrayRecord:
        from lightning_recon.defenses import apply_chain

        arrays = {name: array.numpy() for name, array in record.items()}
        shapes = {name: array.shape for name, array in arrays.items()}
        if shapes != {name: array.shape for name, array in sent.items()}:
            raise InputError("defense_mod: the reply's arrays are not those that the server sent")
        floats = [name for name, array in arrays.items() if array.dtype.kind == "f"]
        for name, array in arrays.items():
            is_counter = array.ndim == 0 and array.dtype.kind in "iub"
            if name not in floats and not is_counter and not np.array_equal(array, sent[name]):
                raise InputError(
                    f"defense_mod: {name} changed, holds {array.dtype} and cannot be protected"
                )
        before = {name: _as_float(sent[name]) for name in floats}
        update = {name: _as_float(arrays[name]) - before[name] for name in floats}
        for name, tensor in update.items():
            if not torch.isfinite(tensor).all():
                raise InputError(f"defense_mod: {name} is not finite and cannot be protected")
        generator = torch.Generator()
        generator.seed()
        update = apply_chain(self.chain, update, generator=generator)
        for name in floats:
            protected = (before[name] + update[name]).numpy()
            arrays[name] = np.asarray(protected, dtype=arrays[name].dtype)
        return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def _record(message: Message, what: str) -> ArrayRecord:
    records = list(message.content.array_records.values())
    if len(records) != 1:
        raise InputError(f"defense_mod: the {what} should hold one ArrayRecord, not {len(records)}")
    return records[0]


def _as_float(array: Any) -> torch.Tensor:
    """Return a copy of at least single precision, in which noise and clipping are computed."""
    dtype = np.float64 if array.dtype == np.float64 else np.float32
    return torch.from_numpy(np.array(array, dtype=dtype))


def _facts(defense: Defense) -> dict[str, Any]:
    """Return a defense's settings: its public numbers and words."""
    settings = {
        name: value
        for name, value in vars(defense).items()
        if isinstance(value, int | float | str) and not name.startswith("_") and name != "training"
    }
    return settings | {
        name: value for name, value in (defense.claimed or {}).items() if name == "delta"
    }
