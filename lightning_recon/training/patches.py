"""Patches of pictures, to train an image prior with; no clients and no audit."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_recon.data.masked_images import MaskedImages
from lightning_recon.data.opening import open_or_samples
from lightning_recon.data.reading import Reading
from lightning_recon.data.sources import FileSource, ImageSource, image_files, visible_entries
from lightning_recon.errors import InputError
from lightning_recon.randomness import make_generator

_MAX_UNREADABLE = 20
"""Pictures in a row that cannot be decoded, after which there is no point in going on."""

_Item: TypeAlias = Tensor | tuple[Tensor, int]


class PatchDataModule(LightningDataModule):
    """Random patches of any folder of pictures, its sub-folders included.

    A picture is first brought to ``image_size``, as an attack's data module does, so that the
    patches have the statistics of the images under attack; then patches are cut at random places
    and turned and mirrored at random.  Both loaders yield pictures x patches x 3 x H x W, float32
    in [0, 1], and with ``labels`` the pictures' labels beside them.  A picture that cannot be
    decoded is passed over with a warning.

    Patches are numbered without end, and patch and seed alone say what is on it: every epoch and
    every process has patches of its own, and a resumed run sees those that it would have seen.

    Args:
        root: folder with the pictures.
        batch_size: pictures of one step of one process.
        patches_per_image: patches cut from each; a step has their product.
        steps_per_epoch: steps of one epoch, after which the validation figures are computed.
        patch_size: height and width of a patch, in pixels.
        image_size: height and width that pictures are brought to first, in pixels.
        val_fraction: share of the files that are kept for validation, in (0, 1); at least one is.
            The cuts of one sample photograph stay together.
        num_val_images: draws from those, with replacement; the same in every epoch.
        on_missing: what to do without pictures at ``root``: ``"samples"`` takes the sample
            photographs and says so.
        num_workers: processes that decode pictures beside each process that trains.
        labels: whether items are pairs of patches and the picture's label: the position of its
            first-level sub-folder among the sorted ones, empty ones included, as
            ``ImageNetDataModule`` numbers them; 0 outside of sub-folders.
        seed: of the split and of the patches.

    Raises:
        InputError: A number is out of its range.
    """

    name = "patches"
    expected = "a folder with at least 2 pictures (JPEG, PNG, ...), sub-folders included"

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 8,
        patches_per_image: int = 4,
        steps_per_epoch: int = 100,
        patch_size: int = 64,
        image_size: int = 224,
        val_fraction: float = 0.1,
        num_val_images: int = 32,
        on_missing: Literal["error", "samples"] = "error",
        num_workers: int = 0,
        labels: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for argument, value, least in (
            ("batch_size", batch_size, 1),
            ("patches_per_image", patches_per_image, 1),
            ("steps_per_epoch", steps_per_epoch, 1),
            ("patch_size", patch_size, 1),
            ("image_size", image_size, patch_size),
            ("num_val_images", num_val_images, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise InputError(f"{argument} must be at least {least}, not {value}")
        if not 0 < val_fraction < 1:
            raise InputError(f"val_fraction must be between 0 and 1, not {val_fraction}")
        self.root = root
        self.batch_size = batch_size
        self.patches_per_image = patches_per_image
        self.steps_per_epoch = steps_per_epoch
        self.patch_size = patch_size
        self.image_size = image_size
        self.val_fraction = val_fraction
        self.num_val_images = num_val_images
        self.on_missing = on_missing
        self.num_workers = num_workers
        self.labels = labels
        self.seed = seed
        self.source: ImageSource | None = None
        """The pictures, once :meth:`setup` has found them; a label is the number of the file."""

    def setup(self, stage: str | None = None) -> None:
        """List the pictures and split them by file, alike in every process.

        Args:
            stage: Lightning's name of what comes next; all stages have the same split.

        Raises:
            InputError: there are no pictures, or only one.
        """
        if self.source is not None:
            return
        source = self._open()
        files = sorted({source.label(place) for place in range(len(source))})
        if len(files) < 2:
            raise InputError(
                f"{self.name}: one picture at {self.root} cannot be split in two parts"
            )
        num_val = min(max(1, round(self.val_fraction * len(files))), len(files) - 1)
        order = torch.randperm(len(files), generator=make_generator(self.seed, "split")).tolist()
        kept = {files[place] for place in order[:num_val]}
        places = range(len(source))
        self.train_places = [place for place in places if source.label(place) not in kept]
        self.val_places = [place for place in places if source.label(place) in kept]
        self.source = source

    def train_dataloader(self) -> DataLoader[_Item]:
        """``steps_per_epoch`` batches, other ones in each epoch and process."""
        rank, world_size = self._place()
        numbers = _Numbers(self.steps_per_epoch * self.batch_size, rank, world_size)
        return self._loader("train", self.train_places, numbers)

    def val_dataloader(self) -> DataLoader[_Item]:
        """This process' share of the ``num_val_images``; rounded up, so that shares are equal."""
        rank, world_size = self._place()
        share = -(-self.num_val_images // world_size)
        return self._loader(
            "val", self.val_places, range(rank, rank + share * world_size, world_size)
        )

    def _loader(
        self, split: str, places: list[int], numbers: "_Numbers | range"
    ) -> DataLoader[_Item]:
        assert self.source is not None
        patches = _Patches(
            self.source,
            places,
            (self.image_size, self.patch_size, self.patches_per_image),
            (self.seed, split),
            self._labels() if self.labels else None,
        )
        return DataLoader(
            patches,
            self.batch_size,
            sampler=numbers,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _labels(self) -> list[int]:
        """Of all pictures of the source."""
        assert self.source is not None
        places = range(len(self.source))
        if not isinstance(self.source, FileSource):
            return [self.source.label(place) for place in places]
        root = self.source.root
        folders = sorted(path.name for path in visible_entries(root) if path.is_dir())
        numbers = {name: label for label, name in enumerate(folders)}
        return [numbers.get(self.source.key(place).split("/")[0], 0) for place in places]

    def _open(self) -> ImageSource:
        opened = self.root, _open_folder, self.on_missing, self.name, lambda: self.expected
        return open_or_samples(*opened)

    def _place(self) -> tuple[int, int]:
        """Rank and world size; 0 and 1 without a Trainer."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


def _open_folder(root: Path) -> ImageSource:
    return FileSource(root, [(file, number) for number, file in enumerate(image_files(root))])


class _Numbers(Sampler[int]):
    """Numbers of one process' items in one epoch; each epoch and process has its own.

    Args:
        length: items of one epoch and process.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, length: int, rank: int, world_size: int) -> None:
        self.length = length
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch; the Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        total = self.length * self.world_size
        start = self.epoch * total + self.rank
        return iter(range(start, start + total, self.world_size))


class _Patches(Dataset[_Item]):
    """Endless random patches; item N is patches x 3 x H x W in [0, 1], from one picture.

    Args:
        source: the pictures.
        places: those that are used.
        sizes: side of the whole picture and of a patch, in pixels, and patches of a picture.
        path: what all numbers are drawn from, together with the item's.
        labels: of all pictures, to put beside the patches; None: no labels.
    """

    def __init__(
        self,
        source: ImageSource,
        places: list[int],
        sizes: tuple[int, int, int],
        path: tuple[int, str],
        labels: list[int] | None,
    ) -> None:
        image_size, self.patch_size, self.patches_per_image = sizes
        self.images = MaskedImages(source, (image_size, image_size), None, Reading(), None)
        self.places = places
        self.path = path
        self.labels = labels

    def __getitem__(self, number: int) -> _Item:
        generator = make_generator(*self.path, number)
        place, image = self._image(generator)
        patches = torch.stack(
            [self._patch(image, generator) for _ in range(self.patches_per_image)]
        )
        return patches if self.labels is None else (patches, self.labels[place])

    def _image(self, generator: torch.Generator) -> tuple[int, Tensor]:
        """A random picture that can be read: its place, and 3 H W in [0, 1]."""
        for _ in range(_MAX_UNREADABLE):
            place = self.places[_below(len(self.places), generator)]
            try:
                return place, self.images.load([place])[0][0]
            except InputError as error:
                warnings.warn(f"skipped: {error}", stacklevel=2)
        raise InputError(f"{_MAX_UNREADABLE} pictures in a row cannot be decoded; is root right?")

    def _patch(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """A random cut in one of its eight orientations, 3 H W in [0, 1]."""
        top, left = (_below(side - self.patch_size + 1, generator) for side in image.shape[1:])
        patch = image[:, top : top + self.patch_size, left : left + self.patch_size]
        patch = torch.rot90(patch, _below(4, generator), (1, 2))
        return patch.flip(2) if _below(2, generator) else patch


def _below(end: int, generator: torch.Generator) -> int:
    """A random whole number from 0 to ``end - 1``."""
    return int(torch.randint(end, (), generator=generator))
