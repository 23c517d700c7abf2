"""Whether the mode of a model's layers changes the gradient that a client computes."""

from collections.abc import Mapping

import torch
from torch import nn

from lightning_recon.clients.base import Client, plain, randomness
from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.updates import Update

_SAME = 1e-3
"""Relative difference of two gradients, below which they are the same."""


def modes_of(model: nn.Module) -> dict[str, bool]:
    """Return for each layer by name whether it is in training mode."""
    return {name: layer.training for name, layer in model.named_modules()}


def mode_matters(
    model: nn.Module, client: Client, modes: Mapping[str, bool], image_shape: tuple[int, int, int]
) -> bool:
    """Return whether a client's gradient is another one where the layers are in these modes.

    Told by the gradients of two images of noise, and not by the layers' classes: a ``forward``
    may ask for its mode as well.

    Args:
        model: with the weights; it stays as it is.
        client: that computes the gradient in its own mode.
        modes: for each layer by name whether it is in training mode.
        image_shape: C, H, W.
    """
    try:
        theirs, ours = (
            _gradient(model, client, some, image_shape)
            for some in (modes, dict.fromkeys(modes, client.mode == "train"))
        )
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return True  # it does not run in one of them, as one that gives a tuple in training
    size = sum(float(part.norm()) for part in ours.values())
    return sum(float((theirs[name] - ours[name]).norm()) for name in ours) > _SAME * size


def check_mode(
    model: nn.Module,
    client: Client,
    modes: Mapping[str, bool],
    image_shape: tuple[int, int, int],
) -> None:
    """Make sure that a client simulates the mode in which a model was handed over.

    Args:
        model: with the weights.
        client: that is simulated.
        modes: of the layers as they were handed over, by name.
        image_shape: C, H, W.

    Raises:
        InputError: if it simulates another one, and that makes another gradient.
    """
    others = [name for name, mode in modes.items() if mode != (client.mode == "train")]
    if not others or not mode_matters(model, client, modes, image_shape):
        return
    kind = type(client).__name__
    arguments = "" if client.protocol == "fedsgd" else "..., "
    other = "eval" if client.mode == "train" else "train"
    if len(others) < len(modes):
        raise InputError(
            f"some layers of the model are in {other} mode, such as {others[-1] or 'the whole'}, "
            f"but {kind} simulates a client whose layers are all in {client.mode} mode, and its "
            "gradient is another one (batch norm, dropout); bring the whole model to the mode in "
            "which the update was computed, by model.train() or model.eval(), and set the "
            "client's mode to the same"
        )
    raise InputError(
        f"the model is in {other} mode, but {kind} simulates a client in {client.mode} mode, whose "
        "gradient is another one (batch norm, dropout); if the update was computed in "
        f'{other} mode, set client={kind}({arguments}mode="{other}"), else call '
        f"model.{client.mode}() first"
    )


def _gradient(
    model: nn.Module, client: Client, modes: Mapping[str, bool], image_shape: tuple[int, int, int]
) -> Update:
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    like = next(iter(parameters.values()))
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(like)
    labels = torch.arange(2, device=like.device)
    with left_as_found(model), torch.enable_grad(), randomness(0, like.device):
        for name, layer in model.named_modules():
            layer.training = modes[name]
        return plain(client.loss_of(model), parameters, images, labels)
