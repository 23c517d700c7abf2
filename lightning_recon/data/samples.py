"""The sample photographs as a data set."""

from pathlib import Path

from lightning_recon.data.base import ClientDataModule
from lightning_recon.data.photographs import NUM_PHOTOGRAPHS, PhotographSource
from lightning_recon.data.sources import ImageSource


class SampleImagesDataModule(ClientDataModule):
    """Clients with square cuts of the photographs that come with scikit-image and scikit-learn.

    Needs no files and no network: ``root`` is not used.  Each photograph is one class.

    The other arguments are those of :class:`ClientDataModule`.
    """

    name = "samples"
    expected = "nothing"

    @property
    def num_classes(self) -> int:
        """Number of photographs."""
        return NUM_PHOTOGRAPHS

    def open_source(self, root: Path) -> ImageSource:
        """List the cuts; ``root`` has no part in it."""
        return PhotographSource()

    def _open(self) -> ImageSource:
        return PhotographSource()
