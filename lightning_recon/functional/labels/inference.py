"""Labels of a client's batch, inferred from the gradient of the last linear layer.

The layer maps features h (F numbers) to K logits.  Under the mean cross-entropy of B samples its
gradient is that of the residuals: with p_i the softmax of sample i and n_c samples of class c,

    bias gradient of class c    = p_c - n_c / B,              p_c the mean of p_ic,
    weight gradient of class c  = mean of (p_ic - [y_i = c]) h_i.

Every method but two reads one number a class, :func:`class_gradient`: the bias gradient, or without
a bias the weight gradient's row sum, which for features of at least 0 (after a ReLU or a sigmoid)
is about a (p_c - n_c / B) with a the mean sum of a sample's features.

Updates must come with the GRADIENT's sign: a weight delta of FedAvg, w_tau - w_0, points the other
way, and is multiplied by ``client.gradient_scale`` = -1 / lr first, or by -1 where lr is unknown.
Only ``wainakh_whitebox`` and a ``scale`` read its size, too; for them the sum over local steps is
divided by their number.

Where the model fits the batch already (residuals near 0), or signs or a few entries of a layer of
few classes are all that arrives, the counts are guesses: with more samples than classes, chance
alone names two thirds of a batch and more.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_recon.errors import InputError
from lightning_recon.functional.labels.counts import (
    as_labels,
    check_dummies,
    check_num_samples,
    exhaustive,
    nearest_counts,
    residual_counts,
)
from lightning_recon.functional.labels.last_layer import DummyForward, class_gradient

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

__all__ = [
    "LabelMethod",
    "analytic",
    "bias_corrected",
    "exhaustive",
    "idlg",
    "infer_labels",
    "residual_counts",
    "wainakh_simple",
    "wainakh_whitebox",
    "yin",
]

_TINY = 1e-300


def infer_labels(
    method: LabelMethod,
    weight_gradient: Tensor,
    bias_gradient: Tensor | None,
    num_samples: int = 1,
    *,
    dummies: DummyForward | None = None,
    scale: float | None = None,
) -> Tensor:
    """Return the labels of a batch, inferred from the last linear layer's gradient.

    Args:
        method: the name of a function of this module.
        weight_gradient: K F, with the gradient's sign.
        bias_gradient: K, or None for a layer without bias.
        num_samples: B, at least 1.
        dummies: what the layer sees and says for N images that the attacker has;
            ``wainakh_whitebox`` and ``exhaustive`` need it, ``residual_counts`` is better with it.
        scale: a of the bias gradient a (p_c - n_c / B), above 0: 1 for FedSGD, and for FedAvg after
            division by the number of steps; null: unknown, as after clipping, top-k or signs.  Only
            ``residual_counts`` and ``exhaustive`` use it.

    Returns:
        B, int64, ascending.

    Raises:
        InputError: if the method is unknown, lacks what it needs, or the shapes disagree.

    Examples:
        >>> import torch
        >>> bias_gradient = torch.tensor([0.25, -0.5, 0.25, 0.0])  # uniform softmax, labels 1 1 1 3
        >>> weight_gradient = bias_gradient[:, None] * torch.ones(4, 5)
        >>> infer_labels("residual_counts", weight_gradient, bias_gradient, 4)
        tensor([1, 1, 1, 3])
    """
    gradients = (weight_gradient, bias_gradient)
    if method == "residual_counts":
        return residual_counts(*gradients, num_samples, dummies=dummies, scale=scale)
    if method == "yin":
        return yin(weight_gradient, num_samples)
    if method == "idlg":
        if num_samples != 1:
            raise InputError(
                f"idlg infers the label of one sample, not of {num_samples}; choose "
                "residual_counts, or set batch_size to 1"
            )
        return idlg(*gradients)
    from_update_alone = {
        "analytic": analytic,
        "bias_corrected": bias_corrected,
        "wainakh_simple": wainakh_simple,
    }
    if method in from_update_alone:
        return from_update_alone[method](*gradients, num_samples)
    if method not in get_args(LabelMethod):
        raise InputError(f"no label method {method!r}; known: {', '.join(get_args(LabelMethod))}")
    if dummies is None:
        raise InputError(f"{method} needs dummies: pass dummy_forward(payload, images)")
    if method == "exhaustive":
        return exhaustive(*gradients, num_samples, dummies, scale=scale)
    return wainakh_whitebox(*gradients, num_samples, dummies)


def idlg(weight_gradient: Tensor, bias_gradient: Tensor | None = None) -> Tensor:
    """Return the label of a batch of one: exact, without any estimate.

    Zhao, Mopuri, Bilen, "iDLG: Improved Deep Leakage from Gradients", arXiv 2001.02610, 2020: the
    only negative bias gradient is the label's; without a bias its row is the only one that points
    against all others, for features of any sign.  Of two classes either could be the label's: there
    and among ties the smallest row sum decides, as is right for features of at least 0.

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

    Yin et al., "See through Gradients: Image Batch Recovery via GradInversion", CVPR 2021, Sec. 3:
    the label set of a batch WITHOUT repeated labels.

    Args:
        weight_gradient: K F.
        num_samples: B, at most K.

    Returns:
        B, int64, ascending.

    Raises:
        InputError: if there are more samples than classes.

    Examples:
        >>> import torch
        >>> yin(torch.tensor([[0.1, 0.2], [0.1, -0.6], [-0.3, 0.2]]), 2)
        tensor([1, 2])
    """
    num_classes = len(class_gradient(weight_gradient, None))
    check_num_samples(num_samples)
    if num_samples > num_classes:
        raise InputError(
            f"yin infers distinct labels, and {num_samples} samples of {num_classes} classes "
            "repeat some; choose residual_counts"
        )
    return weight_gradient.amin(dim=1).argsort(stable=True)[:num_samples].sort().values


def analytic(weight_gradient: Tensor, bias_gradient: Tensor | None, num_samples: int) -> Tensor:
    """Return the classes of negative gradient, repeated in proportion to its size.

    A negative class gradient proves that the class is present (p_c is positive).  Each such class
    is taken once, the most negative ones if there are more than B, and what is missing is shared
    out in proportion.  The first half is the batched form of iDLG's rule; the counts are ours.

    Args and Returns as of :func:`infer_labels`.

    Examples:
        >>> import torch
        >>> analytic(torch.ones(3, 1), torch.tensor([0.5, -0.4, -0.1]), 5)
        tensor([1, 1, 1, 1, 2])
    """
    gradient = class_gradient(weight_gradient, bias_gradient)
    total = -gradient.clamp(max=0).sum()
    return _allocate(-num_samples * gradient / total.clamp(min=_TINY), num_samples, gradient < 0)


def bias_corrected(
    weight_gradient: Tensor, bias_gradient: Tensor | None, num_samples: int
) -> Tensor:
    """Return the labels after taking out what a uniform softmax adds to every class.

    The class gradient is g_c = a (p_c - n_c / B) with an unknown scale a.  With p_c = 1 / K, and N
    the set of the m classes of negative gradient, of which no other is present,

        sum of g over N = a (m / K - 1),   hence   n_c = B (1 / K - g_c / a).

    Each of N is taken once, the rest goes to the classes that lack most.  The name is that of the
    same idea in the breaching library (Geiping et al.), which takes a = -(sum of g over N); the
    correction by 1 - m / K is ours.

    Args and Returns as of :func:`infer_labels`.

    Examples:
        >>> import torch
        >>> counts = torch.tensor([0.0, 3.0, 2.0, 0.0])
        >>> bias_corrected(torch.ones(4, 1), 0.25 - counts / 5, 5)
        tensor([1, 1, 1, 2, 2])
    """
    gradient = class_gradient(weight_gradient, bias_gradient)
    negative = gradient < 0
    num_classes = len(gradient)
    rest = max(1 - int(negative.sum()) / num_classes, 1 / num_classes)
    scale = (-gradient[negative].sum() / rest).clamp(min=_TINY)
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

    Args and Returns as of :func:`infer_labels`.

    Examples:
        >>> import torch
        >>> wainakh_simple(torch.ones(3, 1), torch.tensor([0.4, -0.5, 0.1]), 2)
        tensor([1, 1])
    """
    gradient = class_gradient(weight_gradient, bias_gradient)
    negative = gradient < 0
    impact = gradient[negative].sum() * (1 + 1 / len(gradient)) / num_samples
    return _allocate(gradient / impact.clamp(max=-_TINY), num_samples, negative)


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

    Args and Returns as of :func:`infer_labels`.
    """
    gradient = class_gradient(weight_gradient, bias_gradient)
    check_dummies(dummies, weight_gradient)
    probabilities = dummies.probabilities.double()
    sums = dummies.features.double().sum(dim=1, keepdim=True)
    if bias_gradient is not None:
        sums = torch.ones_like(sums)
    offset = (probabilities * sums).mean(dim=0)
    impact = ((probabilities - 1) * sums).mean() * (1 + 1 / len(gradient)) / num_samples
    return _allocate((gradient - offset) / impact.clamp(max=-_TINY), num_samples, gradient < 0)


def _allocate(demand: Tensor, num_samples: int, present: Tensor) -> Tensor:
    """Return B labels whose counts are the nearest to a demand; see :func:`nearest_counts`."""
    check_num_samples(num_samples)
    return as_labels(nearest_counts(demand[None], num_samples, present)[0])
