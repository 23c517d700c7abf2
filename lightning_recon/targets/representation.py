"""What targets share that change another one's representation: the input of its last layer."""

import copy

from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.targets.base import Target


def split_classifier(target: Target, wrapper: str) -> tuple[Target, nn.Linear]:
    """Return a copy of a target without its last linear layer, and a copy of that layer.

    Args:
        target: one whose logits are what its last linear layer puts out; left as it is.
        wrapper: name of what changes the representation, for the message.

    Returns:
        Images B C H W -> representation B D, and D -> logits.

    Raises:
        InputError: if the target has no linear layer.
    """
    body = copy.deepcopy(target)
    layers = [(name, m) for name, m in body.named_modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise InputError(
            f"{wrapper}: the target {target.name} has no linear layer whose input could "
            "be changed; choose a target that ends in one"
        )
    name, classifier = layers[-1]
    body.set_submodule(name, nn.Identity())
    return body, classifier


def represent(body: Target, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a target without its classifier puts out, B D, and its penalty (0: none)."""
    if body.has_penalty:
        representation, penalty = body(images, with_penalty=True)
        return representation, penalty
    return body(images), images.new_zeros(())
