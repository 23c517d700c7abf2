"""Updates that were captured from a real federation: nobody has the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict

import numpy as np
import torch
from torch import Tensor

from lightning_recon.captures.loading import load_torch
from lightning_recon.data.sharing import AuditDataModule
from lightning_recon.errors import InputError
from lightning_recon.files import expanded
from lightning_recon.functional.labels.given import given_labels

if TYPE_CHECKING:
    from lightning_recon.federation import Federation
    from lightning_recon.observation import Observation


class _RequiredKeys(TypedDict):
    """What every file holds."""

    update: Mapping[str, Any] | Sequence[Any]
    """Tensors or arrays of any type of number, by name (further entries of a ``state_dict`` are
    left out), or in the order of the model's parameters or ``state_dict``."""
    num_samples: int | None
    """None if not known: as many as labels, or as the data module assumes."""
    labels: Tensor | None
    """B, whole numbers, or None if not known."""
    image_shape: tuple[int, int, int]
    """C, H, W of the images that the client trained on."""


class CapturedUpdate(_RequiredKeys, total=False):
    """One file of :class:`CapturedUpdatesDataModule`."""

    buffers: Mapping[str, Any]
    """By name, if the client returned them: batch norm's statistics after its training."""


class CapturedUpdatesDataModule(AuditDataModule):
    """Captured updates, for ``predict`` only: without the truth there is nothing to score.

    Every ``*.pt`` file of the folder, in the order of their names, is one client's update as
    ``torch.save`` wrote it: a dictionary with the keys of :class:`CapturedUpdate`.

    Args:
        folder: that holds the files of the updates, one a client.
        assumed_num_samples: batch size of an update whose file holds neither the number of
            samples nor labels.

    Raises:
        InputError: ``assumed_num_samples`` is below 1.
    """

    name = "captured"

    def __init__(self, folder: str, assumed_num_samples: int = 1) -> None:
        super().__init__()
        if assumed_num_samples < 1:
            raise InputError(f"assumed_num_samples must be at least 1, not {assumed_num_samples}")
        self.folder = folder
        self.assumed_num_samples = assumed_num_samples
        self._files: list[Path] = []
        self._image_shape = (0, 0, 0)
        self._assumes = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W of the images, the same for all updates."""
        self.setup()
        return self._image_shape

    def setup(self, stage: str | None = None) -> None:
        """Read through all files.

        Args:
            stage: Lightning's name of what comes next.

        Raises:
            InputError: there are none, one cannot be used, or the images differ in shape.
        """
        if self._files:
            return
        folder = expanded(self.folder)
        files = sorted(folder.glob("*.pt"))
        if not files:
            raise InputError(f"no captured updates: expected *.pt files in {folder}")
        counts = []
        known: set[str] = set()
        for file in files:
            captured = _read(file)
            known |= {key for key, value in captured.items() if value is not None}
            counts.append(self._num_samples(captured))
            self._assumes |= captured["num_samples"] is None and captured["labels"] is None
            if file == files[0]:
                self._image_shape = captured["image_shape"]
            elif captured["image_shape"] != self._image_shape:
                raise InputError(
                    f"{file}: image_shape is {captured['image_shape']}, but "
                    f"{self._image_shape} in {files[0].name}: use one folder per model"
                )
        self.num_clients = len(files)
        self.batch_size = max(counts)
        self.unknown = frozenset({"labels"} - known)
        self._files = files

    def _num_samples(self, captured: CapturedUpdate) -> int:
        labels = captured["labels"]
        counted = self.assumed_num_samples if labels is None else len(labels)
        return captured["num_samples"] or counted

    def captured(self, index: int) -> CapturedUpdate:
        """One captured update, on the CPU.

        Args:
            index: its place among the sorted files.

        Raises:
            InputError: there is no such update, or its file cannot be used.
        """
        self.setup()
        if not 0 <= index < self.num_clients:
            raise InputError(f"there is no update {index}: {self.folder} has {self.num_clients}")
        return _read(self._files[index])

    def play(self, federation: Federation, client: int, *, noise_only: bool = False) -> Observation:
        """Return what the server saw of one client.

        Args:
            federation: that receives the update.
            client: its place among the sorted files.
            noise_only: not allowed; there is no client to play.

        Raises:
            InputError: there is no such update, or it does not fit the federation's payload.
        """
        if noise_only:
            raise InputError("captured updates have no client to play the noise-only control")
        captured = self.captured(client)
        captured["num_samples"] = self._num_samples(captured)
        return federation.receive(captured, client, str(self._files[client]))

    def public_images(self) -> Tensor:
        """None: 0 C H W."""
        return torch.empty(0, *self.image_shape)

    def contents(self) -> Iterator[str]:
        """Yield the names of all files."""
        self.setup()
        yield from (file.name for file in self._files)

    def describe(self) -> str:
        """One line for people."""
        self.setup()
        assumed = f"{self.assumed_num_samples} samples assumed where no file says their number"
        return (
            f"captured: {self.num_clients} updates in {expanded(self.folder)}"
            f"{f', {assumed}' if self._assumes else ''}"
        )

    def train_dataloader(self) -> NoReturn:
        """Refuse: see the class.

        Raises:
            InputError: always.
        """
        raise InputError("captured updates have no truth to compare with: use predict")

    def val_dataloader(self) -> NoReturn:
        """Refuse: see the class.

        Raises:
            InputError: always.
        """
        self.train_dataloader()

    def test_dataloader(self) -> NoReturn:
        """Refuse: see the class.

        Raises:
            InputError: always.
        """
        self.train_dataloader()


def _read(path: Path) -> CapturedUpdate:
    """Load and check one file."""
    content = load_torch(path, "captured update")
    problem = _problem(content)
    if problem is not None:
        raise InputError(f"{path}: {problem}")
    num_samples, labels = content["num_samples"], content["labels"]
    num_samples = None if num_samples is None else int(num_samples)
    channels, height, width = map(int, content["image_shape"])
    captured = CapturedUpdate(
        update=content["update"],
        num_samples=num_samples,
        labels=None if labels is None else given_labels(labels, str(path), num_samples),
        image_shape=(channels, height, width),
    )
    if content.get("buffers") is not None:
        captured["buffers"] = content["buffers"]
    return captured


def _problem(content: Any) -> str | None:
    """What is wrong with the content of a file, if anything; the model is not known yet."""
    keys = list(_RequiredKeys.__annotations__)
    if not isinstance(content, dict):
        return f"expected a dictionary with the keys {', '.join(keys)}, not a {_kind(content)}"
    missing = [key for key in keys if key not in content]
    more = [str(key) for key in content if key not in [*keys, "buffers"]]
    if missing or more:
        found = f"{', '.join(missing)} missing" if missing else f"unknown {', '.join(more[:3])}"
        return f"expected the keys {', '.join(keys)}, and buffers if it has any: {found}"
    update, shape, num_samples = content["update"], content["image_shape"], content["num_samples"]
    values = update.values() if isinstance(update, dict) else update
    if not isinstance(update, dict | list | tuple) or not update or not _are_arrays(values):
        return (
            "update must be a dictionary of tensors by parameter name, or a list of tensors in the "
            f"order of the model's parameters, not {_found_in(update)}"
        )
    buffers = content.get("buffers")
    if buffers is not None and not (isinstance(buffers, dict) and _are_arrays(buffers.values())):
        return f"buffers must be a dictionary of tensors by buffer name, not {_found_in(buffers)}"
    if not (isinstance(shape, list | tuple) and len(shape) == 3 and all(map(_is_count, shape))):
        return f"image_shape must be (C, H, W), not {shape}"
    if num_samples is not None and not _is_count(num_samples):
        return f"num_samples must be at least 1 or None, not {num_samples}"
    return None


def _are_arrays(values: Any) -> bool:
    return all(isinstance(value, Tensor | np.ndarray) for value in values)


def _found_in(value: Any) -> str:
    """Return in words what stands where tensors should."""
    if isinstance(value, dict | list | tuple):
        values = list(value.values() if isinstance(value, dict) else value)
        wrong = [part for part in values if not isinstance(part, Tensor | np.ndarray)]
        return f"one with a {_kind(wrong[0])} in it" if wrong else "an empty one"
    return f"a {_kind(value)}"


def _kind(value: Any) -> str:
    return type(value).__name__


def _is_count(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return isinstance(value, int | np.integer) and int(value) >= 1
