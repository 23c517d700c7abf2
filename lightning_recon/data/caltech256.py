"""Caltech-256.

G. Griffin, A. Holub and P. Perona, "Caltech-256 Object Category Dataset", 2007.
"""

from pathlib import Path

from torchvision import datasets

from lightning_recon.data.base import ClientDataModule
from lightning_recon.data.sources import FileSource, ImageSource


class Caltech256DataModule(ClientDataModule):
    """Clients with images of Caltech-256: 256 categories and clutter.

    The arguments are those of :class:`ClientDataModule`; ``root`` is the folder that holds
    ``caltech256``.
    """

    name = "caltech256"
    citation = "Griffin, Holub, Perona, Caltech technical report 7694, 2007"
    expected = (
        "the folder caltech256/256_ObjectCategories in it (unpack "
        "256_ObjectCategories.tar from https://data.caltech.edu/records/nyy15-4j048 there)"
    )

    @property
    def num_classes(self) -> int:
        """257: the last category is clutter."""
        return 257

    def open_source(self, root: Path) -> ImageSource | None:
        """List the images by torchvision's rules."""
        folder = root / "caltech256" / "256_ObjectCategories"
        if not folder.is_dir():  # torchvision would make the folder
            return None
        images = datasets.Caltech256(str(root), download=False)
        files = [
            (f"{images.categories[label]}/{label + 1:03d}_{number:04d}.jpg", label)
            for label, number in zip(images.y, images.index, strict=True)
        ]
        return FileSource(folder, files, images.categories)
