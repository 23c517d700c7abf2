"""The linear layers at the end of a classifier, found by running it, and what they see."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lightning_recon.errors import InputError
from lightning_recon.structures import Update


class LinearStack(NamedTuple):
    """Linear layers with a ReLU between them, from the first to the one that gives the logits."""

    weights: tuple[str, ...]
    """Names of the weights, as in ``named_parameters()``."""
    biases: tuple[str | None, ...]
    map_shape: tuple[int, int, int]
    """C, H, W of the feature map that the first layer sees flattened; of a vector F, 1, 1."""

    def forward(self, parameters: Update, features: Tensor) -> list[Tensor]:
        """Return what each layer sees, and the logits at the end.

        Args:
            parameters: by name.
            features: B F, what the first layer sees.
        """
        seen = [features]
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            offset = None if bias is None else parameters[bias]
            output = F.linear(seen[-1], parameters[weight], offset)
            seen.append(output if number == len(self.weights) - 1 else output.relu())
        return seen


def find_stack(payload: nn.Module, images: Tensor) -> LinearStack:
    """Return the linear layers that end a classifier.

    A layer belongs to the stack if its output, through a ReLU, is what the next one sees.

    Args:
        payload: B C H W -> B K logits, in the mode of the client; it is not changed.
        images: B C H W, of any content but constant.

    Raises:
        InputError: If no linear layer gives the logits.
    """
    linear: list[tuple[nn.Linear, Tensor, Tensor]] = []
    maps: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        if isinstance(module, nn.Linear) and isinstance(output, Tensor):
            linear.append((module, inputs[0], output))
        elif not linear and isinstance(output, Tensor) and output.ndim == 4:
            maps.append(output)

    handles = [module.register_forward_hook(record) for module in payload.modules()]
    try:
        with torch.no_grad():
            logits = _call(payload, {}, images)
    finally:
        for handle in handles:
            handle.remove()
    if not linear or not _equal(linear[-1][2], logits) or linear[-1][1].ndim != 2:
        raise InputError(
            f"FeatureInversionAttack: {type(payload).__name__} does not end in a linear layer; "
            "use GradientMatching"
        )
    stack = [linear[-1]]
    for call in reversed(linear[:-1]):
        if call[1].ndim != 2 or not _equal(call[2].relu(), stack[0][1]):
            break
        stack.insert(0, call)
    features = stack[0][1]
    flat = [shaped for shaped in maps if _equal(shaped.flatten(1), features)]
    channels, height, width = flat[-1].shape[1:] if flat else (features.shape[1], 1, 1)
    names = {id(parameter): name for name, parameter in payload.named_parameters()}
    return LinearStack(
        tuple(names[id(layer.weight)] for layer, _, _ in stack),
        tuple(None if layer.bias is None else names[id(layer.bias)] for layer, _, _ in stack),
        (int(channels), int(height), int(width)),
    )


def run_features(
    payload: nn.Module, stack: LinearStack, images: Tensor, parameters: Update | None = None
) -> Tensor:
    """Return what the first layer of the stack sees, B F, differentiable in the images.

    Args:
        payload: in the mode of the client; it is not changed.
        stack: of the payload.
        images: B C H W.
        parameters: that stand in for the payload's own, by name.
    """
    first = payload.get_submodule(stack.weights[0].rpartition(".")[0])
    seen: list[Tensor] = []
    handle = first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        _call(payload, parameters or {}, images)
    finally:
        handle.remove()
    return seen[-1]


def _call(payload: nn.Module, parameters: Update, images: Tensor) -> Tensor:
    # batch norm writes its running statistics: on a copy
    buffers = {name: buffer.clone() for name, buffer in payload.named_buffers()}
    logits: Tensor = functional_call(payload, (parameters, buffers), (images,))
    return logits


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
