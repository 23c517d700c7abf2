"""The server's own images, where they are not of the clients' data set."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lightning_recon.data.sources import FileSource, ImageSource
from lightning_recon.errors import InputError
from lightning_recon.files import expanded

if TYPE_CHECKING:
    from lightning_recon.data.base import ClientDataModule


def open_public(data: ClientDataModule) -> ImageSource:
    """Open ``public_root``, or ``public_split`` of it or of ``root``, as ``root`` is opened.

    Args:
        data: that names one of them, or both.

    Raises:
        InputError: nothing is there, there are no splits, or it is the clients' data set.
    """
    other = copy.copy(data)
    if data.public_split is not None:
        if not hasattr(data, "split"):
            raise InputError(
                f"{data.name} has no splits, and public_split is {data.public_split!r}; name the "
                "folder of other images in public_root"
            )
        other.split = data.public_split  # type: ignore[attr-defined]
    folder = expanded(data.public_root or data.root or "")
    source = other.open_source(folder)
    if source is None or not len(source):
        raise InputError(
            f"{data.name}: no public images at {folder}"
            f"{f', split {data.public_split}' if data.public_split else ''}; expected "
            f"{other.expected}; see public_root"
        )
    if _is_same(source, data.source):
        raise InputError(
            f"{data.name}: what public_root and public_split name is the clients' own data set; "
            "name another one, or leave both out: public images are then some of no client"
        )
    return source


def public_order(
    source: ImageSource, clients: ImageSource, taken: Sequence[int], seed: int
) -> Iterator[int]:
    """Give the places of a source in the seed's order, without files that a client holds.

    Args:
        source: of public images.
        clients: the clients' data set.
        taken: places in it that are a client's.
        seed: of the order.
    """
    held = {_file(clients, place) for place in taken} - {None}
    generator = torch.Generator().manual_seed(seed)
    for place in torch.randperm(len(source), generator=generator).tolist():
        if _file(source, place) not in held:
            yield place


def label_among(source: ImageSource, place: int, clients: ImageSource) -> int:
    """Return the label that the clients' data set gives to a public image's class.

    By the classes' names, where either has some; -1: it has no such class.

    Args:
        source: of public images.
        place: in it.
        clients: the clients' data set.
    """
    label = source.label(place)
    if source.classes is None and clients.classes is None:
        return label
    names, known = source.classes or (), clients.classes or ()
    name = names[label] if 0 <= label < len(names) else ""
    return list(known).index(name) if name in known else -1


def _file(source: ImageSource, place: int) -> Path | None:
    return Path(source.where(place)).resolve() if isinstance(source, FileSource) else None


def _is_same(source: ImageSource, other: ImageSource) -> bool:
    """Whether two sources begin and end with the same pictures, of as many."""
    if len(source) != len(other):
        return False
    try:
        return all(
            source.image(place).tobytes() == other.image(place).tobytes()
            for place in (0, len(source) // 2, len(source) - 1)
        )
    except InputError:  # cannot be read
        return source.where(0) == other.where(0)
