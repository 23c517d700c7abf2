"""Labels of a client's batch, inferred from the gradient of the last linear layer.

The layer maps features h (F numbers) to K logits.  Under the mean cross-entropy of B samples its
gradient is that of the residuals: with p_i the softmax of sample i and n_c samples of class c,

    bias gradient of class c    = p_c - n_c / B,              p_c the mean of p_ic,
    weight gradient of class c  = mean of (p_ic - [y_i = c]) h_i,

so that, for features of positive sum, the gradient of a class that is absent is positive.  Every
method reads one number a class, :func:`class_gradient`: the bias gradient, or without a bias the
weight gradient's row projected on a direction in which the features are positive.

Updates must come with the GRADIENT's sign: a weight delta of FedAvg, w_tau - w_0, points the other
way, and is multiplied by ``client.gradient_scale`` = -1 / lr first, or by -1 where lr is unknown.
No method but :func:`residual_counts` with ``scale`` reads the size of the update, so that several
local steps or a clipped norm change nothing else.
"""

import itertools
import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_recon.errors import InputError

LabelMethod = Literal[
    "idlg",
    "yin",
    "analytic",
    "bias_corrected",
    "wainakh_simple",
    "wainakh_whitebox",
    "residual_counts",
    "exhaustive",
]
"""What :func:`infer_labels` knows."""

_NUM_SCALES = 256
_NUM_REFINEMENTS = 5
_MAX_NUMBERS = 2**24  # of the exhaustive search, held at once (128 MB)


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
        InputError: If no such layer runs.
    """
    layer = _run(payload, images, evaluate=True)[0]
    names = {id(parameter): name for name, parameter in payload.named_parameters()}
    return names[id(layer.weight)], None if layer.bias is None else names[id(layer.bias)]


def dummy_forward(payload: nn.Module, images: Tensor) -> DummyForward:
    """Return the features and probabilities of images that the attacker has.

    Args:
        payload: B C H W -> B K logits, in the mode of the client (``client.working(payload)``); it
            is not changed.
        images: N C H W in [0, 1]: public images, or noise.

    Raises:
        InputError: If no last linear layer runs.
    """
    _, features, logits = _run(payload, images, evaluate=False)
    return DummyForward(features, logits.softmax(dim=1))


def infer_labels(
    method: LabelMethod,
    weight_gradient: Tensor,
    bias_gradient: Tensor | None,
    num_samples: int = 1,
    *,
    dummies: DummyForward | None = None,
    layer: nn.Linear | None = None,
    scale: float | None = None,
) -> Tensor:
    """Return the labels of a batch, inferred from the last linear layer's gradient.

    Args:
        method: the name of a function of this module.
        weight_gradient: K F, with the gradient's sign.
        bias_gradient: K, or None for a layer without bias.
        num_samples: B, at least 1.
        dummies: see :func:`residual_counts`; ``wainakh_whitebox`` and ``exhaustive`` need them.
        layer: see :func:`residual_counts`; no other method uses it.
        scale: see :func:`residual_counts`; no other method uses it.

    Returns:
        B, int64, ascending.

    Raises:
        InputError: If the method is unknown, lacks what it needs, or the shapes disagree.

    Examples:
        >>> import torch
        >>> bias_gradient = torch.tensor([0.25, -0.5, 0.25, 0.0])  # uniform softmax, labels 1 1 1 3
        >>> weight_gradient = bias_gradient[:, None] * torch.ones(4, 5)
        >>> infer_labels("residual_counts", weight_gradient, bias_gradient, 4)
        tensor([1, 1, 1, 3])
    """
    gradients = (weight_gradient, bias_gradient)
    if method == "idlg":
        if num_samples != 1:
            raise InputError(
                f"idlg infers the label of one sample, not of {num_samples}; choose "
                "residual_counts, or set batch_size to 1"
            )
        return idlg(*gradients)
    if method == "yin":
        return yin(weight_gradient, num_samples)
    if method == "analytic":
        return analytic(*gradients, num_samples)
    if method == "bias_corrected":
        return bias_corrected(*gradients, num_samples)
    if method == "wainakh_simple":
        return wainakh_simple(*gradients, num_samples)
    if method == "residual_counts":
        return residual_counts(*gradients, num_samples, dummies=dummies, layer=layer, scale=scale)
    if method not in get_args(LabelMethod):
        raise InputError(f"no label method {method!r}; known: {', '.join(get_args(LabelMethod))}")
    if dummies is None:
        raise InputError(f"{method} needs dummies: pass dummy_forward(payload, images)")
    if method == "exhaustive":
        return exhaustive(*gradients, num_samples, dummies)
    return wainakh_whitebox(*gradients, num_samples, dummies)


def class_gradient(
    weight_gradient: Tensor, bias_gradient: Tensor | None, direction: Tensor | None = None
) -> Tensor:
    """Return one number a class, about a multiple of p_c - n_c / B.

    Args:
        weight_gradient: K F.
        bias_gradient: K; where it is given it is returned as it is.
        direction: F, on which rows are projected, such as the mean feature; by default all ones,
            which is right for features of at least 0, as after a ReLU.

    Returns:
        K, float64.

    Raises:
        InputError: If the shapes disagree.
    """
    if weight_gradient.ndim != 2 or len(weight_gradient) < 2:
        raise InputError(
            "label inference: the weight gradient must be classes x features, of at least two "
            f"classes; got {tuple(weight_gradient.shape)}"
        )
    if bias_gradient is not None:
        if bias_gradient.shape != weight_gradient.shape[:1]:
            raise InputError(
                f"label inference: a bias gradient of {tuple(bias_gradient.shape)} does not fit a "
                f"weight gradient of {tuple(weight_gradient.shape)}; pass those of one layer"
            )
        return bias_gradient.double()
    if direction is None:
        return weight_gradient.double().sum(dim=1)
    if direction.shape != weight_gradient.shape[1:]:
        raise InputError(
            f"label inference: {tuple(direction.shape)} dummy features do not fit a weight "
            f"gradient of {tuple(weight_gradient.shape)}; pass those of one layer"
        )
    return weight_gradient.double() @ direction.double()


def idlg(weight_gradient: Tensor, bias_gradient: Tensor | None = None) -> Tensor:
    """Return the label of a batch of one: exact, without any estimate.

    Zhao, Mopuri, Bilen, "iDLG: Improved Deep Leakage from Gradients", arXiv 2001.02610, 2020, Eq. 4:
    the only negative bias gradient is the label's; without a bias its row is the only one that
    points against all others, for features of any sign.  Two classes alone cannot tell which row is
    the label's: there, and among ties, the smallest row sum decides, as for features of at least 0.

    Args:
        weight_gradient: K F.
        bias_gradient: K, or None.

    Returns:
        1, int64.

    Examples:
        >>> import torch
        >>> residuals = torch.tensor([0.2, 0.5, -0.7])
        >>> idlg(residuals[:, None] * torch.tensor([-3.0, 1.0]))
        tensor([2])
    """
    gradient = class_gradient(weight_gradient, bias_gradient)
    if bias_gradient is not None:
        return gradient.argmin(dim=0, keepdim=True)
    rows = weight_gradient.double()
    num_opposed = (rows @ rows.T < 0).sum(dim=1)
    return gradient.where(num_opposed == num_opposed.max(), torch.inf).argmin(dim=0, keepdim=True)


def yin(weight_gradient: Tensor, num_samples: int) -> Tensor:
    """Return the classes of the smallest entries of the weight gradient, each once.

    Yin et al., "See through Gradients: Image Batch Recovery via GradInversion", CVPR 2021, Eq. 5:
    the label set of a batch WITHOUT repeated labels.

    Args:
        weight_gradient: K F.
        num_samples: B, at most K.

    Returns:
        B, int64, ascending.

    Raises:
        InputError: If there are more samples than classes.

    Examples:
        >>> import torch
        >>> yin(torch.tensor([[0.1, 0.2], [0.1, -0.6], [-0.3, 0.2]]), 2)
        tensor([1, 2])
    """
    least = class_gradient(weight_gradient.amin(dim=1, keepdim=True), None)
    _check_num_samples(num_samples)
    if num_samples > len(least):
        raise InputError(
            f"yin infers distinct labels, and {num_samples} samples of {len(least)} classes repeat "
            "some; choose residual_counts"
        )
    return least.argsort()[:num_samples].sort().values


def analytic(weight_gradient: Tensor, bias_gradient: Tensor | None, num_samples: int) -> Tensor:
    """Return the classes of negative gradient, repeated in proportion to its size.

    A negative class gradient proves that the class is present (p_c is positive).  Each such class
    is taken once, the most negative ones if there are more than B, and what is missing is shared
    out in proportion: as if the softmax were 0 elsewhere.  The first half is that of Geiping et
    al., "Inverting Gradients", NeurIPS 2020, Sec. 3; the counts are ours.

    Args:
        weight_gradient: K F.
        bias_gradient: K, or None.
        num_samples: B.

    Returns:
        B, int64, ascending.

    Examples:
        >>> import torch
        >>> analytic(torch.ones(3, 1), torch.tensor([0.5, -0.4, -0.1]), 5)
        tensor([1, 1, 1, 1, 2])
    """
    gradient = class_gradient(weight_gradient, bias_gradient)
    size = -gradient.clamp(max=0)
    return _allocate(num_samples * size / size.sum().clamp(min=1e-300), num_samples, gradient < 0)


def bias_corrected(
    weight_gradient: Tensor, bias_gradient: Tensor | None, num_samples: int
) -> Tensor:
    """Return the labels after taking out what a uniform softmax adds to every class.

    The class gradient is a (p_c - n_c / B) with an unknown scale a.  With p_c = 1 / K, and N the
    set of the m classes of negative gradient, summing over N gives

        sum over N = a (m / K - 1),   hence   n_c = B (1 / K - g_c / a)

    where no class outside N is present.  Each of N is taken once, the rest goes to the classes that
    lack most.  The name is that of the same idea in the breaching library (Geiping et al.), which
    takes a = -sum over N; the correction by 1 - m / K is ours.

    Args:
        weight_gradient: K F.
        bias_gradient: K, or None.
        num_samples: B.

    Returns:
        B, int64, ascending.

    Examples:
        >>> import torch
        >>> bias_gradient = torch.full((4,), 0.25) - torch.tensor([0.0, 0.75, 0.25, 0.0])
        >>> bias_corrected(torch.ones(4, 1), bias_gradient, 4)
        tensor([1, 1, 1, 2])
    """
    gradient = class_gradient(weight_gradient, bias_gradient)
    negative = gradient < 0
    num_classes = len(gradient)
    rest = max(1 - int(negative.sum()) / num_classes, 1 / num_classes)
    scale = (-gradient[negative].sum() / rest).clamp(min=1e-300)
    return _allocate(num_samples * (1 / num_classes - gradient / scale), num_samples, negative)


def wainakh_simple(
    weight_gradient: Tensor, bias_gradient: Tensor | None, num_samples: int
) -> Tensor:
    """Return the labels by the impact of a sample, estimated from the update alone (LLG).

    Wainakh et al., "User-Level Label Leakage from Gradients in Federated Learning", PoPETs 2022(2):
    the impact is m = (1 + 1 / K) / B times the sum of the negative class gradients; each class of
    negative gradient is taken once and its gradient reduced by m, then the smallest is taken,
    again and again.  They sum rows of the weight gradient; the bias gradient, where there is one,
    is the same without the spread of the features.

    Args:
        weight_gradient: K F.
        bias_gradient: K, or None.
        num_samples: B.

    Returns:
        B, int64, ascending.

    Examples:
        >>> import torch
        >>> wainakh_simple(torch.ones(3, 1), torch.tensor([0.4, -0.5, 0.1]), 2)
        tensor([1, 1])
    """
    gradient = class_gradient(weight_gradient, bias_gradient)
    negative = gradient < 0
    impact = gradient[negative].sum() * (1 + 1 / len(gradient)) / num_samples
    return _allocate(gradient / impact.clamp(max=-1e-300), num_samples, negative)


def wainakh_whitebox(
    weight_gradient: Tensor,
    bias_gradient: Tensor | None,
    num_samples: int,
    dummies: DummyForward,
) -> Tensor:
    """Return the labels by impact and offset, estimated on the model with dummy images (LLG*).

    As :func:`wainakh_simple`, but the impact is (1 + 1 / K) / B times the mean over the classes of
    the class gradient of dummy batches that hold that class alone, and after the first pass each
    class gradient is reduced by its offset: its mean over dummy batches of the other labels.  Both
    follow from one forward pass: the class gradient of one dummy is (p_c - [its label is c]) times
    the sum of its features (1 for the bias).  The update's size must be that of one gradient.

    Args:
        weight_gradient: K F.
        bias_gradient: K, or None.
        num_samples: B.
        dummies: N images' features and probabilities.

    Returns:
        B, int64, ascending.
    """
    gradient = class_gradient(weight_gradient, bias_gradient)
    _check_dummies(dummies, weight_gradient)
    probabilities = dummies.probabilities.double()
    sums = dummies.features.double().sum(dim=1, keepdim=True)
    if bias_gradient is not None:
        sums = torch.ones_like(sums)
    offset = (probabilities * sums).mean(dim=0)
    impact = ((probabilities - 1) * sums).mean() * (1 + 1 / len(gradient)) / num_samples
    return _allocate((gradient - offset) / impact.clamp(max=-1e-300), num_samples, gradient < 0)


def residual_counts(
    weight_gradient: Tensor,
    bias_gradient: Tensor | None,
    num_samples: int,
    *,
    dummies: DummyForward | None = None,
    layer: nn.Linear | None = None,
    scale: float | None = None,
) -> Tensor:
    """Return the labels whose counts explain the mean residuals best, repeated ones included.

    The class gradient is a (p_c - n_c / B), so that n_c = B (p_c - g_c / a): integers of sum B, by
    the nearest in the Euclidean sense.  The scale a is 1 for an untouched FedSGD bias gradient, and
    unknown without a bias (the mean sum of a sample's features), after clipping, or after several
    local steps; then every scale is tried, and the counts with the largest cosine between g and
    p - n / B are taken.  In an update whose class gradient sums to 0, as that of a softmax does
    unless a defense rounded or perturbed it, each class of negative gradient is present for sure.

    The probabilities p_c are uniform, or measured on ``dummies``, or, with a bias and the ``layer``,
    computed from the update itself: the mean features of a class that is present are the ratio of
    its weight and bias gradients, corrected for the other classes, and the layer turns them into
    probabilities (Ma et al., "Instance-wise Batch Label Restoration via Gradients in Federated
    Learning", ICLR 2023; ours iterates, since their ratio leaves out the other classes).  For a
    trained model only the last will do.

    Args:
        weight_gradient: K F.
        bias_gradient: K, or None.
        num_samples: B.
        dummies: N images' features and probabilities; without a bias their mean feature is the
            direction on which rows are projected.
        layer: the last linear layer as the server sent it.
        scale: a, above 0; null: unknown.

    Returns:
        B, int64, ascending.

    Raises:
        InputError: If shapes disagree, or ``scale`` or ``num_samples`` is out of range.

    Examples:
        >>> import torch
        >>> features = torch.tensor([1.0, 2.0, 0.5])  # no bias; uniform softmax, labels 0 0 0 2
        >>> residuals = torch.full((5,), 0.2) - torch.tensor([0.75, 0.0, 0.25, 0.0, 0.0])
        >>> residual_counts(residuals[:, None] * features, None, 4)
        tensor([0, 0, 0, 2])
    """
    _check_num_samples(num_samples)
    if scale is not None and not 0 < scale < math.inf:
        raise InputError(f"residual_counts: scale must be a number above 0, not {scale}")
    gradient = class_gradient(
        weight_gradient, bias_gradient, None if dummies is None else dummies.features.mean(dim=0)
    )
    if dummies is None:
        probabilities = torch.full_like(gradient, 1 / len(gradient))
    else:
        _check_dummies(dummies, weight_gradient)
        probabilities = dummies.probabilities.double().mean(dim=0)
    labels, fit = _best_counts(gradient, probabilities, num_samples, scale)
    if layer is None or bias_gradient is None or dummies is None:
        return labels
    for _ in range(_NUM_REFINEMENTS):
        probabilities = _own_probabilities(
            weight_gradient.double(), gradient, dummies, probabilities, labels, layer
        )
        refined, refined_fit = _best_counts(gradient, probabilities, num_samples, scale)
        if refined_fit > fit:
            labels, fit = refined, refined_fit
    return labels


def exhaustive(
    weight_gradient: Tensor,
    bias_gradient: Tensor | None,
    num_samples: int,
    dummies: DummyForward,
) -> Tensor:
    """Return the best of ALL sets of labels, for a tiny batch and few classes.

    The layer's gradient expected for counts n is (p - n / B) times the mean feature; the counts
    whose expected gradient has the largest cosine with the observed one are taken.  With p from
    the dummies this is the optimum for which :func:`residual_counts` searches.

    Args:
        weight_gradient: K F.
        bias_gradient: K, or None.
        num_samples: B.
        dummies: N images' features and probabilities.

    Returns:
        B, int64, ascending.

    Raises:
        InputError: If there are too many sets of labels to try.
    """
    _check_num_samples(num_samples)
    _check_dummies(dummies, weight_gradient)
    gradient = class_gradient(weight_gradient, bias_gradient, dummies.features.mean(dim=0))
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
    probabilities = dummies.probabilities.double().mean(dim=0)
    return labels[_cosines(gradient, probabilities - counts / num_samples).argmax()]


def _allocate(demand: Tensor, num_samples: int, present: Tensor | None = None) -> Tensor:
    """Return labels whose counts are the integers nearest to a demand, of sum ``num_samples``.

    One after the other goes to the class that lacks most; since the squared distance is a sum of
    convex functions of one count each, that minimises it exactly.  Those of ``present`` are taken
    once before (the ones of largest demand, if there are more than samples).

    Args:
        demand: K.
        num_samples: B.
        present: K, bool.
    """
    _check_num_samples(num_samples)
    return _labels(_counts(demand[None], num_samples, present)[0])


def _counts(demands: Tensor, num_samples: int, present: Tensor | None = None) -> Tensor:
    """Do what :func:`_allocate` says to S K demands at once; return S K counts."""
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


def _labels(counts: Tensor) -> Tensor:
    classes = torch.arange(len(counts), device=counts.device)
    return classes.repeat_interleave(counts.long())


def _best_counts(
    gradient: Tensor, probabilities: Tensor, num_samples: int, scale: float | None
) -> tuple[Tensor, float]:
    """Return the labels that explain the class gradient best, and the cosine."""
    is_exact = bool(gradient.sum().abs() <= 1e-5 * gradient.abs().sum())
    present = gradient < 0 if is_exact else None
    if scale is None:
        # one class alone has n_c = 1 to B
        most = (-gradient.min()).clamp(min=1e-300)
        steps = torch.linspace(-0.5, 1.5, _NUM_SCALES, dtype=torch.float64, device=gradient.device)
        scales = most * max(num_samples, 2) ** steps
    else:
        scales = gradient.new_tensor([scale])
    demands = num_samples * (probabilities - gradient / scales[:, None])
    counts = _counts(demands, num_samples, present)
    fits = _cosines(gradient, probabilities - counts / num_samples)
    best = fits.argmax()
    return _labels(counts[best]), float(fits[best])


def _cosines(gradient: Tensor, expected: Tensor) -> Tensor:
    """Return the cosines of K numbers with S K expected ones."""
    return torch.nn.functional.cosine_similarity(gradient, expected, dim=1, eps=1e-300)


def _own_probabilities(
    weight_gradient: Tensor,
    bias_gradient: Tensor,
    dummies: DummyForward,
    probabilities: Tensor,
    labels: Tensor,
    layer: nn.Linear,
) -> Tensor:
    """Return the mean softmax of the batch, from the update itself and counts that are about right.

    With n_j samples of mean features h_j and mean softmax P_j in each class j that is present, the
    gradients are [G, g] = A [n_j h_j, n_j] with A = P^T - (unit vectors of the classes), up to a
    common factor.  The solution nearest to the dummies' mean feature in every class gives h_j, and
    the layer P_j, which gives A, and so on.
    """
    num_classes, num_samples = len(bias_gradient), len(labels)
    counts = torch.bincount(labels, minlength=num_classes).double()
    expected = probabilities - counts / num_samples
    scale = (bias_gradient @ expected) / (expected @ expected).clamp(min=1e-300)
    classes = counts.nonzero()[:, 0]
    counts = counts[classes, None]
    units = torch.eye(num_classes, dtype=torch.float64, device=labels.device)[classes]
    gradients = torch.cat([weight_gradient, bias_gradient[:, None]], dim=1)
    mean_feature = torch.cat([dummies.features.double().mean(dim=0), gradients.new_ones(1)])
    start = scale / num_samples * counts * mean_feature
    softmax = probabilities.expand(len(classes), -1)
    for _ in range(_NUM_REFINEMENTS):
        system = (softmax - units).T
        solution = start + torch.linalg.pinv(system, rtol=0.01) @ (gradients - system @ start)
        sizes = solution[:, -1:].clamp(min=0.1 * float(start[:, -1].min()))
        softmax = (
            (solution[:, :-1] / sizes) @ layer.weight.detach().double().T
            + (0.0 if layer.bias is None else layer.bias.detach().double())
        ).softmax(dim=1)
    return (softmax * counts).sum(dim=0) / num_samples


def _check_num_samples(num_samples: int) -> None:
    if num_samples < 1:
        raise InputError(
            f"label inference: num_samples must be at least 1, not {num_samples}; it is the size "
            "of the batch behind the update"
        )


def _check_dummies(dummies: DummyForward, weight_gradient: Tensor) -> None:
    found = (tuple(dummies.features.shape[1:]), tuple(dummies.probabilities.shape[1:]))
    expected = (tuple(weight_gradient.shape[1:]), tuple(weight_gradient.shape[:1]))
    if found != expected or len(dummies.features) == 0:
        raise InputError(
            f"label inference: dummies of {len(dummies.features)} images, features {found[0]}, "
            f"classes {found[1]} do not fit a weight gradient of {tuple(weight_gradient.shape)}; "
            "pass dummy_forward(payload, images) of the same payload"
        )


def _run(payload: nn.Module, images: Tensor, *, evaluate: bool) -> tuple[nn.Linear, Tensor, Tensor]:
    """Return the last linear layer that gives the logits, what it saw, and the logits."""
    calls: list[tuple[nn.Linear, Tensor, int]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            calls.append((module, inputs[0], output.shape[-1]))

    handles = [
        module.register_forward_hook(record)
        for module in payload.modules()
        if isinstance(module, nn.Linear)
    ]
    modes = {module: module.training for module in payload.modules()}
    # batch norm writes its running statistics: on a copy
    state = {name: buffer.clone() for name, buffer in payload.named_buffers()}
    state |= {name: parameter.detach() for name, parameter in payload.named_parameters()}
    if evaluate:
        payload.eval()
    try:
        with torch.no_grad():
            logits = functional_call(payload, state, (images,))
    finally:
        for module, training in modes.items():
            module.training = training
        for handle in handles:
            handle.remove()
    fitting = [call for call in calls if call[2] == logits.shape[1] and call[1].ndim == 2]
    if not fitting:
        raise InputError(
            f"label inference: no nn.Linear of {type(payload).__name__} gives its "
            f"{logits.shape[1]} logits; use a target that ends in a linear layer, or grant labels"
        )
    layer, features, _ = fitting[-1]
    return layer, features, logits
