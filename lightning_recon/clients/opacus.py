"""The client of DP-SGD with the gradients of Opacus, Meta's library for it."""

import copy
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import nn

from lightning_recon.clients.base import randomness
from lightning_recon.clients.dpsgd import DPSGD
from lightning_recon.errors import InputError
from lightning_recon.updates import Buffers, PrivateBatch, Update


class OpacusDPSGD(DPSGD):
    """:class:`DPSGD`, its samples differentiated and clipped by Opacus (``pip install opacus``).

    Yousefpour et al., "Opacus: User-Friendly Differential Privacy Library in PyTorch",
    arXiv 2109.12298.  What an Opacus client sends, but for the noise, which is a defense of its
    own as with :class:`DPSGD`: :class:`~lightning_recon.defenses.dpsgd_noise.DPSGDNoise` with
    Opacus' ``noise_multiplier`` and the clipping norm here as its ``max_grad_norm``.  Models that
    Opacus refuses, those with batch norm above all, are refused.

    Args:
        clip_norm: the L2 norm C of a sample's gradient over all parameters, above 0.

    Raises:
        InputError: if Opacus is not installed.
    """

    citation = "Yousefpour et al., arXiv 2109.12298"

    def __init__(self, clip_norm: float) -> None:
        super().__init__(clip_norm)
        if find_spec("opacus") is None:
            raise InputError("OpacusDPSGD: opacus is not installed; pip install opacus")

    def run(self, payload: nn.Module, batch: PrivateBatch, *, seed: int) -> tuple[Update, Buffers]:
        """Return the mean of the clipped gradients, and the payload's buffers as they were.

        Raises:
            InputError: if Opacus does not take the payload, or it has a penalty.
        """
        from opacus.grad_sample import GradSampleModule
        from opacus.optimizers import DPOptimizer
        from opacus.validators import ModuleValidator

        if getattr(payload, "has_penalty", False):
            raise InputError("OpacusDPSGD: a model with a penalty of its own needs DPSGD")
        model = copy.deepcopy(payload).requires_grad_().train()
        if problems := ModuleValidator.validate(model, strict=False):
            raise InputError(f"OpacusDPSGD: {' '.join(str(problems[0]).split())}; use group norm")
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        update: Update = {name: torch.zeros_like(p) for name, p in payload.named_parameters()}
        with randomness(seed, batch.images.device), torch.enable_grad():
            try:
                sampled = GradSampleModule(model)
                loss = F.cross_entropy(sampled(batch.images), batch.labels)
                torch.autograd.backward(loss)
            except (NotImplementedError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"OpacusDPSGD: Opacus does not differentiate the model: {reason}"
                ) from error
            used = [p for p in model.parameters() if getattr(p, "grad_sample", None) is not None]
            optimizer = DPOptimizer(
                torch.optim.SGD(used, lr=1.0),
                noise_multiplier=0.0,
                max_grad_norm=self.clip_norm,
                expected_batch_size=len(batch.images),
            )
            optimizer.pre_step()
        for parameter in used:
            assert parameter.grad is not None
            update[names[id(parameter)]] = parameter.grad.detach().clone()
        return update, dict(payload.named_buffers())
