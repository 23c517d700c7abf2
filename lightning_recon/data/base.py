"""Fixed clients over an image data set: who holds which images, and which client is next."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from lightning_recon.data.masked_images import MaskedImages, MaskSummary
from lightning_recon.data.masks import MaskSource
from lightning_recon.data.photographs import PhotographSource
from lightning_recon.data.sharing import AuditDataModule, ClientLoader
from lightning_recon.data.sources import ImageSource
from lightning_recon.errors import InputError
from lightning_recon.updates import DataSpec, PrivateBatch

if TYPE_CHECKING:
    from lightning_recon.federation import Federation
    from lightning_recon.observation import Observation


class ClientDataModule(AuditDataModule):
    """Clients of a federation, each with a fixed batch of images of its own.

    In ``fit`` an epoch is one client and a step is one iteration of the attack on it; in
    ``validate``, ``test`` and ``predict`` an item is a client.  The loaders yield client indices
    only: the images come from :meth:`client`, so that no training step can see them by accident.

    A data set is one subclass that says its :attr:`name`, :attr:`num_classes` and
    :attr:`expected` files, and opens them in :meth:`open_source`.

    Args:
        root: folder (or file) of the data set.
        batch_size: images of one client.
        num_clients: number of clients.
        indices: places in the data set of the one client's images, or one list per client;
            null draws them with ``seed``.
        image_size: height and width of the images, in pixels.
        masks: where the masks of the subjects come from; the images are 0 outside. Null: whole
            images.
        on_missing: what to do without data at ``root``: ``"samples"`` takes the sample
            photographs and says so; their labels are then taken modulo ``num_classes``.
        on_corrupt: what to do about an image that cannot be decoded: ``"skip"`` puts the next of
            the seed's permutation in its place.
        num_public: number of images that the server owns itself; fewer if the data set ends.
        seed: of the permutation that the clients' and the public images are taken from.

    Raises:
        InputError: A number is out of its range.
    """

    expected: str
    """What should be at ``root``, and how to get it; completes "expected"."""

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 16,
        num_clients: int = 1,
        indices: list[int] | list[list[int]] | None = None,
        image_size: int = 224,
        masks: MaskSource | None = None,
        on_missing: Literal["error", "samples"] = "error",
        on_corrupt: Literal["error", "skip"] = "error",
        num_public: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for argument, value, least in (
            ("batch_size", batch_size, 1),
            ("num_clients", num_clients, 1),
            ("image_size", image_size, 1),
            ("num_public", num_public, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise InputError(f"{argument} must be at least {least}, not {value}")
        self.root = root
        self.batch_size = batch_size
        self.num_clients = num_clients
        self.indices = indices
        self.image_size = image_size
        self.masks = masks
        self.on_missing = on_missing
        self.on_corrupt = on_corrupt
        self.num_public = num_public
        self.seed = seed
        self._source: ImageSource | None = None
        self._is_fallback = False
        self._drawn: tuple[list[list[int]], list[int], list[int]] | None = None
        self._masked: MaskedImages | None = None

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes of the data set."""

    @abstractmethod
    def open_source(self, root: Path) -> ImageSource | None:
        """Open the data set.

        Args:
            root: the folder or file given by the user, absolute.

        Returns:
            The images, or None if they are not at ``root``.

        Raises:
            InputError: they are there, but cannot be used.
        """

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W of every image."""
        return 3, self.image_size, self.image_size

    @property
    def source(self) -> ImageSource:
        """The opened data set, or the sample photographs in its place.

        Raises:
            InputError: there is nothing at ``root``, and no fallback is allowed.
        """
        if self._source is None:
            self._source = self._open()
        return self._source

    @property
    def fallback(self) -> str | None:
        """``"samples"`` where the sample photographs stand in for the data set, else None."""
        self.setup()
        return "samples" if self._is_fallback else None

    def prepare_data(self) -> None:
        """Look for the data, and make all masks ahead of time; one process does this."""
        self._images.prepare([*self._all_private(), *self._public])

    def setup(self, stage: str | None = None) -> None:
        """Open the data set and draw the clients, alike in every process.

        Args:
            stage: Lightning's name of what comes next; all stages have the same clients.

        Raises:
            InputError: the data are missing, too few, or do not fit ``indices``.
        """
        if self._drawn is None:
            if self.masks is not None:
                self.masks.check()
            self._drawn = self._draw()

    def client(self, index: int) -> PrivateBatch:
        """What one client holds; the same at every call.

        Args:
            index: the client, from 0 to ``num_clients - 1``.

        Returns:
            Its batch on the CPU, the images float32 and already 0 outside the masks.

        Raises:
            InputError: there is no such client, or an image or mask cannot be read.
        """
        places = self._places(index)
        images, masks = self._images.load(places)
        return PrivateBatch(images, self.client_labels(index), masks, torch.tensor(places))

    @property
    def spec(self) -> DataSpec:
        """What a server knows of the data beforehand."""
        return DataSpec(self.image_shape, self.num_classes, self.batch_size)

    def play(self, federation: Federation, client: int, *, noise_only: bool = False) -> Observation:
        """Play a round with one client, and return what the server sees of it.

        Args:
            federation: that plays.
            client: its number.
            noise_only: whether its update is zero before the defenses, the null control.

        Raises:
            InputError: there is no such client, or its update is not finite.
        """
        if noise_only:
            return federation.play_noise(self.client_labels(client), client)
        return federation.play(self.client(client), client)

    def client_labels(self, index: int) -> Tensor:
        """The labels of :meth:`client`, B, int64, without a look at the images."""
        return torch.tensor([self._label(place) for place in self._places(index)])

    def public_images(self) -> Tensor:
        """The server's own images, none of them a client's, masked as the clients' are.

        Returns:
            N C H W in [0, 1]; N is ``num_public``, less if the data set ended.
        """
        images, _ = self._images.load(self._public)
        return images

    def public_labels(self) -> Tensor:
        """The labels of :meth:`public_images`, N, int64."""
        return torch.tensor([self._label(place) for place in self._public], dtype=torch.int64)

    def candidates(self, num_images: int) -> list[int]:
        """Places in the data set, of clients and others, to identify reconstructions among.

        Args:
            num_images: how many at most, in the order of the seed's permutation, in which the
                clients come first; those that cannot be read are left out.
        """
        self.setup()
        assert self._drawn is not None
        _, _, order = self._drawn
        return list(islice(filter(self._is_readable, order), num_images))

    def thumbnails(self, places: Sequence[int], size: int) -> Tensor:
        """Small pictures of whole images, whatever the masks.

        Args:
            places: in the data set, N.
            size: height and width, in pixels.

        Returns:
            N C size size in [0, 1].
        """
        return self._images.thumbnails(places, size)

    def mask_summary(self) -> MaskSummary:
        """How the clients' images are masked."""
        return self._images.mask_summary(self._all_private())

    def describe(self) -> str:
        """One line for people: which images, how many, and how they are masked."""
        where = f"{len(self.source)} images"
        if self.fallback:
            where = f"{len(self.source)} SAMPLE PHOTOGRAPHS, since nothing was found at"
        elif self.root is not None:
            where += " in"
        if self.root is not None:
            where += f" {Path(self.root).absolute()}"
        elif self.fallback:
            where += " root: null"
        summary = self.mask_summary()
        if summary["method"] == "none":
            return f"{self.name}: {where}; no masks"
        return (
            f"{self.name}: {where}; masks: {summary['method']}, "
            f"mean area {summary['mean_area']:.2f}, {summary['replaced']} replaced by an ellipse"
        )

    def train_dataloader(self) -> ClientLoader:
        """As many times the client of this epoch and process as the attack has iterations.

        Raises:
            InputError: the processes cannot share the clients evenly.
        """
        if self.trainer is None or self.trainer.lightning_module is None:
            raise InputError("train_dataloader needs a Trainer: the attack sets its length")
        trainer = self.trainer
        rank, world_size = self._place()
        if self.num_clients % world_size:
            raise InputError(
                f"fit attacks {world_size} clients at a time, one a process: num_clients must be "
                f"a multiple of {world_size}, not {self.num_clients}"
            )
        iterations: Any = trainer.lightning_module.iterations
        return ClientLoader(iterations, lambda _: trainer.current_epoch * world_size + rank)

    def val_dataloader(self) -> ClientLoader:
        """This process' share of the clients; none within ``fit``, which scores by itself."""
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            return ClientLoader(0, int)
        return self._share()

    def test_dataloader(self) -> ClientLoader:
        """This process' share of the clients, as many an item as the attack computes at once."""
        if self.trainer is None or self.trainer.lightning_module is None:
            return self._share()
        clients_at_once: Any = self.trainer.lightning_module.clients_at_once
        return self._share().in_groups(clients_at_once)

    @property
    def _images(self) -> MaskedImages:
        self.setup()
        if self._masked is None:
            self._masked = MaskedImages(self.source, self.image_size, self.masks)
        return self._masked

    @property
    def _clients(self) -> list[list[int]]:
        self.setup()
        assert self._drawn is not None
        return self._drawn[0]

    @property
    def _public(self) -> list[int]:
        self.setup()
        assert self._drawn is not None
        return self._drawn[1]

    def _places(self, client: int) -> list[int]:
        """A client's places in the data set."""
        if not 0 <= client < self.num_clients:
            raise InputError(f"there is no client {client}: num_clients is {self.num_clients}")
        return self._clients[client]

    def _all_private(self) -> list[int]:
        return [place for places in self._clients for place in places]

    def _open(self) -> ImageSource:
        root = None if self.root is None else Path(self.root).absolute()
        source = None if root is None else self.open_source(root)
        if source is not None and len(source):
            return source
        problem = f"{self.name}: no data at {root}; expected {self.expected}"
        if root is None:
            problem = f"{self.name}: no root given; expected {self.expected}"
        if self.on_missing == "error":
            raise InputError(f"{problem}; or set on_missing: samples")
        rank_zero_warn(f"{problem}; the sample photographs are used instead")
        self._is_fallback = True
        return PhotographSource()

    def _draw(self) -> tuple[list[list[int]], list[int], list[int]]:
        """Places in the data set: each client's images, the public ones, all in drawn order."""
        total = self.batch_size * self.num_clients
        size = len(self.source)
        if total > size:
            raise InputError(
                f"{self.name}: {self.num_clients} clients of {self.batch_size} need {total} "
                f"images, but there are {size}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        order: list[int] = torch.randperm(size, generator=generator).tolist()
        wanted = order[:total] if self.indices is None else self._requested(size)
        taken = set(wanted)
        spare = filter(self._is_readable, (place for place in order if place not in taken))
        private = []
        for place in wanted:
            chosen = place if self._is_readable(place) else next(spare, None)
            if chosen is None:
                raise InputError(f"{self.name}: fewer than {total} images can be read")
            private.append(chosen)
        clients = [
            private[start : start + self.batch_size] for start in range(0, total, self.batch_size)
        ]
        taken = set(private)
        everyone = [*private, *(place for place in order if place not in taken)]
        return clients, list(islice(spare, self.num_public)), everyone

    def _requested(self, size: int) -> list[int]:
        """The places that the user asked for, client after client, checked."""
        lists = [entry for entry in self.indices or [] if isinstance(entry, list)]
        flat = [entry for entry in self.indices or [] if isinstance(entry, int)]
        if flat and not lists:
            lists, flat = [flat], []
        shape = [len(places) for places in lists]
        if flat or shape != [self.batch_size] * self.num_clients:
            raise InputError(
                f"indices must be {self.num_clients} lists of {self.batch_size} "
                f"(num_clients and batch_size), or for one client a flat list; got "
                f"{len(shape)} lists of lengths {shape}"
            )
        places = [place for client in lists for place in client]
        for place in places:
            if not 0 <= place < size:
                raise InputError(
                    f"{self.name}: index {place} is out of range: there are {size} images, "
                    f"0 to {size - 1}"
                )
        return places

    def _is_readable(self, place: int) -> bool:
        """Whether an image can be used; under ``on_corrupt: error`` reading it will tell."""
        if self.on_corrupt == "error":
            return True
        try:
            self.source.image(place)
        except InputError as error:
            rank_zero_warn(f"skipped: {error}")
            return False
        return True

    def _label(self, place: int) -> int:
        label = self.source.label(place)
        if self._is_fallback:
            return label % self.num_classes  # there may be more photographs than classes
        if not 0 <= label < self.num_classes:
            raise InputError(
                f"{self.name}: the image {self.source.key(place)} has label {label}, but there "
                f"are {self.num_classes} classes"
            )
        return label
