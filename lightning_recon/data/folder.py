"""Anyone's own pictures."""

from pathlib import Path
from typing import Any

from lightning_recon.data.base import ClientDataModule
from lightning_recon.data.sources import FileSource, ImageSource, image_files
from lightning_recon.errors import InputError


class ImageFolderDataModule(ClientDataModule):
    """Clients with the pictures of any folder, its sub-folders included.

    The first-level sub-folders that hold pictures are the classes, sorted by name; pictures that
    lie outside them, and all where there are no sub-folders, have label 0.

    Args:
        num_classes: number of classes of the model under attack; by default as many as found.
        **kwargs: as in :class:`ClientDataModule`.
    """

    name = "folder"
    expected = "a folder with pictures (JPEG, PNG, ...), in sub-folders by class if there are any"

    def __init__(self, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes is not None and num_classes < 1:
            raise InputError(f"num_classes must be at least 1, not {num_classes}")
        self._num_classes = num_classes

    @property
    def num_classes(self) -> int:
        """As given, or the number of classes found."""
        if self._num_classes is None:
            self._num_classes = 1 + max(map(self.source.label, range(len(self.source))))
        return self._num_classes

    def open_source(self, root: Path) -> ImageSource | None:
        """List the pictures."""
        files = image_files(root)
        classes = sorted({file.split("/")[0] for file in files if "/" in file})
        labels = {name: label for label, name in enumerate(classes)}
        return FileSource(root, [(file, labels.get(file.split("/")[0], 0)) for file in files])
