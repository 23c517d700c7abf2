"""Features that the update itself tells.

The last linear layer's weight gradient is a sum of residual times feature over the batch, its bias
gradient that of the residuals: in the row of a class that one sample has, the ratio is about that
sample's feature vector, as Geiping et al., "Inverting Gradients", NeurIPS 2020, section 3.1, read
off the inputs of a linear layer.  The "modern" recipe of github.com/JonasGeiping/breaching
penalises dummy images whose features are others.
"""

import torch
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.functional.labels.last_layer import last_linear_layer
from lightning_recon.priors.activations import ActivationPrior, layer_inputs
from lightning_recon.updates import Buffers, Update


class DeepFeatures(ActivationPrior):
    """Mean squared distance of the features of each class present from those of the update.

    Samples of one class share a row of the gradient, so the mean of their features is compared.
    What all other samples add to a class's row is not taken out: the penalty of the truth is small
    and not 0, unless the batch is a single image.

    Args:
        weight: of the penalty, at least 0.
    """

    def __init__(self, weight: float) -> None:
        super().__init__(weight)
        self._last: tuple[nn.Module, str, str] | None = None

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        payload: nn.Module,
        observed: Update,
        statistics: Buffers,
    ) -> Tensor:
        """Return the weighted penalty of the batch; see :class:`ActivationPrior`.

        Raises:
            InputError: if the payload's last linear layer has no bias.
        """
        weight, bias = self._names(payload, images)
        (features,) = layer_inputs(
            payload, [payload.get_submodule(weight.rpartition(".")[0])], images
        )
        share = labels
        if not labels.is_floating_point():
            # not F.one_hot, which looks at the labels: within vmap nothing may
            share = labels[:, None] == torch.arange(len(observed[bias]), device=labels.device)
        share = share.to(features.dtype).T  # K B
        count = share.sum(1, keepdim=True)
        means = share @ features / count.clamp_min(1)  # K F
        residuals = observed[bias][:, None]
        told = observed[weight] / torch.where(residuals == 0, 1, residuals)
        # of classes that are absent the ratio is a mean over the whole batch
        squares = ((means - told) * (count >= 0.5) * (residuals != 0)).square().mean(1).sum()
        return self.weight * squares / (count >= 0.5).sum().clamp_min(1)

    def _names(self, payload: nn.Module, images: Tensor) -> tuple[str, str]:
        """Return the names of the layer's weight and bias; the layer is looked for once."""
        if self._last is None or self._last[0] is not payload:
            sample = torch.zeros(1, *images.shape[1:], dtype=images.dtype, device=images.device)
            weight, bias = last_linear_layer(payload, sample)
            if bias is None:
                raise InputError(
                    "DeepFeatures: the target's last linear layer has no bias, without which the "
                    "update does not tell its features; leave this prior out"
                )
            self._last = (payload, weight, bias)
        return self._last[1:]
