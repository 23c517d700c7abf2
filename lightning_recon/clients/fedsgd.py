"""Federated SGD.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017.
"""

from torch import Tensor

from lightning_recon.clients.base import Client, Gradient, LocalLoss
from lightning_recon.updates import Update


class FedSGD(Client):
    """Federated SGD: the update is the gradient of the batch's mean cross-entropy.

    In training mode batch norm uses the batch's own statistics (the running ones are updated on a
    copy) and dropout draws from the client's seed.
    """

    protocol = "fedsgd"

    def local_update(
        self,
        loss: LocalLoss,
        parameters: Update,
        images: Tensor,
        labels: Tensor,
        *,
        gradient: Gradient,
    ) -> Update:
        """Return the gradient of the batch."""
        return gradient(loss, parameters, images, labels)
