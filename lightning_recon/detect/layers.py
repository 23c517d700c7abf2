"""A payload as rows: what its tensors are, whatever they are called."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MAX_ROWS = 256
"""Of a matrix that are looked at, evenly spaced."""
MAX_COLUMNS = 2048
"""Likewise; what needs whole rows takes :data:`NUM_WHOLE` of them."""
NUM_WHOLE = 16
_MIN_ROWS = 2


class Layer(NamedTuple):
    """A weight of K rows and D columns, of which R rows and E columns are looked at."""

    name: str
    """For people alone."""
    num_rows: int
    """K."""
    num_columns: int
    """D."""
    rows: Tensor
    """R E, float32, finite."""
    whole: Tensor
    """At most :data:`NUM_WHOLE` D, float32, finite."""
    totals: Tensor
    """R 3, float64: of all D numbers of each row their sum, and that of sizes and of squares."""
    bias: Tensor | None
    """R, float32, finite; None: there is none."""
    is_finite: bool
    """Whether all that was looked at is."""
    is_flat: bool
    """Whether the weight has two dimensions, as that of a linear layer."""
    is_known: bool | None
    """Whether it belongs to a layer of ``torch.nn``; None: tensors alone do not tell."""
    is_last: bool = False
    """Whether no other weight follows in the order of the parameters of known layers."""


def layers_of(payload: nn.Module | Mapping[str, Tensor]) -> list[Layer]:
    """Return the weights of a payload, in the order in which it holds them.

    Args:
        payload: a model, or its ``state_dict`` in the model's order.
    """
    found = list(_of_tensors(payload) if isinstance(payload, Mapping) else _of_module(payload))
    last = max((place for place, one in enumerate(found) if one.is_known is not False), default=-1)
    return [one._replace(is_last=place == last) for place, one in enumerate(found)]


def _of_module(model: nn.Module) -> Iterator[Layer]:
    """Yield the weights that the modules of a model own, each with the bias beside it."""
    for prefix, module in model.named_modules():
        own = {name: part for name, part in module._parameters.items() if part is not None}
        vectors = [part for part in own.values() if part.ndim == 1]
        for name, part in own.items():
            bias = next((one for one in vectors if len(one) == part.shape[:1].numel()), None)
            is_known = type(module).__module__.startswith("torch.nn")
            yield from _layer(f"{prefix}.{name}".lstrip("."), part, bias, is_known)


def _of_tensors(tensors: Mapping[str, Tensor]) -> Iterator[Layer]:
    """Yield the weights among tensors.

    Norms have two vectors, or four with their buffers; so the first vector behind a weight is its
    bias where their number is odd.  Where biases come before their weights, as pruning leaves them,
    it is a norm's scale, which is positive, and the last one belongs to the next weight.
    """
    entries = [(name, part) for name, part in tensors.items() if part.is_floating_point()]
    for place, (name, weight) in enumerate(entries):
        vectors = []
        for _, part in entries[place + 1 :]:
            if part.ndim != 1 or part.shape != weight.shape[:1]:
                break
            vectors.append(part)
        is_scale = len(vectors) > 1 and bool((vectors[0] > 0).all())
        bias = vectors[0] if len(vectors) % 2 and not is_scale else None
        yield from _layer(name, weight, bias, None)


def _layer(
    name: str, weight: Tensor, bias: Tensor | None, is_known: bool | None
) -> Iterator[Layer]:
    """Yield a weight if it has rows to be looked at."""
    is_matrix = weight.ndim >= 2 and len(weight) >= _MIN_ROWS and weight.numel() > 0
    if not is_matrix or not weight.is_floating_point():
        return
    weight = weight.detach()
    flat = weight.reshape(len(weight), -1) if weight.is_contiguous() else weight.flatten(1)
    places = _evenly(len(flat), MAX_ROWS).to(flat.device)
    columns = _evenly(flat.shape[1], MAX_COLUMNS).to(flat.device)
    looked_at, is_finite = _plain(flat[places])
    rows, whole = looked_at[:, columns.cpu()], looked_at[_evenly(len(places), NUM_WHOLE)]
    sums = (looked_at, looked_at.abs(), looked_at.square())
    totals = torch.stack([part.sum(1, dtype=torch.float64) for part in sums], dim=1)
    offsets = None
    if bias is not None:
        offsets, bias_is_finite = _plain(bias.detach()[places])
        is_finite &= bias_is_finite
    yield Layer(
        *(name, len(flat), flat.shape[1], rows, whole, totals, offsets, is_finite),
        is_flat=weight.ndim == 2,
        is_known=is_known,
    )


def _evenly(length: int, most: int) -> Tensor:
    """Return at most so many places below a length, the first and the last among them."""
    if length <= most:
        return torch.arange(length)
    return torch.linspace(0, length - 1, most, dtype=torch.float64).round().long()


def _plain(part: Tensor) -> tuple[Tensor, bool]:
    """Return numbers in float32 on the CPU, and whether all are finite; others become 0."""
    found = part.to("cpu", torch.float32)
    is_finite = bool(found.isfinite().all())
    return (found if is_finite else found.nan_to_num(0, 0, 0)), is_finite


def floats_of(model: nn.Module) -> Iterator[tuple[str, float]]:
    """Yield the numbers that modules outside ``torch.nn`` keep as plain attributes: their gains."""
    for prefix, module in model.named_modules():
        if type(module).__module__.startswith(("torch.", "torchvision.ops")):
            continue
        values: dict[str, Any] = vars(module)
        for name, value in values.items():
            if isinstance(value, float):
                yield f"{prefix}.{name}".lstrip("."), value
