"""The decoder of :class:`SpectralCode`: Wiener's filter, and what public images teach beyond it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_recon.attacks.spectral.code import SpectralCode
from lightning_recon.attacks.spectral.receiver import Channel
from lightning_recon.priors.shrinkage import Example, LocalShrinkage
from lightning_recon.randomness import derive_seed, make_generator


class SpectralDecoder:
    """Images of what was received; it is no module, so that nothing looks for its parameters.

    Args:
        code: as it was sent.
        noise_std: that the code was made for.
        energy: what a code may use of the squared clipping norm.
        seed: of the noise of the rehearsal, and of what is learned.
    """

    def __init__(self, code: SpectralCode, noise_std: float, energy: float, seed: int) -> None:
        self.code = code
        self.noise_std = noise_std
        self.energy = energy
        self.seed = seed
        self._rounds: tuple[LocalShrinkage, ...] = ()

    def fit(self, images: Tensor, steps: int, known: Tensor | None = None) -> None:
        """Learn two rounds of local shrinkage from public images behind the same channel.

        Args:
            images: N C H W in [0, 1].
            steps: of training, each round.
            known: N C H W: what is known of them beside the code, which tells the difference.
        """
        for is_second in (False, True):
            seed = derive_seed(self.seed, "shrinkage", int(is_second))
            shrinkage = LocalShrinkage(self.code.opponent, is_second, seed)
            shrinkage.fit(self._examples(images, known), len(images), steps)
            self._rounds = (*self._rounds, shrinkage)

    def rehearse(
        self, images: Tensor, known: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Channel]]:
        """Send public images, N C H W, through the channel, and give what is received of each.

        Where something is ``known``, N C H W, the difference is sent.
        """
        amplitude = images.new_full((1,), self.energy**0.5)
        differences = images if known is None else images - known
        for number, image in enumerate(differences[:, None]):
            generator = make_generator(self.seed, "rehearsal", number, device=images.device)
            sent, log_norm = self.code.encode(image)
            noise = torch.randn(sent.shape, generator=generator, device=sent.device)
            received = amplitude * sent + self.noise_std * noise.to(sent)
            yield images[number], (received, amplitude, log_norm, self.noise_std**2)

    def _examples(self, images: Tensor, known: Tensor | None) -> Iterator[Example]:
        """Give what the next round is to improve."""
        for number, (image, channel) in enumerate(self.rehearse(images, known)):
            base = 0 if known is None else known[number]
            estimate = self.decode(channel, base)
            if self._rounds:
                yield self._correct(estimate, channel, base)[0], estimate[0], image
            else:
                yield estimate[0], None, image

    def decode(self, channel: Channel, known: Tensor | float = 0) -> Tensor:
        """Return the images, B C H W in [0, 1], of which ``known``, B C H W, is known already."""
        estimate = (known + self.code.decode(*channel)).clamp(0, 1)
        for number, shrinkage in enumerate(self._rounds):
            if number == 0:
                better = shrinkage(estimate)
            else:
                better = shrinkage(self._correct(estimate, channel, known), estimate)
            estimate = better.clamp(0, 1)
        return estimate

    def _correct(self, images: Tensor, channel: Channel, known: Tensor | float) -> Tensor:
        return known + self.code.correct(images - known, *channel)
