"""Several clients of whom the server sees the mean update alone."""

import torch
from torch import Tensor, nn

from lightning_recon.clients.base import Client, Gradient, LocalLoss
from lightning_recon.errors import InputError
from lightning_recon.randomness import derive_seed
from lightning_recon.structures import PrivateBatch, Update


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
                for share in zip(self._shares(images), self._shares(labels), strict=True)
            ]
        )

    def __call__(self, payload: nn.Module, batch: PrivateBatch, *, seed: int) -> Update:
        """Return the mean of the clients' own updates, each with randomness of its own."""
        shares = zip(*(self._shares(field) for field in batch), strict=True)
        return self._mean(
            [
                self.client(payload, PrivateBatch(*share), seed=derive_seed(seed, place))
                for place, share in enumerate(shares)
            ]
        )

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return what one client's stand-in makes of the mean."""
        return self.client.stand_in(update, observed)

    def _shares(self, field: Tensor) -> list[Tensor]:
        if len(field) % self.num_clients:
            raise InputError(
                f"Aggregate: {len(field)} samples cannot be shared out among {self.num_clients} "
                "clients; let the data's batch_size be a multiple of num_clients"
            )
        return list(field.chunk(self.num_clients))

    def _mean(self, updates: list[Update]) -> Update:
        return {
            name: torch.stack([update[name] for update in updates]).mean(0) for name in updates[0]
        }
