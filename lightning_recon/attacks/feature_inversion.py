"""Reconstruction through the features of every single sample.

The strongest attack that we know on networks that end in linear layers, with or without
obfuscation of the update.  From the labels, the residuals at the logits are nearly known; the
gradient of the last linear layer then gives what this layer saw of every sample, which says which
ReLUs below were on, and so on down to the feature maps of the convolutions: a regression for every
feature, whatever was done to the gradient's entries (:mod:`lightning_recon.functional.
linear_layers`).  The images follow in two steps:

- A linear decoder from feature maps to pixels is fitted on public images
  (:mod:`lightning_recon.attacks.features.decoding`).  What the payload makes of the decoded images
  tells anew which ReLUs were open (functional.relus), and a small network, trained on the same
  public images, corrects the linear decoder.
- From there on the images are optimised: their features are to be the ones found, in units of the
  error that these have; priors fill in what the features leave open, and the update itself may be
  matched, too.  Where the features are vectors without places (a network that pools them), they
  leave too much open, and the decoder's images are kept.

The idea of reading a linear layer's inputs off its gradient is that of Phong et al., IEEE TIFS 13,
2018, for one sample; for batches see Kariyappa et al., "Cocktail Party Attack", ICML 2023, which
inverts features as well, and Dimitrov et al., "SPEAR", NeurIPS 2024, which needs no labels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_recon.attacks.features.decoding import (
    Decoded,
    decode_features,
    reading,
    teaching_images,
)
from lightning_recon.attacks.features.linear_stack import LinearStack, run_features
from lightning_recon.attacks.features.network_decoder import fit_network_decoder
from lightning_recon.attacks.matching.evidence import KNOWN, Evidence, Reader, grants_of
from lightning_recon.attacks.matching.matcher import Matcher
from lightning_recon.attacks.optimization import OptimizationAttack
from lightning_recon.clients import Client
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.functional.labels.inference import LabelMethod
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.priors import Prior
from lightning_recon.randomness import derive_seed
from lightning_recon.targets import Target
from lightning_recon.updates import Update

_FEATURE_ERROR = 0.05  # of the features' variance, added to that of what is known of them


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


class FeatureInversionAttack(OptimizationAttack):
    """Solves the linear layers' gradients for every sample's features, and inverts these.

    The attacker tells from the update itself how its entries were obfuscated.

    Args:
        target: the model that the federation trains; it ends in linear layers, ReLUs between them.
        known: what is granted to the attacker, of ``labels``, ``num_samples``, ``client`` and
            ``buffers``.
        adaptive: whether the attacker makes use of the obfuscation; the naive one takes every
            entry for exact.
        features_weight: of the mean squared error of the features, in units of the error that
            they are known with; at least 0.
        matching_weight: of the squared distance of the updates, relative to the observed one's
            norm; at least 0.
        kernel_size: of the decoder's convolution on feature maps; odd.
        num_rehearsals: batches of public images that the decoder is fitted on, at least 1.
        decoder_steps: in which a small network is trained to correct the linear decoder of feature
            maps, a minute for the default on one core; 0: the linear decoder alone.
        refined_error: the decoder's images are optimised where the features are maps and their
            error, rehearsed on public images and in units of their standard deviation, is at most
            this, or where updates are matched; else they are kept, since features that are known
            so badly, or have no places, say less than the decoder's fit.
        priors: penalties on the images, added to the objective.
        label_inference: how labels are found that are not known.
        iterations: of the optimisation that follows the decoder, steps on the images of one client.

    Raises:
        InputError: if an argument is out of its range.
    """

    threat_model = "an honest-but-curious server that sees one client's update"
    can_simulate_defenses = True
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
        matching_weight: float = 0.0,
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
            iterations=iterations,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            seed=seed,
        )
        name = type(self).__name__
        self.oracles = grants_of(name, known, adaptive=adaptive)
        self.priors = nn.ModuleList(priors)
        self.matcher = Matcher(name, "squared", self.priors)
        self.reader = Reader(name, label_inference)
        if not features_weight >= 0 or not matching_weight >= 0:
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

    def server_payload(self, model: Target) -> Target:
        """Send the model as it is."""
        return model

    def learn_public(self, images: Tensor) -> None:
        """Keep public images; noise of a natural spectrum replaces fewer than 8."""
        self.reader.learn(images, self.seed)
        seed = derive_seed(self.seed, "synthetic")
        self.public, self.is_made_up = teaching_images(images, self.spec.image_shape, seed)

    # --- reading the update --------------------------------------------------------------------

    def initialize(self, observation: Observation) -> tuple[Tensor, FeatureEvidence]:
        """Find the features of every sample, and decode them."""
        update = self.reader.evidence(observation, *self.reader.labels(observation))
        seed = derive_seed(observation.seed, "rehearsal")
        with reading(update):
            decoded = decode_features(
                update,
                self.public,
                seed,
                is_adaptive=self.adaptive,
                kernel_size=self.kernel_size,
                num_rehearsals=self.num_rehearsals,
            )
            return self._evidence(update, decoded, seed)

    def _evidence(
        self, update: Evidence, decoded: Decoded, seed: int
    ) -> tuple[Tensor, FeatureEvidence]:
        sight, shape, images = decoded.sight, (-1, *decoded.map_shape), decoded.images
        if decoded.has_places and self.decoder_steps > 0 and not self.is_made_up:
            network = fit_network_decoder(
                decoded.decoder,
                decoded.estimated.view(shape),
                decoded.public,
                self.decoder_steps,
                seed,
            )
            images = network.decode(decoded.features.view(shape), *images.shape[2:]).clamp(0, 1)

        usual = sight.moments[0][1].mean()
        error = (decoded.estimated - decoded.seen).view(shape).square().mean((0, 2, 3))
        update.notes["feature_error"] = float(error.mean() / usual) ** 0.5
        variance = error.repeat_interleave(math.prod(shape[2:])) + _FEATURE_ERROR * usual
        norm = sum(float(tensor.square().sum()) for tensor in update.observed.values())
        weight = self.matching_weight / ((update.scale or 1.0) ** 2 * norm) if norm else 0.0
        is_known = decoded.has_places and update.notes["feature_error"] <= self.refined_error
        is_refined = is_known or weight > 0
        update.notes["refined"] = float(is_refined)
        return images, FeatureEvidence(
            update, sight.stack, sight.moved, decoded.features, 1 / variance, weight, is_refined
        )

    # --- the optimisation ----------------------------------------------------------------------

    def objective(self, dummy: Tensor, evidence: FeatureEvidence) -> dict[str, Tensor]:
        """Return the error of the features, the distance of the updates, and the priors."""
        if not evidence.is_refined:
            return {"features": 0.0 * dummy.sum()[None]}
        update, labels = evidence.update, evidence.update.labels
        features = run_features(update.payload, evidence.stack, dummy, evidence.parameters)
        error = (features - evidence.features).square() * evidence.precision
        parts = {"features": self.features_weight * error.mean()[None]}
        parts["matching"] = dummy.new_zeros(1)  # none is computed for a weight of 0
        if evidence.matching_weight != 0:
            distance = self.matcher.matching(dummy, labels, update)
            parts["matching"] = distance * float(evidence.matching_weight)
        return self.matcher.with_priors(parts, dummy, labels, update)

    def differentiate(
        self, dummy: Tensor, evidence: FeatureEvidence
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of the objective and the gradient of their sum."""
        update = evidence.update
        with update.client.working(update.payload), sdpa_kernel(SDPBackend.MATH):
            return super().differentiate(dummy.requires_grad_(), evidence)

    def finish(self, dummy: Tensor, evidence: FeatureEvidence) -> Reconstruction:
        """Return the images with the objective as the score of all."""
        with torch.enable_grad():
            parts, _ = self.differentiate(dummy.detach().clone(), evidence)
        return Reconstruction(
            images=dummy.detach().clamp(0, 1),
            labels=evidence.update.labels,
            score=torch.stack([part.detach() for part in parts.values()]).sum().expand(len(dummy)),
            notes=evidence.update.notes,
        )
