"""Sample photographs that need no download: those inside scikit-image and scikit-learn.

They are read from the files of the installed packages; ``skimage.data``'s functions, which may
download, are never called.
"""

from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from lightning_recon.data.sources import SquareSource, open_picture
from lightning_recon.errors import InputError

_CROPS: dict[str, list[tuple[int, int, int]]] = {
    "skimage/data/astronaut.png": [(100, 0, 224), (0, 200, 256), (256, 256, 256), (288, 0, 224)],
    "skimage/data/brick.png": [(128, 128, 256)],
    "skimage/data/camera.png": [(100, 30, 230), (280, 60, 232), (250, 280, 232)],
    "skimage/data/cell.png": [(290, 230, 260)],
    "skimage/data/chelsea.png": [(0, 50, 226), (226, 50, 225)],
    "skimage/data/coffee.png": [(150, 0, 300), (0, 100, 240), (350, 170, 230)],
    "skimage/data/coins.png": [(0, 0, 300)],
    "skimage/data/grass.png": [(128, 128, 256)],
    "skimage/data/gravel.png": [(128, 128, 256)],
    "skimage/data/hubble_deep_field.jpg": [(60, 300, 300), (350, 350, 300)],
    "skimage/data/ihc.png": [(0, 0, 256), (256, 0, 256), (0, 256, 256), (256, 256, 256)],
    "skimage/data/moon.png": [(10, 0, 256)],
    "skimage/data/motorcycle_left.png": [
        *((0, 0, 250), (245, 0, 250), (491, 0, 250)),
        *((80, 240, 250), (300, 230, 250), (491, 250, 250)),
    ],
    "skimage/data/retina.jpg": [(0, 450, 470), (350, 0, 470), (350, 941, 470)],
    "skimage/data/rocket.jpg": [(208, 50, 224), (0, 203, 224), (208, 203, 224)],
    "sklearn/datasets/images/china.jpg": [
        *((60, 20, 260), (320, 130, 240), (60, 203, 224), (400, 200, 226)),
    ],
    "sklearn/datasets/images/flower.jpg": [(165, 70, 280), (260, 203, 224)],
}
"""By file: its square crops (left, top, side), in pixels, each a picture of its own."""

NUM_PHOTOGRAPHS = len(_CROPS)


class PhotographSource(SquareSource):
    """Square cuts of at least 224 pixels out of the photographs; each photograph is one class."""

    def __init__(self) -> None:
        self._cuts = [
            (file, label, box)
            for label, (file, boxes) in enumerate(_CROPS.items())
            for box in boxes
        ]

        self.classes = [Path(file).stem for file in _CROPS]

    def __len__(self) -> int:
        return len(self._cuts)

    def image(self, index: int) -> Image.Image:
        """Cut ``index``, RGB.

        Raises:
            InputError: the installed package does not have the photograph.
        """
        file, _, (left, top, side) = self._cuts[index]
        picture = open_picture(_installed(file))
        return picture.crop((left, top, left + side, top + side))

    def label(self, index: int) -> int:
        """Number of the photograph that cut ``index`` comes from."""
        return self._cuts[index][1]

    def key(self, index: int) -> str:
        """Name of the photograph and the cut's corner, such as ``coffee_150_0``."""
        file, _, (left, top, _) = self._cuts[index]
        return f"{Path(file).stem}_{left}_{top}"


def _installed(file: str) -> Path:
    """Path of a file inside an installed package, without importing the package."""
    package, _, rest = file.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"the sample photographs need the package {package}: "
            "pip install scikit-image scikit-learn"
        )
    return Path(spec.submodule_search_locations[0]) / rest
