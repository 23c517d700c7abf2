"""Images as bits, and bits as symbols: source and channel coded one after the other."""

import math

import torch
from torch import Tensor

from lightning_recon.attacks.coded.block import BlockCode
from lightning_recon.attacks.coded.compression import (
    NUM_FRAME_BYTES,
    OWN,
    Pixels,
    compress,
    decompress,
    framed,
    is_exact,
    unframed,
)
from lightning_recon.attacks.coded.public_coder import Images, PublicCoder
from lightning_recon.attacks.spectral.code import ChannelCode
from lightning_recon.priors.shrinkage import LocalShrinkage

MIN_OWN_BYTES = 16  # below which a coder of our own has nothing to say
MAX_OWN_RATE = 0.3  # bits a pixel, above which standard formats are as good and faster
ROOM = 1.05  # bytes over those of the pixels, that hold any image without loss, and
FRAME = 64


class DigitalCode(ChannelCode):
    """Compressed images behind a polar code of one block.

    All images have the same energy, and nothing is sent in the row's number.

    Args:
        image_shape: C, H, W; C 3 or 1.
        noise_variance: of the noise on every symbol, > 0.
        energy: of all symbols of an image.
        block_error: bound of the probability that an image is lost in a longer block, where the
            noise and the energy are as they were said to be, worsened by
        margin: so many decibels.
        num_bytes: that are wanted; null: as many as hold any image without loss.
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
        num_bytes: int | None = None,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.pixel_shape = (height, width, channels)
        most = int(ROOM * math.prod(image_shape)) + FRAME
        wanted = most if num_bytes is None else min(num_bytes, most)
        relied = energy / noise_variance * 10 ** (-margin / 10)
        self.block = BlockCode(relied, block_error, wanted)
        self.coder: PublicCoder | None = None
        self._shrinkage: tuple[LocalShrinkage, ...] = ()  # a tuple hides it from Lightning

    @property
    def num_columns(self) -> int:
        """Symbols of an image."""
        return self.block.num_symbols

    @property
    def num_bits(self) -> int:
        """What a block carries."""
        return self.block.polar.num_bits

    @property
    def num_bytes(self) -> int:
        """What an image is compressed to."""
        return self.block.num_bytes

    @property
    def rate(self) -> float:
        """Bits a pixel."""
        return self.num_bits / math.prod(self.pixel_shape[:2])

    def compress(self, images: Tensor) -> list[bytes]:
        """Return the bytes that images, B C H W in [0, 1], are sent as."""
        found = [compress(pixels_of(image), self.num_bytes) for image in images]
        if self.coder is None:
            return found
        own = [framed(OWN, body) for body in self.coder.compress(last_channel(images))]
        return [
            min(pair, key=lambda data: self._error(data, image))
            for pair, image in zip(zip(found, own, strict=True), images, strict=True)
        ]

    def _error(self, data: bytes, image: Tensor) -> float:
        found = self._plain(data)
        return math.inf if found is None else float((found - image.cpu()).square().mean())

    def _plain(self, data: bytes) -> Tensor | None:
        """Return the image as it was compressed, or None if it was garbled."""
        kind, body = unframed(data)
        if kind == OWN and self.coder is not None:
            return torch.from_numpy(self.coder.decompress(body)).permute(2, 0, 1).float()
        pixels = decompress(data, self.pixel_shape)
        # images of 8 bits come as these quotients
        return (
            None
            if pixels is None
            else torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        )

    def decompress(self, data: bytes) -> Tensor | None:
        """Return the image of :meth:`compress`, C H W in [0, 1], or None if it was garbled."""
        image = self._plain(data)
        if image is None or is_exact(data):
            return image
        for shrinkage in self._shrinkage:
            image = shrinkage(image.to(shrinkage.opponent)[None])[0].clamp(0, 1).cpu()
        return image

    def rehearsed(self, images: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Return public images, C H W, beside what is decompressed of them."""
        return list(zip(images, map(self.decompress, self.compress(images)), strict=True))

    def learn(self, images: Tensor, steps: int, shrinkage: LocalShrinkage) -> None:
        """Learn from public images, N C H W: their statistics, and what compression takes of them.

        Args:
            images: in [0, 1].
            steps: of its training.
            shrinkage: is trained, and improves what is decompressed from then on.
        """
        if self.num_bytes - NUM_FRAME_BYTES >= MIN_OWN_BYTES and self.rate <= MAX_OWN_RATE:
            self.coder = PublicCoder(last_channel(images), self.num_bytes - NUM_FRAME_BYTES)
        found = map(self.decompress, self.compress(images))
        pairs = [
            (shown.to(image), None, image)
            for shown, image in zip(found, images, strict=True)
            if shown is not None
        ]
        if pairs:
            shrinkage.fit(pairs, len(pairs), steps)
            self._shrinkage = (shrinkage,)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the symbols of images, B N, of norm 1 together, and zeros, B."""
        return self.block.encode(self.compress(images), images), images.new_zeros(len(images))

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
        images, left = self.block.decode(received, amplitude, noise_variance, self.decompress)
        return [None if image is None else image.to(received) for image in images], left


def last_channel(images: Tensor) -> Images:
    """Return images, B C H W, as B H W C."""
    found: Images = images.permute(0, 2, 3, 1).cpu().double().numpy()
    return found


def pixels_of(image: Tensor) -> Pixels:
    """Return an image, C H W in [0, 1], as H W C of 8 bits."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    found: Pixels = pixels.permute(1, 2, 0).cpu().numpy()
    return found
