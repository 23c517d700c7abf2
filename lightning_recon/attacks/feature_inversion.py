"""Reconstruction through the features of every single sample.

The strongest attack that we know on networks that end in linear layers, with or without
obfuscation of the update.  From the labels, the residuals at the logits are nearly known; the
gradient of the last linear layer then gives what this layer saw of every sample, which says which
ReLUs below were on, and so on down to the feature maps of the convolutions: a regression for every
feature, whatever was done to the gradient's entries (:mod:`lightning_recon.functional.
linear_layers`).  The images follow in two steps:

- A linear decoder from feature maps to pixels is fitted on public images.  Where the update is
  obfuscated, it is fitted on maps with the same errors: the public images take the private ones'
  place in the batch, and their gradient is obfuscated in the same way and solved again.  What the
  payload makes of the decoded images tells anew which ReLUs were open (functional.relus), and a
  small network, trained on the same public images, corrects the linear decoder.
- From there on the images are optimised: their features are to be the ones found, in units of the
  error that these have; priors fill in what the features leave open.  Where the features are
  vectors without places (a network that pools them), the update itself is matched, too.

The idea of reading a linear layer's inputs off its gradient is that of Phong et al., IEEE TIFS 13,
2018, for one sample; for batches see Kariyappa et al., "Cocktail Party Attack", ICML 2023, which
inverts features as well, and Dimitrov et al., "SPEAR", NeurIPS 2024, which needs no labels.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_recon.attacks.feature_reading import Sight, read_features
from lightning_recon.attacks.gradient_matching import KNOWN, Evidence, GradientMatching
from lightning_recon.attacks.optimization import OptimizationAttack
from lightning_recon.clients import Client
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.functional.label_inference import LabelMethod
from lightning_recon.functional.linear_decoder import LinearDecoder, fit_linear_decoder
from lightning_recon.functional.linear_layers import Reading, obfuscate, solve_inputs
from lightning_recon.functional.linear_stack import LinearStack, run_features
from lightning_recon.functional.network_decoder import fit_network_decoder
from lightning_recon.functional.relus import learn_foresight, residuals_of_images
from lightning_recon.priors import Prior
from lightning_recon.randomness import derive_seed
from lightning_recon.structures import Observation, Reconstruction, Update
from lightning_recon.targets import Target

_FEATURE_ERROR = 0.05  # of the features' variance, added to that of what is known of them
_NUM_LOOKS = 4  # at the images, to tell which ReLUs were open
_MIN_SEEN = 64  # public images from which the usual features are learned, where there are as many
_MIN_PUBLIC = 8  # images; fewer teach nothing that holds for others
_NUM_SYNTHETIC = 64
_SPECTRUM = 1.2  # amplitudes fall with that power of the frequency, in images made up


class FeatureEvidence(NamedTuple):
    """What the objective needs of an observation."""

    update: Evidence
    """What gradient matching needs of it."""
    stack: LinearStack
    parameters: Update
    """That the features belong to, by name; empty for the payload's own."""
    features: Tensor
    """B F."""
    precision: Tensor
    """F: one over the variance of the features' error."""
    matching_weight: float
    is_refined: bool
    """Whether the images are optimised at all."""


class FeatureInversionAttack(GradientMatching):
    """Solves the linear layers' gradients for every sample's features, and inverts these.

    The attacker tells from the update itself how its entries were obfuscated.

    Args:
        target: see :class:`GradientMatching`; it ends in linear layers, ReLUs between them.
        client: see there.
        defenses: see there.
        known: see there.
        adaptive: whether the attacker makes use of the obfuscation; the naive one takes every
            entry for exact.
        features_weight: of the mean squared error of the features, in units of the error that
            they are known with; at least 0.
        matching_weight: of the squared distance of the updates, relative to the observed one's
            norm; null: 0 where the features are maps, 1 where they are vectors.
        kernel_size: of the decoder's convolution on feature maps; odd.
        num_rehearsals: batches of public images that the decoder is fitted on, at least 1.
        decoder_steps: in which a small network is trained to correct the linear decoder of feature
            maps, a minute for the default on one core; 0: the linear decoder alone.
        refined_error: the decoder's images are optimised where the features' error, rehearsed on
            public images and in units of their standard deviation, is at most this; above it they
            are kept, since features that are known so badly say less than the decoder's fit.
        priors: see :class:`GradientMatching`.
        label_inference: see there.
        iterations: of the optimisation that follows the decoder.
        optimizer: see there.
        lr_scheduler: see there.
        seed: see there.

    Raises:
        InputError: if an argument is out of its range.
    """

    citation = (
        "this project, after Yue et al., USENIX Security 2023, and Kariyappa et al., Cocktail "
        "Party Attack, ICML 2023"
    )

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        known: Sequence[str] = KNOWN,
        adaptive: bool = True,
        features_weight: float = 1.0,
        matching_weight: float | None = None,
        kernel_size: int = 5,
        num_rehearsals: int = 8,
        decoder_steps: int = 960,
        refined_error: float = 0.2,
        priors: Sequence[Prior] = (),
        label_inference: LabelMethod = "residual_counts",
        iterations: int = 60,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            target,
            client,
            defenses,
            known,
            adaptive,
            priors=priors,
            label_inference=label_inference,
            iterations=iterations,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            seed=seed,
        )
        if not features_weight >= 0 or not (matching_weight is None or matching_weight >= 0):
            raise InputError(
                "FeatureInversionAttack: features_weight and matching_weight must be at least 0, "
                f"not {features_weight} and {matching_weight}"
            )
        if kernel_size < 1 or kernel_size % 2 == 0 or num_rehearsals < 1 or decoder_steps < 0:
            raise InputError(
                "FeatureInversionAttack: kernel_size must be odd, num_rehearsals at least 1 and "
                f"decoder_steps at least 0, not {kernel_size}, {num_rehearsals}, {decoder_steps}"
            )
        self.adaptive = adaptive
        self.features_weight = features_weight
        self.matching_weight = matching_weight
        self.kernel_size = kernel_size
        self.num_rehearsals = num_rehearsals
        self.decoder_steps = decoder_steps
        self.refined_error = refined_error
        self._public = torch.empty(0)
        self._is_public_made_up = False

    def learn_public(self, images: Tensor) -> None:
        """Keep public images; fewer than 8 are replaced by noise of a natural spectrum."""
        super().learn_public(images)
        self._public = images
        self._is_public_made_up = len(images) < _MIN_PUBLIC
        if self._is_public_made_up:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "synthetic"))
            made_up = _natural_noise(_NUM_SYNTHETIC, self.data.image_shape, generator)
            self._public = made_up.to(images)

    # --- reading the update --------------------------------------------------------------------

    def initialize(self, observation: Observation) -> tuple[Tensor, Any]:
        """Find the features of every sample, and decode them."""
        _, update = super().initialize(observation)
        with (
            torch.no_grad(),
            torch.autocast(self.device.type, enabled=False),
            update.client.working(observation.payload),
        ):
            return self._decoded(update, derive_seed(observation.seed, "rehearsal"))

    def _decoded(self, update: Evidence, seed: int) -> tuple[Tensor, FeatureEvidence]:
        labels = update.labels
        public = self._public[: max(self.num_rehearsals * len(labels), _MIN_SEEN)]
        sight = read_features(update, public, is_adaptive=self.adaptive)
        solved, shape = sight.solved, (-1, *sight.stack.map_shape)
        num_public = self.num_rehearsals * max(len(labels), _MIN_PUBLIC)
        public, seen = public[:num_public], sight.seen[:num_public]
        estimated = seen
        if solved.reading != Reading("exact", 0.0):
            estimated = self._rehearse(sight, seen, seed)
            public, seen = public[: len(estimated)], seen[: len(estimated)]
        maps, size = estimated.view(shape), public.shape[2:]
        generator = torch.Generator().manual_seed(seed)
        decoder = fit_linear_decoder(maps, public, self.kernel_size, generator)
        found, images = self._look_again(sight, decoder, public, seen, maps)
        has_places = math.prod(shape[2:]) > 1
        if has_places and self.decoder_steps > 0 and not self._is_public_made_up:
            network = fit_network_decoder(decoder, maps, public, self.decoder_steps, seed)
            images = network.decode(found.view(shape), *size).clamp(0, 1)

        usual = sight.moments[0][1].mean()
        error = (estimated - seen).view(shape).square().mean((0, 2, 3))
        update.notes["feature_error"] = float(error.mean() / usual) ** 0.5
        variance = error.repeat_interleave(math.prod(shape[2:])) + _FEATURE_ERROR * usual
        weight = float(not has_places) if self.matching_weight is None else self.matching_weight
        norm = sum(float(tensor.square().sum()) for tensor in update.observed.values())
        weight = weight / ((update.scale or 1.0) ** 2 * norm) if norm else 0.0
        is_refined = update.notes["feature_error"] <= self.refined_error or weight > 0
        update.notes["refined"] = float(is_refined)
        return images, FeatureEvidence(
            update, sight.stack, sight.moved, found, 1 / variance, weight, is_refined
        )

    def _look_again(
        self, sight: Sight, decoder: LinearDecoder, public: Tensor, seen: Tensor, maps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the features, B F, and what the decoder makes of them, B C H W.

        Where the features came through ReLUs that an obfuscated gradient shows badly, the images
        tell which of these were open, and the features are solved again.

        Args:
            sight: of the update.
            decoder: fitted on ``maps``.
            public: N C H W.
            seen: N F, the features of these.
            maps: N C h w, the same as the attack estimates them.
        """
        solved, size = sight.solved, public.shape[2:]
        found = solved.features
        images = decoder.decode(found.view(-1, *maps.shape[1:]), *size).clamp(0, 1)
        if solved.reading.kind not in ("rounded", "kept") or len(sight.stack.weights) == 1:
            return found, images
        rehearsed = sight.features_of(decoder.decode(maps, *size).clamp(0, 1))
        outputs = [
            sight.stack.forward(sight.parameters, features)[1] for features in (rehearsed, seen)
        ]
        foresights = [learn_foresight(*pair) for pair in zip(*outputs, strict=True)][:-1]
        for _ in range(_NUM_LOOKS):
            residuals = residuals_of_images(
                sight.stack,
                sight.parameters,
                sight.gradients,
                sight.readings,
                sight.labels,
                sight.features_of(images),
                foresights,
            )
            found = solve_inputs(residuals, sight.gradients[0], solved.reading, *sight.moments[0])
            images = decoder.decode(found.view(-1, *maps.shape[1:]), *size).clamp(0, 1)
        return found, images

    def _rehearse(self, sight: Sight, seen: Tensor, seed: int) -> Tensor:
        """Return what the attack finds where public features stand in for the private ones.

        Args:
            sight: of the update.
            seen: N F, features of public images.
            seed: of the obfuscation.
        """
        solved, observed, moments = sight.solved, sight.gradients[0], sight.moments[0]
        generator = torch.Generator(seen.device).manual_seed(seed)
        results = []
        for batch in torch.split(seen, len(solved.residuals))[: self.num_rehearsals]:
            residuals = solved.residuals[: len(batch)]
            gradient = obfuscate(residuals.T @ batch, solved.reading, observed, generator)
            results.append(solve_inputs(residuals, gradient, solved.reading, *moments))
        return torch.cat(results)

    # --- the optimisation ----------------------------------------------------------------------

    def objective(self, dummy: Tensor, evidence: Any) -> dict[str, Tensor]:
        """Return the error of the features, the distance of the updates, and the priors."""
        if not evidence.is_refined:
            return {"features": 0.0 * dummy.sum()[None]}
        payload = evidence.update.payload
        features = run_features(payload, evidence.stack, dummy, evidence.parameters)
        error = (features - evidence.features).square() * evidence.precision
        parts = {"features": self.features_weight * error.mean()[None]}
        return parts | super().objective(dummy, evidence)

    def matching(self, images: Tensor, labels: Tensor, evidence: Any) -> Tensor:
        """Return the weighted distance of the updates; none is computed for a weight of 0."""
        if evidence.matching_weight == 0:
            return images.new_zeros(1)
        distance = super().matching(images, labels, evidence.update)
        return distance * float(evidence.matching_weight)

    def _penalty(self, prior: nn.Module, images: Tensor, labels: Tensor, evidence: Any) -> Tensor:
        return super()._penalty(prior, images, labels, evidence.update)

    def labels_of(self, dummy: Tensor, evidence: Any) -> Tensor:
        """Return the labels, known or inferred."""
        return super().labels_of(dummy, evidence.update)

    def differentiate(self, dummy: Tensor, evidence: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of the objective and the gradient of their sum."""
        with self.simulating(evidence.update):
            return OptimizationAttack.differentiate(self, dummy.requires_grad_(), evidence)

    def finish(self, dummy: Tensor, evidence: Any) -> Reconstruction:
        """Return the images with the objective as the score of all."""
        with torch.enable_grad():
            parts, _ = self.differentiate(dummy.detach().clone(), evidence)
        return Reconstruction(
            images=dummy.detach().clamp(0, 1),
            labels=evidence.update.labels,
            score=torch.stack([part.detach() for part in parts.values()]).sum().expand(len(dummy)),
            notes=evidence.update.notes,
        )


def _natural_noise(
    num_images: int, shape: tuple[int, int, int], generator: torch.Generator
) -> Tensor:
    """Return random fields with a spectrum as photographs have it, mostly grey, in [0, 1]."""
    channels, height, width = shape
    down, right = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    amplitude = (down.square() + right.square()).sqrt().clamp_min(1 / max(height, width))
    white = torch.randn(num_images, channels, height, width, generator=generator)
    white[:, 1:] = white[:, :1] + 0.3 * white[:, 1:]
    fields = torch.fft.irfft2(torch.fft.rfft2(white) / amplitude**_SPECTRUM, s=(height, width))
    images: Tensor = 0.45 + 0.25 * fields / fields.std()
    return images.clamp(0, 1)
