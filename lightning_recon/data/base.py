"""Fixed clients over an image data set: who holds which images, and which client is next."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from lightning_recon.data.drawing import (
    check_numbers,
    check_reading,
    describe_public,
    describe_skipped,
    draw_clients,
)
from lightning_recon.data.geometry import Resize
from lightning_recon.data.looks import Look
from lightning_recon.data.masked_images import MaskedImages, MaskSummary, describe_masks
from lightning_recon.data.masks import MaskSource
from lightning_recon.data.opening import open_or_samples
from lightning_recon.data.photographs import PhotographSource
from lightning_recon.data.public import label_among, open_public, public_order
from lightning_recon.data.reading import Reading, is_grey
from lightning_recon.data.sharing import AuditDataModule, ClientLoader, clients_by_epoch
from lightning_recon.data.sources import ImageSource, first_look, opened_as
from lightning_recon.errors import InputError
from lightning_recon.files import expanded
from lightning_recon.functional.image_size import check_comparable, height_width
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
        image_size: height and width of the images, in pixels: one number or ``[H, W]``; null: of
            the first picture as stored, and all must have it.
        masks: where the masks of the subjects come from; the images are 0 outside. Null: whole
            images.
        on_missing: what to do without data at ``root``: ``"samples"`` takes the sample
            photographs and says so; their labels are then taken modulo ``num_classes``.
        on_corrupt: what to do about an image that cannot be decoded or used: ``"error"`` ends the
            run, ``"skip"`` puts the next of the seed's permutation in its place, and tells how
            many were skipped.
        num_public: number of images that the server owns itself; fewer if the data set ends.
        public_root: folder (or file) of other images, from which the public ones are drawn, opened
            as ``root`` is; null: they are drawn from those of no client.
        public_split: the same, of another split of a data set that has some.
        seed: of the permutation that the clients' and the public images are taken from.
        channels: of the images: colour becomes grey, grey is repeated; null: as the first picture.
        resize: what to do with a picture of another size, where null leaves the choice to the data
            set: ``"crop"`` resizes it to cover 256/224 of the size and cuts out the centre,
            ``"stretch"`` cuts nothing off, ``"refuse"`` is an error.
        exif_orientation: whether pictures are turned as EXIF says; torchvision does not.
        background: grey level, 0 to 255, that transparent pictures are laid on; null drops the
            transparency, as torchvision does.
        value_range: what black and white are stored as in pictures of more than 8 bits, such as
            ``[0, 4095]``; values outside are clipped.  Null: guessed from the data set.

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
        image_size: int | list[int] | None = 224,
        masks: MaskSource | None = None,
        on_missing: Literal["error", "samples"] = "error",
        on_corrupt: Literal["error", "skip"] = "error",
        num_public: int = 32,
        seed: int = 0,
        channels: Literal[1, 3] | None = 3,
        resize: Resize | None = None,
        exif_orientation: bool = False,
        background: int | None = None,
        value_range: list[float] | None = None,
        public_root: str | None = None,
        public_split: str | None = None,
    ) -> None:
        super().__init__()
        check_numbers(
            batch_size=(batch_size, 1),
            num_clients=(num_clients, 1),
            num_public=(num_public, 0),
            seed=(seed, 0),
        )
        check_reading(image_size, channels, background, value_range)
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
        self.channels = channels
        self.resize = resize
        self.exif_orientation = exif_orientation
        self.background = background
        self.value_range = value_range
        self.public_root = public_root
        self.public_split = public_split
        self._is_fallback = False

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
        return self._channels, *self._size

    @cached_property
    def source(self) -> ImageSource:
        """The opened data set, or the sample photographs in its place.

        Raises:
            InputError: there is nothing at ``root``, and no fallback is allowed.
        """
        return self._open()

    @property
    def fallback(self) -> str | None:
        """``"samples"`` where the sample photographs stand in for the data set, else None."""
        self.setup()
        return "samples" if self._is_fallback else None

    def prepare_data(self) -> None:
        """Look for the data, and make all masks ahead of time; one process does this."""
        self._images.prepare(self._all_private())
        self._public_loader.prepare(self._public)

    def setup(self, stage: str | None = None) -> None:
        """Open the data set and draw the clients, alike in every process.

        Args:
            stage: Lightning's name of what comes next; all stages have the same clients.

        Raises:
            InputError: the data are missing, too few, or do not fit ``indices``.
        """
        _ = self._drawn

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
        with opened_as(f"one of client {index}'s images"):
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

    def places(self, index: int) -> list[int]:
        """Places in the data set of the images of :meth:`client`."""
        return list(self._places(index))

    def contents(self) -> Iterator[str]:
        """Yield what the figures depend on: the name of every picture, the clients' labels."""
        source = self.source
        yield from map(source.key, range(len(source)))
        yield from (str(self._label(place)) for place in self._all_private())

    def public_images(self) -> Tensor:
        """The server's own images, none of them a client's, masked as the clients' are.

        Returns:
            N C H W in [0, 1]; N is ``num_public``, less if the data set ended.
        """
        with opened_as("one of the server's own images, see num_public"):
            images, _ = self._public_loader.load(self._public)
        return images

    def public_labels(self) -> Tensor:
        """The labels of :meth:`public_images`, N, int64; -1: of none of the clients' classes."""
        if self._has_own_public:
            source = self._public_loader.source
            labels = [label_among(source, place, self.source) for place in self._public]
        else:
            labels = [self._label(place) for place in self._public]
        return torch.tensor(labels, dtype=torch.int64)

    @property
    def skipped(self) -> list[str]:
        """Files, or names, of the images that were found to be of no use, and were skipped."""
        public = self._public_loader.skipped if self._has_own_public else []
        return [*self._images.skipped, *public]

    def file(self, place: int) -> str:
        """What a person finds an image by: for files, the path in the data set's folder.

        Args:
            place: in the data set.
        """
        return self.source.file(place)

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes by label; None: they have none, or others, as samples have."""
        names = self.source.classes
        return None if names is None or self.fallback else list(map(str, names))

    def candidates(self, num_images: int) -> list[int]:
        """Places in the data set, of clients and others, to identify reconstructions among.

        Args:
            num_images: how many at most, in the order of the seed's permutation, in which the
                clients come first; those that cannot be read are left out.
        """
        _, _, order = self._drawn
        return list(islice((place for place in order if self._is_readable(place)), num_images))

    def thumbnails(self, places: Sequence[int], size: int) -> Tensor:
        """Small pictures of whole images, whatever the masks.

        Args:
            places: in the data set, N.
            size: longest side, in pixels.

        Returns:
            N C h w in [0, 1].
        """
        with opened_as("one of the candidates for identification, see num_candidates"):
            return self._images.thumbnails(places, size)

    def mask_summary(self) -> MaskSummary:
        """How the clients' images are masked."""
        return self._images.mask_summary(self._all_private())

    def describe(self) -> str:
        """One line for people: which images, how many, and what is done to them."""
        count = len(self.source) - len(self._images.skipped)
        where = f"{count} images" + ("" if self.root is None else " in")
        if self.fallback:
            where = f"{count} SAMPLE PHOTOGRAPHS, since nothing was found at"
        if self.root is not None:
            where += f" {expanded(self.root)}"
        elif self.fallback:
            where += " root: null"
        own = self.public_root or self.public_split if self._has_own_public else None
        words = [
            f"{self.name}: {where}",
            describe_skipped(self.skipped),
            describe_public(len(self._public), self.num_public, own),
            self._images.changes(self._all_private()),
            describe_masks(self.mask_summary()),
        ]
        return "; ".join(filter(None, words))

    def train_dataloader(self) -> ClientLoader:
        """As many times the client of this epoch and process as the attack has iterations.

        Raises:
            InputError: the processes cannot share the clients evenly.
        """
        if self.trainer is None or self.trainer.lightning_module is None:
            raise InputError("train_dataloader needs a Trainer: the attack sets its length")
        iterations: Any = self.trainer.lightning_module.iterations
        return clients_by_epoch(self.trainer, self.num_clients, iterations, *self._place())

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
        return self._loader

    @cached_property
    def _loader(self) -> MaskedImages:
        """The images, before the clients are drawn."""
        return self._load_from(self.source)

    @cached_property
    def _public_loader(self) -> MaskedImages:
        """The images that the public ones are drawn from."""
        return (
            self._load_from(open_public(self), "public/") if self._has_own_public else self._loader
        )

    @property
    def _has_own_public(self) -> bool:
        """Whether public images are drawn from another source than the clients'."""
        is_named = self.public_root is not None or self.public_split is not None
        return is_named and bool(self.source) and not self._is_fallback

    def _load_from(self, source: ImageSource, prefix: str = "") -> MaskedImages:
        values = None if self.value_range is None else (self.value_range[0], self.value_range[1])
        reading = Reading(self._channels, self.exif_orientation, self.background, values)
        resize = self.resize
        if self.image_size is None and not self._is_fallback:
            resize = resize or "refuse"
        return MaskedImages(source, self._size, self.masks, reading, resize, prefix)

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Height and width of the images."""
        if self.image_size is not None:
            size = height_width(self.image_size)
        elif self._is_fallback:
            size = (224, 224)
        else:
            size = self._first_look.upright(self.exif_orientation)
        check_comparable(*size)
        return size

    @cached_property
    def _channels(self) -> Literal[1, 3]:
        if self.channels is not None:
            return self.channels
        return 1 if is_grey(self._first_look.mode) else 3

    @cached_property
    def _first_look(self) -> Look:
        """Of the first picture, by which all are read where an option is null."""
        with opened_as("the first picture, by which image_size and channels are set"):
            return first_look(self.source, skips=self.on_corrupt == "skip")

    @property
    def _clients(self) -> list[list[int]]:
        return self._drawn[0]

    @property
    def _public(self) -> list[int]:
        return self._drawn[1]

    def _places(self, client: int) -> list[int]:
        """A client's places in the data set."""
        if not 0 <= client < self.num_clients:
            raise InputError(f"there is no client {client}: num_clients is {self.num_clients}")
        return self._clients[client]

    def _all_private(self) -> list[int]:
        return [place for places in self._clients for place in places]

    def _open(self) -> ImageSource:
        opened = self.root, self.open_source, self.on_missing, self.name, lambda: self.expected
        source = open_or_samples(*opened)
        self._is_fallback = isinstance(source, PhotographSource)
        return source

    @cached_property
    def _drawn(self) -> tuple[list[list[int]], list[int], list[int]]:
        """Places in the data set: each client's images, the public ones, all in drawn order."""
        if self.masks is not None:
            self.masks.check()
        clients, spare, everyone = draw_clients(
            len(self.source),
            self.num_clients,
            self.batch_size,
            self.indices,
            self.seed,
            self._is_readable,
            self.name,
        )
        public: Iterator[int] = spare
        if self._has_own_public:
            images = self._public_loader
            private = [place for places in clients for place in places]
            ordered = public_order(images.source, self.source, private, self.seed)
            public = (place for place in ordered if self._is_readable(place, images))
        return clients, list(islice(public, self.num_public)), everyone

    def _is_readable(self, place: int, images: MaskedImages | None = None) -> bool:
        """Whether an image can be used; under ``on_corrupt: error`` reading it will tell."""
        return self.on_corrupt == "error" or (images or self._loader).is_readable(place)

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
