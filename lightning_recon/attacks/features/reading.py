"""What the gradients of the linear layers tell of the features of every sample."""

import math
from operator import mul
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.attacks.features.linear_layers import Reading, least_squares, read_entries
from lightning_recon.attacks.features.linear_stack import (
    LinearStack,
    Moments,
    Solved,
    find_stack,
    run_all_features,
    solve_stack,
)
from lightning_recon.attacks.matching.evidence import Evidence
from lightning_recon.clients.base import plain
from lightning_recon.updates import Update

_SCALE = 2.0  # a size that public features and found ones may differ by
_LOST = 1e-6  # such a small size, or one below 0, is that of noise
_NUM_PLAYED = 3  # times that a client's local steps are played
_OUTPUT = "added to the output"  # among the parameters that a client trains


class Sight(NamedTuple):
    """What the gradients of the linear layers tell of a client's features."""

    payload: nn.Module
    stack: LinearStack
    moved: Update
    """The parameters at which the gradients were taken, where they are not the payload's own."""
    parameters: Update
    """All of them."""
    gradients: list[Tensor]
    """Of each layer's weights, K N, of the size that the public features tell."""
    readings: list[Reading]
    labels: Tensor
    moments: list[Moments]
    """Of what each layer usually sees."""
    seen: Tensor
    """N F, the features of public images."""
    solved: Solved

    def features_of(self, images: Tensor) -> Tensor:
        """Return what the first layer sees of images, N F."""
        return run_all_features(self.payload, self.stack, images, self.moved)


def read_features(update: Evidence, public: Tensor, *, is_adaptive: bool) -> Sight:
    """Solve the linear layers' gradients for the features of every sample.

    Args:
        update: what was observed, in the mode of the client.
        public: N C H W, images that belong to no client.
        is_adaptive: whether the obfuscation is told from the entries; else all count as exact.
    """
    payload, labels = update.payload, update.labels
    stack = find_stack(payload, public[:2])
    scale = -1.0 if update.scale is None else update.scale
    scale /= update.client.num_gradients(len(labels))
    gradients = [update.observed[name] * scale for name in stack.weights]
    readings = [
        read_entries(gradient) if is_adaptive else Reading("exact", 0.0) for gradient in gradients
    ]
    is_exact = readings[0].kind == "exact"
    moved = half_way(update) if is_exact else {}
    parameters: Update = dict(payload.named_parameters()) | moved
    if is_exact and (decay := update.client.weight_decay):
        gradients = [
            gradient - decay * parameters[name]
            for name, gradient in zip(stack.weights, gradients, strict=True)
        ]
    seen = run_all_features(payload, stack, public, moved)
    inputs, outputs = stack.forward(parameters, seen)
    moments = [_moments(seen, stack.map_shape)]
    moments += [_moments(hidden, (hidden.shape[1], 1, 1)) for hidden in inputs[1:]]
    usual = outputs[-1].softmax(1).mean(0)

    def solve() -> Solved:
        return solve_stack(stack, parameters, gradients, readings, labels, moments, usual)

    solved = solve()
    factor = float(solved.features.mean() / moments[0][0].mean())
    if factor > _LOST and (update.scale is None or not 1 / _SCALE < factor < _SCALE):
        # the update has another size than the gradient: clipped, or of an unknown rate
        gradients = [gradient / factor for gradient in gradients]
        readings = [Reading(kind, size / factor) for kind, size in readings]
        solved = solve()
    if moved:
        solved = _through_local_steps(update, stack, gradients[0], solved)
    return Sight(
        payload, stack, moved, parameters, gradients, readings, labels, moments, seen, solved
    )


def half_way(update: Evidence) -> Update:
    """Return the mean weights at which the client took its gradients; none where it took one.

    On the straight line to where it ended: half-way after many steps, nearer to the start with
    momentum, under which the first gradients count more than the last.
    """
    counts = update.client.gradient_weights(len(update.labels))
    # a step's own gradient counts as often as there are steps left for it: k steps have moved the
    # weights by the counts of the last k
    moved = [sum(counts[len(counts) - step :]) for step in range(len(counts))]
    share = sum(map(mul, counts, moved)) / sum(counts) ** 2
    parameters = update.payload.named_parameters()
    return {name: tensor + share * update.observed[name] for name, tensor in parameters if share}


def _through_local_steps(
    update: Evidence, stack: LinearStack, gradient: Tensor, solved: Solved
) -> Solved:
    """Return what was solved, with the residuals' mean over the client's local steps.

    Their ReLUs open and close as the weights move.  The client's steps are played on the features
    found so far, and the features solved again.  What is added to a sample's output, a number that
    stays 0, has the residuals as its gradient: its update is their sum over the steps, in the very
    proportions in which the client's protocol adds up gradients.
    """
    client, labels = update.client, update.labels
    parameters: Update = dict(update.payload.named_parameters())
    start = {name: parameters[name] for name in (*stack.weights, *stack.biases) if name is not None}
    start[_OUTPUT] = torch.zeros_like(solved.residuals)
    scale = client.gradient_scale / client.num_gradients(len(labels))

    def loss(parameters: Update, samples: Tensor, labels: Tensor) -> Tensor:
        added = parameters[_OUTPUT][samples]
        logits = stack.forward(parameters, features[samples], added - added.detach())[1][-1]
        return F.cross_entropy(logits, labels)

    features, residuals = solved.features, solved.residuals
    samples = torch.arange(len(labels), device=labels.device)
    for _ in range(_NUM_PLAYED):
        with torch.enable_grad():
            played = client.local_update(loss, start, samples, labels, gradient=plain)
        residuals = scale * played[_OUTPUT]
        features = least_squares(residuals, gradient)
    return Solved(features, residuals, Reading("exact", 0.0))


def _moments(seen: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return the mean and variance of every feature, those of a channel pooled, N each."""
    maps = seen.view(-1, *shape)
    variance, mean = torch.var_mean(maps, dim=(0, 2, 3))
    variance = variance + 1e-3 * variance.mean() + torch.finfo(seen.dtype).tiny
    places = math.prod(shape[1:])
    return mean.repeat_interleave(places), variance.repeat_interleave(places)
