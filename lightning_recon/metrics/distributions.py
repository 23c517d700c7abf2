"""FID and KID with any feature extractor: two sets of images, without pairs."""

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lightning_recon.errors import InputError
from lightning_recon.functional.distributions import frechet_distance, kernel_distance
from lightning_recon.metrics.base import Frozen


class _FeatureMetric(Metric):
    """Compares the features of reconstructions with those of truths.

    Args:
        features: images B C H W in [0, 1] -> features B ``num_features``, such as
            :class:`~lightning_recon.metrics.PenultimateFeatures`.
        num_features: their number; null: the ``num_features`` of the extractor.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = False

    def __init__(self, features: nn.Module, num_features: int | None = None) -> None:
        super().__init__()
        self.features = Frozen(features)
        if num_features is None:
            num_features = getattr(features, "num_features", None)
        if not isinstance(num_features, int):
            raise InputError(
                f"{type(self).__name__}: {type(features).__name__} has no num_features; give "
                "num_features"
            )
        self.num_features = num_features

    def _extract(self, images: Tensor) -> Tensor:
        found: Tensor = self.features(images)
        if found.shape != (len(images), self.num_features):
            raise InputError(
                f"{type(self).__name__}: the extractor gave features of {tuple(found.shape)} for "
                f"{len(images)} images; num_features says {self.num_features}"
            )
        return found

    def _refuse(self, counts: tuple[int, int]) -> None:
        if min(counts) < 2:
            raise InputError(
                f"{type(self).__name__} needs at least 2 reconstructions and 2 truths; it saw "
                f"{counts[0]} and {counts[1]}"
            )


class FrechetDistance(_FeatureMetric):
    """Squared Fréchet distance of the features, taken as Gaussian: FID for Inception's features.

    With fewer images than features it is far too high, and falls with every image: compare at
    equal numbers only.
    """

    count: Tensor
    sums: Tensor
    products: Tensor

    def __init__(self, features: nn.Module, num_features: int | None = None) -> None:
        super().__init__(features, num_features)
        size = self.num_features
        # [0] the reconstructions, [1] the truths; float64, for covariances are small differences
        self.add_state("count", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(2, size).double(), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(2, size, size).double(), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in reconstructions, B C H W in [0, 1], and truths; their numbers may differ."""
        for kind, images in enumerate((preds, target)):
            found = self._extract(images).double()
            self.count[kind] += len(found)
            self.sums[kind] += found.sum(dim=0)
            self.products[kind] += found.mT @ found

    def compute(self) -> Tensor:
        """Return the distance, float64.

        Raises:
            InputError: if it saw less than two reconstructions or truths.
        """
        counts = (int(self.count[0]), int(self.count[1]))
        self._refuse(counts)
        moments = []
        for kind, count in enumerate(counts):
            mean = self.sums[kind] / count
            covariance = (self.products[kind] - count * torch.outer(mean, mean)) / (count - 1)
            moments += [mean, covariance]
        return frechet_distance(*moments)


class KernelDistance(_FeatureMetric):
    """Unbiased squared maximum mean discrepancy of the features: KID for Inception's features.

    Fit for few images, unlike :class:`FrechetDistance`.  It keeps all features (2048 of them take
    8 KiB an image).
    """

    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self, features: nn.Module, num_features: int | None = None) -> None:
        super().__init__(features, num_features)
        # flat: a process that saw no image takes part in the exchange with a tensor of one axis
        self.add_state("preds", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in reconstructions, B C H W in [0, 1], and truths; their numbers may differ."""
        self.preds.append(self._extract(preds).flatten().to(self.dtype))
        self.target.append(self._extract(target).flatten().to(self.dtype))

    def compute(self) -> Tensor:
        """Return the distance, float64.

        Raises:
            InputError: if it saw less than two reconstructions or truths.
        """
        if isinstance(self.preds, list) and not self.preds:
            self._refuse((0, 0))
        x, y = (
            dim_zero_cat(flat).view(-1, self.num_features) for flat in (self.preds, self.target)
        )
        self._refuse((len(x), len(y)))
        return kernel_distance(x, y)
