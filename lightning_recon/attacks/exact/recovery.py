"""From an observation to images with marks: what the attacks on one core have in common."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from lightning_recon.attacks.exact.certificate import read_spans
from lightning_recon.attacks.exact.peeling import LIKELY, Found, Peeling, join
from lightning_recon.attacks.exact.scales import read_rows, row_sizes
from lightning_recon.attacks.exact.slopes import SlopeModel
from lightning_recon.attacks.linear_layer import (
    ON_GRID,
    SAME_IMAGE,
    FirstLinear,
    choose_rows,
    first_linear,
)
from lightning_recon.errors import InputError
from lightning_recon.observation import Mark, Observation, Reconstruction
from lightning_recon.randomness import make_generator
from lightning_recon.updates import Columns


def check_alone(model: nn.Module, mode: str, name: str) -> None:
    """Make sure that what a sample adds to the gradient does not depend on the others.

    Args:
        model: the payload.
        mode: in which clients compute, ``train`` or ``eval``.
        name: of the attack, for the message.

    Raises:
        InputError: if it does, or depends on chance.
    """
    if mode != "train":
        return
    for module in model.modules():
        is_random = isinstance(module, _DropoutNd) and module.p > 0
        if isinstance(module, _BatchNorm) or is_random:
            reason = (
                "what dropout drops is not known" if is_random
                else "batch norm in train mode mixes the samples of a batch"
            )  # fmt: skip
            raise InputError(
                f"{name}: {reason}, so that no sample's slopes can be computed; set the client's "
                "mode to eval, or take LinearLayerInversion, which certifies nothing"
            )


def recover(
    observation: Observation,
    image_shape: tuple[int, int, int],
    name: str,
    *,
    snap: bool = True,
    sparsity: bool = True,
    columns: Columns | None = None,
    independence: bool = True,
) -> Reconstruction:
    """Return the images of a client, each with its mark and p-value, the surest first.

    Args:
        observation: with ``client`` granted for label smoothing; else none is assumed.
        image_shape: C, H, W.
        name: of the attack, for messages.
        snap: whether pixels near 8-bit levels are set to them.
        sparsity: whether candidates of :mod:`.gates` or :mod:`.sparsity`, or a table's categories,
            are tried where rows show no new ones.
        independence: whether independent components are looked for: they are guesses, and where
            gates begin to look.
        columns: of the table whose rows the samples are; null: they are pictures.

    Raises:
        InputError: if the payload has no such layer, or the batch is larger than its rank allows.
    """
    first = first_linear(observation.payload, image_shape, needs_bias=False)
    gradient = as_gradient(first, observation)
    most, (height, width) = observation.num_samples, gradient.shape
    if most is not None and most >= min(height, width):
        raise InputError(
            f"{name}: {most} samples are too many for the first layer's gradient of {height} x "
            f"{width}: its rank tells samples from mixtures only below {min(height, width)}; take "
            "smaller batches or a wider layer, or LinearLayerInversion, which certifies nothing"
        )
    empty = gradient.new_zeros(0, *image_shape)
    if not gradient.any():
        return Reconstruction(empty, empty[:, 0, 0, 0].long(), empty[:, 0, 0, 0], {}, marks=())
    generator = make_generator(observation.seed, "exact")
    smoothing = observation.client.label_smoothing if observation.client else 0.0
    with torch.autocast(gradient.device.type, enabled=False), torch.no_grad():
        model = SlopeModel(observation.payload, first, image_shape, smoothing, columns)
        spans = read_spans(gradient, most, generator)
        search = Peeling(
            gradient,
            spans,
            model,
            image_shape,
            generator,
            num_samples=most,
            snap=snap and columns is None,
            sparsity=sparsity,
            independence=independence and columns is None,
        )
        return as_marked(search, search.run(), most)


def as_gradient(first: FirstLinear, observation: Observation) -> Tensor:
    """Return the gradient of the first layer's weights and bias, K (D + 1), float64.

    It is as if the layer read images in [0, 1]; without a bias the last column is 0.  A change of
    weights is turned around.
    """
    sign = 1 if observation.protocol == "fedsgd" else -1
    weight = sign * observation.update[f"{first.prefix}weight"].double()
    if not first.has_bias:
        weight = first.images(weight, weight.new_zeros(len(weight)))
        return torch.cat([weight, weight.new_zeros(len(weight), 1)], 1)
    bias = sign * observation.update[f"{first.prefix}bias"].double()
    weight = first.images(weight, bias)
    return torch.cat([weight, bias[:, None]], 1)


def as_marked(search: Peeling, found: Found, most: int | None) -> Reconstruction:
    """Return what a search found: the certified, then the likely, then guesses.

    These are rows on the 8-bit levels, then independent components, then other rows.

    Args:
        search: that is over.
        found: by it.
        most: images that are returned; null: no limit.
    """
    shown = read_rows(search.left, search.image_shape)
    chosen = choose_rows(shown, row_sizes(search.left), most)
    guesses = shown.images[chosen].flatten(1).clamp(0, 1)
    if search.independence and search.num_left != 0:
        mixed = shown.misfit[chosen] > ON_GRID
        guesses = torch.cat([guesses[~mixed], search.independent(), guesses[mixed]])
    rest = search.judge(guesses)
    rest = rest._replace(is_certified=torch.zeros_like(rest.is_certified))
    # candidates on the levels are no mixtures
    images, tested, p_value, certified = join([found, rest] if search.is_snapped else [rest, found])
    p_value = p_value.where(p_value <= LIKELY, 1.0)
    order = (p_value + 2.0 * ~certified).argsort(stable=True)
    kept: list[int] = []
    for place in order.tolist():
        if len(kept) == most:
            break
        is_new = (images[kept] - images[place]).square().mean(1) >= SAME_IMAGE
        if certified[place] or is_new.all():
            kept.append(place)
    marks = tuple(
        Mark.CERTIFIED if certified[place]
        else Mark.LIKELY if p_value[place] <= LIKELY
        else Mark.GUESS
        for place in kept
    )  # fmt: skip
    return Reconstruction(
        images=images[kept].view(-1, *search.image_shape),
        labels=tested.label[kept],
        score=tested.statistic[kept],
        notes={
            "certified": marks.count(Mark.CERTIFIED),
            "likely": marks.count(Mark.LIKELY),
            "rank": search.rank,
            "noise_std": search.spans.noise_std,
            "candidates_tried": search.num_tried,
            "rounds": search.num_rounds,
        },
        marks=marks,
        p_values=p_value[kept],
    )
