"""Which images clients hold, and checks of the numbers that say so."""

from collections.abc import Callable, Iterator, Sequence

import torch

from lightning_recon.errors import InputError
from lightning_recon.functional.image_size import height_width

_FEW = 3
"""Skipped images that are named."""


def check_numbers(**numbers: tuple[int, int]) -> None:
    """Make sure that numbers are not too small.

    Args:
        **numbers: by argument: its value, and the least that it may be.

    Raises:
        InputError: one is smaller.
    """
    for argument, (value, least) in numbers.items():
        if value < least:
            raise InputError(f"{argument} must be at least {least}, not {value}")


def check_reading(
    image_size: int | Sequence[int] | None,
    channels: int | None,
    background: int | None,
    value_range: Sequence[float] | None,
) -> None:
    """Make sure that the options of how pictures are read make sense.

    Args:
        image_size: of the images, one number or two.
        channels: of the images.
        background: grey level below transparent pictures.
        value_range: what black and white are stored as.

    Raises:
        InputError: one does not.
    """
    if image_size is not None:
        height_width(image_size)
    if channels not in {None, 1, 3}:
        raise InputError(f"channels must be 1, 3 or null, not {channels}")
    if background is not None and not 0 <= background <= 255:
        raise InputError(f"background must be a grey level from 0 to 255, not {background}")
    if value_range is not None and (len(value_range) != 2 or value_range[0] >= value_range[1]):
        raise InputError(f"value_range must be [black, white], increasing, not {value_range}")


def draw_clients(
    size: int,
    num_clients: int,
    batch_size: int,
    indices: Sequence[int | list[int]] | None,
    seed: int,
    is_readable: Callable[[int], bool],
    name: str,
) -> tuple[list[list[int]], Iterator[int], list[int]]:
    """Return which images of a data set each client holds, and what is left.

    Args:
        size: of the data set.
        num_clients: how many there are.
        batch_size: images of each.
        indices: that the user asked for; null: they are drawn.
        seed: of the permutation of the data set.
        is_readable: whether an image can be used.
        name: of the data set.

    Returns:
        Each client's places, those of no client, which are looked at when they are taken, and all,
        the clients' first; all in the order of the permutation.

    Raises:
        InputError: there are too few images, or ``indices`` do not fit.
    """
    total = batch_size * num_clients
    if total > size:
        raise InputError(
            f"{name}: {num_clients} clients of {batch_size} need {total} images, but there are "
            f"{size}"
        )
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    wanted = order[:total]
    if indices is not None:
        wanted = requested_places(indices, num_clients, batch_size, size, name)
    asked = set(wanted)
    spare = (place for place in order if place not in asked and is_readable(place))
    private = replace_unreadable(wanted, spare, is_readable)
    if len(private) < total:
        raise InputError(f"{name}: fewer than {total} images can be read")
    taken = set(private)
    everyone = [*private, *(place for place in order if place not in taken)]
    batches = [private[start : start + batch_size] for start in range(0, total, batch_size)]
    return batches, spare, everyone


def requested_places(
    indices: Sequence[int | list[int]], num_clients: int, batch_size: int, size: int, name: str
) -> list[int]:
    """Return the places that the user asked for, client after client.

    Args:
        indices: one list per client, or a flat one of a single client.
        num_clients: how many there must be.
        batch_size: images of each.
        size: of the data set.
        name: of the data set.

    Raises:
        InputError: the lists have other lengths, or a place is out of range.
    """
    lists = [entry for entry in indices if isinstance(entry, list)]
    flat = [entry for entry in indices if isinstance(entry, int)]
    if flat and not lists:
        lists, flat = [flat], []
    shape = [len(places) for places in lists]
    if flat or shape != [batch_size] * num_clients:
        raise InputError(
            f"indices must be {num_clients} lists of {batch_size} "
            f"(num_clients and batch_size), or for one client a flat list; got "
            f"{len(shape)} lists of lengths {shape}"
        )
    places = [place for client in lists for place in client]
    for place in places:
        if not 0 <= place < size:
            raise InputError(
                f"{name}: index {place} is out of range: there are {size} images, 0 to {size - 1}"
            )
    return places


def replace_unreadable(
    wanted: Sequence[int], spare: Iterator[int], is_readable: Callable[[int], bool]
) -> list[int]:
    """Return the places wanted, and the next spare one for each that cannot be read.

    Args:
        wanted: places in the data set.
        spare: others, which can be read.
        is_readable: whether a place can.

    Returns:
        As many places, or fewer if ``spare`` ends.
    """
    chosen = (place if is_readable(place) else next(spare, None) for place in wanted)
    return [place for place in chosen if place is not None]


def describe_skipped(names: Sequence[str]) -> str:
    """Return words for images that were skipped, none for none.

    Args:
        names: of the images.
    """
    if not names:
        return ""
    shown = ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")
    return f"{len(names)} more skipped, for they cannot be used ({shown})"


def describe_public(count: int, wanted: int, own: str | None) -> str:
    """Return words for the public images, none where they are as many as asked, and no others.

    Args:
        count: how many there are.
        wanted: how many were asked for.
        own: where they are from, if not from the clients' data set.
    """
    if own is None and count == wanted:
        return ""
    words = f"{count} public images" + ("" if own is None else f" of {own}")
    return words if count == wanted else f"{words}, not {wanted}: no more are left"
