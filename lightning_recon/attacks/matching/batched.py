"""How gradient matching is computed: restarts and clients in one batch, in the memory there is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_recon.attacks.matching.convolutions import (
    FEW_PRODUCTS,
    channels_last,
    largest_convolution,
    without_onednn,
)
from lightning_recon.attacks.matching.evidence import Evidence
from lightning_recon.attacks.optimization import gradient_of
from lightning_recon.errors import InputError
from lightning_recon.updates import Buffers, Update

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
"""Of ``torch.compile``."""
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")

Objective = Callable[[Tensor, Evidence], dict[str, Tensor]]
"""Takes the dummies of one restart of one client, and gives the parts of its objective, each of
shape 1."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error says that memory was short, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError) or "alloc" in str(error)


class BatchedGradient:
    """Differentiates an objective for the dummies of all restarts, and of several clients.

    Args:
        attack: name of the attack, for messages.
        objective: of one restart.
        num_restarts: independent starts, at least 1.
        clients_at_once: clients that are computed together, at least 1.
        compile: whether an iteration is compiled, or the mode of ``torch.compile``.

    Raises:
        InputError: if an argument is out of its range.
    """

    def __init__(
        self,
        attack: str,
        objective: Objective,
        num_restarts: int,
        clients_at_once: int,
        compile: bool | CompileMode,
    ) -> None:
        for argument, value in (
            ("num_restarts", num_restarts),
            ("clients_at_once", clients_at_once),
        ):
            if value < 1:
                raise InputError(f"{attack}: {argument} must be at least 1, not {value}")
        if not isinstance(compile, bool) and compile not in COMPILE_MODES:
            modes = ", ".join(COMPILE_MODES)
            raise InputError(f"{attack}: compile must be true, false, {modes}, not {compile!r}")
        self._objective = objective
        self.restarts_at_once = num_restarts
        """How many are computed together; less where they did not fit in memory."""
        self.clients_together = clients_at_once
        """The same of the clients."""
        self.is_compiled = bool(compile)
        self._mode = compile if isinstance(compile, str) else None
        self._compiled: Any = None
        self._simulated: nn.Module | None = None
        # payload, and the products of its largest convolution for one image
        self._convolution: tuple[nn.Module, int] | None = None
        self._laid_out: tuple[nn.Module, nn.Module] | None = None  # a payload, and its copy

    def laid_out(self, payload: nn.Module, device: torch.device) -> nn.Module:
        """Return a payload in the form that is fastest to simulate: itself, or a copy."""
        if not self.is_compiled or device.type != "cpu":
            return payload
        if self._laid_out is None or self._laid_out[0] is not payload:
            self._laid_out = payload, channels_last(payload)
        return self._laid_out[1]

    @contextmanager
    def simulating(self, evidence: Evidence) -> Iterator[None]:
        """Put the payload in the client's mode, and let attention differentiate twice."""
        if self._simulated is evidence.payload:
            yield
            return
        with evidence.client.working(evidence.payload), sdpa_kernel(SDPBackend.MATH):
            self._simulated = evidence.payload
            try:
                yield
            finally:
                self._simulated = None

    def differentiate(
        self, dummy: Tensor, evidence: Evidence, image_shape: tuple[int, int, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of the objective and the gradient of their sum, in chunks.

        Where the memory does not suffice, half as many clients are computed at once from then on,
        and when it is one client, half as many restarts.  A restart whose objective is not finite
        gets no gradient.

        Args:
            dummy: the restarts of a client one after the other, the clients likewise.
            evidence: of the same clients.
            image_shape: C, H, W of the images that the payload reads.

        Returns:
            The parts, one number a restart, and the gradient, of the dummies' shape.
        """
        if self.is_compiled and dummy.is_cuda:
            # what the last iteration gave is done with
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with self.simulating(evidence):
            while True:
                chunks = self._chunks(dummy.detach(), evidence)
                try:
                    results = [self._differentiate(*chunk, image_shape) for chunk in chunks]
                    break
                except RuntimeError as error:
                    if not is_out_of_memory(error) or not self._halve(evidence):
                        raise
                # here and not in the handler, for an error keeps its tensors alive
        parts, gradient = results[0]
        if len(results) > 1:
            parts = {name: torch.cat([parts[name] for parts, _ in results]) for name in parts}
            gradient = torch.cat([gradient for _, gradient in results])
        finite = torch.stack(list(parts.values())).sum(0).isfinite()
        gradient.view(len(finite), -1).masked_fill_(~finite[:, None], 0.0)
        return parts, gradient

    def _chunks(self, dummy: Tensor, evidence: Evidence) -> list[tuple[Tensor, Evidence]]:
        num_clients = evidence.num_clients
        num_dummies = self.restarts_at_once * evidence.labels.shape[-1]
        if num_clients == 1:
            return [(chunk, evidence) for chunk in torch.split(dummy, num_dummies)]
        chunks = []
        shares = torch.split(dummy, len(dummy) // num_clients * self.clients_together)
        for place, share in enumerate(shares):
            some = evidence.some(place * self.clients_together, self.clients_together)
            size = num_dummies * some.num_clients
            chunks += [(chunk, some) for chunk in torch.split(share, size)]
        return chunks

    def _halve(self, evidence: Evidence) -> bool:
        """Compute less at once from now on; return whether that was possible."""
        num_clients = min(self.clients_together, evidence.num_clients)
        if num_clients > 1:
            self.clients_together = num_clients // 2
        elif self.restarts_at_once > 1:
            self.restarts_at_once //= 2
        else:
            return False
        return True

    def _differentiate(
        self, dummy: Tensor, evidence: Evidence, image_shape: tuple[int, int, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        is_alone = len(dummy) == evidence.labels.numel() and evidence.num_clients == 1
        convolves_little = self._convolves_little(dummy, evidence, image_shape)
        with without_onednn() if convolves_little else nullcontext():
            if is_alone and not self.is_compiled:
                dummy.requires_grad_()
                return gradient_of(self._objective(dummy, evidence), dummy)
            if not self.is_compiled:
                return self._functional(dummy, evidence)
            if self._compiled is None:
                self._compiled = torch.compile(self._functional, mode=self._mode, dynamic=False)
            parts, gradient = self._compiled(dummy, evidence)
        return parts, gradient

    def _functional(self, dummy: Tensor, evidence: Evidence) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of the objective and the gradient, without autograd.

        Every restart is differentiated within vmap: autograd around vmap takes the mean and the
        variance of a batch norm for constants, and its second derivative is wrong.
        """

        def total(
            dummy: Tensor,
            observed: Update,
            reference: Update,
            labels: Tensor,
            statistics: Buffers,
        ) -> tuple[Tensor, dict[str, Tensor]]:
            parts = self._objective(
                dummy,
                evidence._replace(
                    observed=observed,
                    reference=reference,
                    labels=labels,
                    statistics=statistics,
                    is_functional=True,
                ),
            )
            return torch.stack([part.sum() for part in parts.values()]).sum(), parts

        size = evidence.labels.shape[-1]
        num_restarts = len(dummy) // size // evidence.num_clients
        shape = (evidence.num_clients, num_restarts, size)
        runs = dummy.view(*(n for n in shape[:2] if n > 1), size, *dummy.shape[1:])
        function = torch.func.grad(total, has_aux=True)
        if num_restarts > 1:
            function = vmap(function, in_dims=(0, None, None, None, None), randomness="different")
        if evidence.num_clients > 1:
            function = vmap(function, randomness="different")
        gradient, parts = function(
            runs, evidence.observed, evidence.reference, evidence.labels, evidence.statistics
        )
        parts = {name: part.flatten() for name, part in parts.items()}
        return parts, gradient.reshape(dummy.shape).contiguous()

    def _convolves_little(
        self, dummy: Tensor, evidence: Evidence, image_shape: tuple[int, int, int]
    ) -> bool:
        if dummy.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return False
        if self._convolution is None or self._convolution[0] is not evidence.payload:
            image = dummy.new_zeros(1, *image_shape)
            self._convolution = evidence.payload, largest_convolution(evidence.payload, image)
        return 0 < self._convolution[1] * len(dummy) <= FEW_PRODUCTS
