"""Reconstruction from obfuscated gradients (ROG).

Yue, Jin, Wong, Baron & Dai, "Gradient Obfuscation Gives a False Sense of Security in Federated
Learning", USENIX Security 2023, section 4.  The attack looks for low-resolution latents whose
bicubic upsampling has the observed update, then refines the pictures by networks trained on public
images.

Differences: the paper says that the attacker folds the post-processing of the update into the
matching loop, which its released loop does not: ``adaptive`` switches between the two.  Latents
are kept in [0, 1].
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.attacks.gradient_matching import Evidence, GradientMatching
from lightning_recon.errors import InputError
from lightning_recon.observation import Reconstruction
from lightning_recon.refiners import Refiner
from lightning_recon.refiners.base import encode
from lightning_recon.targets import Target


class ROGAttack(GradientMatching):
    """Matches the update of bicubically upsampled latents, then refines the pictures.

    Args:
        upsampling: factor between the latent's side and the image's, at least 1; 4 in the paper.
        refiner: what turns the upsampled latents into the result; null: nothing does.
        iterations: steps on the latents of one client; 100 in the paper, by Adam of rate .05 with a
            cosine to 10 % of it.
        **kwargs: the options of :class:`GradientMatching`.

    Raises:
        InputError: if an argument is out of its range.
    """

    citation = (
        "Yue, Jin, Wong, Baron, Dai: Gradient Obfuscation Gives a False Sense of Security in "
        "Federated Learning. USENIX Security 2023, arXiv 2206.04055"
    )

    def __init__(
        self,
        target: Target,
        upsampling: int = 4,
        refiner: Refiner | None = None,
        iterations: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(target, iterations=iterations, **kwargs)
        if upsampling < 1:
            raise InputError(f"ROGAttack: upsampling must be at least 1, not {upsampling}")
        self.upsampling = upsampling
        self.refiner = None if refiner is None else refiner.eval().requires_grad_(False)

    @property
    def dummy_shape(self) -> tuple[int, int, int]:
        """C, H, W of a latent."""
        channels, height, width = self.spec.image_shape
        if height % self.upsampling or width % self.upsampling:
            raise InputError(
                f"ROGAttack: images of {height}x{width} have no latent {self.upsampling} times "
                "smaller; change upsampling, or take images of another size"
            )
        return channels, height // self.upsampling, width // self.upsampling

    def decode(self, dummy: Tensor) -> Tensor:
        """Return the latents, bicubically upsampled."""
        if self.upsampling == 1:
            return dummy
        return F.interpolate(dummy, scale_factor=self.upsampling, mode="bicubic")

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents in [0, 1] that come closest to images."""
        return encode(images, self.upsampling).clamp(0, 1)

    def finish(self, dummy: Tensor, evidence: Evidence) -> Reconstruction:
        """Return the refined pictures of the restart of least objective."""
        found = super().finish(dummy, evidence)
        notes = {**found.notes, "refined": float(self.refiner is not None)}
        if self.refiner is None:
            return found._replace(notes=notes)
        with torch.no_grad():
            refined = self.refiner(found.images, found.labels).clamp(0, 1)
        return found._replace(images=refined, notes=notes)
