"""Bytes through white Gaussian noise: a polar code of one block, and lists where it fails."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lightning_recon.attacks.coded.polar import PolarCode
from lightning_recon.attacks.coded.polar_list import decode_list

MAX_SNR = 4.0  # a symbol: no more is relied upon, whatever the noise is said to be
ENOUGH_SNR = 0.75  # a symbol, below which a longer code carries little more, and that of codes
ENOUGH_SNR_SHORT = 0.25  # of fewer symbols than 2 to the
SHORT_EXPONENT = 16
MIN_EXPONENT = 8
MAX_EXPONENT = 21
LIST_SYMBOLS = 2**22  # of all paths together, with which a block is decoded that was garbled
MIN_LIST = 16  # paths, of which longer codes cannot have as many: they are decoded once
GOOD_LIST = 64  # paths, with which a block may be expected to have one error without them

Read = TypeVar("Read")


class BlockCode:
    """Bytes behind a polar code of one block.

    The code has the fewest symbols that carry all that is wanted; where the energy does not suffice
    for that, so many that longer codes carry little more.  Blocks of at most 2^18 symbols that
    cannot be read are decoded again by lists, for which they hold more bits: about one in 200 is
    lost.

    Args:
        ratio: energy of all symbols over the noise's variance that is relied upon, > 0.
        block_error: bound of the probability that a longer block is lost.
        num_bytes: that are wanted.
    """

    def __init__(self, ratio: float, block_error: float, num_bytes: int) -> None:
        enough = 8 * num_bytes
        for exponent in range(MIN_EXPONENT, MAX_EXPONENT + 1):
            snr = min(ratio / 2**exponent, MAX_SNR)
            enough_snr = ENOUGH_SNR_SHORT if exponent < SHORT_EXPONENT else ENOUGH_SNR
            if 2**exponent < enough and snr > enough_snr and exponent < MAX_EXPONENT:
                continue
            longest = LIST_SYMBOLS >> exponent
            errors = block_error if longest < MIN_LIST else min(1.0, longest / GOOD_LIST)
            self.polar = PolarCode(exponent, snr, errors, enough)
            if self.polar.num_bits >= enough or snr <= enough_snr:
                break
        self.list_sizes = (longest // 8, longest) if longest >= MIN_LIST else ()

    @property
    def num_symbols(self) -> int:
        """Symbols of a block."""
        return self.polar.num_symbols

    @property
    def num_bytes(self) -> int:
        """Bytes of a block."""
        return self.polar.num_bits // 8

    def encode(self, words: Sequence[bytes], like: Tensor) -> Tensor:
        """Return the symbols of blocks of ``num_bytes`` bytes, B N, each of norm 1."""
        bits = np.unpackbits(np.frombuffer(b"".join(words), dtype=np.uint8))
        found = torch.from_numpy(bits.reshape(len(words), -1)).to(like.device)
        spare = self.polar.num_bits - found.shape[1]  # those beyond whole bytes are 0
        symbols = self.polar.encode(torch.nn.functional.pad(found, (0, spare)))
        return symbols.to(like.dtype).div_(self.num_symbols**0.5)

    def decode(
        self,
        received: Tensor,
        amplitude: Tensor,
        noise_variance: float,
        read: Callable[[bytes], Read | None],
    ) -> tuple[list[Read | None], Tensor]:
        """Return what blocks hold, None for those that were garbled, and how badly each fits.

        Args:
            received: R N, ``amplitude`` times the symbols, plus noise.
            amplitude: R, signed.
            noise_variance: of the noise on ``received``, or 0.
            read: what a block's bytes hold; None if they were garbled.

        Returns:
            What was read of R blocks, and R numbers: the energy a symbol that the code words leave
            over, in units of that of a symbol, 0 for none.
        """
        size = amplitude[:, None] / self.num_symbols**0.5
        scaled = received / size
        # without noise any scale will do that does not vanish where many symbols are multiplied
        precision = size.square() / noise_variance if noise_variance > 0 else size.new_tensor(100.0)
        certainty = (2 * precision.clamp(max=1e6)).expand_as(size)
        bits = self.polar.decode(certainty * scaled)
        found = [read(self._word(word)) for word in bits]
        for list_size in self.list_sizes if noise_variance > 0 else ():
            for number in [number for number, held in enumerate(found) if held is None]:
                ratio = certainty[number] * scaled[number]
                for word in decode_list(self.polar, ratio[None], list_size)[0]:
                    found[number] = read(self._word(word))
                    if found[number] is not None:
                        bits[number] = word
                        break
        left = torch.stack(
            [
                (row - self.polar.encode(word[None])[0]).square().mean()
                for row, word in zip(scaled, bits, strict=True)
            ]
            or [scaled.new_zeros(())]
        )[: len(scaled)]
        return found, left

    def _word(self, bits: Tensor) -> bytes:
        return np.packbits(bits[: 8 * self.num_bytes].cpu().numpy()).tobytes()
