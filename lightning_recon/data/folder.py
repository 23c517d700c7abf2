"""Anyone's own pictures."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_recon.data.base import ClientDataModule
from lightning_recon.data.sources import FileSource, ImageSource, image_files, visible_entries
from lightning_recon.errors import InputError

_SPLIT = re.compile(
    r"(train(ing)?|val(id|idation)?|test(ing)?|dev|eval)([ _-]?(set|data|images|\d+))?",
    flags=re.IGNORECASE,
)
"""Names of folders that hold parts of a data set, not classes of it."""


class ImageFolderDataModule(ClientDataModule):
    """Clients with the pictures of any folder, its sub-folders included.

    The first-level sub-folders that hold pictures are the classes, sorted by name; pictures that
    lie outside them, and all where there are no sub-folders, have label 0.  Links are followed;
    what is hidden or in ``__MACOSX`` does not count.

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
        """List the pictures.

        Raises:
            InputError: the sub-folders are parts of a data set, such as ``train`` and ``val``.
        """
        files = image_files(root)
        classes = sorted({file.split("/")[0] for file in files if "/" in file})
        _check_classes(root, classes)
        labels = {name: label for label, name in enumerate(classes)}
        labelled = [(file, labels.get(file.split("/")[0], 0)) for file in files]
        return FileSource(root, labelled, classes or None)


def _check_classes(root: Path, classes: Collection[str]) -> None:
    """Raise InputError for parts in the place of classes; warn of classes without pictures."""
    parts = [name for name in classes if _SPLIT.fullmatch(name)]
    if parts and (len(parts) > 1 or len(parts) == len(classes)):
        raise InputError(
            f"{root} holds {', '.join(parts)}, which are parts of a data set and no classes; set "
            f"root to one of them, such as {root / parts[0]}"
        )
    if classes:
        empty = [
            path.name
            for path in visible_entries(root)
            if path.is_dir() and path.name not in classes and visible_entries(path)
        ]
        if empty:
            rank_zero_warn(f"no classes, for they hold no pictures: {', '.join(empty)} in {root}")
