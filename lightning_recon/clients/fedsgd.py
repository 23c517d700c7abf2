"""Federated SGD.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017.
"""

import torch
from torch import Tensor, nn

from lightning_recon.clients.base import Client, Gradient, LocalLoss
from lightning_recon.rowsparse import RowSparse
from lightning_recon.updates import Buffers, PrivateBatch, Update


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

    def run(self, payload: nn.Module, batch: PrivateBatch, *, seed: int) -> tuple[Update, Buffers]:
        """Return the gradient by parameter name, and the buffers; see :meth:`Client.run`.

        That of an embedding with sparse gradients is a :class:`RowSparse`.
        """
        gradients, buffers = super().run(payload, batch, seed=seed)
        # autograd may hand out one tensor twice, or an expanded one; defenses write in place
        taken: set[int] = set()
        update: Update = {}
        for name, gradient in gradients.items():
            if gradient.is_sparse:  # of an embedding that asks for it
                update[name] = RowSparse.from_gradient(gradient)
                continue
            storage = gradient.untyped_storage()
            is_own = storage.data_ptr() not in taken and gradient.nbytes <= storage.nbytes()
            taken.add(storage.data_ptr())
            update[name] = (
                gradient if is_own else gradient.clone(memory_format=torch.contiguous_format)
            )
        return update, buffers
