"""What one sample with one label does to the first layer's gradient: the server computes it."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_recon.attacks.linear_layer import FirstLinear
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.updates import Columns

_CHUNK = 2**25  # numbers of slopes at a time


class Slopes(NamedTuple):
    """The slopes dL/dz of N images' own losses by the K outputs z of the first linear layer."""

    each: Tensor
    """N C K, one for each of C labels."""
    near_zero: Tensor
    """N K, bool: where z is so near 0 that rounding decides whether a ReLU passes it."""


class SlopeModel:
    """A payload whose samples' slopes can be computed, in double precision and in eval mode.

    Args:
        payload: the model that the server sent; it is copied.
        first: its linear layer that reads the image.
        image_shape: C, H, W.
        label_smoothing: of the clients' cross-entropy.
        columns: of the table whose rows the samples are; null: they are pictures.
    """

    def __init__(
        self,
        payload: nn.Module,
        first: FirstLinear,
        image_shape: tuple[int, int, int],
        label_smoothing: float = 0.0,
        columns: Columns | None = None,
    ) -> None:
        self.rounding = 10 * torch.finfo(next(payload.parameters()).dtype).eps
        self.model = copy.deepcopy(payload).double().requires_grad_(False)
        name = first.prefix.removesuffix(".")
        self.layer = self.model.get_submodule(name) if name else self.model
        self.image_shape = image_shape
        self.label_smoothing = label_smoothing
        self.columns = columns

    def chunk(self, num_classes: int, num_rows: int) -> int:
        """Return how many images are looked at together."""
        return max(1, _CHUNK // (num_classes * num_rows))

    def __call__(self, images: Tensor) -> Slopes:
        """Return the slopes of N D flat images in [0, 1]."""
        caught: list[Tensor] = []

        def catch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            assert isinstance(self.layer, nn.Linear)
            seen = inputs[0].abs() @ self.layer.weight.abs().T + self.layer.bias.abs()
            caught.extend([output.detach().requires_grad_(), seen])
            return caught[0]

        with left_as_found(self.model, training=False) as hooks, torch.enable_grad():
            hooks.append(self.layer.register_forward_hook(catch))
            logits = self.model(images.double().view(-1, *self.image_shape))
            outputs, size = caught
            rows = [
                torch.autograd.grad(logits[:, label].sum(), outputs, retain_graph=True)[0]
                for label in range(logits.shape[1])
            ]
        jacobian = torch.stack(rows, 1).flatten(2)  # N C K
        wanted = logits.detach().softmax(1)
        smoothing = self.label_smoothing
        mean = torch.einsum("nc,nck->nk", wanted - smoothing / logits.shape[1], jacobian)
        near_zero = outputs.detach().abs() <= self.rounding * size
        return Slopes(mean[:, None] - (1 - smoothing) * jacobian, near_zero.flatten(1))
