"""Pictures of true images and reconstructions: written by a run, read again for its pages."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageChops
from torch import Tensor
from torchvision.utils import make_grid

from lightning_recon.errors import InputError
from lightning_recon.files import write_atomically
from lightning_recon.pictures import opened

DIFFERENCE_GAIN = 4
"""By how much the pages amplify |truth - reconstruction|: 1/255 per step is not seen."""

_GRID_SIDE = 128  # pixels a side up to which a grid enlarges its images
_LOSSLESS_SIDE = 64  # pixels a side up to which a picture is shown without loss
_QUALITY = 82  # of WebP


class Pair(NamedTuple):
    """The pictures of one true image."""

    truth: Image.Image
    reconstruction: Image.Image | None
    """None where no reconstruction was matched."""

    @property
    def difference(self) -> Image.Image | None:
        """|truth - reconstruction|, amplified by :data:`DIFFERENCE_GAIN` and cut off at white."""
        if self.reconstruction is None:
            return None
        plain = ImageChops.difference(self.truth, self.reconstruction)
        return plain.point([min(255, DIFFERENCE_GAIN * level) for level in range(256)] * 3)


def save_grid(path: Path, truth: Tensor, reconstruction: Tensor) -> None:
    """Write a PNG of pairs, each true image above its reconstruction, eight pairs in a line.

    Small images are enlarged by a whole factor, every pixel a square; the grid is for people, and
    nothing reads it again.

    Args:
        path: the file to write; its folder is created if it is missing.
        truth: B C H W in [0, 1], C 1 or 3, B at least 1.
        reconstruction: B C H W in [0, 1], in the order of ``truth``; NaNs are shown black.

    Raises:
        ValueError: if the shapes disagree or B is 0.
    """
    if truth.ndim != 4 or truth.shape != reconstruction.shape or not len(truth):
        raise ValueError(
            "a grid needs truth and reconstruction of one shape B C H W, B at least 1; got "
            f"{tuple(truth.shape)} and {tuple(reconstruction.shape)}"
        )
    truth, reconstruction = (_shown(images) for images in (truth, reconstruction))
    factor = max(1, _GRID_SIDE // max(truth.shape[2:]))
    truth, reconstruction = (
        images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        for images in (truth, reconstruction)
    )
    gap = 2
    pairs = torch.cat([F.pad(truth, (0, 0, 0, gap), value=1.0), reconstruction], dim=2)
    grid = make_grid(pairs, nrow=8, padding=4 * gap, pad_value=1.0)
    write_atomically(path, _png(grid))


def save_image(path: Path, image: Tensor) -> None:
    """Write one image as a PNG.

    Args:
        path: where to; the folder is made.
        image: C H W in [0, 1]; NaNs are shown black.
    """
    write_atomically(path, _png(image))


def save_pictures(
    folder: Path, client: int, position: int, truth: Tensor, reconstruction: Tensor | None
) -> None:
    """Write the pictures of one true image, under the names that :func:`load_pictures` reads.

    Args:
        folder: the run's folder ``reconstructions``; made if it is missing.
        client: its number.
        position: of the image in the client's batch.
        truth: C H W in [0, 1].
        reconstruction: the same shape, or None where none was matched; what an earlier run left
            there is then removed.
    """
    truth_path, reconstruction_path = _paths(folder, client, position)
    save_image(truth_path, truth)
    if reconstruction is None:
        reconstruction_path.unlink(missing_ok=True)
    else:
        save_image(reconstruction_path, reconstruction)


def has_pictures(folder: Path, client: int, position: int) -> bool:
    """Return whether the folder ``reconstructions`` holds a picture of this true image."""
    return _paths(folder, client, position)[0].is_file()


def load_pictures(folder: Path, client: int, position: int) -> Pair:
    """Read what :func:`save_pictures` wrote.

    Args:
        folder: the run's folder ``reconstructions``.
        client: its number.
        position: of the image in the client's batch.

    Raises:
        InputError: if the truth is not there, or one of both is no picture.
    """
    truth, reconstruction = _paths(folder, client, position)
    found = load_picture(reconstruction) if reconstruction.is_file() else None
    return Pair(load_picture(truth), found)


def data_uri(image: Image.Image, max_side: int) -> str:
    """Return a picture as a ``data:`` address, shrunk to at most ``max_side`` pixels a side.

    Pictures of up to 64 pixels a side are PNGs, without loss; larger ones are WebP.
    """
    shown = image.copy()
    shown.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if max(shown.size) <= _LOSSLESS_SIDE:
        kind = "png"
        shown.save(buffer, format="PNG", optimize=True)
    else:
        kind = "webp"
        shown.save(buffer, format="WebP", quality=_QUALITY, method=4)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _paths(folder: Path, client: int, position: int) -> tuple[Path, Path]:
    stem = f"client{client:05d}_image{position:03d}"
    return folder / f"{stem}_truth.png", folder / f"{stem}_reconstruction.png"


def load_picture(path: Path) -> Image.Image:
    """Read a picture, in colour.

    Args:
        path: of the file.

    Raises:
        InputError: if it is no picture.
    """
    try:
        with opened(path) as image:
            return image.convert("RGB")
    except Exception as error:  # every decoder of Pillow fails in its own way
        raise InputError(
            f"{path} cannot be read as a picture ({error}); remove it or run again"
        ) from error


def _shown(images: Tensor) -> Tensor:
    """Return images as a picture file can hold them: in [0, 1], NaNs black."""
    return images.detach().cpu().float().nan_to_num(0.0).clamp(0.0, 1.0)


def as_picture(image: Tensor) -> Image.Image:
    """Return C H W in [0, 1] as a picture: of three channels in colour, else their mean."""
    image = _shown(image)
    if len(image) != 3:
        image = image.mean(dim=0, keepdim=True)
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels if len(image) == 3 else pixels[..., 0])


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    as_picture(image).save(buffer, format="PNG")
    return buffer.getvalue()
