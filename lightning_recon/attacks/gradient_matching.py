"""What all attacks share that look for images whose update is like the observed one.

    min over x of  D(f(x), u) + priors(x),

u the observed update, f the client run on the dummy images x
(:meth:`lightning_recon.clients.Client.simulate`), D a distance of
:mod:`lightning_recon.functional.gradient_distance`.

The adaptive attacker knows the defenses and passes f(x) through their stand-ins first
(:meth:`lightning_recon.defenses.Defense.stand_in`); the naive one compares with the raw f(x).
"""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_recon.attacks.features.decoding import decode_features, reading, teaching_images
from lightning_recon.attacks.matching.batch_statistics import batch_statistics
from lightning_recon.attacks.matching.batched import BatchedAttack, CompileMode
from lightning_recon.attacks.matching.batched import (
    Evidence as Evidence,  # for those who build on this
)
from lightning_recon.clients import Client, FedSGD
from lightning_recon.clients.base import functional
from lightning_recon.defenses import Defense, stand_in_chain
from lightning_recon.errors import InputError
from lightning_recon.functional.gradient_distance import DISTANCES, Distance
from lightning_recon.functional.labels.inference import LabelMethod, infer_labels
from lightning_recon.functional.labels.last_layer import dummy_forward, last_linear_layer
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.priors import ActivationPrior, Prior
from lightning_recon.randomness import derive_seed
from lightning_recon.targets import Target
from lightning_recon.updates import Update

KNOWN = ("labels", "num_samples", "client")
"""What is granted beside the update unless ``known`` says otherwise."""
GRANTABLE = (*KNOWN, "buffers")
"""What can be granted beside the update; the defenses are granted by ``adaptive``."""
NUM_SEEN = 16  # public images from which label inference learns
NUM_REHEARSALS = 4  # of an analytic start, on which the optimisation improves


class GradientMatching(BatchedAttack):
    """An attack that optimises a batch of dummy images until their update is the observed one.

    All restarts run as one batched computation; the one of least objective is returned.

    Args:
        target: see :class:`~lightning_recon.attacks.base.Attack`.
        client: see there.
        defenses: see there.
        known: what is granted to the attacker, of ``labels``, ``num_samples``, ``client`` (the
            local hyperparameters) and ``buffers`` (batch norm's statistics as the client left
            them).  Without the labels they are inferred; without the client, one step of SGD at
            an unknown rate is simulated; without the buffers, a prior that reads statistics
            reads those that the server sent.
        adaptive: whether the attacker knows the defenses, and simulates them.
        distance: between the simulated update and the observed one.
        priors: penalties on the dummy images, added to the distance.
        label_inference: how labels are found that are not known.
        num_restarts: independent starts, at least 1.
        analytic_start: whether the first restart begins with what the gradients of the last linear
            layers tell (:mod:`~lightning_recon.attacks.features.decoding`), decoded by what public
            images teach, instead of noise; the target ends in a linear layer.
        clients_at_once: clients that ``test`` attacks as one batched computation, at least 1.
            Each comes out as it would alone but for rounding (a network with dropout draws other
            masks), and is recorded by itself.  Those of another batch size than the others, or
            whose computation cannot be batched, are attacked one by one.  Where the memory does
            not suffice, half as many are computed at once from then on.
            The optimizer must treat every number by itself, which L-BFGS does not.
        compile: whether an iteration is compiled (torch.compile): half a minute once, and for
            small networks two to three times as fast from then on.  A mode of torch.compile may be
            named: ``reduce-overhead`` and ``max-autotune`` use CUDA graphs, and were not tried on
            a GPU by us.
        patience: iterations in which the objective must fall by 1 %, or the client is left; null:
            all iterations are done.
        iterations: see :class:`~lightning_recon.attacks.optimization.OptimizationAttack`.
        optimizer: see there.
        lr_scheduler: see there.
        seed: see :class:`~lightning_recon.attacks.base.Attack`.

    Raises:
        InputError: if an argument is out of its range, or clients are to be attacked together that
            the optimizer or the attack (``is_batchable``) would mix.
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
        analytic_start: bool = False,
        clients_at_once: int = 1,
        compile: bool | CompileMode = False,
        patience: int | None = None,
        iterations: int = 400,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            target,
            client,
            defenses,
            num_restarts,
            clients_at_once,
            compile,
            iterations,
            optimizer,
            lr_scheduler,
            seed,
        )
        name = type(self).__name__
        for word in known:
            if word not in GRANTABLE:
                raise InputError(f"{name}: known may hold {', '.join(GRANTABLE)}, not {word!r}")
        if distance not in DISTANCES:
            raise InputError(f"{name}: distance must be one of {', '.join(DISTANCES)}")
        if patience is not None and patience < 1:
            raise InputError(f"{name}: patience must be at least 1, not {patience}")
        self.patience = patience
        self.oracles = (*known, *(["defenses"] if adaptive else []))
        self.distance = distance
        self.priors = nn.ModuleList(priors)
        self.label_inference: LabelMethod = label_inference
        self.analytic_start = analytic_start
        self.public = torch.empty(0)
        """N C H W, images that belong to no client, once :meth:`learn_public` has seen them."""
        self.is_public_made_up = False
        self._seen = torch.empty(0)

    def learn_public(self, images: Tensor) -> None:
        """Keep public images; to decode by, noise of a natural spectrum replaces fewer than 8."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "label inference"))
        noise = torch.rand(NUM_SEEN, *self.data.image_shape, generator=generator)
        self._seen = images[:NUM_SEEN] if len(images) else noise
        seed = derive_seed(self.seed, "synthetic")
        self.public, self.is_public_made_up = teaching_images(images, self.data.image_shape, seed)

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

    def encode(self, images: Tensor) -> Tensor:
        """Return dummies that stand for images, R C H W, as nearly as dummies can."""
        return images

    def labels_of(self, dummy: Tensor, evidence: Evidence) -> Tensor:
        """Return the labels that dummies stand for: R, int64, or R num_classes probabilities.

        Here those of the evidence, in every restart.
        """
        return evidence.labels.repeat(len(dummy) // len(evidence.labels))

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
            payload=self.laid_out(observation.payload),
            observed=observation.update,
            reference=_scaled(observation.update, 1.0 if scale is None else scale),
            labels=labels,
            statistics=batch_statistics(observation.payload, observation.buffers),
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
        start = torch.cat(starts).to(reference)
        if self.analytic_start:
            start[: len(labels)] = self._analytic_start(evidence, observation.seed)
        return start, evidence

    def _analytic_start(self, evidence: Evidence, seed: int) -> Tensor:
        """Return the dummies of what the linear layers' gradients tell."""
        with reading(evidence):
            decoded = decode_features(
                evidence,
                self.public,
                derive_seed(seed, "rehearsal"),
                is_adaptive="defenses" in self.oracles,
                num_rehearsals=NUM_REHEARSALS,
            )
            evidence.notes["analytic_start"] = 1.0
            return self.encode(decoded.images)

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
        if client is not None:
            scale /= client.num_gradients(observation.num_samples)
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
        """Return the distance and the priors of one restart, each of shape 1.

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
        penalty: Tensor
        if isinstance(prior, ActivationPrior):
            penalty = prior(
                images, labels, evidence.payload, evidence.observed, evidence.statistics
            )
        else:
            penalty = prior(images).mean()
        return penalty[None]

    def matching(self, images: Tensor, labels: Tensor, evidence: Evidence) -> Tensor:
        """Return the distance of a restart's update to the observed one, of shape 1."""
        gradient = functional if evidence.is_functional else None
        simulated = evidence.client.simulate(evidence.payload, images, labels, gradient=gradient)
        return self.compare(simulated, evidence)[None]

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
        if self.clients_together < self.clients_at_once:
            notes["clients_at_once"] = float(self.clients_together)
        images = self.decode(dummy).chunk(self.num_restarts)[best]
        labels = self.labels_of(dummy, evidence).chunk(self.num_restarts)[best]
        return Reconstruction(
            images=images.detach().clamp(0, 1),
            labels=labels.argmax(1) if labels.is_floating_point() else labels,
            score=total[best].expand(len(images)),
            notes=notes,
        )


def _scaled(update: Update, scale: float) -> Update:
    return update if scale == 1 else {name: scale * tensor for name, tensor in update.items()}


def _fitted(simulated: Update, observed: Update) -> Update:
    """Multiply by the number that brings the simulated update nearest to the observed one."""
    dot = torch.stack([(simulated[n] * observed[n]).sum() for n in observed]).sum()
    energy = torch.stack([tensor.square().sum() for tensor in simulated.values()]).sum()
    factor = dot / energy.clamp_min(torch.finfo(energy.dtype).tiny)
    return {name: factor * tensor for name, tensor in simulated.items()}
