"""What all attacks share that look for images whose update is like the observed one.

    min over x of  D(f(x), u) + priors(x),

u the observed update, f the client run on the dummy images x
(:meth:`lightning_recon.clients.Client.simulate`), D a distance of
:mod:`lightning_recon.functional.gradient_distance`.

The adaptive attacker knows the defenses and passes f(x) through their stand-ins first
(:meth:`lightning_recon.defenses.Defense.stand_in`); the naive one compares with the raw f(x).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_recon.attacks.optimization import OptimizationAttack
from lightning_recon.clients import Client, FedAvg, FedSGD
from lightning_recon.clients.base import functional
from lightning_recon.defenses import Defense, stand_in_chain
from lightning_recon.errors import InputError
from lightning_recon.functional.gradient_distance import DISTANCES, Distance
from lightning_recon.functional.label_inference import LabelMethod, infer_labels
from lightning_recon.functional.last_layer import dummy_forward, last_linear_layer
from lightning_recon.priors import ActivationPrior, Prior
from lightning_recon.randomness import derive_seed
from lightning_recon.structures import Observation, Reconstruction, Update
from lightning_recon.targets import Target

KNOWN = ("labels", "num_samples", "client")
"""What can be granted beside the update; the defenses are granted by ``adaptive``."""
NUM_SEEN = 16  # public images from which label inference learns


class Evidence(NamedTuple):
    """What the objective needs of an observation."""

    payload: nn.Module
    observed: Update
    """As the server received it."""
    reference: Update
    """The same, scaled: what simulated updates are compared with."""
    labels: Tensor
    """B, int64; known or inferred."""
    client: Client
    """That is simulated."""
    chain: tuple[Defense, ...] | None
    """Whose stand-ins are used, and the client's own; None: the naive attacker uses none."""
    scale: float | None
    """Simulated updates are multiplied by it before they are compared; None: fitted."""
    notes: dict[str, float]


class GradientMatching(OptimizationAttack):
    """An attack that optimises a batch of dummy images until their update is the observed one.

    All restarts run as one batched computation; the one of least objective is returned.

    Args:
        target: see :class:`~lightning_recon.attacks.base.Attack`.
        client: see there.
        defenses: see there.
        known: what is granted to the attacker, of ``labels``, ``num_samples`` and ``client``
            (the local hyperparameters).  Without the labels they are inferred; without the
            client, one step of SGD at an unknown rate is simulated.
        adaptive: whether the attacker knows the defenses, and simulates them.
        distance: between the simulated update and the observed one.
        priors: penalties on the dummy images, added to the distance.
        label_inference: how labels are found that are not known.
        num_restarts: independent starts, at least 1.
        compile: whether an iteration is compiled (torch.compile): half a minute once, and for
            small networks two to three times as fast from then on.
        patience: iterations in which the objective must fall by 1 %, or the client is left; null:
            all iterations are done.
        iterations: see :class:`~lightning_recon.attacks.optimization.OptimizationAttack`.
        optimizer: see there.
        lr_scheduler: see there.
        seed: see :class:`~lightning_recon.attacks.base.Attack`.

    Raises:
        InputError: if an argument is out of its range.
    """

    threat_model = "an honest-but-curious server that sees one client's update"

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        known: Sequence[str] = KNOWN,
        adaptive: bool = False,
        distance: Distance = "squared",
        priors: Sequence[Prior | ActivationPrior] = (),
        label_inference: LabelMethod = "residual_counts",
        num_restarts: int = 1,
        compile: bool = False,
        patience: int | None = None,
        iterations: int = 400,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(target, client, defenses, iterations, optimizer, lr_scheduler, seed)
        name = type(self).__name__
        for word in known:
            if word not in KNOWN:
                raise InputError(f"{name}: known may hold {', '.join(KNOWN)}, not {word!r}")
        if distance not in DISTANCES:
            raise InputError(f"{name}: distance must be one of {', '.join(DISTANCES)}")
        if num_restarts < 1:
            raise InputError(f"{name}: num_restarts must be at least 1, not {num_restarts}")
        if patience is not None and patience < 1:
            raise InputError(f"{name}: patience must be at least 1, not {patience}")
        self.patience = patience
        self.oracles = (*known, *(["defenses"] if adaptive else []))
        self.distance = distance
        self.priors = nn.ModuleList(priors)
        self.label_inference: LabelMethod = label_inference
        self.num_restarts = num_restarts
        self.restarts_at_once = num_restarts
        """How many are computed together; less where they did not fit in memory."""
        self.is_compiled = compile
        self._compiled: Any = None
        self._seen = torch.empty(0)

    def learn_public(self, images: Tensor) -> None:
        """Keep some images of which the features help to infer labels; noise without any."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "label inference"))
        noise = torch.rand(NUM_SEEN, *self.data.image_shape, generator=generator)
        self._seen = images[:NUM_SEEN] if len(images) else noise

    # --- what a method may change --------------------------------------------------------------

    def server_payload(self, model: Target) -> nn.Module:
        """Send the model as it is."""
        return model

    def start(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Return the dummy images of one restart to begin with, num_samples x dummy shape.

        Here uniform in [0, 1].

        Args:
            num_samples: of the batch.
            generator: the restart's own.
        """
        return torch.rand(num_samples, *self.dummy_shape, generator=generator)

    def decode(self, dummy: Tensor) -> Tensor:
        """Return the images that dummies stand for, R C H W; here the dummies themselves."""
        return dummy

    def labels_of(self, dummy: Tensor, evidence: Evidence) -> Tensor:
        """Return the labels that dummies stand for: R, int64, or R num_classes probabilities.

        Here those of the evidence, in every restart.
        """
        return evidence.labels.repeat(len(dummy) // len(evidence.labels))

    @property
    def num_dummies_held(self) -> int:
        """The dummy images of all restarts together."""
        return self.num_restarts * super().num_dummies_held

    # --- the attack ----------------------------------------------------------------------------

    def initialize(self, observation: Observation) -> tuple[Tensor, Evidence]:
        """Read the observation; restarts follow one another along the first dimension."""
        known = observation.client
        scale: float | None = 1.0
        if known is not None:
            scale = known.gradient_scale
        elif observation.protocol == "fedavg":
            scale = None
        labels, notes = self._labels(observation, -1.0 if scale is None else scale)
        evidence = Evidence(
            payload=observation.payload,
            observed=observation.update,
            reference=_scaled(observation.update, 1.0 if scale is None else scale),
            labels=labels,
            client=known or FedSGD(),
            chain=observation.defenses,
            scale=scale,
            notes=notes,
        )
        reference = next(iter(observation.update.values()))
        starts = []
        for restart in range(self.num_restarts):
            generator = torch.Generator().manual_seed(derive_seed(observation.seed, restart))
            starts.append(self.start(len(labels), generator))
        return torch.cat(starts).to(reference), evidence

    def _labels(self, observation: Observation, scale: float) -> tuple[Tensor, dict[str, float]]:
        if observation.labels is not None:
            return observation.labels, {}
        if observation.num_samples is None:
            raise InputError(
                f"{type(self).__name__} needs the number of samples; add num_samples or labels to "
                "known"
            )
        payload, update, client = observation.payload, observation.update, observation.client
        seen = self._seen.to(next(iter(update.values())))
        # an update that passed no defense has the size, and for FedAvg the end, that it says
        is_whole = observation.defenses == ()
        is_sized = is_whole and (client is not None or observation.protocol == "fedsgd")
        if isinstance(client, FedAvg):
            scale /= client.num_steps(observation.num_samples)
        is_delta = is_whole and observation.protocol == "fedavg"
        with torch.no_grad(), (client or FedSGD()).working(payload):
            weight, bias = last_linear_layer(payload, seen[:1])
            dummies = dummy_forward(payload, seen, weight_delta=update if is_delta else None)
        labels = infer_labels(
            self.label_inference,
            scale * update[weight],
            None if bias is None else scale * update[bias],
            observation.num_samples,
            dummies=dummies,
            scale=1.0 if is_sized else None,
        )
        return labels, {"labels_inferred": float(len(labels))}

    def objective(self, dummy: Tensor, evidence: Evidence) -> dict[str, Tensor]:
        """Return the distance and the priors, each of one number a restart.

        Call it within :meth:`simulating`.
        """
        images, labels = self.decode(dummy), self.labels_of(dummy, evidence)
        parts = {"matching": self.matching(images, labels, evidence)}
        for prior in self.priors:
            penalty = self._penalty(prior, images, labels, evidence)
            name = type(prior).__name__
            parts[name] = parts[name] + penalty if name in parts else penalty
        return parts

    def _penalty(
        self, prior: nn.Module, images: Tensor, labels: Tensor, evidence: Evidence
    ) -> Tensor:
        if not isinstance(prior, ActivationPrior):
            penalty: Tensor = prior(images)
            return penalty.view(-1, len(evidence.labels)).mean(1)

        def one(images: Tensor, labels: Tensor) -> Tensor:
            penalty: Tensor = prior(images, labels, evidence.payload, evidence.observed)
            return penalty

        return _each_restart(one, len(evidence.labels), images, labels)

    def matching(self, images: Tensor, labels: Tensor, evidence: Evidence) -> Tensor:
        """Return the distance of each restart's update to the observed one."""
        num_samples = len(evidence.labels)
        gradient = functional if self.is_compiled or len(images) > num_samples else None

        def one(images: Tensor, labels: Tensor) -> Tensor:
            simulated = evidence.client.simulate(
                evidence.payload, images, labels, gradient=gradient
            )
            return self.compare(simulated, evidence)

        return _each_restart(one, num_samples, images, labels)

    @contextmanager
    def simulating(self, evidence: Evidence) -> Iterator[None]:
        """Put the payload in the client's mode, and let attention differentiate twice."""
        with evidence.client.working(evidence.payload), sdpa_kernel(SDPBackend.MATH):
            yield

    def differentiate(self, dummy: Tensor, evidence: Evidence) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of the objective and the gradient of their sum, restarts in chunks.

        Where the memory does not suffice, half as many restarts are computed at once from then on.
        A restart whose objective is not finite gets no gradient.
        """
        with self.simulating(evidence):
            while True:
                chunks = torch.split(dummy.detach(), self.restarts_at_once * len(evidence.labels))
                try:
                    results = [self._differentiate(chunk, evidence) for chunk in chunks]
                    break
                except RuntimeError as error:
                    if self.restarts_at_once == 1 or not _is_out_of_memory(error):
                        raise
                # outside of the handler, for an error keeps its tensors alive
                self.restarts_at_once //= 2
        parts = {name: torch.cat([parts[name] for parts, _ in results]) for name in results[0][0]}
        gradient = torch.cat([gradient for _, gradient in results])
        finite = torch.stack(list(parts.values())).sum(0).isfinite()
        gradient.view(len(finite), -1).masked_fill_(~finite[:, None], 0.0)
        return parts, gradient

    def _differentiate(self, dummy: Tensor, evidence: Evidence) -> tuple[dict[str, Tensor], Tensor]:
        if not self.is_compiled:
            return super().differentiate(dummy.requires_grad_(), evidence)
        if self._compiled is None:

            def total(dummy: Tensor, evidence: Evidence) -> tuple[Tensor, dict[str, Tensor]]:
                parts = self.objective(dummy, evidence)
                return torch.stack([part.sum() for part in parts.values()]).sum(), parts

            self._compiled = torch.compile(torch.func.grad(total, has_aux=True))
        gradient, parts = self._compiled(dummy, evidence)
        return parts, gradient

    def compare(self, simulated: Update, evidence: Evidence) -> Tensor:
        """Return the distance of one simulated update to the observed one."""
        if evidence.chain is not None:
            simulated = evidence.client.stand_in(simulated, evidence.observed)
            simulated = stand_in_chain(evidence.chain, simulated, evidence.observed)
        if evidence.scale is None:
            simulated = _fitted(simulated, evidence.reference)
        else:
            simulated = _scaled(simulated, evidence.scale)
        return DISTANCES[self.distance](simulated, evidence.reference)

    def finish(self, dummy: Tensor, evidence: Any) -> Reconstruction:
        """Return the images of the restart of least objective."""
        with torch.enable_grad():
            parts, _ = self.differentiate(dummy, evidence)
        total = torch.stack([part.detach() for part in parts.values()]).sum(0)
        finite = total.isfinite()
        best = int(total.where(finite, torch.inf).argmin())
        notes = {**evidence.notes}
        if not finite.all():
            notes["restarts_not_finite"] = float((~finite).sum())
        if self.restarts_at_once < self.num_restarts:
            notes["restarts_at_once"] = float(self.restarts_at_once)
        images = self.decode(dummy).chunk(self.num_restarts)[best]
        labels = self.labels_of(dummy, evidence).chunk(self.num_restarts)[best]
        return Reconstruction(
            images=images.detach().clamp(0, 1),
            labels=labels.argmax(1) if labels.is_floating_point() else labels,
            score=total[best].expand(len(images)),
            notes=notes,
        )


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "alloc" in str(error)


def _each_restart(function: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
    """Return the number that a function gives for each run of ``size`` along the tensors."""
    parts = [tensor.view(-1, size, *tensor.shape[1:]) for tensor in tensors]
    if len(parts[0]) == 1:
        return function(*(part[0] for part in parts))[None]
    numbers: Tensor = vmap(function, randomness="different")(*parts)
    return numbers


def _scaled(update: Update, scale: float) -> Update:
    return update if scale == 1 else {name: scale * tensor for name, tensor in update.items()}


def _fitted(simulated: Update, observed: Update) -> Update:
    """Multiply by the number that brings the simulated update nearest to the observed one."""
    dot = torch.stack([(simulated[n] * observed[n]).sum() for n in observed]).sum()
    energy = torch.stack([tensor.square().sum() for tensor in simulated.values()]).sum()
    factor = dot / energy.clamp_min(torch.finfo(energy.dtype).tiny)
    return {name: factor * tensor for name, tensor in simulated.items()}
