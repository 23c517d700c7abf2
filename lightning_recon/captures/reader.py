"""Reads a capture; what cannot be read is told in a line, and the rest is read."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_recon.captures.format import (
    FEDERATION,
    FORMAT,
    KINDS,
    VERSION,
    FederationJson,
    ReplyJson,
    payload_file,
    truth_file,
)
from lightning_recon.captures.tensors import read_tensors
from lightning_recon.documents import read_json, refusal
from lightning_recon.errors import InputError, program
from lightning_recon.files import sha256_of
from lightning_recon.schemas import MisfitError, conform

Tensors = dict[str, Tensor]
MAX_FACTS_BYTES = 2**24
"""16 MiB: what is known of a reply takes 1 KB, the names of a large model's parameters 1 MB."""
RANGES: dict[str, tuple[float, float]] = {
    "round": (0, 2**31),
    "num_examples": (0, 2**40),
    "batch_size": (1, 2**20),
    "steps": (1, 2**20),
    "learning_rate": (0, 1e6),
    "momentum": (0, 1),
    "image_shape": (1, 2**14),
}
"""What numbers may be: what is above would be a slip, and would fill the memory."""
_AGAIN = "mend it, or capture again; see docs/update-format.md"


class Truth(NamedTuple):
    """What a client trained on."""

    images: Tensor
    """B C H W in [0, 1]."""
    labels: Tensor
    """B, int64."""


class Reply(NamedTuple):
    """What one client returned in one round."""

    round: int
    client: str
    tensors: Tensors
    """As returned, by name, of any type."""
    payload: Tensors | None
    """What the server had sent; None: not captured."""
    facts: ReplyJson
    """All that its JSON says."""

    @property
    def name(self) -> str:
        """For people: which client in which round."""
        return f"client {self.client}, round {self.round}"


class Capture:
    """A capture that was written before.

    Args:
        folder: of the capture.

    Raises:
        InputError: if the folder is none, is of a later version, or holds no reply.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().absolute()
        path = self.folder / FEDERATION
        if not path.is_file():
            raise InputError(
                f"{self.folder} is no capture: it has no {FEDERATION}; see docs/update-format.md, "
                f"or {program()} import for state dicts"
            )
        content, text = read_json(path, _AGAIN, MAX_FACTS_BYTES)
        if content.get("format") != FORMAT:
            raise InputError(f'{path}: format should be "{FORMAT}", not {content.get("format")!r}')
        check_version(path, content)
        self.facts: FederationJson = _facts(FederationJson, content, path, text)
        self.files = sorted(self.folder.glob("rounds/*/*.json"))
        """Of the replies, in the order of rounds and clients."""
        if not self.files:
            raise InputError(f"{self.folder} holds no reply below rounds/")

    def read(self, path: Path) -> Reply:
        """Return one of the replies.

        Args:
            path: one of :attr:`files`.

        Raises:
            InputError: if it cannot be used, in one line.
        """
        facts = self.said(path)
        file = path.with_suffix(".safetensors")
        known = facts.get("sha256")  # none: an earlier version, or another program, wrote it
        if known is not None and file.is_file() and sha256_of(file) != known:
            raise InputError(
                f"{file} is truncated or was changed: its SHA-256 is not that of {path.name}"
            )
        tensors = read_tensors(file)
        if not tensors:
            raise InputError(f"{file} holds no tensor")
        digest = facts.get("payload")
        payload = None if digest is None else self._payload(str(digest))
        client = str(facts.get("client", path.stem))
        return Reply(facts["round"], client, tensors, payload, facts)

    def said(self, path: Path) -> ReplyJson:
        """Return what the JSON of a reply says, each key of its type and within its range.

        Args:
            path: one of :attr:`files`.

        Raises:
            InputError: naming the file, the line and the key.
        """
        content, text = read_json(path, _AGAIN, MAX_FACTS_BYTES)
        check_version(path, content)
        if content.get("kind") not in KINDS:
            raise InputError(
                f"{path}: kind should be one of {', '.join(KINDS)}, not {content.get('kind')!r}"
            )
        if content.get("round") is None:
            raise InputError(f"{path}: round should be a number, not {content.get('round')!r}")
        facts: ReplyJson = _facts(ReplyJson, content, path, text)
        return facts

    def replies(self) -> Iterator[Reply | InputError]:
        """Give every reply, or what is wrong with it."""
        return map(self._attempt, self.files)

    def _attempt(self, path: Path) -> Reply | InputError:
        try:
            return self.read(path)
        except InputError as error:
            return error

    def _payload(self, digest: str) -> Tensors:
        return dict(_payload(payload_file(self.folder, digest), digest))


@lru_cache(maxsize=2)
def _payload(path: Path, digest: str) -> Tensors:
    """Return a payload whose bytes are those that its name says; replies of a round share one."""
    if path.is_file() and sha256_of(path) != digest:
        raise InputError(f"{path} is truncated or was changed: its SHA-256 is not its name")
    return read_tensors(path)


def check_version(path: Path, content: dict[str, Any]) -> None:
    """Raise InputError for a file from the future."""
    version = content.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"{path}: version should be a number from 1, not {version!r}")
    if version > VERSION:
        raise InputError(
            f"{path} is of version {version} of the format, and this program knows {VERSION}; "
            "update it"
        )


def read_truth(folder: str | Path, reply: Reply) -> Truth | None:
    """Return what the client of a reply trained on; None where the folder does not say.

    Args:
        folder: of the truth, as :func:`.write_truth` wrote it.
        reply: of the client.

    Raises:
        InputError: if the file cannot be used.
    """
    path = truth_file(Path(folder).expanduser().absolute(), reply.round, reply.client)
    if not path.is_file():
        return None
    found = read_tensors(path)
    images, labels = found.get("images"), found.get("labels")
    if images is None or labels is None or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise InputError(f"{path} should hold images, B C H W, and labels, B")
    images = images.float()
    if not bool(((images >= 0) & (images <= 1)).all()):  # nor is NaN
        raise InputError(f"{path} should hold images in [0, 1], as they are before normalisation")
    if labels.is_floating_point() or not bool((labels >= 0).all()):
        raise InputError(f"{path} should hold labels that are whole numbers from 0 on")
    return Truth(images, labels.to(torch.int64))


def _facts(kind: Any, content: dict[str, Any], path: Path, text: str) -> Any:
    """Return what a file of the format says, or raise InputError naming the line."""
    try:
        facts = conform(kind, content)
        for name, (least, largest) in RANGES.items():
            values = facts.get(name)
            for value in values if isinstance(values, list) else [values]:
                if value is not None and not least <= value <= largest:
                    told = f"is {value}; it should lie between {least:g} and {largest:g}"
                    raise MisfitError((name,), told)
        if len(facts.get("image_shape") or "CHW") != 3:
            raise MisfitError(("image_shape",), f"is {facts['image_shape']}, and not C, H, W")
    except MisfitError as misfit:
        raise refusal(path, text, misfit, _AGAIN) from misfit
    return facts
