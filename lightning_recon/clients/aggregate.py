"""Several clients of whom the server sees the mean update alone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_recon.clients.base import Client, Gradient, LocalLoss
from lightning_recon.clients.wrapped import WrappedClient
from lightning_recon.errors import InputError
from lightning_recon.randomness import derive_seed
from lightning_recon.updates import Buffers, PrivateBatch, Update


class Aggregate(WrappedClient):
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
        super().__init__(client)
        if num_clients < 1:
            raise InputError(f"Aggregate: num_clients must be at least 1, not {num_clients}")
        self.num_clients = num_clients

    def gradient_weights(self, num_samples: int) -> list[float]:
        """Return how often each gradient counts in the update of one client with its share."""
        return self.client.gradient_weights(-(-num_samples // self.num_clients))

    def fewest_samples(self, num_samples: int) -> int:
        """Return how many samples the payload of one client sees together at the least."""
        return self.client.fewest_samples(-(-num_samples // self.num_clients))

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
        return _mean(
            [
                self.client.local_update(loss, parameters, *share, gradient=gradient)
                for share in zip(self._shares(images), self._shares(labels), strict=True)
            ]
        )

    def run(self, payload: nn.Module, batch: PrivateBatch, *, seed: int) -> tuple[Update, Buffers]:
        """Return the means of the clients' updates and buffers, each of randomness of its own."""
        shares = zip(*(self._shares(field) for field in batch), strict=True)
        updates, buffers = zip(
            *(
                self.client.run(payload, PrivateBatch(*share), seed=derive_seed(seed, place))
                for place, share in enumerate(shares)
            ),
            strict=True,
        )
        return _mean(updates), _mean(buffers)

    def _shares(self, field: Tensor) -> list[Tensor]:
        if len(field) % self.num_clients:
            raise InputError(
                f"Aggregate: {len(field)} samples cannot be shared out among {self.num_clients} "
                "clients; take batches of a multiple of num_clients"
            )
        return list(field.chunk(self.num_clients))


def _mean(parts: Sequence[Update]) -> Update:
    stacks = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    return {
        name: stack.mean(0) if stack.is_floating_point() else stack.double().mean(0).to(stack)
        for name, stack in stacks.items()
    }
