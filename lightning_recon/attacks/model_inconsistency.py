"""One client's own gradient out of a secure sum: all others are sent a layer that is dead.

Pasquini, Francati, Ateniese, "Eluding Secure Aggregation in Federated Learning via Model
Inconsistency", CCS 2022, arXiv 2111.07380 (gradient suppression).

The server sends the model as it is to one client of the round.  To the others it sends a version in
whose first layer no ReLU opens: the biases are below minus the most that the weights can make of
an image in [0, 1].  Their gradients of that layer are exactly zero, so that its part of the sum is
the one client's, however many there are, and an attack on a single client does the rest: here
:class:`~lightning_recon.attacks.ExactInversion`, which says what it is sure of.

What differs: the paper silences any one layer of a network of ReLUs, and infers properties too (a
canary in the gradient); here it is the first one, linear, which the images are read from.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_recon.attacks.analytic import AnalyticAttack, probe_images
from lightning_recon.attacks.exact.recovery import check_alone, recover
from lightning_recon.attacks.linear_layer import FirstLinear, first_linear
from lightning_recon.clients import Client
from lightning_recon.clients.aggregate import ClientPayload
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.targets import Target

MARGIN = 1.0  # by which a dead ReLU's input stays below 0


class InconsistentPayload(ClientPayload):
    """A model for one client of the round, and another one for all others.

    Args:
        model: for the one.
        silent: of the same names and shapes, for the others.
        place: of the one in the round.
    """

    def __init__(self, model: nn.Module, silent: nn.Module, place: int) -> None:
        super().__init__()
        self.model = model
        self._silent = (silent,)  # a tuple hides its parameters
        self.place = place

    def for_client(self, place: int) -> nn.Module:
        """Return the version of one client."""
        if place == self.place:
            return self
        return InconsistentPayload(self._silent[0], self._silent[0], place)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B C H W images."""
        logits: Tensor = self.model(images)
        return logits


class ModelInconsistency(AnalyticAttack):
    """A dead first layer for all clients of a round but one, whose images are found exactly.

    The clients are those of an :class:`~lightning_recon.clients.Aggregate`.

    Args:
        target: a model whose first layer is linear and has a bias, a ReLU behind it.
        client: the clients' protocol; null: FedSGD of one client.
        defenses: the clients' defenses, in order.
        place: of the client that is attacked, in its round, from 0 on.
        snap: whether pixels near 8-bit levels are set to them: for pictures of 8 bits.
        seed: of all randomness.

    Raises:
        InputError: if an argument is out of its range.
    """

    threat_model = (
        "a malicious server sends all clients of a round but one a model with a dead layer, and "
        "sees the mean update of all"
    )
    oracles = ("num_samples", "client")
    citation = "Pasquini et al., CCS 2022, arXiv 2111.07380"

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        place: int = 0,
        snap: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(target, client, defenses, seed)
        if not 0 <= place < self.num_clients:
            raise InputError(
                f"ModelInconsistency: place must be from 0 to {self.num_clients - 1}, the clients "
                f"of the round, not {place}"
            )
        self.place = place
        self.snap = snap

    def server_payload(self, model: Target) -> InconsistentPayload:
        """Return the model, and beside it the one with a dead first layer.

        Raises:
            InputError: if it has no linear layer with a bias that reads the image, and a ReLU
                behind it, or mixes the samples of a batch.
        """
        first = first_linear(model, self.known_shape)
        check_alone(model, self.mode, type(self).__name__)
        silent = silenced(model, first)
        _check_dead(silent, first, self.known_shape)
        return InconsistentPayload(model, silent, self.place)

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Return the one client's images, marked, the surest first.

        Raises:
            InputError: if its batch is larger than the layer's rank allows.
        """
        assert observation.num_samples is not None
        share = -(-observation.num_samples // self.num_clients)
        alone = observation._replace(num_samples=share)
        return recover(alone, self.known_shape, type(self).__name__, snap=self.snap)


def silenced(model: nn.Module, first: FirstLinear) -> nn.Module:
    """Return a copy of a model in whose first layer no ReLU opens for an image in [0, 1]."""
    silent = copy.deepcopy(model)
    layer = silent.get_submodule(first.prefix.removesuffix("."))
    assert isinstance(layer, nn.Linear)
    shift, scale = (part.flatten() for part in first.reads)
    with torch.no_grad():
        most = layer.weight @ shift + (layer.weight * scale).clamp_min(0).sum(1)
        layer.bias.copy_(-most - MARGIN)
    return silent


def _check_dead(model: nn.Module, first: FirstLinear, shape: tuple[int, int, int]) -> None:
    """Raise InputError if anything reaches the first layer's gradient."""
    weight = dict(model.named_parameters())[f"{first.prefix}weight"]
    with left_as_found(model, training=False), torch.enable_grad():
        leaf = weight.detach().clone().requires_grad_()
        parameters = {f"{first.prefix}weight": leaf}
        logits = torch.func.functional_call(model, parameters, (probe_images(model, shape),))
        (slope,) = torch.autograd.grad(logits.logsumexp(1).sum() + logits.sum(), [leaf])
    if slope.any():
        raise InputError(
            f"ModelInconsistency: no ReLU stands behind the first linear layer of "
            f"{type(model).__name__}, so that it cannot be silenced; choose a target such as MLP"
        )
