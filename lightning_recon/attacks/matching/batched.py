"""How gradient matching is computed: restarts and clients in one batch, in the memory there is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_recon.attacks.matching.convolutions import (
    FEW_PRODUCTS,
    channels_last,
    largest_convolution,
    without_onednn,
)
from lightning_recon.attacks.optimization import OptimizationAttack
from lightning_recon.clients import Client
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.observation import Failure, Reconstruction
from lightning_recon.targets import Target
from lightning_recon.updates import Buffers, Update

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
"""Of ``torch.compile``."""
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
COUPLING = (torch.optim.LBFGS, torch.optim.Adafactor)
"""Optimizers of which a step on one number depends on the others of its tensor."""


class Evidence(NamedTuple):
    """What the objective needs of an observation, or of those of several clients."""

    payload: nn.Module
    observed: Update
    """As the server received it."""
    reference: Update
    """The same, scaled: what simulated updates are compared with."""
    labels: Tensor
    """B, int64; known or inferred."""
    statistics: Buffers
    """The means and variances that batch norm is known to see, for priors; see
    :func:`~lightning_recon.attacks.matching.batch_statistics.batch_statistics`."""
    client: Client
    """That is simulated."""
    chain: tuple[Defense, ...] | None
    """Whose stand-ins are used, and the client's own; None: the naive attacker uses none."""
    scale: float | None
    """Simulated updates are multiplied by it before they are compared; None: fitted."""
    notes: dict[str, float]
    num_clients: int = 1
    """Where it is not 1, all tensors have a first dimension for the clients."""
    is_functional: bool = False
    """Whether the objective is differentiated by ``torch.func``, as within vmap and compile."""

    def some(self, first: int, number: int) -> "Evidence":
        """Return the evidence of the clients from ``first`` on, ``number`` of them or fewer."""
        number = min(number, self.num_clients - first)
        if number == self.num_clients:
            return self
        places: int | slice = first if number == 1 else slice(first, first + number)
        observed = {name: tensor[places] for name, tensor in self.observed.items()}
        reference = observed
        if self.reference is not self.observed:
            reference = {name: tensor[places] for name, tensor in self.reference.items()}
        return self._replace(
            observed=observed,
            reference=reference,
            labels=self.labels[places],
            statistics={name: tensor[places] for name, tensor in self.statistics.items()},
            num_clients=number,
        )


def stack_clients(evidences: Sequence[Evidence]) -> Evidence:
    """Return the evidence of several clients as one; they differ in their tensors alone."""
    first = evidences[0]

    def stacked(updates: Sequence[Update]) -> Update:
        return {name: torch.stack([update[name] for update in updates]) for name in updates[0]}

    observed = stacked([evidence.observed for evidence in evidences])
    reference = observed
    if first.reference is not first.observed:
        reference = stacked([evidence.reference for evidence in evidences])
    return first._replace(
        observed=observed,
        reference=reference,
        labels=torch.stack([evidence.labels for evidence in evidences]),
        statistics=stacked([evidence.statistics for evidence in evidences]),
        notes={},
        num_clients=len(evidences),
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error says that memory was short, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError) or "alloc" in str(error)


class BatchedAttack(OptimizationAttack):
    """An attack whose restarts, and whose clients in ``test``, are one batched computation.

    Args:
        target: see :class:`~lightning_recon.attacks.base.Attack`.
        client: see there.
        defenses: see there.
        num_restarts: independent starts, at least 1.
        clients_at_once: see :class:`~lightning_recon.attacks.GradientMatching`.
        compile: see there.
        iterations: see :class:`~lightning_recon.attacks.optimization.OptimizationAttack`.
        optimizer: see there.
        lr_scheduler: see there.
        seed: see :class:`~lightning_recon.attacks.base.Attack`.

    Raises:
        InputError: if an argument is out of its range, or clients cannot be optimised together.
    """

    is_batchable = True
    """Whether several clients can be attacked as one computation."""

    def __init__(
        self,
        target: Target,
        client: Client | None,
        defenses: Sequence[Defense],
        num_restarts: int,
        clients_at_once: int,
        compile: bool | CompileMode,
        iterations: int,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        seed: int,
    ) -> None:
        super().__init__(target, client, defenses, iterations, optimizer, lr_scheduler, seed)
        name = type(self).__name__
        for argument, value in (
            ("num_restarts", num_restarts),
            ("clients_at_once", clients_at_once),
        ):
            if value < 1:
                raise InputError(f"{name}: {argument} must be at least 1, not {value}")
        if not isinstance(compile, bool) and compile not in COMPILE_MODES:
            modes = ", ".join(COMPILE_MODES)
            raise InputError(f"{name}: compile must be true, false, {modes}, not {compile!r}")
        if clients_at_once > 1:
            self._check_batchable(optimizer)
        self.num_restarts = num_restarts
        self.restarts_at_once = num_restarts
        """How many are computed together; less where they did not fit in memory."""
        self.clients_at_once = clients_at_once
        self.clients_together = clients_at_once
        """The same of the clients."""
        self.is_compiled = bool(compile)
        self._mode = compile if isinstance(compile, str) else None
        self._compiled: Any = None
        self._simulated: nn.Module | None = None
        # payload, and the products of its largest convolution for one image
        self._convolution: tuple[nn.Module, int] | None = None
        self._laid_out: tuple[nn.Module, nn.Module] | None = None  # a payload, and its copy

    def _check_batchable(self, optimizer: OptimizerCallable) -> None:
        name = type(self).__name__
        if not self.is_batchable:
            raise InputError(f"{name} attacks one client at a time; leave out clients_at_once")
        made = optimizer([nn.Parameter(torch.zeros(1))])
        if isinstance(made, COUPLING):
            raise InputError(
                f"{name}: {type(made).__name__} mixes what it optimises, which several clients "
                "must not be; leave out clients_at_once, or give another optimizer"
            )

    @property
    def num_dummies_held(self) -> int:
        """The dummy images of all restarts together."""
        return self.num_restarts * super().num_dummies_held

    def laid_out(self, payload: nn.Module) -> nn.Module:
        """Return a payload in the form that is fastest to simulate: itself, or a copy."""
        if not self.is_compiled or self.device.type != "cpu":
            return payload
        if self._laid_out is None or self._laid_out[0] is not payload:
            self._laid_out = payload, channels_last(payload)
        return self._laid_out[1]

    # --- one iteration -------------------------------------------------------------------------

    def num_clients_of(self, evidence: Any) -> int:
        """Return how many clients' dummy images are optimised together."""
        return evidence.num_clients if isinstance(evidence, Evidence) else 1

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

    @contextmanager
    def iterating(self, evidence: Any) -> Iterator[None]:
        """Simulate once for the whole loop."""
        with self.simulating(evidence) if isinstance(evidence, Evidence) else nullcontext():
            yield

    def differentiate(self, dummy: Tensor, evidence: Evidence) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of the objective and the gradient of their sum, in chunks.

        Where the memory does not suffice, half as many clients are computed at once from then on,
        and when it is one client, half as many restarts.  A restart whose objective is not finite
        gets no gradient.
        """
        if self.is_compiled and dummy.is_cuda:
            # what the last iteration gave is done with
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with self.simulating(evidence):
            while True:
                chunks = self._chunks(dummy.detach(), evidence)
                try:
                    results = [self._differentiate(*chunk) for chunk in chunks]
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

    def _differentiate(self, dummy: Tensor, evidence: Evidence) -> tuple[dict[str, Tensor], Tensor]:
        is_alone = len(dummy) == evidence.labels.numel() and evidence.num_clients == 1
        with without_onednn() if self._convolves_little(dummy, evidence) else nullcontext():
            if is_alone and not self.is_compiled:
                return super().differentiate(dummy.requires_grad_(), evidence)
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
            parts = self.objective(
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

    def _convolves_little(self, dummy: Tensor, evidence: Evidence) -> bool:
        if dummy.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return False
        if self._convolution is None or self._convolution[0] is not evidence.payload:
            image = dummy.new_zeros(1, *self.data.image_shape)
            self._convolution = evidence.payload, largest_convolution(evidence.payload, image)
        return 0 < self._convolution[1] * len(dummy) <= FEW_PRODUCTS

    # --- several clients as one ----------------------------------------------------------------

    def test_step(  # type: ignore[override]
        self, batch: Tensor, batch_idx: int
    ) -> Reconstruction | Failure | list[Reconstruction | Failure]:
        """Attack one client, or several; ``batch`` is a number, or a vector of numbers."""
        if batch.ndim == 0:
            return super().test_step(batch, batch_idx)
        return self.attack_together(batch.tolist())

    def attack_together(
        self, clients: Sequence[int], *, noise_only: bool = False
    ) -> list[Reconstruction | Failure]:
        """Attack several clients as one computation; what cannot be, one after the other.

        Args:
            clients: their numbers.
            noise_only: whether it is the null control, as in :meth:`attack_noise`.

        Returns:
            What each attack gives back; a failure if it fails and failures are recorded.
        """
        alone = self.attack_noise if noise_only else self.attack_client
        outcomes: dict[int, Reconstruction | Failure] = {}
        begun: dict[int, tuple[Tensor, Evidence]] = {}
        for client in clients:
            found = self.attempt(partial(self._begin, noise_only=noise_only), client)
            if isinstance(found, Failure):
                outcomes[client] = found
            else:
                begun[client] = found
        shapes: dict[Any, list[int]] = {}
        for client, (start, evidence) in begun.items():
            shapes.setdefault((start.shape, evidence.labels.shape), []).append(client)
        for group in shapes.values():
            outcomes |= self._reconstruct_together({client: begun.pop(client) for client in group})
        for client in clients:
            if client not in outcomes:
                outcomes[client] = self.attempt(alone, client)
        return [outcomes[client] for client in clients]

    def _begin(self, client: int, *, noise_only: bool) -> tuple[Tensor, Evidence]:
        with self.computing():
            if noise_only:
                labels = self.data.client_labels(client)
                return self.initialize(self.observe_noise(labels, client))
            return self.initialize(self.observe(self.data.client(client), client))

    def _reconstruct_together(
        self, begun: dict[int, tuple[Tensor, Evidence]]
    ) -> dict[int, Reconstruction]:
        """Return what is found of each client; nothing where it cannot be found together."""
        starts, evidences = zip(*begun.values(), strict=True)
        if len(begun) == 1 or len(starts[0]) == 0:
            return {}
        found: dict[int, Reconstruction] = {}
        was_compiled = self.is_compiled
        try:
            with self.computing():
                together = stack_clients(evidences)
                ends = self.optimise(torch.cat(starts), together)
                self.is_compiled = False  # one client alone would be another program to compile
                for place, (client, (dummy, curve)) in enumerate(zip(begun, ends, strict=True)):
                    evidence = together.some(place, 1)._replace(notes=evidences[place].notes)
                    reconstruction = self.finish(dummy, evidence)
                    found[client] = reconstruction._replace(curve=tuple(curve))
        except (InputError, RuntimeError, ValueError) as error:
            rank_zero_warn(
                f"{type(self).__name__}: {len(begun)} clients could not be attacked together, and "
                f"are one by one ({' '.join(str(error).split())[:200]})"
            )
            return {}
        finally:
            self.is_compiled = was_compiled
        return found
