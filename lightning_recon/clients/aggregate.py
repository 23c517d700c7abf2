"""Several clients of whom the server sees the mean update alone."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lightning_recon.clients.base import Client, Gradient, LocalLoss
from lightning_recon.clients.wrapped import WrappedClient
from lightning_recon.defenses.base import clipped
from lightning_recon.defenses.clip import ClipL2
from lightning_recon.errors import InputError
from lightning_recon.randomness import derive_seed
from lightning_recon.updates import Buffers, PrivateBatch, Update


class ClientPayload(nn.Module, ABC):
    """A model of which a malicious server sends every client of a round another version.

    All versions have the names and shapes of this one, so that their updates can be summed.
    Pasquini, Francati, Ateniese, "Eluding Secure Aggregation in Federated Learning via Model
    Inconsistency", CCS 2022.
    """

    @abstractmethod
    def for_client(self, place: int) -> nn.Module:
        """Return what one client is sent.

        Args:
            place: of the client in the round, from 0 on.
        """


class Aggregate(WrappedClient):
    """The mean update of several clients, as secure aggregation shows it to the server.

    Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS
    2017; the cryptography is not simulated, its result is.  A batch of the data module is shared
    out in order, equally: what an audit calls one client here is a whole round of them.  Defenses
    act on the mean.  Of a :class:`ClientPayload` each gets its own version.

    With ``update_clip_norm`` and Gaussian noise among the defenses it is central differential
    privacy: noise of standard deviation sigma on the sum is sigma / num_clients on the mean
    (McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018).

    Args:
        client: the protocol of each.
        num_clients: of a round, at least 1.
        update_clip_norm: the L2 norm to which each clips its update, above 0; null: none does.

    Raises:
        InputError: if an argument is out of its range.
    """

    def __init__(
        self, client: Client, num_clients: int, update_clip_norm: float | None = None
    ) -> None:
        super().__init__(client)
        if num_clients < 1:
            raise InputError(f"Aggregate: num_clients must be at least 1, not {num_clients}")
        if update_clip_norm is not None and not 0 < update_clip_norm < math.inf:
            raise InputError(
                f"Aggregate: update_clip_norm must be a number above 0, not {update_clip_norm}"
            )
        self.num_clients = num_clients
        self.update_clip_norm = update_clip_norm

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
        mean = _Mean()
        for share in zip(self._shares(images), self._shares(labels), strict=True):
            update = self.client.local_update(loss, parameters, *share, gradient=gradient)
            if self.update_clip_norm is not None:
                update = clipped(update, self.update_clip_norm)
            mean.add(update)
        return mean.result()

    def run(self, payload: nn.Module, batch: PrivateBatch, *, seed: int) -> tuple[Update, Buffers]:
        """Return the means of the clients' updates and buffers, each of randomness of its own."""
        shares = zip(*(self._shares(field) for field in batch), strict=True)
        updates, buffers = _Mean(), _Mean()
        for place, share in enumerate(shares):
            sent = payload.for_client(place) if isinstance(payload, ClientPayload) else payload
            update, left = self.client.run(
                sent, PrivateBatch(*share), seed=derive_seed(seed, place)
            )
            if self.update_clip_norm is not None:
                generator = torch.Generator(batch.images.device)  # that no clipping draws from
                update = ClipL2(self.update_clip_norm)(update, generator=generator)
            updates.add(update)
            buffers.add(left)
        return updates.result(), buffers.result()

    def _shares(self, field: Tensor) -> list[Tensor]:
        if len(field) % self.num_clients:
            raise InputError(
                f"Aggregate: {len(field)} samples cannot be shared out among {self.num_clients} "
                "clients; take batches of a multiple of num_clients"
            )
        return list(field.chunk(self.num_clients))


class _Mean:
    """The mean of tensors by name, of which no more than two sets are held."""

    def __init__(self) -> None:
        self._total: Update = {}
        self._types: dict[str, torch.dtype] = {}
        self._count = 0

    def add(self, part: Update) -> None:
        self._types = {name: one.dtype for name, one in part.items()}
        part = {
            name: one if one.is_floating_point() else one.double() for name, one in part.items()
        }
        if self._count:
            part = {name: total + part[name] for name, total in self._total.items()}
        self._total = part
        self._count += 1

    def result(self) -> Update:
        return {
            name: (total / self._count).to(self._types[name]) for name, total in self._total.items()
        }
