"""The client of DP-SGD: every sample's gradient is clipped before they are averaged."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_recon.clients import Client
from lightning_recon.errors import InputError
from lightning_recon.structures import PrivateBatch, Update

_NUM_NUMBERS = 2**26  # of per-sample gradients that are held at once (256 MB in float32)
_CHUNK = 2**20


class DPSGD(Client):
    """Federated SGD with per-sample clipping: the mean of g_i min(1, C / |g_i|) over the batch.

    Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, Algorithm 1.  One sample
    then moves the update by at most 2C/B (replacement), and the update's norm is at most C.  The
    noise is a defense of its own, :class:`~lightning_recon.defenses.dpsgd_noise.DPSGDNoise`.

    Where it differs from :class:`~lightning_recon.clients.FedSGD`: batch norm mixes the samples,
    so that no gradient belongs to one of them; its layers use their running statistics here, which
    the server knows.  A payload that computes across the batch in any other way sees batches of
    one.

    Args:
        clip_norm: the L2 norm C of a sample's gradient over all parameters, above 0.
        num_parallel: samples that are differentiated at once; null: as many as fit in 256 MB.
    """

    protocol = "fedsgd"

    def __init__(self, clip_norm: float, num_parallel: int | None = None) -> None:
        if not 0 < clip_norm < float("inf"):
            raise InputError(f"DPSGD: clip_norm must be a number above 0, not {clip_norm}")
        if num_parallel is not None and num_parallel < 1:
            raise InputError(f"DPSGD: num_parallel must be at least 1, not {num_parallel}")
        self.clip_norm = clip_norm
        self.num_parallel = num_parallel

    def __call__(self, payload: nn.Module, batch: PrivateBatch, *, seed: int) -> Update:
        """Return the mean of the clipped gradients; zeros for parameters that play no part.

        Raises:
            InputError: if a sample's gradient has no finite norm.
        """
        parameters = {name: tensor.detach() for name, tensor in payload.named_parameters()}

        def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            # a layer may count its calls in a buffer
            buffers = {name: buffer.clone() for name, buffer in payload.named_buffers()}
            logits = functional_call(payload, (parameters, buffers), (image[None],))
            return F.cross_entropy(logits, label[None])

        size = sum(tensor.numel() for tensor in parameters.values())
        num_parallel = self.num_parallel or max(1, _NUM_NUMBERS // max(size, 1))
        gradients_of = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
        update = {
            name: torch.zeros_like(tensor, memory_format=torch.contiguous_format)
            for name, tensor in parameters.items()
        }
        devices = [batch.images.device] if batch.images.is_cuda else []
        with _training_without_batch_norm(payload), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            for images, labels in zip(
                torch.split(batch.images, num_parallel),
                torch.split(batch.labels, num_parallel),
                strict=True,
            ):
                gradients = gradients_of(parameters, images, labels)
                self._add_clipped(update, gradients, len(batch.images))
        return update

    @torch.no_grad()
    def _add_clipped(self, update: Update, gradients: Update, num_samples: int) -> None:
        """Add the clipped gradients, n x shape each, to the mean."""
        some = next(iter(gradients.values()))
        squares = torch.zeros(len(some), dtype=torch.float64, device=some.device)
        for gradient in gradients.values():
            for chunk in torch.split(gradient.reshape(len(gradient), -1), _CHUNK, dim=1):
                squares += torch.linalg.vector_norm(chunk, dim=1, dtype=torch.float64).square()
        norms = squares.sqrt()
        if not bool(norms.isfinite().all()):
            raise InputError(
                "DPSGD: the gradient of a sample is not finite and cannot be clipped; check the "
                "images, the target's weights and the precision"
            )
        factors = (self.clip_norm / norms).clamp(max=1.0) / num_samples
        for name, gradient in gradients.items():
            for sample, factor in zip(gradient, factors.tolist(), strict=True):
                update[name].add_(sample, alpha=factor)


@contextmanager
def _training_without_batch_norm(payload: nn.Module) -> Iterator[None]:
    """Within this context the model trains but for its batch norms; all modes come back."""
    modes = {module: module.training for module in payload.modules()}
    payload.train()
    for module in modes:
        if isinstance(module, _BatchNorm):
            if module.running_mean is None:
                raise InputError(
                    "DPSGD: a batch norm without running statistics mixes the samples of a batch; "
                    "use a target with group norm"
                )
            module.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
