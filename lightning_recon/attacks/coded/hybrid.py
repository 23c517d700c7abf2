"""Where few bits come through: a coarse picture as bits, and what it leaves as a linear code.

A unit of energy tells as much of a coefficient that is well below the noise if it is sent linearly
as the best bits would, and more than those of codes that exist; of one far above the noise, bits
tell more (hybrid digital-analog codes: Mittal & Phamdo, IEEE Trans. Information Theory 48, 2002).
So most of the energy goes into the bits of :class:`PublicCoder`, with a checksum, and the rest
into the difference, coded for the spectrum that differences of public images have.
"""

import torch
from torch import Tensor

from lightning_recon.attacks.coded.block import BlockCode
from lightning_recon.attacks.coded.code import MIN_OWN_BYTES, last_channel
from lightning_recon.attacks.coded.compression import NUM_FRAME_BYTES, OWN, framed, unframed
from lightning_recon.attacks.coded.public_coder import PublicCoder
from lightning_recon.attacks.spectral.code import ChannelCode, SpectralCode
from lightning_recon.attacks.spectral.decoder import SpectralDecoder

SHARE = 0.7  # of the energy, that the bits take
NORM_STEP = 0.03  # of the logarithm of the difference's norm, a byte in all


class HybridCode(ChannelCode):
    """A coarse picture behind a polar code, and the difference as a linear code.

    Args:
        images: public, N C H W in [0, 1], C 3 or 1.
        noise_variance: of the noise on every symbol, > 0.
        energy: of all that is sent of an image.
        margin: in decibels, by which the energy may fall short.
        seed: of what is learned.
    """

    log_norm_mean = 0.0
    log_norm_std = 0.0

    def __init__(
        self, images: Tensor, noise_variance: float, energy: float, margin: float, seed: int
    ) -> None:
        super().__init__()
        self.block = _block(energy / noise_variance, margin)
        num_bytes = self.block.num_bytes - NUM_FRAME_BYTES - 1
        self.coder = PublicCoder(last_channel(images), num_bytes)
        self.pictures = self._decompressed(self.coder.compress(last_channel(images)), images)
        shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        self.energy = (1 - SHARE) * energy
        rest = SpectralCode(images - self.pictures, shape, noise_variance, self.energy)
        decoder = SpectralDecoder(rest, noise_variance**0.5, self.energy, seed)
        self._decoder = (decoder,)  # a tuple hides it from Lightning

    @staticmethod
    def fits(noise_variance: float, energy: float, margin: float) -> bool:
        """Return whether there are bits enough for a picture."""
        block = _block(energy / noise_variance, margin)
        return block.num_bytes - NUM_FRAME_BYTES - 1 >= MIN_OWN_BYTES

    @property
    def decoder(self) -> SpectralDecoder:
        """Of the difference."""
        return self._decoder[0]

    @property
    def num_bits(self) -> int:
        """What the picture's block carries."""
        return self.block.polar.num_bits

    @property
    def rate(self) -> float:
        """Bits a pixel of the picture."""
        return self.num_bits / self.pictures[0, 0].numel()

    @property
    def num_columns(self) -> int:
        """Coefficients of the difference, and symbols of the picture."""
        return self.block.num_symbols + self.decoder.code.num_columns

    def learn(self, images: Tensor, steps: int) -> None:
        """Learn the second half of decoding from the public images."""
        self.decoder.fit(images, steps, self.pictures)

    def rehearsed(self, images: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Return public images, C H W, beside what comes of them through the channel."""
        pictures = self.pictures[: len(images)]
        return [
            (image, self.decoder.decode(channel, picture[None])[0])
            for (image, channel), picture in zip(
                self.decoder.rehearse(images, pictures), pictures, strict=True
            )
        ]

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the code of images, B N, each of norm 1, and zeros, B."""
        bodies = self.coder.compress(last_channel(images))
        rest = self.decoder.code
        code, log_norm = rest.encode(images - self._decompressed(bodies, images))
        number = ((log_norm - rest.log_norm_mean) / NORM_STEP).round().clamp(-128, 127)
        words = [
            framed(OWN, bytes([int(place) + 128]) + body)
            for place, body in zip(number.tolist(), bodies, strict=True)
        ]
        symbols = SHARE**0.5 * self.block.encode(words, images)
        # the code's first columns have most energy, by which rows are found
        return torch.cat([(1 - SHARE) ** 0.5 * code, symbols], dim=1), torch.zeros_like(log_norm)

    def decode(
        self, received: Tensor, amplitude: Tensor, noise_variance: float
    ) -> tuple[list[Tensor | None], Tensor]:
        """Return the images, None for those that were garbled, and how badly each block fits.

        See :meth:`DigitalCode.decode`.
        """
        size = self.decoder.code.num_columns
        words, left = self.block.decode(
            received[:, size:], SHARE**0.5 * amplitude, noise_variance, _read
        )
        rest = (1 - SHARE) ** 0.5 * amplitude
        found: list[Tensor | None] = []
        for word, sent, size_sent in zip(words, received[:, :size], rest, strict=True):
            image = None
            if word is not None:
                log_norm = self.decoder.code.log_norm_mean + NORM_STEP * (word[0] - 128)
                channel = sent[None], size_sent[None], sent.new_tensor([log_norm]), noise_variance
                image = self.decoder.decode(channel, self._decompressed([word[1:]], received))[0]
            found.append(image)
        return found, left

    def _decompressed(self, bodies: list[bytes], like: Tensor) -> Tensor:
        """Return the pictures, B C H W."""
        pictures = [torch.from_numpy(self.coder.decompress(body)) for body in bodies]
        return torch.stack(pictures).permute(0, 3, 1, 2).to(like)


def _block(ratio: float, margin: float) -> BlockCode:
    """Return the code of the picture, for the energy of all over the noise's variance."""
    return BlockCode(SHARE * ratio * 10 ** (-margin / 10), 1.0, 2**16)


def _read(word: bytes) -> bytes | None:
    kind, body = unframed(word)
    return body if kind == OWN else None
