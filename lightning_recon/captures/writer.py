"""Writes a capture while a federation runs."""

import hashlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_recon.captures.format import (
    FEDERATION,
    FORMAT,
    KINDS,
    VERSION,
    Kind,
    payload_file,
    reply_file,
    truth_file,
)
from lightning_recon.captures.tensors import Arrays, as_tensors, names_in, packed
from lightning_recon.documents import read_json
from lightning_recon.errors import InputError
from lightning_recon.files import write_atomically, write_json


class CaptureWriter:
    """One capture: a folder to which payloads and replies are added.

    Every file is written whole or not at all, a reply's JSON last: what has a JSON is complete.
    A folder that holds a capture already is gone on with.

    Args:
        folder: is made if it is missing.
        source: what is captured, such as ``"flower 1.42.0"``.
        facts: further keys of ``federation.json``.

    Raises:
        InputError: if the folder holds something else, or a capture of another version.
    """

    def __init__(self, folder: str | Path, source: str, **facts: Any) -> None:
        self.folder = Path(folder).expanduser().absolute()
        path = self.folder / FEDERATION
        if not path.exists() and _holds_files(self.folder) and not path.exists():
            # asked again, for another process may have begun it in between
            raise InputError(f"{self.folder} is no capture and not empty; choose another folder")
        if path.exists():
            _check_own(path)
        else:
            created = datetime.now(timezone.utc).isoformat(timespec="seconds")
            write_json(
                path,
                {"format": FORMAT, "version": VERSION, "source": source, "created": created}
                | facts,
            )

    def add_payload(self, arrays: Arrays) -> str:
        """Write what the server sends, once however often it is sent.

        Args:
            arrays: the payload's tensors or arrays by name, all that are sent.

        Returns:
            The SHA-256 of its file, by which a reply names it.
        """
        content = packed(as_tensors(arrays))
        digest = hashlib.sha256(content).hexdigest()
        path = payload_file(self.folder, digest)
        if not path.exists():
            write_atomically(path, content)
        return digest

    def add_reply(
        self,
        number: int,
        client: str | int,
        arrays: Arrays,
        kind: Kind,
        payload: str | None = None,
        **facts: Any,
    ) -> Path:
        """Write what one client returned, as it returned it.

        Args:
            number: of the round.
            client: its identifier; a second reply of a client in a round gets a number.
            arrays: tensors or arrays by name, of any type.
            kind: what they are.
            payload: that they answer, as :meth:`add_payload` named it; null: not known.
            facts: keys of :class:`~lightning_recon.captures.ReplyJson`, and others.

        Returns:
            The JSON file of the reply.

        Raises:
            InputError: if the kind is none of those that are known, or the payload is not there.
        """
        if kind not in KINDS:
            raise InputError(f"kind must be one of {', '.join(KINDS)}, not {kind}")
        sent: list[str] = []
        if payload is not None:
            path = payload_file(self.folder, payload)
            if not path.is_file():
                raise InputError(f"the capture has no payload {payload}; add it first")
            sent = names_in(path)
        tensors = as_tensors(arrays)
        content = packed(tensors)
        path = _free(reply_file(self.folder, number, str(client)))
        write_atomically(path, content)
        known = {
            "version": VERSION,
            "round": number,
            "client": str(client),
            "kind": kind,
            "payload": payload,
            "missing": [name for name in sent if name not in tensors],
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        write_json(path.with_suffix(".json"), known | facts)
        return path.with_suffix(".json")


def write_truth(
    folder: str | Path, number: int, client: str | int, images: Tensor, labels: Tensor
) -> Path:
    """Write what a client trained on, apart from any capture.

    Only a client can, and only where its owner wants the audit to be scored.

    Args:
        folder: of the truth.
        number: of the round.
        client: its identifier, as in the capture.
        images: B C H W in [0, 1], before any normalisation.
        labels: B, whole numbers.

    Raises:
        InputError: if the shapes do not fit, or the images do not lie in [0, 1].
    """
    if images.ndim != 4 or len(images) != len(labels):
        raise InputError(
            f"images must be B C H W and labels B, not {tuple(images.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if images.numel() and not 0 <= float(images.min()) <= float(images.max()) <= 1:
        raise InputError(
            f"images must lie in [0, 1], as they are before they are normalised, not between "
            f"{float(images.min()):.3g} and {float(images.max()):.3g}"
        )
    path = truth_file(Path(folder).expanduser().absolute(), number, str(client))
    write_atomically(path, packed(as_tensors({"images": images, "labels": labels})))
    return path


def _holds_files(folder: Path) -> bool:
    """Whether a folder holds anything but files that are being written."""
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def _check_own(path: Path) -> None:
    """Raise InputError unless a capture of this version can be gone on with."""
    try:
        content, _ = read_json(path, "choose another folder")
        found = content["format"], content["version"]
    except LookupError as error:
        raise InputError(f"{path} does not describe a capture: choose another folder") from error
    if found != (FORMAT, VERSION):
        raise InputError(f"{path} is of version {found[1]}, and this writes {VERSION}")


def _free(path: Path) -> Path:
    """Return a path that no reply has yet."""
    found, number = path, 2
    while found.with_suffix(".json").exists():
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return found
