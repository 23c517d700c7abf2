"""The format of a capture: names and types; nothing is read or written here."""

import re
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

FORMAT = "lightning_recon capture"
"""What ``federation.json`` says that it is."""
VERSION = 1
"""Of the format."""
FEDERATION = "federation.json"
Kind = Literal["weights", "delta", "gradient"]
"""What a client returned: its model after training, the change of it, or a gradient."""
KINDS: tuple[Kind, ...] = get_args(Kind)


class FederationJson(TypedDict, total=False):
    """``federation.json``: what holds for all replies.  Further keys are allowed, and kept."""

    format: str
    version: int
    source: str
    """What was captured, such as ``"flower 1.42.0"``."""
    created: str
    """ISO 8601, UTC."""
    image_shape: list[int]
    """C, H, W of what the model sees, where all clients share it."""


class ModJson(TypedDict, total=False):
    """What a client says that it does to its update; further keys are the mod's own."""

    name: str
    """Such as ``"LocalDpMod"``."""
    clip_norm: float
    noise_std: float
    epsilon: float
    delta: float


class ReplyJson(TypedDict, total=False):
    """``rounds/0001/CLIENT.json``: what is known of one reply.

    Null or missing: not known.  Further keys are allowed, and kept.
    """

    version: int
    round: int
    client: str
    kind: Kind
    payload: str | None
    """SHA-256 of the file of the payload that it answers."""
    missing: list[str]
    """Names of the payload that the reply does not hold."""
    config: dict[str, Any]
    """What the server told the client."""
    metrics: dict[str, Any]
    """What the client told of its training."""
    num_examples: int | None
    """Of the client's data set, by which the server weighs its reply; not of a batch."""
    batch_size: int | None
    """Of one step."""
    steps: int | None
    """Local steps."""
    learning_rate: float | None
    momentum: float | None
    mods: list[ModJson] | None
    """Declared by the client, in the order in which the update passes them; ``[]``: none, as
    declared; null: nobody said."""
    image_shape: list[int] | None
    """C, H, W of what the model sees."""
    sha256: str | None
    """Of the file of the reply's tensors."""


def safe_name(client: str) -> str:
    """Return a client's identifier as a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", client).lstrip(".") or "client"


def payload_file(folder: Path, digest: str) -> Path:
    """Return where a payload lies."""
    return folder / "payloads" / f"{digest}.safetensors"


def reply_file(folder: Path, number: int, client: str) -> Path:
    """Return where a reply's tensors lie; its JSON lies beside it."""
    return folder / "rounds" / f"{number:04d}" / f"{safe_name(client)}.safetensors"


def truth_file(folder: Path, number: int, client: str) -> Path:
    """Return where the images of a client lie, for who is allowed to know them."""
    return folder / f"{number:04d}" / f"{safe_name(client)}.safetensors"
