"""How alike two sets of labels are: those inferred from an update, or those a classifier gives."""

import torch
from torch import Tensor


def label_matches(preds: Tensor, target: Tensor) -> int:
    """Return how many labels of a batch were inferred, in whatever order.

    The size of the intersection of the two multisets: a label that occurs three times in the
    batch and was inferred twice counts twice.  For a batch of one this is the accuracy of Zhao,
    Mopuri, Bilen, "iDLG: Improved Deep Leakage from Gradients", arXiv 2001.02610, 2020.

    Args:
        preds: R, integers of at least 0.
        target: B, integers of at least 0.

    Returns:
        An integer in [0, min(R, B)].

    Raises:
        ValueError: if the labels are not one-dimensional integers of at least 0.

    Examples:
        >>> import torch
        >>> label_matches(torch.tensor([7, 2, 2, 5]), torch.tensor([2, 7, 7, 9]))
        2
    """
    for labels in (preds, target):
        if labels.ndim != 1 or labels.is_floating_point() or bool((labels < 0).any()):
            raise ValueError("labels must be one-dimensional integers of at least 0")
    length = 1 + int(max(labels.max() if len(labels) else 0 for labels in (preds, target)))
    counts = [torch.bincount(labels.cpu(), minlength=length) for labels in (preds, target)]
    return int(torch.minimum(*counts).sum())


def tag_jaccard(preds: Tensor, target: Tensor, num_tags: int = 5) -> Tensor:
    """Return the Jaccard index of the top tags of each pair of images: shared by all of both.

    Semantic leakage as in Yue, Jin, Wong, Baron, Dai, "Gradient Obfuscation Gives a False Sense
    of Security in Federated Learning", USENIX Security 2023: not whether the picture is alike,
    but whether it tells what was photographed.  They compare tags that a recognition model gives;
    here the tags are the ``num_tags`` classes of highest score of any classifier.  Among equal
    scores at the edge of a set the choice is arbitrary.

    Args:
        preds: B K: scores of K classes for the reconstructions.
        target: B K: scores for the truths.
        num_tags: size of each set, in [1, K].

    Returns:
        B values in [0, 1]; among m = ``num_tags`` one of s / (2 m - s) for s shared tags.

    Raises:
        ValueError: if the shapes disagree or ``num_tags`` is out of range.

    Examples:
        >>> import torch
        >>> preds, target = torch.tensor([[4.0, 3, 2, 1]]), torch.tensor([[4.0, 1, 3, 2]])
        >>> tag_jaccard(preds, target, num_tags=2)
        tensor([0.3333])
    """
    if preds.ndim != 2 or preds.shape != target.shape:
        raise ValueError(
            f"scores must both be B K; got {tuple(preds.shape)} and {tuple(target.shape)}"
        )
    if not 1 <= num_tags <= preds.shape[1]:
        raise ValueError(f"num_tags must lie in [1, {preds.shape[1]}]; got {num_tags}")
    tags, true_tags = (scores.topk(num_tags, dim=1).indices for scores in (preds, target))
    shared = (tags[:, :, None] == true_tags[:, None, :]).sum(dim=(1, 2))
    return shared / (2 * num_tags - shared)
