"""Inversion of features and gradients that begins on a soft network and ends on its own.

The strongest attack that we know on small convolutional networks with max-pools and a few linear
layers, as tutorials of federated learning train them:

- Where the first linear layer reads the outputs of ReLUs, its gradient gives what it saw of every
  sample, and what came back there, without labels (:mod:`~lightning_recon.attacks.features.
  separation`); else, or under a defense, the gradients of all linear layers are solved for it with
  the labels (:mod:`~lightning_recon.attacks.features.reading`).
- Convolutions of as many channels as places, or nearly, tell what they saw
  (:mod:`~lightning_recon.attacks.features.patch_spans`): of one image up to a factor, of a batch up
  to combinations.  Images are sought whose maps these are.  Behind batch norm in training mode
  their contrast is not told (:mod:`~lightning_recon.attacks.features.contrast`).
- What came back at its inputs is then known, so that the gradient of the convolutions below is that
  of a known linear function of the features: it tells of the images as much again, or more.
- Images are the latents of a Gaussian with the mean spectrum of public images
  (:mod:`~lightning_recon.attacks.features.spectrum`), and the most probable ones are sought:

      min over u of  |f(x) - f*|^2 / 2 s^2 v  +  n |g(x) - g*|^2 / 2 r^2 |g*|^2
                     +  sum over convolutions of m d(x) / 2 t^2  +  |u|^2 / 2,

  x the images of the latents u, f* and g* the features and the gradient that were found, v the
  usual variance of a feature, n the numbers in g*, m those in the maps and d their squared relative
  distance to the maps found; s, r and t the relative errors that are allowed.
- Which place wins a pool, and which ReLU is open, makes many valleys of this.  ReLUs and pools are
  soft at first (:mod:`~lightning_recon.attacks.matching.softened`), and the errors allowed are
  large; all fall together, by the same factor at each iteration.  Where they end is luck, and the
  objective tells which end is the better one: several starts, and cycles that warm up again from
  the best (population annealing's choice among copies: Hukushima & Iba, AIP Conf. Proc. 690, 2003).

The steps are known, their combination is ours.  Features from the gradient of a linear layer: Phong
et al., IEEE TIFS 13, 2018; Kariyappa et al., "Cocktail Party Attack", ICML 2023; Dimitrov et al.,
"SPEAR", NeurIPS 2024.  The most probable image: Balunović et al., "Bayesian Framework for Gradient
Leakage", ICLR 2022.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import LambdaLR

from lightning_recon.attacks.exact.features import are_certified
from lightning_recon.attacks.features.contrast import hidden_centre, with_usual_contrast
from lightning_recon.attacks.features.decoding import reading, teaching_images
from lightning_recon.attacks.features.linear_layers import least_squares, read_entries
from lightning_recon.attacks.features.linear_stack import LinearStack, find_stack, run_features
from lightning_recon.attacks.features.patch_spans import SeenMaps, read_maps, unexplained
from lightning_recon.attacks.features.reading import half_way, read_features
from lightning_recon.attacks.features.separation import separate_inputs
from lightning_recon.attacks.features.spectrum import Spectrum
from lightning_recon.attacks.inverting_gradients import NORMALISED_STD, published_adam
from lightning_recon.attacks.matching.evidence import KNOWN, Evidence, Reader, grants_of
from lightning_recon.attacks.matching.softened import Softened
from lightning_recon.attacks.optimization import OptimizationAttack
from lightning_recon.attacks.schedules import Reheated
from lightning_recon.clients import Client
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.functional.labels.inference import LabelMethod
from lightning_recon.functional.stateless import watched
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.randomness import derive_seed, make_generator
from lightning_recon.targets import Target
from lightning_recon.updates import Update

_LAST_RATE = 0.2  # of the first
_REHEATED = 0.45  # of the way to the last temperature, where a cycle but the first begins
_START, _STIRRED = 0.3, 0.15  # standard deviations of restarts about the mean image, and the best
_FIRST_FEATURES_ERROR = 3.0  # times the last
_FIRST_UPDATE_ERROR = 10.0  # times the last
_FIRST_MAPS_ERROR, _LAST_MAPS_ERROR = 0.5, 0.01  # relative
_SHUT = 1e-3  # of the features' root mean square: below, a ReLU was shut
_COLDER = 0.25  # of the last temperature, where maps were found
_SUFFICE = 2.0  # numbers in the maps, for each of the image's
_NUM_SEEN = 256  # public images that tell a feature's usual variance


class BodyEvidence(NamedTuple):
    """What the objective needs of an observation."""

    update: Evidence
    stack: LinearStack
    parameters: Update
    """That the features belong to, by name."""
    features: Tensor
    """B F: what the first linear layer saw."""
    upstream: Tensor
    """B F: what came back there, in the units of the observed update."""
    variance: float
    """Of a feature, usually."""
    body: Update
    """The update of all that lies below the first linear layer, by name; none if maps suffice."""
    maps: tuple[SeenMaps, ...] = ()
    """What convolutions saw."""
    centre: Tensor | None = None
    """1 C 1 1: the pixel about which the update does not tell the contrast."""


class AnnealedInversion(OptimizationAttack):
    """Finds every sample's features, and images of these that have the convolutions' gradient.

    Args:
        target: the model that the federation trains; it ends in linear layers, ReLUs between them.
        client: the protocol that the clients follow; null: FedSGD.
        defenses: what a client does to its update before it sends it, in order; the attacker does
            not simulate them.
        known: what is granted to the attacker, of ``labels``, ``num_samples``, ``client`` and
            ``buffers``; labels are needed only where the features do not come from ReLUs, or the
            update was obfuscated.
        features_error: allowed at the end, in standard deviations of a feature, above 0.
        update_error: allowed at the end, relative to the update's root mean square, above 0.
        first_temperature: of ReLUs and pools, in standard deviations of what they see, above 0.
        last_temperature: likewise, at the end; a quarter of it where maps were found.
        soft_values: whether the values of ReLUs and pools are soft as well as their slopes, where
            no maps were found.  False is better by 1.4 dB on ``ConvNet`` without these.
        num_restarts: starts that are computed together, the first at the mean image; the images of
            least objective are returned; at least 1.
        num_cycles: times that the temperature falls, at least 1.  Each but the first is half as
            long, begins half-way, and in every restart at the images of least objective, moved a
            little in all but the first.
        label_inference: how labels are found that are not known.
        iterations: of the optimisation, of all cycles together, steps on the images of one client.
        optimizer: of the latents, which are scaled as pixels are; by default Adam of the rate of
            Inverting Gradients.
        lr_scheduler: makes its schedule; null: the rate falls to a fifth in every cycle, by a
            factor at each iteration.
        seed: of all randomness: the clients', the defenses' and the attack's own.

    Raises:
        InputError: if an argument is out of its range.
    """

    threat_model = "an honest-but-curious server that sees one client's update"
    citation = (
        "this project, after Kariyappa et al., Cocktail Party Attack, ICML 2023, Dimitrov et al., "
        "SPEAR, NeurIPS 2024, and Balunović et al., Bayesian Framework for Gradient Leakage, "
        "ICLR 2022"
    )

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        known: Sequence[str] = KNOWN,
        features_error: float = 0.1,
        update_error: float = 0.05,
        first_temperature: float = 0.6,
        last_temperature: float = 0.04,
        soft_values: bool = True,
        num_restarts: int = 1,
        num_cycles: int = 1,
        label_inference: LabelMethod = "residual_counts",
        iterations: int = 1000,
        optimizer: OptimizerCallable = published_adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        numbers = {
            "features_error": features_error,
            "update_error": update_error,
            "first_temperature": first_temperature,
            "last_temperature": last_temperature,
        }
        if not all(number > 0 for number in numbers.values()):
            given = ", ".join(f"{name} {number}" for name, number in numbers.items())
            raise InputError(f"AnnealedInversion: all must be above 0: {given}")
        if min(num_restarts, num_cycles) < 1:
            raise InputError(
                "AnnealedInversion: num_restarts and num_cycles must be at least 1, not "
                f"{num_restarts} and {num_cycles}"
            )
        cycles = Reheated(iterations, num_cycles, _REHEATED, _LAST_RATE)
        super().__init__(
            target,
            client,
            defenses,
            iterations=iterations,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler or partial(LambdaLR, lr_lambda=cycles),
            seed=seed,
        )
        name = type(self).__name__
        self.oracles = grants_of(name, known, adaptive=False)
        self.reader = Reader(name, label_inference)
        self.features_error = features_error
        self.update_error = update_error
        self.first_temperature = first_temperature
        self.last_temperature = last_temperature
        self.soft_values = soft_values
        self.num_restarts = num_restarts
        self.cycles = cycles
        self.progress = 1.0
        """From 0, the first iteration, to 1, the last one."""

    @property
    def num_dummies_held(self) -> int:
        """The latents of all restarts together."""
        return self.num_restarts * self.spec.max_batch_size

    def server_payload(self, model: Target) -> Target:
        """Send the model as it is."""
        return model

    def learn_public(self, images: Tensor) -> None:
        """Learn the spectrum of images; noise of a natural one replaces fewer than 8."""
        self.reader.learn(images, self.seed)
        seed = derive_seed(self.seed, "synthetic")
        public, _ = teaching_images(images, self.spec.image_shape, seed)
        self.public = public[:_NUM_SEEN]
        self.spectrum = Spectrum(public)

    # --- reading the update --------------------------------------------------------------------

    def initialize(self, observation: Observation) -> tuple[Tensor, BodyEvidence]:
        """Find the features of every sample; the latents begin at 0, the mean image, or about it.

        Restarts follow one another along the first dimension.
        """
        labels = observation.labels
        number = observation.num_samples if labels is None else len(labels)
        found = None
        if number is not None:
            update = self.reader.evidence(observation, self.reader.seen.new_empty(0), {})
            with reading(update):
                found = self._separated(update, number, observation.seed)
        is_separated = found is not None
        if found is None:
            update = self.reader.evidence(observation, *self.reader.labels(observation))
            with reading(update):
                found = self._solved(update)
        found.update.notes["separated"] = float(is_separated)
        found = self._with_maps(found)
        generator = make_generator(observation.seed, "restarts")
        start = self._stirred(found.features, _START, generator)
        return start.to(found.features), found

    def _stirred(self, features: Tensor, std: float, generator: torch.Generator) -> Tensor:
        """Return moves of the latents of all restarts, of the first none."""
        number = len(features)
        shape = (self.num_restarts - 1) * number, *self.spec.image_shape
        moves = std * NORMALISED_STD * torch.randn(shape, generator=generator)
        return torch.cat([moves.new_zeros(number, *self.spec.image_shape), moves])

    def _with_maps(self, found: BodyEvidence) -> BodyEvidence:
        """Add what convolutions saw, where the update is that of one gradient."""
        update, number = found.update, len(found.features)
        maps: list[SeenMaps] = []
        centre = None
        if update.client.num_gradients(number) == 1:
            with reading(update):
                maps = read_maps(update.payload, update.observed, self.public, number)
                centre = hidden_centre(update.payload, self.public) if maps else None
        update.notes["maps"] = float(len(maps))
        numbers = sum(one.basis.shape[1] for one in maps)
        suffice = numbers >= _SUFFICE * math.prod(self.spec.image_shape)
        body = {} if suffice else found.body
        return found._replace(maps=tuple(maps), body=body, centre=centre)

    def _separated(self, update: Evidence, number: int, seed: int) -> BodyEvidence | None:
        """Return the evidence of a batch without its labels; None if it is not found."""
        stack = find_stack(update.payload, self.public[:2])
        bias, weight = stack.biases[0], update.observed[stack.weights[0]]
        if bias is None or read_entries(weight).kind in ("rounded", "signs"):
            return None
        found = separate_inputs(
            weight,
            update.observed[bias],
            number,
            derive_seed(seed, "separation"),
        )
        if found is None:
            return None
        moved = half_way(update._replace(labels=torch.zeros(number, dtype=torch.int64)))
        parameters: Update = dict(update.payload.named_parameters()) | moved
        certified = are_certified(
            weight,
            update.observed[bias],
            stack.module(parameters),
            found.inputs,
            make_generator(seed, "certificate"),
            update.client.label_smoothing,
        )
        update.notes["features_certified"] = float(certified.sum())
        labels = _labels_of(stack, parameters, found.inputs, found.residuals)
        return self._evidence(update._replace(labels=labels), stack, moved, found.inputs)

    def _solved(self, update: Evidence) -> BodyEvidence:
        """Return the evidence of a batch whose labels are known or inferred."""
        sight = read_features(update, self.public, is_adaptive=True)
        return self._evidence(update, sight.stack, sight.moved, sight.solved.features)

    def _evidence(
        self, update: Evidence, stack: LinearStack, moved: Update, features: Tensor
    ) -> BodyEvidence:
        parameters: Update = dict(update.payload.named_parameters()) | moved
        first = stack.weights[0]
        residuals = least_squares(features, update.observed[first].T)
        is_open = features > _SHUT * features.square().mean().sqrt()
        usual = run_features(update.payload, stack, self.public, moved).var(0).mean()
        above = {*stack.weights, *stack.biases}
        body = {name: part for name, part in update.observed.items() if name not in above}
        return BodyEvidence(
            update,
            stack,
            {name: parameters[name] for name in {*moved, *body}},
            features,
            residuals @ parameters[first] * is_open,
            float(usual.clamp_min(torch.finfo(usual.dtype).tiny)),
            body,
        )

    # --- the optimisation ----------------------------------------------------------------------

    def objective(self, dummy: Tensor, evidence: BodyEvidence) -> dict[str, Tensor]:
        """Return minus the logarithms of the densities: features, the update, and images."""
        latents = dummy / NORMALISED_STD
        left = 1 - self.progress  # both errors are large at first
        features_error = self.features_error * _FIRST_FEATURES_ERROR**left
        update_error = self.update_error * _FIRST_UPDATE_ERROR**left
        coldest = self.last_temperature * (_COLDER if evidence.maps else 1.0)
        temperature = coldest * (self.first_temperature / coldest) ** left
        with Softened(temperature, self.soft_values and not evidence.maps):
            features, maps, gradient = _simulated(self.spectrum.decode(latents), evidence)
        error = (features - evidence.features).square().sum(1) / evidence.variance
        parts = {"features": error / (2 * features_error**2)}
        distance = _relative_distance(gradient, evidence.body, features)
        numbers = sum(part.numel() for part in evidence.body.values())
        shares = distance.expand(len(dummy)) / len(dummy)
        parts["matching"] = shares * numbers / (2 * update_error**2)
        maps_error = _LAST_MAPS_ERROR * (_FIRST_MAPS_ERROR / _LAST_MAPS_ERROR) ** left
        parts["maps"] = _apart(maps, evidence.maps, features) / (2 * maps_error**2)
        parts["spectrum"] = latents.flatten(1).square().sum(1) / 2
        return parts

    def differentiate(
        self, dummy: Tensor, evidence: BodyEvidence
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of the objective and the gradient of their sum.

        Rows behind those of all restarts, which ``fit`` keeps for larger batches, have none.
        """
        number = self.num_restarts * len(evidence.features)
        if len(dummy) > number:
            parts, gradient = self.differentiate(dummy[:number].detach(), evidence)
            return parts, torch.cat([gradient, torch.zeros_like(dummy[number:])])

        def total(share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            parts = self.objective(share, evidence)
            return torch.stack([part.sum() for part in parts.values()]).sum(), parts

        update = evidence.update
        with update.client.working(update.payload), sdpa_kernel(SDPBackend.MATH):
            if len(dummy) == len(evidence.features):
                return super().differentiate(dummy.requires_grad_(), evidence)
            shares = torch.stack(self._shares(dummy.detach(), evidence))
            gradient, parts = vmap(grad(total, has_aux=True), randomness="different")(shares)
        return {name: part.flatten() for name, part in parts.items()}, gradient.flatten(0, 1)

    def iterate(
        self, dummy: nn.Parameter, evidence: Any, optimizer: Any, scheduler: Any
    ) -> dict[str, Tensor]:
        """Do one iteration at its temperature."""
        # the scheduler counts the iterations, and goes on where a checkpoint left
        iteration = scheduler.last_epoch
        if self.cycles.begins_again(iteration):
            self._begin_again(dummy, evidence, iteration)
            optimizer.state.clear()
        self.progress = self.cycles.progress(iteration)
        try:
            return super().iterate(dummy, evidence, optimizer, scheduler)
        finally:
            self.progress = 1.0

    def _begin_again(self, dummy: nn.Parameter, evidence: BodyEvidence, iteration: int) -> None:
        """Set every restart to the best one's latents, moved a little in all but the first."""
        best, _ = self._best(dummy.detach(), evidence)
        generator = make_generator(self.seed, f"cycle {iteration}")
        moves = self._stirred(evidence.features, _STIRRED, generator)
        found = best.repeat(self.num_restarts, 1, 1, 1) + moves.to(best)
        with torch.no_grad():
            dummy[: len(found)] = found

    def _shares(self, dummy: Tensor, evidence: BodyEvidence) -> tuple[Tensor, ...]:
        return torch.split(dummy, len(evidence.features))

    def _best(self, dummy: Tensor, evidence: BodyEvidence) -> tuple[Tensor, Tensor]:
        """Return the latents of the best restart, and the score of each of its images."""
        with torch.enable_grad():
            parts, _ = self.differentiate(dummy.clone(), evidence)
        score = torch.stack([part.detach() for part in parts.values()]).sum(0)
        scores = self._shares(score, evidence)
        best = int(torch.stack([one.sum() for one in scores]).nan_to_num(torch.inf).argmin())
        return self._shares(dummy, evidence)[best], scores[best]

    def project(self, dummy: Tensor) -> None:
        """Leave the latents: no box holds them."""

    def finish(self, dummy: Tensor, evidence: BodyEvidence) -> Reconstruction:
        """Return the images; an image's score is its own part, and its share of the update's."""
        best, score = self._best(dummy.detach(), evidence)
        with torch.no_grad():
            images = self.spectrum.decode(best / NORMALISED_STD)
            if evidence.centre is not None:
                images = with_usual_contrast(images, evidence.centre, self.public)
        return Reconstruction(
            images=images.clamp(0, 1),
            labels=evidence.update.labels,
            score=score,
            notes=evidence.update.notes,
        )


def _simulated(images: Tensor, evidence: BodyEvidence) -> tuple[Tensor, dict[str, Tensor], Update]:
    """Return the features of images, what convolutions see, and the gradient of the body."""
    payload = evidence.update.payload
    layers = {one.name: payload.get_submodule(one.name) for one in evidence.maps}

    def passed(body: Update) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
        parameters = {**evidence.parameters, **body}
        with watched(layers.values()) as seen:
            features = run_features(payload, evidence.stack, images, parameters)
        maps = {name: seen[layer] for name, layer in layers.items()}
        return (features * evidence.upstream).sum(), (features, maps)

    body = {name: evidence.parameters[name].detach() for name in evidence.body}
    if not body:
        return *passed(body)[1], body
    gradient, seen = grad(passed, has_aux=True)(body)
    return *seen, gradient


def _apart(maps: dict[str, Tensor], seen: Sequence[SeenMaps], like: Tensor) -> Tensor:
    """Return the squared relative distances of maps to those found, times their numbers: B.

    Args:
        maps: B C H W, by name.
        seen: what was found.
        like: B F, whose type the numbers have.
    """
    parts = [maps[one.name][0].numel() * unexplained(maps[one.name], one) for one in seen]
    return torch.stack(parts).sum(0) if parts else like.new_zeros(len(like))


def _relative_distance(simulated: Update, observed: Update, like: Tensor) -> Tensor:
    """Return the squared distance of two gradients, over the second's length, if it has one.

    Args:
        simulated: by name.
        observed: likewise.
        like: whose type the number has.
    """
    size = sum(float(part.square().sum()) for part in observed.values())
    if size == 0:
        return like.new_zeros(())
    parts = [(simulated[name] - other).square().sum() for name, other in observed.items()]
    return torch.stack(parts).sum() / size


def _labels_of(
    stack: LinearStack, parameters: Update, features: Tensor, residuals: Tensor
) -> Tensor:
    """Return the labels, B, by which what came back at the first layer's output is explained best.

    Args:
        stack: of the payload.
        parameters: at which the gradients were taken, by name.
        features: B F.
        residuals: B K, up to one factor of either sign.
    """
    with torch.enable_grad():
        outputs = stack.forward(parameters, features)[1]
        num_classes = outputs[-1].shape[1]
        added = torch.zeros_like(outputs[0]).repeat(num_classes, 1).requires_grad_()
        logits = stack.forward(parameters, features.repeat(num_classes, 1), added)[1][-1]
        labels = torch.arange(num_classes, device=features.device)
        loss = F.cross_entropy(logits, labels.repeat_interleave(len(features)), reduction="sum")
        (expected,) = torch.autograd.grad(loss, [added])
    expected = expected.view(num_classes, len(features), -1)
    likeness = F.cosine_similarity(expected, residuals[None], dim=2)
    # a step against the gradient has the other sign, and all samples have the same
    sign = 1 if likeness.max(0).values.sum() >= -likeness.min(0).values.sum() else -1
    return (sign * likeness).argmax(0)
