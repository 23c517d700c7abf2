"""The input of a fully connected first layer, from its gradient.

Phong, Aono, Hayashi, Wang, Moriai, "Privacy-Preserving Deep Learning via Additively Homomorphic
Encryption", IEEE TIFS 13, 2018, section III; Geiping, Bauermeister, Dröge, Moeller, "Inverting
Gradients", NeurIPS 2020, Proposition 3.1.

Behind y = W x + b the gradients are dL/dW_k = sum_i g_ik x_i and dL/db_k = sum_i g_ik over the
samples i, so a row's quotient is the image, if one sample alone reaches the row.  A common factor
cancels: a change of weights by local steps without weight decay serves as well, its learning rate
unknown.  A model may normalise the image before: what its first layer reads of black, white and one
more image tells how.

One sample: every row gives the image, and the rows are joined by least squares.  Several: behind a
ReLU some rows are reached by one sample alone.  Which ones, nobody tells the server; the public
code asks the truth or returns every row.  Here a row is believed if its image has the grey levels
of 8 bits, which a mixture has not; where noise hides the levels, all rows with a plausible image
are returned, the strongest first, the same image once.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_recon.attacks.analytic import (
    AnalyticAttack,
    Normalisation,
    probe_images,
    read_normalisation,
)
from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.targets import Target

MAX_EXCESS = 0.01  # mean square by which pixels may leave [0, 1]; noise of std .14 on black does
ON_GRID = 0.05  # mean distance from a grey level, in levels; that of any number is .25
MIN_GREY = 0.02  # share of an image's values that must be neither black nor white, to tell levels
SAME_IMAGE = 0.004  # mean square between two images below which they show the same
FAINT = 1e-6  # of the largest bias gradient: below, float32 has no digits left
MIN_EVIDENCE = 1.5  # energy that one image explains, over that of noise, on average


class FirstLinear(NamedTuple):
    """The linear layer that reads the image, as it is or normalised."""

    prefix: str
    """Of its parameters' names."""
    reads: Normalisation
    has_bias: bool = True

    def images(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return a gradient of its weights, K D, as if it read images in [0, 1].

        Args:
            weight: K D.
            bias: K, the gradient of its bias.
        """
        shift, scale = (part.flatten() for part in self.reads)
        return (weight - bias[:, None] * shift) / scale


class Candidates(NamedTuple):
    """Images that R rows may hold."""

    images: Tensor
    """R C H W, not clamped."""
    misfit: Tensor
    """R: mean distance of the pixels from the nearest of 256 grey levels, in levels."""
    rows: Tensor
    """R, int64: where they were found."""


class LinearLayerInversion(AnalyticAttack):
    """Input of a fully connected first layer, from the quotient of its gradients.

    Args:
        target: a model whose first layer is linear and has a bias.
        client: the clients' protocol; null: FedSGD.
        defenses: the clients' defenses, in order.
        seed: of all randomness.
    """

    threat_model = "an honest server sees one update of the client and knows the batch size"
    oracles = ("num_samples",)
    citation = "Phong et al., IEEE TIFS 13, 2018; Geiping et al., NeurIPS 2020, Proposition 3.1"

    def server_payload(self, model: Target) -> Target:
        """Return the model as it is.

        Raises:
            InputError: if it has no linear layer with a bias that reads the image.
        """
        first_linear(model, self.known_shape)
        return model

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Return the quotients that one sample alone accounts for."""
        first = first_linear(observation.payload, self.known_shape)
        bias = observation.update[f"{first.prefix}bias"]
        weight = first.images(observation.update[f"{first.prefix}weight"], bias)
        if observation.num_samples == 1:
            weight, bias = join_rows(weight, bias)
        found = read_candidates(weight, bias, self.known_shape)
        return as_reconstruction(found, choose_rows(found, bias, observation.num_samples))


def first_linear(
    model: nn.Module, image_shape: tuple[int, int, int], *, needs_bias: bool = True
) -> FirstLinear:
    """Return the linear layer that reads the flat image, which may be normalised before.

    Args:
        model: the payload.
        image_shape: C, H, W.
        needs_bias: whether a layer without a bias is refused, whatever it reads; if not, it may
            read the image multiplied, but not shifted.

    Raises:
        InputError: if there is none, or it has no bias.
    """
    probes = probe_images(model, image_shape)
    found: list[FirstLinear] = []
    without_bias: list[str] = []

    def look(name: str, layer: nn.Linear, seen: Tensor) -> None:
        if (reads := read_normalisation(seen, probes)) is None:
            return
        has_bias = layer.bias is not None
        if not has_bias and (needs_bias or bool(reads.shift.any())):
            without_bias.append(name)
        else:
            found.append(FirstLinear(f"{name}." if name else "", reads, has_bias))

    with left_as_found(model, training=False, keeps_buffers=True) as hooks, torch.no_grad():
        hooks += [
            layer.register_forward_pre_hook(lambda layer, x, name=name: look(name, layer, x[0]))
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear)
        ]
        model(probes)
    if not found:
        which = f": {without_bias[0]} has none" if without_bias else ""
        raise InputError(
            f"no linear layer with a bias reads the image in {type(model).__name__}{which}; choose "
            "a target that begins with one, such as MLP"
        )
    return found[0]


def join_rows(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Join the rows of one sample: the least squares of W = b x^T, as a single row.

    Args:
        weight: K D.
        bias: K.

    Returns:
        Weight, 1 D, and bias, 1; no rows if noise explains the weights as well.
    """
    joined, energy = bias.double() @ weight.double(), bias.double().square().sum()
    explained = joined.square().sum() / energy.clamp_min(1e-300)
    left = (weight.double().square().sum() - explained).clamp_min(0) / max(len(bias) - 1, 1)
    if (len(bias) > 1 and explained <= MIN_EVIDENCE * left) or energy == 0:
        return weight[:0], bias[:0]
    return joined[None].to(weight), energy[None].to(bias)


def read_candidates(weight: Tensor, bias: Tensor, image_shape: tuple[int, int, int]) -> Candidates:
    """Divide weight by bias gradients, and keep what can be an image.

    Args:
        weight: K D, gradients of the rows' weights.
        bias: K, gradients of their biases.
        image_shape: C, H, W with C H W = D.
    """
    size = bias.abs()
    rows = (size > FAINT * size.max()).nonzero()[:, 0] if len(size) else size.long()
    images = weight[rows] / bias[rows, None]
    excess = (images - images.clamp(0, 1)).square().mean(1)
    kept = excess <= MAX_EXCESS
    images = images[kept]
    return Candidates(images.view(-1, *image_shape), grid_misfit(images), rows[kept])


def grid_misfit(images: Tensor) -> Tensor:
    """Return the mean distance of pixels from the nearest of 256 grey levels, R, in levels.

    Black and white pixels tell nothing; of images that hold little else, the distance is taken for
    that of any number, .25.

    Args:
        images: R D.
    """
    levels = 255 * images
    tells = (levels > 0.5) & (levels < 254.5)
    distance = ((levels - levels.round()).abs() * tells).sum(1) / tells.sum(1).clamp_min(1)
    return distance.where(tells.sum(1) > MIN_GREY * images.shape[1], 0.25)


def choose_rows(
    found: Candidates, bias: Tensor, num_samples: int | None, *, all_rows: bool = False
) -> list[int]:
    """Return the places of the most credible candidates, best first, each image once.

    Args:
        found: the candidates.
        bias: K, gradients of the rows' biases: the larger, the less noise.
        num_samples: the largest number of images; null: no limit.
        all_rows: whether mixtures, where they show as such, are returned after the others.
    """
    on_grid = found.misfit <= ON_GRID
    if on_grid.any():
        order = found.misfit.argsort(stable=True)
        order = order if all_rows else order[: int(on_grid.sum())]
    else:
        order = bias[found.rows].abs().argsort(descending=True, stable=True)
    chosen: list[int] = []
    for place in order.tolist():
        if len(chosen) == num_samples:
            break
        difference = found.images[chosen] - found.images[place]
        if not (difference.square().mean((1, 2, 3)) < SAME_IMAGE).any():
            chosen.append(place)
    return chosen


def as_reconstruction(found: Candidates, chosen: list[int]) -> Reconstruction:
    """Return the chosen candidates; a row's score is its distance from the grey levels."""
    return Reconstruction(
        images=found.images[chosen].clamp(0, 1),
        labels=None,
        score=found.misfit[chosen],
        notes={
            "rows_plausible": len(found.rows),
            "rows_on_grid": int((found.misfit <= ON_GRID).sum()),
        },
    )
