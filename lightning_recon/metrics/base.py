"""What the metrics share: the mean over images, and networks that never train."""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import left_as_found


class PerImageMetric(Metric):
    """Mean over all images of one value each.

    The values themselves are the state, in float32 (``set_dtype`` changes it).  Their sum is
    rounded once, so that neither the order of the images nor their spread over processes changes
    the result.
    """

    is_differentiable = False
    full_state_update = False
    values: list[Tensor]
    unavailable: str | None = None
    """Why there are no values, in one line, such as weights that are not at hand; None: there are.
    ``update`` then raises InputError."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", [], dist_reduce_fx="cat")

    def append(self, values: Tensor) -> None:
        """Take in the values of one batch, B."""
        self.values.append(values.detach().to(self.dtype))

    def per_image(self) -> Tensor:
        """Return the value of every image since the last reset, in the order of the updates.

        Of this process alone; within ``with metric.sync_context():`` of all, by rank.
        """
        if isinstance(self.values, list) and not self.values:
            return torch.zeros(0, dtype=self.dtype, device=self.device)
        values: Tensor = dim_zero_cat(self.values)
        return values

    def compute(self) -> Tensor:
        """Return the mean; NaN before the first image."""
        values = self.per_image().tolist()
        mean = math.fsum(values) / len(values) if values else math.nan
        return torch.tensor(mean, dtype=self.dtype, device=self.device)


class Frozen(nn.Module):
    """A copy of a network that stays in evaluation mode and gives no gradient.

    Args:
        network: it is copied, and itself left as it is.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, *inputs: Any) -> Any:
        """Return what the network returns."""
        with torch.no_grad():
            return self.network(*inputs)


class PenultimateFeatures(nn.Module):
    """The features that a classifier's last linear layer reads: B C H W -> B ``num_features``.

    ``PenultimateFeatures(TorchvisionClassifier("inception_v3", weights="FILE"), 299)`` is the usual
    choice for FID and KID.  Published figures use other weights of Inception (a port of the
    original ones), so theirs and these do not compare.

    Args:
        classifier: any that takes images in [0, 1] and ends in a linear layer.
        image_size: side, in pixels, to which images are resized first (bilinear, antialiased);
            null: as they are.

    Raises:
        InputError: if the classifier has no linear layer.
    """

    def __init__(self, classifier: nn.Module, image_size: int | None = None) -> None:
        super().__init__()
        self.classifier = classifier
        self.image_size = image_size
        layers = [name for name, m in classifier.named_modules() if isinstance(m, nn.Linear)]
        if not layers:
            raise InputError(
                f"{type(classifier).__name__} has no linear layer whose input could serve as "
                "features; choose a classifier that ends in one"
            )
        self._last = layers[-1]
        self.num_features = int(self._layer().in_features)

    def _layer(self) -> Any:
        return self.classifier.get_submodule(self._last)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images in [0, 1]."""
        if self.image_size is not None:
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        found: list[Tensor] = []
        with left_as_found(self.classifier) as hooks:
            look = self._layer().register_forward_pre_hook
            hooks += [look(lambda _, inputs: found.append(inputs[0]))]
            self.classifier(images)
        return found[0]
