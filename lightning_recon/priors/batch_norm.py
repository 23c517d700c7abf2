"""Statistics of batch norm.

Yin et al., "See through Gradients: Image Batch Recovery via GradInversion", CVPR 2021, eq. 10,
after their "Dreaming to Distill", CVPR 2020: the features of the dummy images should have the means
and variances that batch norm gathered in training.
"""

import torch
from torch import Tensor, nn

from lightning_recon.priors.activations import ActivationPrior, layer_inputs
from lightning_recon.updates import Buffers, Update


class BatchNormStatistics(ActivationPrior):
    """Distance of the batch's feature statistics from those that batch norm is known to see.

    The sum over the layers of ||mean - known mean|| + ||variance - known variance||, each over the
    layer's channels.  Known are the running ones of the payload, or, where the client's buffers
    are granted to the attacker (``known: [..., buffers]``), those of its own batch.  Layers of
    which nothing is known are left out, so that the penalty of a network that was never trained,
    or has no batch norm, is 0.

    Args:
        weight: of the penalty, at least 0.
    """

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        payload: nn.Module,
        observed: Update,
        statistics: Buffers,
    ) -> Tensor:
        """Return the weighted penalty of the batch; see :class:`ActivationPrior`."""
        names = [
            name
            for name, layer in payload.named_modules()
            if isinstance(layer, nn.BatchNorm2d) and f"{name}.running_mean" in statistics
        ]
        penalty = images.new_zeros(())
        if not names:
            return penalty
        seen = layer_inputs(payload, [payload.get_submodule(name) for name in names], images)
        for name, features in zip(names, seen, strict=True):
            # running variances are unbiased; one number alone has none
            correction = min(1, features.numel() // features.shape[1] - 1)
            mean, variance = (
                features.mean((0, 2, 3)),
                features.var((0, 2, 3), correction=correction),
            )
            for found, kind in ((mean, "running_mean"), (variance, "running_var")):
                away = found - statistics[f"{name}.{kind}"]
                penalty = penalty + torch.linalg.vector_norm(away)
        return self.weight * penalty
