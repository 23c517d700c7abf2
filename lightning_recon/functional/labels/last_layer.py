"""The last linear layer of a classifier, found by running it, and what it sees.

A client's labels, and the features of its samples, are first read off this layer's gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import left_as_found, run_stateless
from lightning_recon.updates import Update


class DummyForward(NamedTuple):
    """What the last linear layer sees and says for images that the attacker has or makes up."""

    features: Tensor
    """N F."""
    probabilities: Tensor
    """N K: softmax of the logits."""


def last_linear_layer(payload: nn.Module, images: Tensor) -> tuple[str, str | None]:
    """Return the parameters' names of the linear layer that gives the logits.

    It is the last ``nn.Linear`` with as many outputs as the payload that runs in a forward pass
    (not the one registered last).

    Args:
        payload: B C H W -> B K logits; it runs in evaluation mode and is not changed.
        images: B C H W, of any content, such as one zero image.

    Returns:
        The name of the weight, and that of the bias or None, as in ``named_parameters()``.

    Raises:
        InputError: if no such layer runs.

    Examples:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 10))
        >>> last_linear_layer(model, torch.zeros(1, 3, 2, 2))
        ('3.weight', '3.bias')
    """
    with left_as_found(payload, training=False):
        layer = _run(payload, images, {})[0]
    names = {id(parameter): name for name, parameter in payload.named_parameters()}
    return names[id(layer.weight)], None if layer.bias is None else names[id(layer.bias)]


def dummy_forward(
    payload: nn.Module, images: Tensor, weight_delta: Update | None = None, num_points: int = 4
) -> DummyForward:
    """Return the last layer's features and probabilities for images that the attacker has.

    A client of FedAvg moves its softmax from step to step, and the server knows from where to
    where: with ``weight_delta`` the images run through several models on the straight line from
    the payload to what the client returned, and all their features and probabilities come back.
    That is worth it for a delta that arrives about whole; signs or a few entries of it mislead.

    Args:
        payload: B C H W -> B K logits, in the mode of the client (``client.working(payload)``); it
            is not changed.
        images: N C H W in [0, 1]: public images, or noise.
        weight_delta: w_tau - w_0 by parameter name; null: the payload alone.
        num_points: models on the line, the payload's weights included and the end left out, as
            gradients are taken before each step.

    Returns:
        N F and N K; num_points N of each with ``weight_delta``.

    Raises:
        InputError: if no last linear layer runs, or ``num_points`` is below 1.
    """
    if num_points < 1:
        raise InputError(f"dummy_forward: num_points must be at least 1, not {num_points}")
    if weight_delta is None:
        weight_delta, num_points = {}, 1
    points = []
    for point in range(num_points):
        moved = {
            name: parameter.detach() + weight_delta[name] * (point / num_points)
            for name, parameter in payload.named_parameters()
            if name in weight_delta
        }
        _, features, logits = _run(payload, images, moved)
        points.append((features, logits.softmax(dim=1)))
    return DummyForward(*(torch.cat(parts) for parts in zip(*points, strict=True)))


def class_gradient(
    weight_gradient: Tensor, bias_gradient: Tensor | None, direction: Tensor | None = None
) -> Tensor:
    """Return one number a class, about a multiple of p_c - n_c / B.

    Args:
        weight_gradient: K F.
        bias_gradient: K; where it is given it is returned as it is.
        direction: F, on which rows are projected, such as the mean feature; by default all ones.

    Returns:
        K, float64.

    Raises:
        InputError: if the shapes disagree.
    """
    if weight_gradient.ndim != 2 or len(weight_gradient) < 2:
        raise InputError(
            "label inference: the weight gradient must be classes x features, of at least two "
            f"classes; got {tuple(weight_gradient.shape)}"
        )
    if bias_gradient is None:
        rows = weight_gradient.double()
        return rows.sum(dim=1) if direction is None else rows @ direction.double()
    if bias_gradient.shape != weight_gradient.shape[:1]:
        raise InputError(
            f"label inference: a bias gradient of {tuple(bias_gradient.shape)} does not fit a "
            f"weight gradient of {tuple(weight_gradient.shape)}; pass those of one layer"
        )
    return bias_gradient.double()


def _run(
    payload: nn.Module, images: Tensor, parameters: Update
) -> tuple[nn.Linear, Tensor, Tensor]:
    """Return the last linear layer that gives the logits, what it saw, and the logits."""
    calls: list[tuple[nn.Linear, Tensor, int]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            calls.append((module, inputs[0], output.shape[-1]))

    with left_as_found(payload) as hooks, torch.no_grad():
        hooks += [
            module.register_forward_hook(record)
            for module in payload.modules()
            if isinstance(module, nn.Linear)
        ]
        logits = run_stateless(payload, parameters, images)
    fitting = [call for call in calls if call[2] == logits.shape[1] and call[1].ndim == 2]
    if not fitting:
        raise InputError(
            f"no nn.Linear of {type(payload).__name__} gives its "
            f"{logits.shape[1]} logits; use a target that ends in a linear layer, or grant labels"
        )
    layer, features, _ = fitting[-1]
    return layer, features, logits
