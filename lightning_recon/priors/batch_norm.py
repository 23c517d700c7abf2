"""Statistics of batch norm.

Yin et al., "See through Gradients: Image Batch Recovery via GradInversion", CVPR 2021, eq. 10,
after their "Dreaming to Distill", CVPR 2020: the features of the dummy images should have the means
and variances that batch norm gathered in training.
"""

import torch
from torch import Tensor, nn

from lightning_recon.priors.activations import ActivationPrior, layer_inputs
from lightning_recon.structures import Update


class BatchNormStatistics(ActivationPrior):
    """Distance of the batch's feature statistics from the payload's running ones.

    The sum over the layers of ||mean - running mean|| + ||variance - running variance||, each over
    the layer's channels.  Layers whose running means are all 0 never saw a batch and are left out,
    so that the penalty of a network that was never trained, or has no batch norm, is 0.

    Args:
        weight: of the penalty, at least 0.
    """

    def forward(
        self, images: Tensor, labels: Tensor, payload: nn.Module, observed: Update
    ) -> Tensor:
        """Return the weighted penalty of the batch; see :class:`ActivationPrior`."""
        layers = [
            layer
            for layer in payload.modules()
            if isinstance(layer, nn.BatchNorm2d)
            and layer.running_mean is not None
            and bool(layer.running_mean.any())
        ]
        penalty = images.new_zeros(())
        for layer, features in zip(layers, layer_inputs(payload, layers, images), strict=True):
            mean = features.mean((0, 2, 3))
            # running variances are unbiased; one number alone has none
            count = features.numel() // features.shape[1]
            variance = features.var((0, 2, 3), correction=min(1, count - 1))
            penalty = penalty + torch.linalg.vector_norm(mean - layer.running_mean)
            penalty = penalty + torch.linalg.vector_norm(variance - layer.running_var)
        return self.weight * penalty
