"""Does the reconstruction tell what was photographed?  Tags that a classifier gives to both."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.functional.labels.agreement import tag_jaccard
from lightning_recon.metrics.base import Frozen, PerImageMetric
from lightning_recon.targets.efficientnet_lite import EfficientNetLite0

_CHUNK = 16  # images that are classified at once


class ClassifierMetric(PerImageMetric):
    """Compares what a classifier sees in reconstruction and truth.

    The classifier must not be the target under attack, whose gradient the reconstructions were
    fitted to, and must be a trained one.

    Args:
        classifier: images B C H W in [0, 1] -> scores B K, such as
            :class:`~lightning_recon.targets.TorchvisionClassifier` or
            :class:`~lightning_recon.targets.TimmClassifier` with weights; null:
            :class:`~lightning_recon.targets.EfficientNetLite0` if its packages are installed,
            otherwise the metric is unavailable.
        num_tags: how many classes of highest score are an image's tags, at least 1.
        image_size: side, in pixels, to which images are resized first (bilinear, antialiased);
            null: the classifier's own ``image_size``, or as they are if it has none.

    Raises:
        InputError: if an argument is out of its range.
    """

    higher_is_better = True

    def __init__(
        self,
        classifier: nn.Module | None = None,
        num_tags: int = 5,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        if classifier is None:
            missing = EfficientNetLite0.missing()
            self.unavailable = missing and f"its classifier, EfficientNet-Lite0, is {missing}"
            classifier = nn.Identity() if missing else EfficientNetLite0()
        for name, value in (("num_tags", num_tags), ("image_size", image_size)):
            if value is not None and value < 1:
                raise InputError(f"{type(self).__name__}: {name} must be at least 1, not {value}")
        self.num_tags = num_tags
        self.classifier = Frozen(classifier)
        self.image_size = image_size or getattr(classifier, "image_size", None)

    def scores(self, images: Tensor) -> Tensor:
        """Return the classifier's scores, B K, of images B C H W in [0, 1].

        Raises:
            InputError: if the metric is unavailable.
        """
        if self.unavailable:
            raise InputError(f"{type(self).__name__} is unavailable: {self.unavailable}")
        if self.image_size is not None and images.shape[-2:] != (self.image_size,) * 2:
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)
        return torch.cat([self.classifier(part) for part in torch.split(images, _CHUNK)])


class TagJaccard(ClassifierMetric):
    """Jaccard index of the tags that a classifier gives to reconstruction and truth.

    See :func:`~lightning_recon.functional.labels.agreement.tag_jaccard`.  With one tag it is the
    share of images whose first class is the same.  For the arguments see :class:`ClassifierMetric`.
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in B reconstructions and their truths, B C H W in [0, 1]."""
        self.append(tag_jaccard(self.scores(preds), self.scores(target), self.num_tags))


class TopKAgreement(ClassifierMetric):
    """Share of reconstructions among whose tags is the first class of the truth: top-k agreement.

    The truth, too, is labelled by the classifier and not by the data set: that the classifier errs
    is no defense.  For the arguments see :class:`ClassifierMetric`; ``num_tags`` is k.
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in B reconstructions and their truths, B C H W in [0, 1]."""
        first = self.scores(target).argmax(dim=1, keepdim=True)
        tags = self.scores(preds).topk(self.num_tags, dim=1).indices
        self.append((tags == first).any(dim=1))
