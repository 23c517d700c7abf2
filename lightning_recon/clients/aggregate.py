"""Several clients of whom the server sees the mean update alone."""

import torch
from torch import Tensor

from lightning_recon.clients.base import Client, Gradient, LocalLoss
from lightning_recon.errors import InputError
from lightning_recon.structures import Update


class Aggregate(Client):
    """The mean update of several clients, as secure aggregation shows it to the server.

    Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS
    2017; the cryptography is not simulated, its result is.  A batch of the data module is shared
    out in order, equally: what an audit calls one client here is a whole round of them.  Defenses
    act on the mean.

    Args:
        client: the protocol of each.
        num_clients: of a round, at least 1.

    Raises:
        InputError: if ``num_clients`` is below 1.
    """

    def __init__(self, client: Client, num_clients: int) -> None:
        super().__init__(client.label_smoothing, client.mode)
        if num_clients < 1:
            raise InputError(f"Aggregate: num_clients must be at least 1, not {num_clients}")
        self.client = client
        self.num_clients = num_clients
        self.protocol = client.protocol

    @property
    def gradient_scale(self) -> float:
        """That of one client."""
        return self.client.gradient_scale

    def local_update(
        self,
        loss: LocalLoss,
        parameters: Update,
        images: Tensor,
        labels: Tensor,
        *,
        gradient: Gradient,
    ) -> Update:
        """Return the mean of the clients' updates.

        Raises:
            InputError: if the samples cannot be shared out equally.
        """
        return self._mean(
            [
                self.client.local_update(loss, parameters, *share, gradient=gradient)
                for share in self._shares(images, labels)
            ]
        )

    def respond(
        self, loss: LocalLoss, parameters: Update, images: Tensor, labels: Tensor
    ) -> Update:
        """Return the mean of the clients' own updates; see :meth:`local_update`."""
        return self._mean(
            [
                self.client.respond(loss, parameters, *share)
                for share in self._shares(images, labels)
            ]
        )

    def _shares(self, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        if len(images) % self.num_clients:
            raise InputError(
                f"Aggregate: {len(images)} samples cannot be shared out among {self.num_clients} "
                "clients; let the data's batch_size be a multiple of num_clients"
            )
        return list(
            zip(images.chunk(self.num_clients), labels.chunk(self.num_clients), strict=True)
        )

    def _mean(self, updates: list[Update]) -> Update:
        return {
            name: torch.stack([update[name] for update in updates]).mean(0) for name in updates[0]
        }
