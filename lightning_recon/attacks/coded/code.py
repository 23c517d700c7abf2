"""Images as bits, and bits as symbols: source and channel coded one after the other."""

import math

import numpy as np
import torch
from torch import Tensor

from lightning_recon.attacks.coded.compression import compress, decompress
from lightning_recon.attacks.coded.polar import PolarCode
from lightning_recon.attacks.spectral.code import ChannelCode

MAX_SNR = 4.0  # a symbol: no more is relied upon, whatever the noise is said to be
ENOUGH_SNR = 0.75  # a symbol, below which a longer code carries little more
MIN_EXPONENT = 8
MAX_EXPONENT = 21
ROOM = 1.05  # bytes over those of the pixels, that hold any image without loss, and
FRAME = 64


class DigitalCode(ChannelCode):
    """Compressed images behind a polar code of one block.

    The code has the fewest symbols that carry all pixels as they are; where the energy does not
    suffice for that, so many that longer codes carry little more.  All images have the same energy,
    and nothing is sent in the row's number.

    Args:
        image_shape: C, H, W; C 3 or 1.
        noise_variance: of the noise on every symbol, > 0.
        energy: of all symbols of an image.
        block_error: bound of the probability that an image is lost, where the noise and the energy
            are as they were said to be, worsened by
        margin: so many decibels.
    """

    log_norm_mean = 0.0
    log_norm_std = 0.0

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        noise_variance: float,
        energy: float,
        block_error: float,
        margin: float,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.pixel_shape = (height, width, channels)
        enough = 8 * (int(ROOM * math.prod(image_shape)) + FRAME)
        relied = energy / noise_variance * 10 ** (-margin / 10)
        for exponent in range(MIN_EXPONENT, MAX_EXPONENT + 1):
            snr = min(relied / 2**exponent, MAX_SNR)
            if 2**exponent < enough and snr > ENOUGH_SNR and exponent < MAX_EXPONENT:
                continue
            self.polar = PolarCode(exponent, snr, block_error, enough)
            if self.polar.num_bits >= enough or snr <= ENOUGH_SNR:
                break

    @property
    def num_columns(self) -> int:
        """Symbols of an image."""
        return self.polar.num_symbols

    @property
    def num_bytes(self) -> int:
        """What an image is compressed to."""
        return self.polar.num_bits // 8

    def compress(self, image: Tensor) -> bytes:
        """Return the bytes that an image, C H W in [0, 1], is sent as."""
        pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
        return compress(pixels.permute(1, 2, 0).cpu().numpy(), self.num_bytes)

    def decompress(self, data: bytes) -> Tensor | None:
        """Return the image of :meth:`compress`, C H W in [0, 1], or None if it was garbled."""
        pixels = decompress(data, self.pixel_shape)
        if pixels is None:
            return None
        # images of 8 bits come as these quotients
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the symbols of images, B N, of norm 1 together, and zeros, B."""
        words = b"".join(self.compress(image) for image in images)
        bits = np.unpackbits(np.frombuffer(words, dtype=np.uint8)).reshape(len(images), -1)
        symbols = self.polar.encode(self._padded(torch.from_numpy(bits).to(images.device)))
        return symbols.to(images.dtype) / self.num_columns**0.5, images.new_zeros(len(images))

    def decode(
        self, received: Tensor, amplitude: Tensor, noise_variance: float
    ) -> tuple[list[Tensor | None], Tensor]:
        """Return the images, None for those that were garbled, and how badly each code word fits.

        Args:
            received: R N, ``amplitude`` times the code, plus noise.
            amplitude: R, signed.
            noise_variance: of the noise on ``received``, or 0.

        Returns:
            R images, C H W, and R numbers: the energy a symbol that the code words leave over, in
            units of that of a symbol, 0 for none.
        """
        size = amplitude[:, None] / self.num_columns**0.5
        scaled = received / size
        # without noise any scale will do
        precision = size.square() / noise_variance if noise_variance > 0 else torch.ones_like(size)
        bits = self.polar.decode(2 * scaled * precision.clamp(max=1e6))
        words = np.packbits(bits[:, : 8 * self.num_bytes].cpu().numpy(), axis=1)
        images = [self.decompress(word.tobytes()) for word in words]
        left = (scaled - self.polar.encode(bits).to(scaled)).square().mean(1)
        return [None if image is None else image.to(received) for image in images], left

    def _padded(self, bits: Tensor) -> Tensor:
        """Fill bits up to a block: those beyond whole bytes are 0."""
        return torch.nn.functional.pad(bits, (0, self.polar.num_bits - bits.shape[1]))
