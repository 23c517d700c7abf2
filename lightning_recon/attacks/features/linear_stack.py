"""The linear layers at the end of a classifier, found by running it, and what they see."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.attacks.features.linear_layers import (
    Reading,
    least_squares,
    noise_of,
    output_residuals,
    solve_inputs,
    solve_residuals,
)
from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import left_as_found, run_stateless, watched
from lightning_recon.updates import Update

_ON = 1e-3  # of the root mean square: an activation that counts as on, where all are exact
_ON_OBFUSCATED = 0.1  # likewise, where they are not
_NUM_SEARCHED = {"exact": 4096, "kept": 16384, "rounded": 16384}  # columns, for the ReLUs
_NUM_TURNS = {"exact": 30, "kept": 2, "rounded": 9}  # of that search, at most
_NUM_SOFT = {"exact": 0, "kept": 0, "rounded": 6}  # of these, in which ReLUs may be half open
_UNSEEN = 0.3  # how far a ReLU starts open of which only a 0 was seen, after rounding
_NUM_STARTS = 5  # where labels repeat
_TOGETHER = 16  # public images that run through the payload at a time
_KEPT_SHARE = 0.6  # of the samples of one label, at random, that a ReLU starts open for

Moments = tuple[Tensor, Tensor]
"""Mean and variance, N each, of what a layer usually sees."""


class Solved(NamedTuple):
    """What the gradients of a stack's weights tell of a batch."""

    features: Tensor
    """B F: what the first layer saw."""
    residuals: Tensor
    """B K: what came back at its output."""
    reading: Reading
    """Of its gradient; with the noise that was found on it."""


class LinearStack(NamedTuple):
    """Linear layers with a ReLU between them, from the first to the one that gives the logits."""

    weights: tuple[str, ...]
    """Names of the weights, as in ``named_parameters()``."""
    biases: tuple[str | None, ...]
    map_shape: tuple[int, int, int]
    """C, H, W of the feature map that the first layer sees flattened; of a vector F, 1, 1."""

    def forward(
        self, parameters: Update, features: Tensor, added: Tensor | None = None, first: int = 0
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return what each layer sees, and its output before the ReLU: logits at the end.

        Args:
            parameters: by name.
            features: B F, what the first layer sees.
            added: B K, to the first layer's output.
            first: the place of the layer to begin with.
        """
        seen: list[Tensor] = []
        outputs: list[Tensor] = []
        for weight, bias in list(zip(self.weights, self.biases, strict=True))[first:]:
            seen.append(outputs[-1].relu() if outputs else features)
            offset = None if bias is None else parameters[bias]
            output = F.linear(seen[-1], parameters[weight], offset)
            outputs.append(output if added is None or len(outputs) else output + added)
        return seen, outputs

    def module(self, parameters: Update) -> nn.Sequential:
        """Return the layers as a network of features, B F -> B K logits, parameters by name."""
        layers: list[nn.Module] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            outputs, inputs = parameters[weight].shape
            layer = nn.Linear(inputs, outputs, bias is not None).to(parameters[weight])
            layer.weight.data.copy_(parameters[weight])
            if bias is not None:
                layer.bias.data.copy_(parameters[bias])
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers[:-1])


def find_stack(payload: nn.Module, images: Tensor) -> LinearStack:
    """Return the linear layers that end a classifier.

    A layer belongs to the stack if its output, through a ReLU, is what the next one sees.

    Args:
        payload: B C H W -> B K logits, in the mode of the client; it is not changed.
        images: B C H W, of any content but constant.

    Raises:
        InputError: if no linear layer gives the logits.
    """
    linear: list[tuple[nn.Linear, Tensor, Tensor]] = []
    maps: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        if isinstance(module, nn.Linear) and isinstance(output, Tensor):
            linear.append((module, inputs[0], output))
        elif not linear and isinstance(output, Tensor) and output.ndim == 4:
            maps.append(output)

    with left_as_found(payload) as hooks, torch.no_grad():
        hooks += [module.register_forward_hook(record) for module in payload.modules()]
        logits = run_stateless(payload, {}, images)
    if not linear or not _equal(linear[-1][2], logits) or linear[-1][1].ndim != 2:
        raise InputError(
            f"{type(payload).__name__} does not end in a linear layer, of which features could be "
            "read; use GradientMatching without analytic_start"
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
    with watched([first]) as seen:
        run_stateless(payload, parameters or {}, images)
    return seen[first]


def run_all_features(
    payload: nn.Module, stack: LinearStack, images: Tensor, parameters: Update | None = None
) -> Tensor:
    """Return the same of many images, N C H W, a few of which run through the payload together."""
    parts = torch.split(images, _TOGETHER)
    return torch.cat([run_features(payload, stack, part, parameters) for part in parts])


def solve_stack(
    stack: LinearStack,
    parameters: Update,
    gradients: list[Tensor],
    readings: list[Reading],
    labels: Tensor,
    moments: list[Moments],
    probabilities: Tensor,
) -> Solved:
    """Return what the first layer saw of every sample, from the gradients of all layers.

    From the logits down: residuals of a layer give its inputs, these say which outputs of the
    layer below its ReLU let through, and with them the residuals of that layer are known.  Which
    they are is read again from that layer's own gradient, given its inputs, and so on in turns.

    Samples of one label have the same residuals at the logits, as long as the model knows nothing:
    the last layer tells only their mean.  They come apart one layer below, where each has ReLUs of
    its own: the search starts from random parts of those that are on for any of them.

    Args:
        stack: of the payload.
        parameters: at which the gradients were taken, by name.
        gradients: of each layer's weights, K N, of the batch's mean cross-entropy.
        readings: how each is obfuscated.
        labels: B, int64.
        moments: of what each layer sees.
        probabilities: K: the softmax that the model usually gives.
    """
    last = len(gradients) - 1
    readings = list(readings)
    logits = probabilities.log().expand(len(labels), -1)
    passing: dict[int, Tensor] = {}  # from 0 to 1
    is_exact = all(reading.kind == "exact" for reading in readings)
    for attempt in range(3 if is_exact else 2):
        residuals = output_residuals(logits, labels)
        inputs = solve_inputs(residuals, gradients[last], readings[last], *moments[last])
        for layer in range(last - 1, -1, -1):
            whole = residuals @ parameters[stack.weights[layer + 1]]
            if attempt == 0:
                above = gradients[layer + 1], readings[layer + 1]
                passing[layer] = _is_on(inputs, residuals, *above, labels, layer + 1 == last)
            sight = gradients[layer], readings[layer], moments[layer]
            repeated = labels if attempt == 0 else labels.new_empty(0)
            passing[layer] = _search(passing[layer], whole, *sight, repeated)
            residuals = whole * passing[layer]
            inputs = solve_inputs(residuals, gradients[layer], readings[layer], *moments[layer])
        if readings[0].kind == "exact":
            size = noise_of(residuals, gradients[0], inputs, moments[0][1])
            readings[0] = Reading("exact", size)
        logits = stack.forward(parameters, inputs.clamp_min(0))[1][-1]
    return Solved(inputs, residuals, readings[0])


def _search(
    start: Tensor,
    whole: Tensor,
    gradient: Tensor,
    reading: Reading,
    moments: Moments,
    labels: Tensor,
) -> Tensor:
    """Return through which ReLUs the residuals pass, B K, by turns with the layer's inputs.

    Args:
        start: B K, where to begin.
        whole: B K: the residuals above the ReLUs.
        gradient: of the layer below, K N.
        reading: of the gradient.
        moments: of the layer's inputs.
        labels: B, those that repeat are searched for from several starts; empty: one start.
    """
    if reading.kind == "signs":
        return start
    columns = slice(None, None, max(1, gradient.shape[1] // _NUM_SEARCHED[reading.kind]))
    gradient = gradient[:, columns].contiguous()
    moments = moments[0][columns], moments[1][columns]
    generator = torch.Generator().manual_seed(0)
    is_repeated = (labels[:, None] == labels).sum(1) > 1
    best, least = start, torch.inf
    for _ in range(_NUM_STARTS if is_repeated.any() else 1):
        passing = start
        if is_repeated.any():
            drawn = torch.rand(start.shape, generator=generator).to(whole.device) < _KEPT_SHARE
            passing = start * (drawn | ~is_repeated[:, None])
        for turn in range(_NUM_TURNS[reading.kind]):
            residuals = whole * passing
            inputs = solve_inputs(residuals, gradient, reading, *moments)
            found = solve_residuals(gradient, reading, inputs, residuals)
            share = torch.where(whole == 0, 0.0, found / whole)
            is_soft = turn < _NUM_SOFT[reading.kind]
            before, passing = passing, share.clamp(0, 1) if is_soft else (share > 0.5).to(share)
            if torch.equal(before, passing):
                break
        misfit = float((gradient - (whole * passing).T @ inputs).square().sum())
        if misfit < least:
            best, least = passing, misfit
    return best


def _is_on(
    inputs: Tensor,
    residuals: Tensor,
    gradient: Tensor,
    reading: Reading,
    labels: Tensor,
    is_last: bool,
) -> Tensor:
    """Return 1 where a layer's inputs are above 0, else 0, and between where it is open: B N."""
    if reading.kind == "signs" and is_last:
        # a label's own row of the gradient is the only one in which its sample counts negatively
        return (gradient[labels] < 0).to(gradient)
    size = inputs.square().mean().sqrt()
    limit = (_ON if reading == Reading("exact", 0.0) else _ON_OBFUSCATED) * size
    if is_last and reading.kind in ("rounded", "kept") and reading.size < torch.inf:
        # of zeros only the least squares remain: the label's row decides, in which an input
        # stands times 1 / B
        is_on = least_squares(residuals, gradient) > reading.size * len(labels) / 2
        return is_on.to(gradient).clamp_min(_UNSEEN if reading.kind == "rounded" else 0.0)
    return (inputs > limit).to(gradient)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
