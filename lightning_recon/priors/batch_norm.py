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
        norms = [module for module in payload.modules() if isinstance(module, nn.BatchNorm2d)]
        # (layer, running mean, running variance)
        gathered = [
            (norm, norm.running_mean, norm.running_var)
            for norm in norms
            if norm.running_mean is not None
            and norm.running_var is not None
            and bool(norm.running_mean.any())
        ]
        penalty = images.new_zeros(())
        if not gathered:
            return penalty
        seen = layer_inputs(payload, [norm for norm, _, _ in gathered], images)
        for features, (_, mean, variance) in zip(seen, gathered, strict=True):
            # running variances are unbiased; one number alone has none
            correction = min(1, features.numel() // features.shape[1] - 1)
            found = features.var((0, 2, 3), correction=correction)
            penalty = penalty + torch.linalg.vector_norm(features.mean((0, 2, 3)) - mean)
            penalty = penalty + torch.linalg.vector_norm(found - variance)
        return self.weight * penalty
