"""What an honest client computes on the model that the server sent.

A client is run twice: by the federation on the private batch, and by an attacker who simulates it
on dummy images.  Both go through :meth:`Client.local_update`, so that they cannot differ.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import left_as_found, run_stateless
from lightning_recon.rowsparse import RowSparse
from lightning_recon.updates import Buffers, PrivateBatch, Update

LocalLoss = Callable[[Update, Tensor, Tensor], Tensor]
"""(parameters, images B C H W, labels B or B num_classes) -> the batch's mean loss."""
Gradient = Callable[[LocalLoss, Update, Tensor, Tensor], Update]
"""(loss, parameters, images, labels) -> the loss's gradient by parameter name."""


class Client(ABC):
    """One participant of the federation: runs its protocol on the server's payload.

    Args:
        label_smoothing: of the cross-entropy, in [0, 1) (Szegedy et al., CVPR 2016).
        mode: ``"train"``: batch norm uses the batch's own statistics, dropout drops; ``"eval"``:
            batch norm uses the payload's running statistics, dropout is off.

    Raises:
        InputError: if an argument is out of its range.
    """

    protocol: str
    """The protocol's name, as it stands in the observation."""
    clip_norm: float | None = None
    """The L2 norm to which the client clips the gradient of every sample; None: it does not."""
    weight_decay: float = 0.0
    """So many times its weights a local step adds to its gradient."""
    num_clients: int = 1
    """Clients of whose updates the server sees one, the mean."""
    update_clip_norm: float | None = None
    """The L2 norm to which each of those clips its own update before the sum; None: none does."""

    def __init__(
        self, label_smoothing: float = 0.0, mode: Literal["train", "eval"] = "train"
    ) -> None:
        name = type(self).__name__
        if not 0 <= label_smoothing < 1:
            raise InputError(f"{name}: label_smoothing must be in [0, 1), not {label_smoothing}")
        if mode not in ("train", "eval"):
            raise InputError(f"{name}: mode must be train or eval, not {mode!r}")
        self.label_smoothing = label_smoothing
        self.mode: Literal["train", "eval"] = mode

    @property
    def gradient_scale(self) -> float:
        """What an update is multiplied by to be of a gradient's sign and size."""
        return 1.0

    @property
    def sends_gradient(self) -> bool:
        """Whether an update is a multiple of the gradient at the payload, however many samples."""
        return self.protocol == "fedsgd"

    def gradient_weights(self, num_samples: int) -> list[float]:
        """Return how often the gradient of each local step counts in an update.

        Times :attr:`gradient_scale`, the update is the sum of these multiples.
        """
        return [1.0]

    def fewest_samples(self, num_samples: int) -> int:
        """Return how many samples of a batch the payload sees together at the least."""
        return num_samples

    def num_gradients(self, num_samples: int) -> float:
        """Return how many mean gradients of a batch an update is the sum of, about."""
        return sum(self.gradient_weights(num_samples))

    @abstractmethod
    def local_update(
        self,
        loss: LocalLoss,
        parameters: Update,
        images: Tensor,
        labels: Tensor,
        *,
        gradient: Gradient,
    ) -> Update:
        """Return the update of one batch, differentiable if ``gradient`` is.

        Args:
            loss: of a batch.
            parameters: of the payload, by name; not changed.
            images: B C H W in [0, 1].
            labels: B, int64, or B num_classes probabilities.
            gradient: how a loss is differentiated.
        """

    def __call__(self, payload: nn.Module, batch: PrivateBatch, *, seed: int) -> Update:
        """Return the update that the client computes; see :meth:`run`."""
        return self.run(payload, batch, seed=seed)[0]

    def run(self, payload: nn.Module, batch: PrivateBatch, *, seed: int) -> tuple[Update, Buffers]:
        """Return the update that the client computes, before any defense, and its buffers.

        Args:
            payload: the model that the server sent; it is not changed.
            batch: the client's own data, on the payload's device.
            seed: of the client's own randomness, such as dropout.

        Returns:
            Tensors of their own by parameter name, zeros for parameters that play no part, a
            :class:`RowSparse` for an embedding with sparse gradients; and the payload's buffers as
            the client's training left them.
        """
        parameters = {name: tensor.detach() for name, tensor in payload.named_parameters()}
        buffers = {name: buffer.clone() for name, buffer in payload.named_buffers()}
        with self.working(payload), torch.enable_grad(), randomness(seed, batch.images.device):
            loss = self.loss_of(payload, buffers)
            update = self.respond(loss, parameters, batch.images, batch.labels)
        return _owned(update), buffers

    def respond(
        self, loss: LocalLoss, parameters: Update, images: Tensor, labels: Tensor
    ) -> Update:
        """Return the client's own update; its randomness is torch's global one.

        A client that does what an attacker cannot know, such as shuffling its samples, does it
        here.
        """
        return self.local_update(loss, parameters, images, labels, gradient=plain)

    def simulate(
        self,
        payload: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        gradient: Gradient | None = None,
    ) -> Update:
        """Return what a client with this batch would send, differentiable in images and labels.

        This is the attacker's side; call it within :meth:`working`.

        Args:
            payload: the model that the server sent.
            images: B C H W.
            labels: B, int64, or B num_classes probabilities.
            gradient: how a loss is differentiated; null: by autograd, with the graph kept.
        """
        parameters = {name: tensor.detach() for name, tensor in payload.named_parameters()}
        if gradient is None:
            parameters = {name: tensor.requires_grad_() for name, tensor in parameters.items()}
        return self.local_update(
            self.loss_of(payload), parameters, images, labels, gradient=gradient or with_graph
        )

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return what an attacker expects this client to have made of an update.

        For clients that change their update before any defense; as
        :meth:`lightning_recon.defenses.Defense.stand_in`.

        Args:
            update: as :meth:`simulate` gives it.
            observed: what the server received.
        """
        return update

    def loss_of(self, payload: nn.Module, buffers: Buffers | None = None) -> LocalLoss:
        """Return the mean cross-entropy of a batch as a function of the payload's parameters.

        The penalty of a payload that has one (``Target.has_penalty``) is added.

        Args:
            payload: the model that the server sent.
            buffers: that the client reads and writes; null: the payload's, copied at every call.
        """
        has_penalty = getattr(payload, "has_penalty", False)
        options = {"with_penalty": True} if has_penalty else {}

        def loss(parameters: Update, images: Tensor, labels: Tensor) -> Tensor:
            output = run_stateless(payload, parameters, images, buffers, **options)
            logits, penalty = output if has_penalty else (output, 0.0)
            loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
            return loss + penalty

        return loss

    @contextmanager
    def working(self, payload: nn.Module) -> Iterator[None]:
        """Within this context the payload is in the client's mode; all modes come back."""
        with left_as_found(payload, training=self.mode == "train"):
            yield


def _owned(update: Update) -> Update:
    """Return an update whose tensors share no memory, for defenses write in place.

    Autograd may hand out one tensor twice, or an expanded one.
    """
    taken: set[int] = set()
    owned: Update = {}
    for name, tensor in update.items():
        if tensor.is_sparse:  # of an embedding that asks for it
            owned[name] = RowSparse.from_gradient(tensor)
            continue
        storage = tensor.untyped_storage()
        is_own = storage.data_ptr() not in taken and tensor.nbytes <= storage.nbytes()
        taken.add(storage.data_ptr())
        owned[name] = tensor if is_own else tensor.clone(memory_format=torch.contiguous_format)
    return owned


@contextmanager
def randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Within this context torch's global random numbers depend on ``seed`` alone."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch's asks all kinds of devices: .5 ms
        else:
            torch.manual_seed(seed)
        yield


def plain(loss: LocalLoss, parameters: Update, images: Tensor, labels: Tensor) -> Update:
    """Differentiate by autograd at these parameters; nothing is left to differentiate."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    return _autograd(loss, leaves, images, labels, create_graph=False)


def with_graph(loss: LocalLoss, parameters: Update, images: Tensor, labels: Tensor) -> Update:
    """Differentiate by autograd, in such a way that the gradient can be differentiated again."""
    return _autograd(loss, parameters, images, labels, create_graph=True)


def functional(loss: LocalLoss, parameters: Update, images: Tensor, labels: Tensor) -> Update:
    """Differentiate by ``torch.func.grad``: the only way inside ``vmap`` and ``compile``."""
    gradient: Update = torch.func.grad(loss)(parameters, images, labels)
    return gradient


def _autograd(
    loss: LocalLoss, parameters: Update, images: Tensor, labels: Tensor, *, create_graph: bool
) -> Update:
    value = loss(parameters, images, labels)
    # on a CPU autocast would reach into the backward pass, and round to bfloat16 what the forward
    # pass computed in float32
    with torch.autocast(images.device.type, enabled=False):
        gradients = torch.autograd.grad(
            value,
            list(parameters.values()),
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    return dict(zip(parameters, gradients, strict=True))
