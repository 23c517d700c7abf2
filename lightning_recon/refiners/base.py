"""What every refiner is: a network that makes an attack's reconstructions look better.

ROG optimises a low-resolution latent and decodes it by bicubic interpolation; Yue, Jin, Wong, Baron
& Dai, "Gradient Obfuscation Gives a False Sense of Security in Federated Learning", USENIX Security
2023.  Refiners take the decoded images, so that they serve any attack.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.errors import InputError


class Refiner(nn.Module, ABC):
    """Post-processing of reconstructions; it sees what the attack found and nothing else."""

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the refined images, B 3 H W in [0, 1].

        Args:
            images: B 3 H W in [0, 1], as the attack left them; of a latent, the decoded one.
            labels: B, int64, of which a class-conditional refiner makes use; null: not known.

        Raises:
            InputError: if images of this size, or these labels, do not pass through.
        """


class TrainableRefiner(Refiner):
    """A refiner with one network, which ``RefinerTraining`` can train and one file can hold.

    Attributes:
        scale: a side of the image over a side of the latent that it works on; 1: the image itself.
        is_conditional: whether it makes use of labels.
    """

    scale: int
    is_conditional = False

    def load_state_dict(self, state_dict: Mapping[str, Any], *options: Any, **more: Any) -> Any:
        """Fill the network; RuntimeError says in one line what does not fit."""
        own = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        given = {name: tuple(getattr(value, "shape", ())) for name, value in state_dict.items()}
        lacking = [name for name in own if name not in given and "num_batches" not in name]
        unknown = [name for name in given if name not in own]
        other = [name for name in own if name in given and own[name] != given[name]]
        kind = type(self).__name__
        problems = []
        if lacking:
            problems.append(f"it lacks {_count(lacking)} of {kind}")
        if unknown:
            problems.append(f"{kind} of these sizes has no {_count(unknown)}")
        if other:
            name = other[0]
            problems.append(f"{_count(other)} is {given[name]} there and {own[name]} here")
        if problems:
            raise RuntimeError("; ".join(problems))
        return super().load_state_dict(state_dict, *options, **more)


def decode(latents: Tensor, scale: int) -> Tensor:
    """Return latents at ``scale`` times their size by bicubic interpolation, in [0, 1].

    Args:
        latents: B C h w.
        scale: at least 1; 1 changes nothing but the range.
    """
    if scale > 1:
        latents = F.interpolate(latents, scale_factor=scale, mode="bicubic")
    return latents.clamp(0, 1)


def encode(images: Tensor, scale: int) -> Tensor:
    """Return the latents whose bicubic interpolation comes closest to the images.

    Least squares; of a decoded latent that is the latent itself, up to what :func:`decode` clamped.

    Args:
        images: B C H W, whose sides are multiples of ``scale``.
        scale: at least 1.

    Returns:
        B C H/scale W/scale, not limited to [0, 1].

    Raises:
        InputError: if a side is no multiple of ``scale``.
    """
    height, width = images.shape[-2:]
    if height % scale or width % scale:
        raise InputError(
            f"a refiner of scale {scale} takes images whose sides are multiples of {scale}, not "
            f"{height}x{width}; take images of another size"
        )
    if scale == 1:
        return images
    rows, columns = (_projection(side, scale).to(images) for side in (height, width))
    return rows @ images @ columns.T


@lru_cache(maxsize=16)
def _projection(side: int, scale: int) -> Tensor:
    """The pseudo-inverse of bicubic interpolation along one axis, side/scale x side."""
    count = side // scale
    unit = torch.eye(count, dtype=torch.float64)[None, None]  # a column a pixel of the latent
    interpolation = F.interpolate(unit, size=(side, count), mode="bicubic")[0, 0]
    projection: Tensor = torch.linalg.pinv(interpolation)
    return projection


def _count(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def check_scale(scale: int, owner: str) -> None:
    """Raise InputError if ``scale`` is no whole number of at least 1."""
    if scale < 1:
        raise InputError(f"{owner}: scale must be at least 1, not {scale}")
