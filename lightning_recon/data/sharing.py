"""How clients are spread over processes: every client once, none padded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor

from lightning_recon.errors import InputError
from lightning_recon.updates import DataSpec

if TYPE_CHECKING:
    from lightning_recon.federation import Federation
    from lightning_recon.observation import Observation


class ClientLoader:
    """A loader of client indices: each item is an int64 scalar, or a vector of several.

    Not a torch ``DataLoader``: there is nothing to collate, and Lightning leaves it as it is, so
    that no sampler that pads can get in.

    Args:
        length: number of items.
        client_at: the client index, or the indices, at each place; asked anew for every item.
    """

    def __init__(self, length: int, client_at: Callable[[int], int | list[int]]) -> None:
        self.length = length
        self.client_at = client_at

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Tensor]:
        for place in range(self.length):
            yield torch.tensor(self.client_at(place))

    def in_groups(self, size: int) -> ClientLoader:
        """Return a loader of vectors of so many clients, the last one maybe shorter.

        Args:
            size: clients of an item; 1 changes nothing.
        """
        if size == 1:
            return self
        indices = [int(item) for item in self]
        groups = [indices[place : place + size] for place in range(0, len(indices), size)]
        return ClientLoader(len(groups), groups.__getitem__)


def share_clients(
    num_clients: int,
    completed: Collection[int],
    rank: int,
    world_size: int,
    order: Sequence[int] | None = None,
) -> ClientLoader:
    """Return every ``world_size``-th of the clients to do, from this rank on; nothing is padded.

    A resumed run with fewer clients left than processes does some again, to the same result.

    Args:
        num_clients: how many there are.
        completed: those that need not be attacked again.
        rank: of this process.
        world_size: number of processes.
        order: in which all of them are done; null: as they are numbered.

    Raises:
        InputError: there are fewer clients than processes.
    """
    if num_clients < world_size:
        raise InputError(
            f"{num_clients} clients cannot be shared by {world_size} processes: "
            f"use at most {num_clients} devices"
        )
    all_of_them = range(num_clients) if order is None else order
    todo = [client for client in all_of_them if client not in completed]
    todo += sorted(completed)[: max(0, world_size - len(todo))]
    share = todo[rank::world_size]
    return ClientLoader(len(share), share.__getitem__)


def clients_by_epoch(
    trainer: Trainer, num_clients: int, length: int, rank: int, world_size: int
) -> ClientLoader:
    """Return a loader that repeats the client of this epoch and process.

    Args:
        trainer: that counts the epochs.
        num_clients: how many there are.
        length: number of items.
        rank: of this process.
        world_size: number of processes.

    Raises:
        InputError: the processes cannot share the clients evenly.
    """
    if num_clients % world_size:
        raise InputError(
            f"fit attacks {world_size} clients at a time, one a process: num_clients must be "
            f"a multiple of {world_size}, not {num_clients}"
        )
    return ClientLoader(length, lambda _: trainer.current_epoch * world_size + rank)


class AuditDataModule(LightningDataModule, ABC):
    """What an audit needs of any data: a number of clients, spread over the processes."""

    name: str
    batch_size: int
    """Largest number of images of one client."""
    num_clients: int
    unknown: frozenset[str] = frozenset()
    """What an attack may be granted, values of ``Grant``, but no client of these data tells."""

    def __init__(self) -> None:
        super().__init__()
        self.completed: set[int] = set()
        """Clients that a resumed run need not attack again."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W of every image."""

    @abstractmethod
    def public_images(self) -> Tensor:
        """The server's own images, none of them a client's: N C H W in [0, 1]; N may be 0."""

    def contents(self) -> Iterator[str]:
        """Yield what the data consist of, such as names of files; a resumed run compares them."""
        yield from ()

    @abstractmethod
    def describe(self) -> str:
        """One line for people."""

    @property
    def spec(self) -> DataSpec:
        """What a server knows of the data beforehand; here not how many classes there are."""
        image_shape = self.image_shape  # first, for it may be what counts the images
        return DataSpec(image_shape, None, self.batch_size)

    @abstractmethod
    def play(self, federation: Federation, client: int, *, noise_only: bool = False) -> Observation:
        """Play a round with one client, and return what the server sees of it.

        Args:
            federation: that plays.
            client: its number.
            noise_only: whether its update is zero before the defenses, the null control.
        """

    def predict_dataloader(self) -> ClientLoader:
        """This process' share of the clients."""
        return self._share()

    def _share(self) -> ClientLoader:
        """This process' share of the clients; see :func:`share_clients`."""
        return share_clients(self.num_clients, self.completed, *self._place())

    def _place(self) -> tuple[int, int]:
        """Rank and world size; 0 and 1 without a Trainer."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
