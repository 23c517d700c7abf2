"""ImageNet (ILSVRC 2012).

O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.
"""

import re
from pathlib import Path
from typing import Any, Literal

from lightning_recon.data.base import ClientDataModule
from lightning_recon.data.sources import FileSource, ImageSource, image_files
from lightning_recon.documents import read_text
from lightning_recon.errors import InputError

_TINY = re.compile(r"(n\d{8}/)?images/.*")
"""Where the pictures of Tiny-ImageNet lie, below ``train`` or ``val``."""


class ImageNetDataModule(ClientDataModule):
    """Clients with images of ImageNet.

    Reads folders named by WordNet id, either below ``root/val`` or ``root/train``, as torchvision
    lays them out, or right below ``root``.  A label is the position of the WordNet id among the
    sorted folders found, which is torchvision's rule; so with fewer than the 1000 folders the
    labels are not those of a pretrained model.

    Tiny-ImageNet has 200 classes: its pictures lie one folder deeper, in ``images``, and its
    ``val`` is one folder with ``val_annotations.txt``.

    Args:
        split: which part, where the layout has parts.
        num_classes: number of classes of the model under attack; null: 1000, or 200 in the layout
            of Tiny-ImageNet.
        **kwargs: as in :class:`ClientDataModule`.
    """

    name = "imagenet"
    citation = "Russakovsky et al., IJCV 115, 2015"
    expected = (
        "folders by WordNet id (n01440764/*.JPEG) there or below train/ and val/: "
        "register at https://image-net.org/download, or use any sample in that layout"
    )

    def __init__(
        self,
        split: Literal["train", "val"] = "val",
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes is not None and num_classes < 1:
            raise InputError(f"num_classes must be at least 1, not {num_classes}")
        self.split = split
        self._num_classes = num_classes

    @property
    def num_classes(self) -> int:
        """As given, or 1000; 200 of Tiny-ImageNet."""
        if self._num_classes is None:
            source = self.source
            files = source.files if isinstance(source, FileSource) else []
            is_tiny = any(_TINY.fullmatch(file) for file, _ in files)
            self._num_classes = 200 if is_tiny else 1000
        return self._num_classes

    def open_source(self, root: Path) -> ImageSource | None:
        """List the images of the split, or of ``root`` itself.

        Raises:
            InputError: an image of Tiny-ImageNet's ``val`` has no line in the annotations.
        """
        for folder in (root / self.split, root):
            names = _wordnet_ids(folder)
            files = [
                (f"{name}/{file}", label)
                for label, name in enumerate(names)
                for file in image_files(folder / name)
            ]
            if files:
                return FileSource(folder, files, names)
        annotations = root / "val" / "val_annotations.txt"
        if self.split == "val" and annotations.is_file():
            return _open_tiny_val(root, annotations)
        return None


def _wordnet_ids(folder: Path) -> list[str]:
    """Names of the folders that are WordNet ids, sorted."""
    return sorted(path.name for path in folder.glob("n*") if re.fullmatch(r"n\d{8}", path.name))


def _open_tiny_val(root: Path, annotations: Path) -> FileSource:
    """Tiny-ImageNet's validation images; labels are by the ids of ``train``, if it is there."""
    rows = [line.split("\t") for line in read_text(annotations).splitlines()]
    ids = {row[0]: row[1] for row in rows if len(row) > 1}
    names = _wordnet_ids(root / "train") or sorted(set(ids.values()))
    files = []
    for file in image_files(root / "val"):
        wordnet_id = ids.get(Path(file).name)
        if wordnet_id not in names:
            raise InputError(
                f"{annotations} has no class that is known for {file}; download it again, or use "
                "split: train"
            )
        files.append((file, names.index(wordnet_id)))
    return FileSource(root / "val", files, names)
