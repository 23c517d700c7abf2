"""What an honest client computes on the model that the server sent."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lightning_recon.rowsparse import RowSparse
from lightning_recon.structures import PrivateBatch, Update


class Client(ABC):
    """One participant of the federation: runs its protocol on the server's payload."""

    protocol: str
    """The protocol's name, as it stands in the observation."""

    @abstractmethod
    def __call__(self, payload: nn.Module, batch: PrivateBatch, *, seed: int) -> Update:
        """Return the update that the client computes, before any defense.

        Args:
            payload: the model that the server sent; it is not changed.
            batch: the client's own data, on the payload's device.
            seed: of the client's own randomness, such as dropout.
        """


class FedSGD(Client):
    """Federated SGD: the update is the gradient of the batch's mean cross-entropy.

    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
    AISTATS 2017.  The model runs in training mode: batch norm uses the batch's own statistics
    (the running ones are updated on a copy), dropout draws from ``seed``.
    """

    protocol = "fedsgd"

    def __call__(self, payload: nn.Module, batch: PrivateBatch, *, seed: int) -> Update:
        """Return the gradient by parameter name; zeros for parameters that play no part.

        That of an embedding with sparse gradients is a :class:`RowSparse`.
        """
        parameters = {
            name: parameter.detach().requires_grad_()
            for name, parameter in payload.named_parameters()
        }
        buffers = {name: buffer.clone() for name, buffer in payload.named_buffers()}
        modes = {module: module.training for module in payload.modules()}
        payload.train()
        devices = [batch.images.device] if batch.images.is_cuda else []
        try:
            with torch.enable_grad(), torch.random.fork_rng(devices):
                torch.manual_seed(seed)
                logits = functional_call(payload, (parameters, buffers), (batch.images,))
                loss = F.cross_entropy(logits, batch.labels)
                # on a CPU autocast would reach into the backward pass, and round to bfloat16 what
                # the forward pass computed in float32
                with torch.autocast(batch.images.device.type, enabled=False):
                    gradients = torch.autograd.grad(
                        loss, list(parameters.values()), allow_unused=True, materialize_grads=True
                    )
        finally:
            for module, training in modes.items():
                module.training = training
        # autograd may hand out one tensor twice, or an expanded one; defenses write in place
        taken: set[int] = set()
        update: Update = {}
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient.is_sparse:  # of an embedding that asks for it
                update[name] = RowSparse.from_gradient(gradient)
                continue
            storage = gradient.untyped_storage()
            is_own = storage.data_ptr() not in taken and gradient.nbytes <= storage.nbytes()
            taken.add(storage.data_ptr())
            update[name] = (
                gradient if is_own else gradient.clone(memory_format=torch.contiguous_format)
            )
        return update
