"""Does the reconstruction tell whose, or what, the picture is?"""

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_recon.functional.identification import nearest_candidate, nearest_neighbour
from lightning_recon.functional.labels.agreement import label_matches
from lightning_recon.metrics.base import Frozen, PerImageMetric


class IdentificationRate(PerImageMetric):
    """Share of reconstructions whose nearest candidate is their own truth.

    By thumbnails, see :func:`~lightning_recon.functional.identification.nearest_candidate`; a tie
    counts as a miss.  Guessing gives 1 / (number of candidates), so state that number.

    Args:
        size: longest side of the thumbnails, in pixels.
    """

    higher_is_better = True

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.size = size

    def update(
        self, preds: Tensor, candidates: Tensor, index: Tensor, masks: Tensor | None = None
    ) -> None:
        """Take in reconstructions and the candidates among which to look for their truths.

        Args:
            preds: B C H W in [0, 1].
            candidates: N C H W (or their thumbnails), the truths among them, each once.
            index: B, integers: the place of each reconstruction's truth.
            masks: B 1 H W, bool: the subjects of masked truths.
        """
        nearest = nearest_candidate(preds, candidates, masks, self.size)
        self.append(nearest == index.to(nearest.device))


class ImageIdentifiabilityPrecision(PerImageMetric):
    """IIP, image identifiability precision: share of exact matches among nearest neighbours.

    Yin, Mallya, Vahdat, Alvarez, Kautz, Molchanov, "See through Gradients: Image Batch Recovery via
    GradInversion", CVPR 2021: the nearest neighbour of a reconstruction among the images of its
    class, by deep features, either is its own truth or not.  Here by Euclidean distance; a tie is a
    miss.  An image that is alone in its class is always identified: give several a class.

    Args:
        features: images B C H W in [0, 1] -> features B D, such as
            :class:`~lightning_recon.metrics.PenultimateFeatures`; null: all pixels.
    """

    higher_is_better = True

    def __init__(self, features: nn.Module | None = None) -> None:
        super().__init__()
        self.features = Frozen(nn.Flatten() if features is None else features)

    def update(
        self,
        preds: Tensor,
        candidates: Tensor,
        index: Tensor,
        candidate_labels: Tensor | None = None,
    ) -> None:
        """Take in reconstructions and the candidates among which to look for their truths.

        Args:
            preds: B C H W in [0, 1].
            candidates: N C H W, the truths among them, each once.
            index: B, integers: the place of each reconstruction's truth.
            candidate_labels: N, integers: only candidates of the truth's class then come into
                question; by default all.
        """
        allowed = None
        if candidate_labels is not None:
            allowed = candidate_labels[index][:, None] == candidate_labels[None, :]
        found = torch.cat([self.features(part) for part in torch.split(candidates, 64)])
        nearest = nearest_neighbour(self.features(preds), found, allowed=allowed)
        self.append(nearest == index.to(nearest.device))


class LabelAccuracy(Metric):
    """Share of the labels of all batches that were inferred, in whatever order within a batch.

    See :func:`~lightning_recon.functional.labels.agreement.label_matches`.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = True
    found: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("found", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in one batch's labels as inferred, R, and as they are, B: integers."""
        self.found += label_matches(preds, target)
        self.total += len(target)

    def compute(self) -> Tensor:
        """Return the share; NaN before the first label."""
        return self.found / self.total
