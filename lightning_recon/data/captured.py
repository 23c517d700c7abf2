"""Updates that were captured from a real federation: nobody has the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict

import torch
from torch import Tensor

from lightning_recon.data.sharing import AuditDataModule
from lightning_recon.errors import InputError
from lightning_recon.files import spoiled
from lightning_recon.updates import Buffers, Update

if TYPE_CHECKING:
    from lightning_recon.federation import Federation
    from lightning_recon.observation import Observation


class _RequiredKeys(TypedDict):
    """What every file holds."""

    update: Update
    """By parameter name."""
    num_samples: int | None
    """None if not known."""
    labels: Tensor | None
    """B, int64, or None if not known."""
    image_shape: tuple[int, int, int]
    """C, H, W of the images that the client trained on."""


class CapturedUpdate(_RequiredKeys, total=False):
    """One file of :class:`CapturedUpdatesDataModule`."""

    buffers: Buffers
    """By name, if the client returned them: batch norm's statistics after its training."""


class CapturedUpdatesDataModule(AuditDataModule):
    """Captured updates, for ``predict`` only: without the truth there is nothing to score.

    Every ``*.pt`` file of the folder, in the order of their names, is one client's update as
    ``torch.save`` wrote it: a dictionary with the keys of :class:`CapturedUpdate`.

    Args:
        folder: that holds the files of the updates, one a client.
        assumed_num_samples: batch size where no file says its number of samples.

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
        folder = Path(self.folder).absolute()
        files = sorted(folder.glob("*.pt"))
        if not files:
            raise InputError(f"no captured updates: expected *.pt files in {folder}")
        counts = []
        for file in files:
            captured = _read(file)
            counts.append(captured["num_samples"] or self.assumed_num_samples)
            if file == files[0]:
                self._image_shape = captured["image_shape"]
            elif captured["image_shape"] != self._image_shape:
                raise InputError(
                    f"{file}: image_shape is {captured['image_shape']}, but "
                    f"{self._image_shape} in {files[0].name}: use one folder per model"
                )
        self.num_clients = len(files)
        self.batch_size = max(counts)
        self._files = files

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
        return federation.receive(self.captured(client), client)

    def public_images(self) -> Tensor:
        """None: 0 C H W."""
        return torch.empty(0, *self.image_shape)

    def describe(self) -> str:
        """One line for people."""
        self.setup()
        return f"captured: {self.num_clients} updates in {Path(self.folder).absolute()}"

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
    try:
        content: Any = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a broken file fails in many ways, all of them the user's to mend
        reason = str(error).partition("\n")[0] or "it breaks off"
        what = spoiled(path) or f"cannot be read: {reason}"
        raise InputError(f"the captured update {path} {what}") from error
    problem = _problem(content)
    if problem is not None:
        raise InputError(f"{path}: {problem}")
    captured = CapturedUpdate(
        update=content["update"],
        num_samples=content["num_samples"],
        labels=content["labels"],
        image_shape=(*content["image_shape"],),
    )
    if "buffers" in content:
        captured["buffers"] = content["buffers"]
    return captured


def _problem(content: Any) -> str | None:
    """What is wrong with the content of a file, if anything."""
    keys = list(_RequiredKeys.__annotations__)
    if not isinstance(content, dict) or content.keys() - {"buffers"} != set(keys):
        return f"expected a dictionary with the keys {', '.join(keys)}, and buffers if it has any"
    update, labels = content["update"], content["labels"]
    shape, num_samples = content["image_shape"], content["num_samples"]
    if not update or not _are_tensors(update):
        return "update must be a dictionary of tensors by parameter name"
    if not _are_tensors(content.get("buffers", {})):
        return "buffers must be a dictionary of tensors by buffer name"
    if not (isinstance(shape, list | tuple) and len(shape) == 3 and all(map(_is_count, shape))):
        return f"image_shape must be (C, H, W), not {shape}"
    if num_samples is not None and not _is_count(num_samples):
        return f"num_samples must be at least 1 or None, not {num_samples}"
    if labels is None:
        return None
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
        return "labels must be a vector of int64 or None"
    if num_samples is not None and len(labels) != num_samples:
        return f"{len(labels)} labels, but num_samples is {num_samples}"
    return None


def _are_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(part, Tensor) for part in value.values())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1
