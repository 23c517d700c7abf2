"""Oxford 102 Flowers.

M.-E. Nilsback and A. Zisserman, "Automated flower classification over a large number of
classes", ICVGIP 2008.
"""

from pathlib import Path
from typing import Any, Literal

from torchvision import datasets

from lightning_recon.data.base import ClientDataModule
from lightning_recon.data.sources import FileSource, ImageSource
from lightning_recon.errors import InputError


class Flowers102DataModule(ClientDataModule):
    """Clients with images of Oxford 102 Flowers.

    Args:
        split: which part of the data set, ``train``, ``val`` or ``test``.
        **kwargs: as in :class:`ClientDataModule`; ``root`` is the folder that holds
            ``flowers-102``.
    """

    name = "flowers102"
    citation = "Nilsback and Zisserman, ICVGIP 2008"
    expected = (
        "the folder flowers-102 in it with jpg/, imagelabels.mat and setid.mat "
        "(from https://www.robots.ox.ac.uk/~vgg/data/flowers/102/)"
    )

    def __init__(self, split: Literal["train", "val", "test"] = "test", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.split = split

    @property
    def num_classes(self) -> int:
        """102."""
        return 102

    def open_source(self, root: Path) -> ImageSource | None:
        """List the images of the split by torchvision's rules."""
        folder = root / "flowers-102"
        if not (folder / "jpg").is_dir():
            return None
        try:
            # Not decoded here: the "loader" gives the path back.
            images = datasets.Flowers102(str(root), split=self.split, loader=Path)
        except RuntimeError as error:
            raise InputError(
                f"imagelabels.mat or setid.mat in {folder} is missing or damaged"
            ) from error
        pairs = (images[index] for index in range(len(images)))
        return FileSource(folder / "jpg", [(path.name, label) for path, label in pairs])
