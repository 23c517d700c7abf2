"""The client of DP-SGD: every sample's gradient is clipped before they are averaged."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_recon.clients.base import randomness
from lightning_recon.clients.fedsgd import FedSGD
from lightning_recon.errors import InputError
from lightning_recon.rowsparse import RowSparse
from lightning_recon.updates import Buffers, PrivateBatch, Update

_NUM_NUMBERS = 2**26  # of per-sample gradients that are held at once (256 MB in float32)
_CHUNK = 2**20


class DPSGD(FedSGD):
    """Federated SGD with per-sample clipping: the mean of g_i min(1, C / |g_i|) over the batch.

    Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, Algorithm 1.  One sample
    then moves the update by at most 2C/B (replacement), and the update's norm is at most C.  The
    noise is a defense of its own, :class:`~lightning_recon.defenses.dpsgd_noise.DPSGDNoise`.

    Where it differs from :class:`FedSGD`: batch norm mixes the samples, so that no gradient belongs
    to one of them; its layers use their running statistics here, which the server knows.  A payload
    that computes across the batch in any other way sees batches of one.  An attacker simulates it
    without the clip.

    Args:
        clip_norm: the L2 norm C of a sample's gradient over all parameters, above 0.
        num_parallel: samples that are differentiated at once; null: as many as fit in 256 MB.
    """

    clip_norm: float

    def __init__(self, clip_norm: float, num_parallel: int | None = None) -> None:
        super().__init__()
        if not 0 < clip_norm < float("inf"):
            raise InputError(f"DPSGD: clip_norm must be a number above 0, not {clip_norm}")
        if num_parallel is not None and num_parallel < 1:
            raise InputError(f"DPSGD: num_parallel must be at least 1, not {num_parallel}")
        self.clip_norm = clip_norm
        self.num_parallel = num_parallel

    def fewest_samples(self, num_samples: int) -> int:
        """Return one: every sample is differentiated by itself."""
        return 1

    def run(self, payload: nn.Module, batch: PrivateBatch, *, seed: int) -> tuple[Update, Buffers]:
        """Return the mean of the clipped gradients, and the payload's buffers as they were.

        The gradient is zeros for parameters that play no part; that of an embedding with sparse
        gradients is a :class:`~lightning_recon.rowsparse.RowSparse`.

        Raises:
            InputError: if a sample's gradient has no finite norm.
        """
        update: Update = {}
        with self.working(payload), randomness(seed, batch.images.device):
            for gradient in self._gradients(payload, batch.images, batch.labels):
                norm = _norm(gradient)
                if not math.isfinite(norm):
                    raise InputError(
                        "DPSGD: the gradient of a sample is not finite and cannot be clipped; "
                        "check the images, the target's weights and the precision"
                    )
                factor = min(1.0, self.clip_norm / norm) if norm else 1.0
                _add(update, gradient, factor / len(batch.images))
        for name, total in update.items():
            if total.is_sparse:
                update[name] = RowSparse.from_gradient(total)
        return update, dict(payload.named_buffers())

    @contextmanager
    def working(self, payload: nn.Module) -> Iterator[None]:
        """Within this context the payload trains but for its batch norms; all modes come back.

        Raises:
            InputError: if a batch norm has no running statistics.
        """
        with super().working(payload):
            for module in payload.modules():
                if isinstance(module, _BatchNorm):
                    if module.running_mean is None:
                        raise InputError(
                            "DPSGD: a batch norm without running statistics mixes the samples of a "
                            "batch; use a target with group norm"
                        )
                    module.eval()
            yield

    def _gradients(
        self, payload: nn.Module, images: Tensor, labels: Tensor
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the gradient of each sample."""
        parameters = {name: tensor.detach() for name, tensor in payload.named_parameters()}

        loss_of_batch = self.loss_of(payload)

        def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            return loss_of_batch(parameters, image[None], label[None])

        num_parallel = self.num_parallel or self._fitting(parameters, images.device.type)
        if num_parallel == 1:
            for image, label in zip(images, labels, strict=True):
                leaves = {name: tensor.requires_grad_() for name, tensor in parameters.items()}
                with torch.enable_grad():
                    value = loss(leaves, image, label)
                with torch.autocast(images.device.type, enabled=False):  # as in FedSGD
                    gradients = torch.autograd.grad(
                        value, list(leaves.values()), allow_unused=True, materialize_grads=True
                    )
                yield dict(zip(leaves, gradients, strict=True))
            return
        gradients_of = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
        for some_images, some_labels in zip(
            torch.split(images, num_parallel), torch.split(labels, num_parallel), strict=True
        ):
            together = gradients_of(parameters, some_images, some_labels)
            for i in range(len(some_images)):
                yield {name: gradient[i] for name, gradient in together.items()}

    def _fitting(self, parameters: dict[str, Tensor], device_type: str) -> int:
        """Return how many samples are differentiated at once."""
        # torch.func knows no sparse gradients, which rows that share their memory call for
        is_sparse = any(tensor.dim() and not tensor.stride(0) for tensor in parameters.values())
        if is_sparse or torch.is_autocast_enabled(device_type):
            return 1
        size = sum(tensor.numel() for tensor in parameters.values())
        return max(1, _NUM_NUMBERS // max(size, 1))


def _norm(gradient: dict[str, Tensor]) -> float:
    square = 0.0
    for tensor in gradient.values():
        numbers = tensor.coalesce().values() if tensor.is_sparse else tensor
        for chunk in torch.split(numbers.reshape(-1), _CHUNK):
            square += float(torch.linalg.vector_norm(chunk, dtype=torch.float64)) ** 2
    return math.sqrt(square)


@torch.no_grad()
def _add(update: Update, gradient: dict[str, Tensor], factor: float) -> None:
    """Add ``factor`` times the gradient; the update's tensors are its own."""
    for name, tensor in gradient.items():
        if tensor.is_sparse:
            scaled = tensor * factor
            update[name] = update[name] + scaled if name in update else scaled
        elif name in update:
            update[name].add_(tensor, alpha=factor)
        else:
            scaled = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            update[name] = scaled.add_(tensor, alpha=factor)
