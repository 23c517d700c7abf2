"""The client's side of an audit that is scored: what it trained on, written where it says."""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from torch import Tensor

from lightning_recon.captures import write_truth
from lightning_recon.integrations.flower.declarations import App, Mod
from lightning_recon.integrations.flower.messages import is_training, only_warning, round_of

Data = Callable[[Message, Context], tuple[Tensor, Tensor]]
"""Gives images, B C H W in [0, 1] before any normalisation, and labels, B."""


def truth_mod(folder: str | Path, data: Data) -> Mod:
    """Return a client mod that writes what the client trains on, for who scores an audit.

    Nothing else writes it, and nothing of it is sent: it is for a federation whose clients' owners
    want to know what their updates give away.  What cannot be written is a warning in the log.

    Args:
        folder: of the truth, on the client's machine; never within a capture.
        data: of the message and the context of a round.
    """

    def write(message: Message, context: Context, call_next: App) -> Message:
        reply = call_next(message, context)
        if is_training(message) and not reply.has_error():
            with only_warning(f"the truth of node {context.node_id}"):
                number = round_of(message)
                if number is None:
                    raise ValueError("the message has no server-round and no group_id")
                write_truth(folder, number, context.node_id, *data(message, context))
        return reply

    return write
