"""ImageNet (ILSVRC 2012).

O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.
"""

import re
from pathlib import Path
from typing import Any, Literal

from lightning_recon.data.base import ClientDataModule
from lightning_recon.data.sources import FileSource, ImageSource, image_files


class ImageNetDataModule(ClientDataModule):
    """Clients with images of ImageNet.

    Reads folders named by WordNet id, either below ``root/val`` or ``root/train``, as torchvision
    lays them out, or right below ``root``.  A label is the position of the WordNet id among the
    sorted folders found, which is torchvision's rule; so with fewer than the 1000 folders the
    labels are not those of a pretrained model.

    Args:
        split: which part, where the layout has parts.
        **kwargs: as in :class:`ClientDataModule`.
    """

    name = "imagenet"
    citation = "Russakovsky et al., IJCV 115, 2015"
    expected = (
        "folders by WordNet id (n01440764/*.JPEG) there or below train/ and val/: "
        "register at https://image-net.org/download, or use any sample in that layout"
    )

    def __init__(self, split: Literal["train", "val"] = "val", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.split = split

    @property
    def num_classes(self) -> int:
        """1000."""
        return 1000

    def open_source(self, root: Path) -> ImageSource | None:
        """List the images of the split, or of ``root`` itself."""
        for folder in (root / self.split, root):
            classes = sorted(
                path for path in folder.glob("n*") if re.fullmatch(r"n\d{8}", path.name)
            )
            files = [
                (f"{path.name}/{file}", label)
                for label, path in enumerate(classes)
                for file in image_files(path)
            ]
            if files:
                return FileSource(folder, files)
        return None
