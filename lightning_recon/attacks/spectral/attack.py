"""The strongest reconstruction that we know under clipping and noise, by linear coding.

The setting is that of You et al. (IEEE TIFS 20, 2025; :mod:`lightning_recon.attacks.ldp`): the
malicious server puts rows in front of the model, every sample of the batch reaches one of them, and
its gradient there is clipped and noised.  Here what stands in front of the rows is designed for
that channel (:mod:`lightning_recon.attacks.spectral.code`): energy C^2 / B an image, white noise.

- Rows are an embedding with one vector a row, all zero: they change no logit, and their gradient is
  the code of the sample, times +1 / B or -1 / B for a model that is not yet sure of the label.
- Of the budget nothing is spent on anything but the code and one number for its sign: the code's
  filters are buffers, there is no statistics head and no bias, and the gain drowns the model's own
  gradient.
- All codes have the same norm.  The image's own norm travels in the number of the row: the rows'
  thresholds are the quantiles of the norm's distribution (its logarithm is taken for logistic, with
  moments from public images and a wider spread), so the samples spread over the rows.
- Samples of one batch that fall into the same row move to the next free one, as in a hash table, so
  none collide.  A client that computes every sample's gradient by itself (DP-SGD) defeats that; for
  it every sample is sent twice, and what collides is unmixed
  (:mod:`lightning_recon.attacks.spectral.rows`).
- A row counts as hit when the energy of its first columns exceeds what noise reaches in any of the
  K rows with probability ``false_positive_rate``.  The sign's number is a fixed share of what one
  sample puts into its row.  Several samples in a row add up there, or cancel, while their codes,
  which point anywhere, add in energy: such a row is not returned as an image.
- Clients that do several local steps, or take part in several rounds, get another payload
  (:mod:`lightning_recon.attacks.spectral.local_payload`), of which the same is read.  A later
  round's holds what the server knows by then (:mod:`lightning_recon.attacks.spectral.feedback`).
- The rows of one gradient are never held: see :class:`lightning_recon.rowsparse.RowSparse`.

The image of least expected squared error under the public spectrum (Wiener) is where the
optimisation starts; its objective is the likelihood of the observation under the known noise and
the priors given.
"""

import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_recon.attacks.base import check_counts
from lightning_recon.attacks.optimization import OptimizationAttack
from lightning_recon.attacks.spectral.code import SpectralCode
from lightning_recon.attacks.spectral.decoder import SpectralDecoder
from lightning_recon.attacks.spectral.feedback import Feedback, marks_of, tell
from lightning_recon.attacks.spectral.local_payload import Known, LocalPayload, PayloadClass
from lightning_recon.attacks.spectral.local_steps import plan_steps
from lightning_recon.attacks.spectral.payload import Budget, RowsPayload, SpectralPayload
from lightning_recon.attacks.spectral.receiver import Received, find_rows
from lightning_recon.clients import Client, FedAvgAdamW
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.observation import Grant, Observation, Reconstruction
from lightning_recon.priors import Prior
from lightning_recon.priors.shrinkage import MIN_IMAGES
from lightning_recon.targets import Target

NUM_BINS = 1024
DEFAULT_SCALE = 1e-3
MIN_LOCAL_BINS = 256
MAX_NUMBERS = 2**25  # of rows that a client holds: 130 MB
PAYLOAD_KINDS = {
    "A": "class A, any stateless forward pass",
    "B": "class B, layers of torch.nn, every sample by itself",
}
THREAT_MODEL = (
    "a malicious server sends a modified model (payload of {kind}), made for the clipping norm and "
    "the noise's level that it knows, and sees {what} of the client"
)
ONE_UPDATE = "one protected update"
MIN_NOISE = 1e-6  # of the clipping norm: the least noise that the code is made for


class SpectralLDPAttack(OptimizationAttack):
    """The malicious server of You et al. with a code that is optimal for the noisy channel.

    Args:
        target: the model that the federation trains.
        client: the clients' protocol; null: FedSGD.  How local steps are taken is known to the
            server; their order is not, and noise and amplitudes are measured on the update.
        defenses: the clients' defenses, in order.
        num_bins: rows K; one image is held by each.  Null: 1024; under local steps, where
            the client holds them, as many as 2^25 numbers are, from 256 to 1024.
        clip_norm: the clipping norm C that the code is made for; null: that of the defenses.
        noise_std: the noise that the code is made for; null: that of the defenses.  What decodes
            is measured on the update.
        num_samples: batch size that the payload is made for; null: the data's.
        gain: of the rows on the logits; large against the norm of the model's own gradient, so
            that the clipping budget is the rows'.
        logit_scale: what the target's logits are multiplied by; small, no sample's gradient
            depends on what a trained target believes or local steps teach it.  1 keeps them; null:
            .001, and 0 under AdamW, which takes steps of one size whatever the gradient.
        payload_class: what a client is sent that does local steps or takes part in several rounds:
            B, layers of ``torch.nn``; A, any stateless forward pass, in which every epoch adds to
            the rows.  For one gradient of one round the payload is of class A.
        place: of the one client of an :class:`~lightning_recon.clients.Aggregate` that is attacked,
            from 0 on; the others are sent rows that nothing reaches.  Null: all are.
        num_rounds: in which each client takes part, with the same data.  From the second one on
            the payload holds what the server knows of the client's images by then.
        false_positive_rate: probability that noise alone makes any row count as hit.
        shrinkage_steps: training steps of the local shrinkage on public images that were sent
            through the same channel (once a run); 0 decodes by Wiener's filter alone.
        priors: what is known of images beside the observation.
        iterations: steps on the dummy images; without priors nothing moves, and 1 is enough.
        optimizer: of the dummy images.
        lr_scheduler: of the optimizer, or null.
        seed: of all randomness.

    Raises:
        InputError: if an argument is out of its range.
    """

    threat_model = THREAT_MODEL.format(kind=PAYLOAD_KINDS["A"], what=ONE_UPDATE)
    protocols = ("fedsgd", "fedavg", "fedavg-adamw")
    oracles: Sequence[str] = ("num_samples", "clip_norm", "noise_std")
    citation = (
        "this project, after You et al., IEEE TIFS 20:1519-1534, 2025, and "
        "Lee & Petersen, IEEE Trans. Communications 24, 1976"
    )

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        num_bins: int | None = None,
        clip_norm: float | None = None,
        noise_std: float | None = None,
        num_samples: int | None = None,
        gain: float = 1e4,
        logit_scale: float | None = None,
        payload_class: PayloadClass = "B",
        place: int | None = None,
        num_rounds: int = 1,
        false_positive_rate: float = 1e-3,
        shrinkage_steps: int = 600,
        priors: Sequence[Prior] = (),
        iterations: int = 1,
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
        check_counts(
            "SpectralLDPAttack",
            num_bins=(num_bins, 2),
            num_samples=(num_samples, 1),
            num_rounds=(num_rounds, 1),
        )
        if place is not None and not 0 <= place < self.num_clients:
            raise InputError(
                f"SpectralLDPAttack: place must be from 0 to {self.num_clients - 1}, the clients "
                f"of the round, not {place}"
            )
        _check("false_positive_rate", false_positive_rate, "lie between 0 and 1", 0, 1)
        _check("gain", gain, "be a number above 0")
        _check("shrinkage_steps", shrinkage_steps, "be at least 0", -1)
        _check("clip_norm", clip_norm, "be a number above 0")
        _check("noise_std", noise_std, "be a number above 0")
        if logit_scale != 0 and logit_scale != 1:
            _check("logit_scale", logit_scale, "lie between 0 and 1", 0, 1)
        if payload_class not in get_args(PayloadClass):
            raise InputError(
                f"SpectralLDPAttack: payload_class must be A or B, not {payload_class!r}"
            )
        if num_rounds > 1 and len(priors):
            raise InputError(
                "SpectralLDPAttack: priors improve on what one round tells, not on num_rounds "
                f"{num_rounds}; leave one of them out"
            )
        channel = self.channel
        self.clip_norm = clip_norm or channel.clip_norm or 1.0
        self.noise_std = max(noise_std or channel.noise_std or 0.0, MIN_NOISE * self.clip_norm)
        self.is_local = not self.sends_gradient and not channel.clips_samples
        if self.is_local:  # who tells clients how to train knows how they do
            self.oracles = (*type(self).oracles, Grant.CLIENT.value)
        self.sees_alone = self.is_local or num_rounds > 1
        if self.sees_alone:
            what = ONE_UPDATE if num_rounds == 1 else f"{num_rounds} protected updates"
            self.threat_model = THREAT_MODEL.format(kind=PAYLOAD_KINDS[payload_class], what=what)
        # neither one that clips samples nor one of several steps keeps all in different rows
        self.copies = 2 if channel.clips_samples or self.sees_alone else 1
        if place is not None:
            self.threat_model += f", client {place} of {self.num_clients}; others get closed rows"
        self.place = place
        self.num_rounds = num_rounds
        self.num_bins = num_bins
        self.num_samples = num_samples
        self.gain = gain
        if logit_scale is None:
            known = self.known_client
            is_adam = known is not None and known.protocol == FedAvgAdamW.protocol
            logit_scale = 0.0 if is_adam else DEFAULT_SCALE
        self.logit_scale = logit_scale
        self.payload_class: PayloadClass = payload_class
        self.false_positive_rate = false_positive_rate
        self.shrinkage_steps = shrinkage_steps
        self.priors = nn.ModuleList(priors).requires_grad_(False)

    # --- the server's part ---------------------------------------------------------------------

    def learn_public(self, images: Tensor) -> None:
        """Make the code for the spectrum of public images, or for the stored one without any.

        Raises:
            InputError: if the images have neither three channels nor one.
        """
        image_shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        if image_shape[0] not in (1, 3):
            raise InputError(
                f"SpectralLDPAttack takes images of 3 channels or 1, not {image_shape[0]}"
            )
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            budget = self.budget
            code = SpectralCode(images, image_shape, self.noise_std**2, budget.code)
            self.decoder = SpectralDecoder(code, self.noise_std, budget.code, self.seed)
            if self.shrinkage_steps and len(images) >= MIN_IMAGES:
                self.decoder.fit(images, self.shrinkage_steps)
        if self.num_rounds > 1:
            if len(images) < MIN_IMAGES:
                raise InputError(
                    f"SpectralLDPAttack: {self.num_rounds} rounds are rehearsed on at least "
                    f"{MIN_IMAGES} public images, not {len(images)}; raise num_public"
                )
            self._feedback = (Feedback(self.decoder, images),)  # a tuple hides it

    @property
    def code(self) -> SpectralCode:
        """What stands in front of the rows."""
        return self.decoder.code

    @property
    def feedback(self) -> Feedback:
        """The rounds after the first one."""
        return self._feedback[0]

    @property
    def budget(self) -> Budget:
        """What one sample of the batch may use."""
        channel = self.channel
        share = -(-self._num_samples // channel.num_clients)
        return Budget.of(self.clip_norm, self.noise_std, share, channel.clips_samples)

    @property
    def _num_samples(self) -> int:
        """Of all clients of a round."""
        return self.num_samples or self.spec.max_batch_size

    def server_payload(self, model: Target) -> RowsPayload:
        """Return the target with the rows beside it.

        Raises:
            InputError: if there are too few rows to tell those that were hit from the others.
        """
        return self._payload(model, self.code, None)

    def next_payload(self, observation: Observation) -> RowsPayload:
        """Return the target with rows for what is not known yet of this client's images."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            known, _ = self._learn(observation)
            code, reach = self.feedback.round(observation.rounds)
            return self._payload(self.target, code, known._replace(reach=reach))

    def _payload(self, model: Target, code: SpectralCode, known: Known | None) -> RowsPayload:
        share = -(-self._num_samples // self.num_clients)
        num_samples = self._num_samples if self.place is None else share
        least = 4 * num_samples * self.copies
        num_columns = LocalPayload.num_side + code.num_columns
        held = MAX_NUMBERS // num_columns if self.sees_alone else NUM_BINS
        num_bins = self.num_bins or min(max(held, MIN_LOCAL_BINS), NUM_BINS)
        if num_bins < least:
            raise InputError(
                f"SpectralLDPAttack: {num_samples} samples need at least {least} rows, "
                f"not {num_bins}; raise num_bins"
            )
        payload: RowsPayload
        if not self.sees_alone:
            payload = SpectralPayload(
                model,
                code,
                num_bins,
                self.logit_scale,
                self.budget,
                self.gain,
                self.copies,
            )
            payload.place = self.place
            return payload
        size = (self.budget.energy / self.copies) ** 0.5
        steps = plan_steps(
            self.known_client if self.is_local else None,
            share,
            num_bins,
            least,
            self.gain,
            size,
            num_columns,
        )
        payload = LocalPayload(
            model,
            code,
            self.logit_scale,
            self.budget,
            self.payload_class,
            steps,
            self.seed,
            known,
        )
        payload.place = self.place
        return payload

    # --- decoding ------------------------------------------------------------------------------

    def initialize(self, observation: Observation) -> tuple[Tensor, Received]:
        """Find the rows that hold one sample each, and decode them."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            known, evidence = self._learn(observation)
            return known.images[1:], evidence

    def _learn(self, observation: Observation) -> tuple[Known, Received]:
        """Return what is known of a client's images after a round, and what the round told."""
        if self.place is not None and observation.num_samples is not None:
            share = -(-observation.num_samples // self.num_clients)
            observation = observation._replace(num_samples=share)
        evidence = find_rows(observation, self.false_positive_rate)
        payload = observation.payload
        if isinstance(payload, LocalPayload) and payload.known is not None:
            most = observation.num_samples or self.spec.max_batch_size
            return tell(payload, payload.known, evidence, most)
        images = self.decoder.decode(evidence.channel)
        images = torch.cat([self.code.mean[None], images])
        return Known(images, marks_of(self.code), math.inf), evidence

    # --- refinement ----------------------------------------------------------------------------

    def objective(self, dummy: Tensor, evidence: Received) -> dict[str, Tensor]:
        """Return minus the logarithm of likelihood and priors, per coefficient."""
        dummy = dummy[: len(evidence.received)]
        size = dummy.shape[1:].numel()
        code = self.code
        if evidence.base is not None:
            dummy, code = dummy - evidence.base, self.feedback.round(self.num_rounds - 1).code
        scale = evidence.amplitude * (-evidence.log_norm).exp()
        residual = scale[:, None] * code.filtered(dummy) - evidence.received
        noise_std = max(evidence.noise_std, MIN_NOISE * self.clip_norm)
        parts = {"observation": (residual / noise_std).square().sum(1) / (2 * size)}
        for prior in self.priors:
            assert isinstance(prior, Prior)
            parts[type(prior).__name__] = prior(dummy)
        return parts

    def iterate(
        self, dummy: nn.Parameter, evidence: Received, optimizer: Any, scheduler: Any
    ) -> dict[str, Tensor]:
        """Do one iteration; without priors the start is the estimate, and nothing moves."""
        if len(self.priors):
            return super().iterate(dummy, evidence, optimizer, scheduler)
        with torch.no_grad():
            parts = {name: part.sum() for name, part in self.objective(dummy, evidence).items()}
        dummy.grad = torch.zeros_like(dummy)
        optimizer.step()  # Lightning counts the steps of the optimizer
        return {"objective": torch.stack(list(parts.values())).sum()} | parts

    def finish(self, dummy: Tensor, evidence: Received) -> Reconstruction:
        """Return the images with their objective as the score."""
        with torch.no_grad():
            parts = self.objective(dummy, evidence)
        return Reconstruction(
            images=dummy.clamp(0, 1),
            labels=None,
            score=torch.stack(list(parts.values())).sum(0),
            notes=evidence.notes,
        )


def _check(
    name: str, value: float | None, what: str, above: float = 0, below: float = math.inf
) -> None:
    """Raise InputError unless an argument, if it is given, lies between two numbers."""
    if value is not None and not above < value < below:
        raise InputError(f"SpectralLDPAttack: {name} must {what}, not {value}")
