"""What one sample with one label does to the first layer's gradient: the server computes it."""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.attacks.linear_layer import FirstLinear
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.updates import Columns

_CHUNK = 2**25  # numbers of slopes at a time
_DRAWN = 4  # outputs by which ReLUs are told


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
        layer = self.model.get_submodule(name) if name else self.model
        assert isinstance(layer, nn.Linear)
        self.layer = layer
        self.image_shape = image_shape
        self.label_smoothing = label_smoothing
        self.columns = columns

    def chunk(self, num_classes: int, num_rows: int) -> int:
        """Return how many images are looked at together."""
        return max(1, _CHUNK // (num_classes * num_rows))

    def __call__(self, images: Tensor) -> Slopes:
        """Return the slopes of N D flat images in [0, 1]."""
        logits, jacobian, outputs, size = self._differentiate(images)
        wanted = logits.softmax(1)
        smoothing = self.label_smoothing
        mean = torch.einsum("nc,nck->nk", wanted - smoothing / logits.shape[1], jacobian)
        near_zero = outputs.abs() <= self.rounding * size
        return Slopes(mean[:, None] - (1 - smoothing) * jacobian, near_zero.flatten(1))

    def open_jacobian(self, generator: torch.Generator) -> Tensor | None:
        """Return the derivatives of the logits by the outputs that are above 0, C K.

        None unless the network is linear behind ReLUs at this layer, so that they are 0 below, and
        always the same above.

        Args:
            generator: of the outputs that are tried, on the CPU.
        """
        drawn = torch.randn(_DRAWN, self.layer.weight.shape[0], generator=generator).double()
        drawn[0] = 1.0
        images = torch.zeros(_DRAWN, *self.image_shape, dtype=torch.float64)
        place = self.layer.weight.device
        _, jacobian, outputs, _ = self._differentiate(images.to(place), drawn.to(place))
        expected = jacobian[0] * (outputs > 0)[:, None]
        return jacobian[0] if torch.allclose(jacobian, expected, rtol=1e-9, atol=1e-12) else None

    def outputs(self, images: Tensor) -> Tensor:
        """Return what the layer puts out, N K, for any N D numbers in the place of images."""
        caught: list[Tensor] = []
        with left_as_found(self.model, training=False) as hooks, torch.no_grad():
            hooks.append(
                self.layer.register_forward_hook(lambda _, __, output: caught.append(output))
            )
            self.model(images.double().view(-1, *self.image_shape))
        return caught[0].flatten(1)

    def slopes_and_changes(
        self, images: Tensor, labels: Tensor, along: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the slopes of images with labels, N K, and how they change, N M K.

        Args:
            images: N D.
            labels: N, int64.
            along: M K, by what the layer's outputs are moved.
        """
        caught: list[Tensor] = []

        def catch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            caught.append(output.detach().requires_grad_())
            return caught[0]

        with left_as_found(self.model, training=False) as hooks, torch.enable_grad():
            hooks.append(self.layer.register_forward_hook(catch))
            logits = self.model(images.double().view(-1, *self.image_shape))
            loss = F.cross_entropy(
                logits, labels, reduction="sum", label_smoothing=self.label_smoothing
            )
            (slopes,) = torch.autograd.grad(loss, caught[0], create_graph=True)
            changes = [
                torch.autograd.grad((slopes * way.view_as(slopes[0])).sum(), caught[0],
                                    retain_graph=True)[0]
                for way in along
            ]  # fmt: skip
        return slopes.detach().flatten(1), torch.stack(changes, 1).flatten(2)

    def _differentiate(
        self, images: Tensor, instead: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits, their derivatives by the layer's outputs, these, and how large they are.

        Args:
            images: N D.
            instead: N K, what the layer puts out whatever the images; null: what it does.

        Returns:
            N C, N C K, N K, and N K, the sum of what is added in each output.
        """
        caught: list[Tensor] = []

        def catch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            seen = inputs[0].abs() @ self.layer.weight.abs().T
            if self.layer.bias is not None:
                seen = seen + self.layer.bias.abs()
            output = output if instead is None else instead.view_as(output)
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
        jacobian = torch.stack(rows, 1).flatten(2)
        return logits.detach(), jacobian, outputs.detach().flatten(1), size.flatten(1)
