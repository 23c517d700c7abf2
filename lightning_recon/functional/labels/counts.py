"""How often each label occurs in a client's batch: integers that explain the mean residuals.

See :mod:`lightning_recon.functional.labels.inference` for the notation and the conventions.
"""

import itertools
import math

import torch
from torch import Tensor

from lightning_recon.errors import InputError
from lightning_recon.functional.labels.last_layer import DummyForward, class_gradient

_NUM_SCALES = 256
_MAX_NUMBERS = 2**24  # of the exhaustive search, held at once (128 MB)
_TINY = 1e-300
_USUAL_SPREAD = 0.1  # of the size of photographs' features, relative


def residual_counts(
    weight_gradient: Tensor,
    bias_gradient: Tensor | None,
    num_samples: int,
    *,
    dummies: DummyForward | None = None,
    scale: float | None = None,
) -> Tensor:
    """Return the labels whose counts explain the mean residuals best, repeated ones included.

    From g_c = a (p_c - n_c / B) follow the counts n_c = B (p_c - g_c / a), of which the nearest
    integers of sum B are taken.  Where a is unknown, every scale is tried, and the counts of the
    largest cosine between g and p - n / B win: no local step, clip or missing bias needs a case of
    its own.  p is uniform, or the mean softmax of the dummies.  Ours.

    g is the bias gradient, or the sum of each row (the projection on the dummies' mean feature, if
    that has negative entries), whichever is expected to be nearer to the truth.  Sums over the
    classes are 0 unless a defense rounded, dropped or perturbed entries, and tell by how much; rows
    spread as the dummies' features do in size.  Where the rows hold signs alone, g is the number of
    negative entries, and p is 0.  While g sums to 0, or no more classes than samples are negative
    of even more classes, each class of negative gradient is taken at least once.

    Args and Returns as of :func:`~lightning_recon.functional.labels.inference.infer_labels`.

    Raises:
        InputError: if shapes disagree, or ``scale`` or ``num_samples`` is out of range.

    Examples:
        >>> import torch
        >>> features = torch.tensor([1.0, 2.0, 0.5])  # no bias; uniform softmax, labels 0 0 0 2
        >>> residuals = torch.full((5,), 0.2) - torch.tensor([0.75, 0.0, 0.25, 0.0, 0.0])
        >>> residual_counts(residuals[:, None] * features, None, 4)
        tensor([0, 0, 0, 2])
    """
    gradient, probabilities, scale = _evidence(
        weight_gradient, bias_gradient, num_samples, dummies, scale
    )
    negative = gradient < 0
    is_exact = bool(gradient.sum().abs() <= 1e-3 * gradient.abs().sum())
    is_plausible = int(negative.sum()) <= num_samples < len(gradient)
    if scale is None:
        # the class of the most negative gradient has 1 to B samples
        steps = torch.linspace(-0.5, 1.5, _NUM_SCALES, dtype=torch.float64, device=gradient.device)
        scales = (-gradient.min()).clamp(min=_TINY) * max(num_samples, 2) ** steps
    else:
        scales = gradient.new_tensor([scale])
    counts = nearest_counts(
        num_samples * (probabilities - gradient / scales[:, None]),
        num_samples,
        negative if is_exact or is_plausible else None,
    )
    best = _misfit(gradient, probabilities - counts / num_samples, scale).argmin()
    return as_labels(counts[best])


def exhaustive(
    weight_gradient: Tensor,
    bias_gradient: Tensor | None,
    num_samples: int,
    dummies: DummyForward,
    *,
    scale: float | None = None,
) -> Tensor:
    """Return the best of ALL sets of labels, for a tiny batch and few classes.

    The layer's gradient expected for counts n is the outer product of p - n / B and the dummies'
    mean feature; the counts of the largest cosine with the observed one are taken, or with a known
    scale those of the least distance.  This is the optimum for which :func:`residual_counts`
    searches, on the same evidence.

    Args and Returns as of :func:`~lightning_recon.functional.labels.inference.infer_labels`.

    Raises:
        InputError: if there are too many sets of labels to try.

    Examples:
        >>> import torch
        >>> dummies = DummyForward(torch.ones(1, 2), torch.tensor([[0.5, 0.3, 0.2]]))
        >>> residuals = torch.tensor([0.5, -0.2, -0.3])
        >>> exhaustive(residuals[:, None] * torch.ones(3, 2), residuals, 2, dummies)
        tensor([1, 2])
    """
    gradient, probabilities, scale = _evidence(
        weight_gradient, bias_gradient, num_samples, dummies, scale
    )
    num_classes = len(gradient)
    num_sets = math.comb(num_classes + num_samples - 1, num_samples)
    if num_sets * num_classes > _MAX_NUMBERS:
        raise InputError(
            f"exhaustive would try {num_sets} sets of {num_samples} labels of {num_classes} "
            "classes; choose residual_counts, or fewer samples"
        )
    sets = itertools.combinations_with_replacement(range(num_classes), num_samples)
    labels = torch.tensor(list(sets), device=gradient.device)
    counts = torch.zeros(num_sets, num_classes, dtype=torch.float64, device=gradient.device)
    counts.scatter_add_(1, labels, torch.ones_like(labels, dtype=torch.float64))
    return labels[_misfit(gradient, probabilities - counts / num_samples, scale).argmin()]


def _evidence(
    weight_gradient: Tensor,
    bias_gradient: Tensor | None,
    num_samples: int,
    dummies: DummyForward | None,
    scale: float | None,
) -> tuple[Tensor, Tensor, float | None]:
    """Return the class gradient to trust, the mean softmax, and the former's scale if known."""
    check_num_samples(num_samples)
    if scale is not None and not 0 < scale < math.inf:
        raise InputError(f"label inference: scale must be a number above 0, not {scale}")
    gradient = class_gradient(weight_gradient, bias_gradient)
    num_classes = len(gradient)
    probabilities = torch.full_like(gradient, 1 / num_classes)
    direction, size, spread = None, None, _USUAL_SPREAD
    if dummies is not None:
        check_dummies(dummies, weight_gradient)
        probabilities = dummies.probabilities.double().mean(dim=0)
        features = dummies.features.double()
        direction = features.mean(dim=0) if bool((features < 0).any()) else None
        sizes = features.sum(dim=1) if direction is None else features @ direction
        size = float(sizes.mean())
        spread = float(sizes.std(correction=0)) / max(abs(size), _TINY)
    if bias_gradient is not None:
        unit = (scale or float(gradient.abs().sum() / 2)) / num_samples  # of one sample
        error = _rounding_error(weight_gradient.double(), gradient)
        if error <= unit * spread * max(num_samples / num_classes, 1) ** 0.5:
            return gradient, probabilities, scale
    signs = _from_signs(weight_gradient)
    if signs is not None:
        if 2 * num_samples < num_classes:  # the median class is absent: what it has is an error
            signs = (signs - signs.median()).clamp(max=0)
        return signs, torch.zeros_like(probabilities), None
    if num_samples < num_classes or scale is None or size is None or size <= 0:
        scale = None  # classes that must be absent tell it better
    else:
        scale = scale * size
    return class_gradient(weight_gradient, None, direction), probabilities, scale


def _rounding_error(weight_gradient: Tensor, bias_gradient: Tensor) -> float:
    """Return the standard error of a bias gradient's entries; 0 but for a defense.

    Over the classes a softmax's residuals sum to 0, in the bias and in every column of the weight;
    errors of a quantiser go with the largest entry of a tensor.
    """
    num_classes = len(bias_gradient)
    columns = float(weight_gradient.sum(dim=0).square().mean().sqrt())
    columns *= float(bias_gradient.abs().max() / weight_gradient.abs().max().clamp(min=_TINY))
    return max(columns, float(bias_gradient.sum().abs())) / math.sqrt(num_classes)


def _from_signs(weight_gradient: Tensor) -> Tensor | None:
    """Return the sum of each row's negative entries if a weight gradient holds signs alone.

    Every column of a gradient sums to 0: one of a single sign was 0 before it was made a sign.
    """
    size = weight_gradient.abs()
    if bool((size[size > 0] < 0.999 * size.max()).any()):
        return None
    negative = weight_gradient < 0
    informs = negative.any(dim=0) & (weight_gradient > 0).any(dim=0)
    return -(negative & informs).sum(dim=1).double()


def _misfit(gradient: Tensor, expected: Tensor, scale: float | None) -> Tensor:
    """Return how badly each of S K expected gradients explains the K observed numbers."""
    if scale is None:
        return -torch.nn.functional.cosine_similarity(gradient, expected, dim=1, eps=_TINY)
    return (gradient - scale * expected).square().sum(dim=1)


def nearest_counts(demands: Tensor, num_samples: int, present: Tensor | None) -> Tensor:
    """Return the counts nearest to each of S demands: integers of at least 0 and of sum B.

    One sample after the other goes to the class that lacks most; the squared distance is a sum of
    convex functions of one count each, so that this minimises it exactly.  The classes that are
    ``present`` have one each before (those of largest demand, where there are more than B).

    Args:
        demands: S K.
        num_samples: B.
        present: K, bool, or None.

    Returns:
        S K, whole numbers.

    Examples:
        >>> import torch
        >>> nearest_counts(torch.tensor([[2.4, 1.4, -0.8]]), 3, None)
        tensor([[2., 1., 0.]])
    """
    counts = torch.zeros_like(demands)
    num_certain = 0
    if present is not None:
        num_certain = min(int(present.sum()), num_samples)
        certain = demands.where(present, -torch.inf).topk(num_certain, dim=1).indices
        counts.scatter_(1, certain, 1.0)
    for _ in range(num_samples - num_certain):
        lacking = (demands - counts).argmax(dim=1, keepdim=True)
        counts.scatter_add_(1, lacking, torch.ones_like(lacking, dtype=counts.dtype))
    return counts


def as_labels(counts: Tensor) -> Tensor:
    """Return each class as often as its count says: K counts -> labels, ascending."""
    classes = torch.arange(len(counts), device=counts.device)
    return classes.repeat_interleave(counts.long())


def check_num_samples(num_samples: int) -> None:
    """Raise an InputError unless there is a sample."""
    if num_samples < 1:
        raise InputError(
            f"label inference: num_samples must be at least 1, not {num_samples}; it is the size "
            "of the batch behind the update"
        )


def check_dummies(dummies: DummyForward, weight_gradient: Tensor) -> None:
    """Raise an InputError unless the dummies passed the layer of this gradient."""
    num_images, num_features = dummies.features.shape
    found = (dummies.probabilities.shape[1], num_features)
    if found != tuple(weight_gradient.shape) or num_images == 0:
        raise InputError(
            f"label inference: dummies of {num_images} images, (classes, features) {found}, do not "
            f"fit a weight gradient of {tuple(weight_gradient.shape)}; pass "
            "dummy_forward(payload, images) of the same payload"
        )
