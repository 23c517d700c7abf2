"""What all clients share that change what another client's protocol is given, or gives back."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from lightning_recon.clients.base import Client, Gradient, LocalLoss
from lightning_recon.updates import Buffers, Update


class WrappedClient(Client):
    """A client around another one, whose protocol it follows but for what a subclass changes.

    To an attacker who simulates it, it is the inner client.

    Args:
        client: the inner client.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(client.label_smoothing, client.mode)
        self.client = client
        self.protocol = client.protocol
        self.clip_norm = client.clip_norm
        self.weight_decay = client.weight_decay
        self.num_clients = client.num_clients
        self.update_clip_norm = client.update_clip_norm

    @property
    def gradient_scale(self) -> float:
        """That of the inner client."""
        return self.client.gradient_scale

    @property
    def sends_gradient(self) -> bool:
        """Whether the inner client does."""
        return self.client.sends_gradient

    def gradient_weights(self, num_samples: int) -> list[float]:
        """Return how often each gradient counts in the inner client's update."""
        return self.client.gradient_weights(num_samples)

    def fewest_samples(self, num_samples: int) -> int:
        """Return how many samples the payload sees together at the least."""
        return self.client.fewest_samples(num_samples)

    def local_update(
        self,
        loss: LocalLoss,
        parameters: Update,
        images: Tensor,
        labels: Tensor,
        *,
        gradient: Gradient,
    ) -> Update:
        """Return the inner client's update: the attacker's side."""
        return self.client.local_update(loss, parameters, images, labels, gradient=gradient)

    def loss_of(self, payload: nn.Module, buffers: Buffers | None = None) -> LocalLoss:
        """Return the inner client's loss."""
        return self.client.loss_of(payload, buffers)

    @contextmanager
    def working(self, payload: nn.Module) -> Iterator[None]:
        """Within this context the payload is in the inner client's mode; all modes come back."""
        with self.client.working(payload):
            yield

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return what the inner client's stand-in makes of an update."""
        return self.client.stand_in(update, observed)
