"""Total variation of colours and of the differences between them.

Åström & Schnörr, "Double-Opponent Vectorial Total Variation", ECCV 2016.  Edges of a photograph
change brightness far more often than hue, so differences between channels should be smoother still
than the channels.
"""

import torch
from torch import Tensor

from lightning_recon.errors import InputError
from lightning_recon.priors.total_variation import TotalVariation


class DoubleOpponentTotalVariation(TotalVariation):
    """Total variation over six channels: the colours and their three differences.

    The length of a pixel's gradient is taken over all six together, as in
    :class:`TotalVariation`; the paper chooses weights for the two halves, which are 1 here.  Grey
    has no differences of colours: of one channel it is the total variation.

    Args:
        weight: of the penalty, at least 0.
        smoothing: length below which gradients count quadratically, above 0.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the weighted penalty, R.

        Raises:
            InputError: if images have neither three channels nor one.
        """
        if images.shape[1] == 1:
            return super().forward(images)
        if images.shape[1] != 3:
            raise InputError(
                f"DoubleOpponentTotalVariation needs three colours, not {images.shape[1]} "
                "channels; use TotalVariation"
            )
        return super().forward(torch.cat([images, images - images.roll(1, 1)], dim=1))
