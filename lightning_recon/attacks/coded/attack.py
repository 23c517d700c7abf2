"""Reconstruction past the linear bound: bits through the clipped, noisy channel.

The channel is that of :mod:`lightning_recon.attacks.spectral.attack`: rows in front of the model,
one a sample, energy C^2 / B an image and white Gaussian noise.  A linear code uses a small part of
its capacity.  Here the image is compressed by a standard format to as many bytes as the channel
carries (:mod:`lightning_recon.attacks.coded.compression`), and these go through a polar code
(:mod:`lightning_recon.attacks.coded.polar`): source and channel coded one after the other, which
loses nothing for long blocks (Shannon, Bell System Technical Journal 27, 1948, section 12).

- Rows, sign and search are those of the spectral attack; samples take one row after the other, and
  a row has as many columns as the code has symbols.
- A checksum tells which images came through; the others are not put out.
- Where few bits come through, they are a coarse picture, and what it leaves is sent by a linear
  code (:mod:`lightning_recon.attacks.coded.hybrid`).
- The code is made for the noise that the server knows; where fewer still come through (the server
  sends its public images by both ways and compares), where the target's logits are kept and it is
  so sure of labels that samples' shares differ, or where the client clips every sample (DP-SGD:
  rows cannot be kept apart), it is the spectral attack's linear code that is sent.
- The payload is any stateless forward pass: it sees the batch, computes on bytes and uses
  ``no_grad``.  It is no composition of layers of ``torch.nn``, and needs Pillow where the client
  computes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_recon.attacks.analytic import AnalyticAttack
from lightning_recon.attacks.coded.code import DigitalCode, pixels_of
from lightning_recon.attacks.coded.compression import MAX_AVIF_RATE, num_exact_bytes
from lightning_recon.attacks.coded.hybrid import HybridCode
from lightning_recon.attacks.spectral.attack import SpectralLDPAttack
from lightning_recon.attacks.spectral.payload import RowsPayload, SpectralPayload, half_signs
from lightning_recon.attacks.spectral.receiver import find_rows, read_signs
from lightning_recon.clients import Client
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.priors.shrinkage import MIN_IMAGES, LocalShrinkage
from lightning_recon.randomness import derive_seed
from lightning_recon.targets import Target

NUM_COMPARED = 12  # public images that both codes are tried on
SURE_DB = 6.0  # over Wiener's filter, more than local shrinkage gains
ROOM = 1.5  # bytes over the most that a public image takes without loss
MAX_HYBRID_RATE = 0.1  # bits a pixel, above which bits alone are as good
MIN_RATE = 1.0  # bits a pixel, from which bits are sent where there are no public images
ROWS_A_SAMPLE = 4
MIN_WEAKEST = 1e-3  # of a row's gradient


class CodedLDPAttack(AnalyticAttack):
    """The malicious server of You et al. with compressed images behind an error-correcting code.

    Args:
        target: the model that the federation trains.
        client: the clients' protocol; null: FedSGD, for which the attack is made.
        defenses: the clients' defenses, in order.
        num_bins: rows of the linear code; the digital one has four a sample.
        clip_norm: the clipping norm C that the code is made for; null: that of the defenses.
        noise_std: the noise that the code is made for; null: that of the defenses.
        num_samples: batch size that the payload is made for; null: the data's.
        gain: of the rows on the logits; large against the norm of the model's own gradient.
        logit_scale: what the target's logits are multiplied by; null: .001.  1 keeps them.
        false_positive_rate: probability that noise alone makes any row count as hit.
        shrinkage_steps: training steps of the linear code's decoder.
        block_error: bound of the probability that an image is lost to noise.
        margin: of the digital code, 0 to 100 decibels, beside what the target's answers to public
            images make of the samples' shares.
        seed: of all randomness.

    Raises:
        InputError: if an argument is out of its range.
    """

    threat_model = SpectralLDPAttack.threat_model
    protocols = ("fedsgd",)
    oracles = SpectralLDPAttack.oracles
    citation = (
        "this project, after You et al., IEEE TIFS 20:1519-1534, 2025, and "
        "Arikan, IEEE Trans. Information Theory 55, 2009"
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
        false_positive_rate: float = 1e-3,
        shrinkage_steps: int = 600,
        block_error: float = 1e-4,
        margin: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(target, client, defenses, seed)
        if not 0 < block_error < 1 or not 0 <= margin <= 100:
            raise InputError(
                "CodedLDPAttack: block_error must lie between 0 and 1 and margin from 0 to 100, "
                f"not {block_error} and {margin}"
            )
        if shrinkage_steps < 0:
            raise InputError(
                f"CodedLDPAttack: shrinkage_steps must be at least 0, not {shrinkage_steps}"
            )
        linear = SpectralLDPAttack(
            target,
            client,
            defenses,
            num_bins=num_bins,
            clip_norm=clip_norm,
            noise_std=noise_std,
            num_samples=num_samples,
            gain=gain,
            logit_scale=logit_scale,
            false_positive_rate=false_positive_rate,
            shrinkage_steps=0,
            seed=seed,
        )
        self._linear = (linear,)  # a tuple hides it from Lightning
        self.digital: DigitalCode | HybridCode
        self.shrinkage_steps = shrinkage_steps
        self.block_error = block_error
        self.margin = margin

    @property
    def linear(self) -> SpectralLDPAttack:
        """The linear code, its budget and its decoder."""
        return self._linear[0]

    # --- the server's part ---------------------------------------------------------------------

    def learn_public(self, images: Tensor) -> None:
        """Make both codes, and choose by what comes of public images which one is sent.

        Raises:
            InputError: if the images have neither three channels nor one.
        """
        linear = self.linear
        linear.bind(self.spec)
        linear.learn_public(images)
        shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        few = images[:NUM_COMPARED]
        margin = self.margin + self._weakness(few)
        longest = max((num_exact_bytes(pixels_of(image)) for image in few), default=None)
        wanted = None if longest is None else int(ROOM * longest)
        noise, energy = linear.noise_std**2, linear.budget.code
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            digital = DigitalCode(shape, noise, energy, self.block_error, margin, wanted)
            may_split = len(images) >= MIN_IMAGES and not self.channel.clips_samples
            has_few = digital.rate <= MAX_HYBRID_RATE
            if may_split and has_few and HybridCode.fits(noise, energy, margin):
                seed = derive_seed(self.seed, "difference")
                self.digital = HybridCode(images, noise, energy, margin, seed)
            else:
                self.digital = digital
            self.is_digital = self._chooses_bits(images)

    def _weakness(self, images: Tensor) -> float:
        """Return by how many decibels a sample's share may fall short: of its row's gradient.

        That is 1 - q or -1 - q by the half of its label, q what the target believes of the halves.
        """
        if not len(images):
            return 0.0
        training = self.mode == "train"
        with torch.no_grad(), left_as_found(self.target, training=training, keeps_buffers=True):
            logits = self.linear.logit_scale * self.target(images).double()
            probability = logits.softmax(1)
        belief = (probability @ half_signs(probability.shape[1]).to(probability)).abs()
        typical = (1 + belief.square()).mean().sqrt()
        weakest = (1 - belief.max()).clamp_min(MIN_WEAKEST)
        return 20 * math.log10(float(typical / weakest))

    def _chooses_bits(self, images: Tensor) -> bool:
        """Return whether the digital code is sent; if it may not be, fit the linear decoder."""
        few = images[:NUM_COMPARED]
        digital, linear = self.digital, self.linear
        teaches = self.shrinkage_steps > 0 and len(images) >= MIN_IMAGES
        if self.channel.clips_samples:
            wanted = 0.0
        elif not len(few):
            return digital.rate >= MIN_RATE
        else:
            if isinstance(digital, HybridCode):  # compared before they learn, which helps both
                is_better = _mean_psnr(digital.rehearsed(few)) > self._rehearsed_psnr(few)
                if teaches and is_better:
                    digital.learn(images, self.shrinkage_steps)
                elif teaches:
                    linear.decoder.fit(images, self.shrinkage_steps)
                return is_better
            if teaches and digital.rate <= MAX_AVIF_RATE:
                seed = derive_seed(self.seed, "compression")
                shrinkage = LocalShrinkage(linear.code.opponent, seed=seed)
                digital.learn(images, self.shrinkage_steps, shrinkage)
            wanted = _mean_psnr(digital.rehearsed(few))
            if wanted > self._rehearsed_psnr(few) + SURE_DB:
                return True
        if teaches:
            linear.decoder.fit(images, self.shrinkage_steps)
        return wanted > 0 and wanted > self._rehearsed_psnr(few)

    def _rehearsed_psnr(self, images: Tensor) -> float:
        decoder = self.linear.decoder
        return _mean_psnr(
            [(image, decoder.decode(channel)[0]) for image, channel in decoder.rehearse(images)]
        )

    def server_payload(self, model: Target) -> RowsPayload:
        """Return the target with the rows beside it.

        Raises:
            InputError: if there are too few rows to tell those that were hit from the others.
        """
        linear = self.linear
        if not self.is_digital:
            return linear.server_payload(model)
        num_rows = ROWS_A_SAMPLE * (linear.num_samples or self.spec.max_batch_size)
        return SpectralPayload(
            model, self.digital, num_rows, linear.logit_scale, linear.budget, linear.gain
        )

    # --- decoding ------------------------------------------------------------------------------

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Find the rows that were hit, and decode them."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            rate = self.linear.false_positive_rate
            received = read_signs(observation) if self.is_digital else None
            received = received or find_rows(observation, rate, keeps_sums=self.is_digital)
            notes = received.notes | {"is_digital": float(self.is_digital)}
            if not self.is_digital:
                images = self.linear.decoder.decode(received.channel)
                (misfit,) = self.linear.objective(images, received).values()
                return Reconstruction(images=images, labels=None, score=misfit, notes=notes)
            found, misfit = self.digital.decode(
                received.received, received.amplitude, received.noise_std**2
            )
            is_right = [image is not None for image in found]
            right = [image for image in found if image is not None]
            none = received.received.new_zeros(0, *self.known_shape)
            return Reconstruction(
                images=torch.stack(right) if right else none,
                labels=None,
                score=misfit[torch.tensor(is_right, dtype=torch.bool, device=misfit.device)],
                notes=notes
                | {
                    "bits_an_image": self.digital.num_bits,
                    "bits_capacity": self.capacity,
                    "rows_garbled": is_right.count(False),
                },
            )

    @property
    def capacity(self) -> float:
        """Bits that a sample's row could carry at most, with the noise that it was made for."""
        size = self.digital.num_columns
        ratio = self.linear.budget.energy / self.linear.noise_std**2
        return size / 2 * math.log2(1 + ratio / size)


def _mean_psnr(pairs: Sequence[tuple[Tensor, Tensor | None]]) -> float:
    """Return the mean PSNR of public images, C H W, and what comes of them; 0 for nothing."""
    found = [
        0.0 if shown is None else float(psnr(shown[None].to(image), image[None]))
        for image, shown in pairs
    ]
    return sum(found) / len(found)
