"""The contrast of images, where batch norm in training mode hides it.

Behind a first convolution without a bias, batch norm divides by the spread of what it sees: images
whose pixels are further from one centre by a common factor have the same features, and the same
gradient.  No attack on that update can tell the factor.  What remains is that pictures use their
range: the furthest pixel lies as far from the centre as those of public images do.
"""

import torch
from torch import Tensor, nn

from lightning_recon.functional.stateless import run_stateless, watched

_REACH = 0.999  # quantile of the distances from the centre
_SAME = 0.02  # of the logits' norm, between images of whole and of half the contrast


def hidden_centre(payload: nn.Module, images: Tensor) -> Tensor | None:
    """Return the pixel, 1 C 1 1, about which contrast has no effect; None: it has one.

    Args:
        payload: in the mode of the client; it is not changed.
        images: N C H W, natural ones, at least two.
    """
    first = next((layer for layer in payload.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or first.in_channels != images.shape[1]:
        return None
    with torch.no_grad():
        ends = []
        for level in (0.0, 1.0):
            with watched([first]) as seen:
                run_stateless(payload, {}, torch.full_like(images[:2], level))
            ends.append(seen[first][:1].mean((2, 3), keepdim=True))
        black, white = ends
        centre = -black / (white - black)  # of a normalisation: what is 0 there
        some = images[:2]
        whole, half = (
            run_stateless(payload, {}, centre + factor * (some - centre)) for factor in (1.0, 0.5)
        )
    is_hidden = bool((whole - half).norm() <= _SAME * whole.norm())
    return centre if is_hidden and bool(centre.isfinite().all()) else None


def with_usual_contrast(images: Tensor, centre: Tensor, public: Tensor) -> Tensor:
    """Return images, B C H W, whose furthest pixels lie as far from a centre as public ones."""
    reach, usual = ((x - centre).abs().flatten(1).quantile(_REACH, 1) for x in (images, public))
    return centre + usual.median() / reach.mean() * (images - centre)
