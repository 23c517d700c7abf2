"""What all attacks share that look for images whose update is like the observed one.

    min over x of  D(f(x), u) + priors(x),

u the observed update, f the client run on the dummy images x
(:meth:`lightning_recon.clients.Client.simulate`), D a distance of
:mod:`lightning_recon.functional.gradient_distance`.

The adaptive attacker knows the defenses and passes f(x) through their stand-ins first
(:meth:`lightning_recon.defenses.Defense.stand_in`); the naive one compares with the raw f(x).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_recon.attacks.optimization import OptimizationAttack
from lightning_recon.clients import Client, FedSGD
from lightning_recon.clients.base import functional
from lightning_recon.defenses import Defense, stand_in_chain
from lightning_recon.errors import InputError
from lightning_recon.functional.gradient_distance import DISTANCES, Distance
from lightning_recon.functional.label_inference import (
    LabelMethod,
    dummy_forward,
    infer_labels,
    last_linear_layer,
)
from lightning_recon.priors import Prior
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
    labels: Tensor
    """B, int64; known or inferred."""
    client: Client
    """That is simulated."""
    chain: tuple[Defense, ...]
    """Whose stand-ins are used; empty for the naive attacker."""
    scale: float | None
    """Both updates are multiplied by it before they are compared; None: fitted."""
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
        priors: Sequence[Prior] = (),
        label_inference: LabelMethod = "residual_counts",
        num_restarts: int = 1,
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
        self.oracles = (*known, *(["defenses"] if adaptive else []))
        self.distance = distance
        self.priors = nn.ModuleList(priors)
        self.label_inference: LabelMethod = label_inference
        self.num_restarts = num_restarts
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
            labels=labels,
            client=known or FedSGD(),
            chain=observation.defenses or (),
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
        payload, update = observation.payload, observation.update
        seen = self._seen.to(next(iter(update.values())))
        with torch.no_grad(), (observation.client or FedSGD()).working(payload):
            weight, bias = last_linear_layer(payload, seen[:1])
            dummies = dummy_forward(payload, seen)
        labels = infer_labels(
            self.label_inference,
            scale * update[weight],
            None if bias is None else scale * update[bias],
            observation.num_samples,
            dummies=dummies,
        )
        return labels, {"labels_inferred": float(len(labels))}

    def objective(self, dummy: Tensor, evidence: Evidence) -> dict[str, Tensor]:
        """Return the distance and the priors, each of shape num_restarts."""
        images = self.decode(dummy)
        parts = {"matching": self.matching(images, evidence)}
        for prior in self.priors:
            penalty = prior(images).view(self.num_restarts, -1).mean(1)
            name = type(prior).__name__
            parts[name] = parts[name] + penalty if name in parts else penalty
        return parts

    def matching(self, images: Tensor, evidence: Evidence) -> Tensor:
        """Return the distance of each restart's update to the observed one, num_restarts."""

        def one(images: Tensor) -> Tensor:
            simulated = evidence.client.simulate(
                evidence.payload, images, evidence.labels, gradient=gradient
            )
            return self.compare(simulated, evidence)

        gradient = None if self.num_restarts == 1 else functional
        batches = images.view(self.num_restarts, -1, *images.shape[1:])
        with evidence.client.working(evidence.payload), sdpa_kernel(SDPBackend.MATH):
            if self.num_restarts == 1:
                return one(batches[0])[None]
            distances: Tensor = vmap(one, randomness="different")(batches)
            return distances

    def compare(self, simulated: Update, evidence: Evidence) -> Tensor:
        """Return the distance of one simulated update to the observed one."""
        observed = evidence.observed
        if evidence.chain:
            simulated = evidence.client.stand_in(simulated, observed)
            simulated = stand_in_chain(evidence.chain, simulated, observed)
        if evidence.scale is None:
            simulated = _fitted(simulated, observed)
        elif evidence.scale != 1:
            simulated = {name: evidence.scale * tensor for name, tensor in simulated.items()}
            observed = {name: evidence.scale * tensor for name, tensor in observed.items()}
        return DISTANCES[self.distance](simulated, observed)

    def finish(self, dummy: Tensor, evidence: Any) -> Reconstruction:
        """Return the images of the restart of least objective."""
        with torch.enable_grad():
            parts = self.objective(dummy.detach().requires_grad_(), evidence)
        total = torch.stack([part.detach() for part in parts.values()]).sum(0)
        best = int(total.nan_to_num(torch.inf).argmin())
        images = self.decode(dummy).chunk(self.num_restarts)[best]
        return Reconstruction(
            images=images.detach().clamp(0, 1),
            labels=evidence.labels,
            score=total[best].expand(len(images)),
            notes=evidence.notes,
        )


def _fitted(simulated: Update, observed: Update) -> Update:
    """Multiply by the number that brings the simulated update nearest to the observed one."""
    dot = torch.stack([(simulated[n] * observed[n]).sum() for n in observed]).sum()
    energy = torch.stack([tensor.square().sum() for tensor in simulated.values()]).sum()
    factor = dot / energy.clamp_min(torch.finfo(energy.dtype).tiny)
    return {name: factor * tensor for name, tensor in simulated.items()}
