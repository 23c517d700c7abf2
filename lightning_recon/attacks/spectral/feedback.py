"""Several rounds of one client: every round tells what the ones before left open.

Averaging what T rounds say of the same images leaves an error that falls as 1 / T.  A server that
puts its estimate into the next payload has the client send the difference alone, scaled up to all
the energy that the clipping norm allows: the error falls geometrically (Schalkwijk & Kailath, "A
coding scheme for additive noise channels with feedback", IEEE Trans. Information Theory 12, 1966;
there the receiver's estimate comes back to the sender, here the receiver sends it).  The code of
each round is that of :class:`SpectralCode` for the spectrum of the differences, which the server
learns by playing all rounds with public images.

Whose estimate is the nearest is told by the few coefficients that were sent with the most energy:
of the others so much is unknown that it drowns the difference between images.  A sample that is
near none, such as one of another batch, is sent to rows of its own
(:class:`~lightning_recon.attacks.spectral.local_payload.Known`): it changes no estimate, and the
server sees that it is another one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recon.attacks.spectral.code import SpectralCode
from lightning_recon.attacks.spectral.decoder import SpectralDecoder
from lightning_recon.attacks.spectral.local_payload import Known, LocalPayload
from lightning_recon.attacks.spectral.receiver import Received
from lightning_recon.randomness import derive_seed

NUM_MARKS = 256  # coefficients by which images are told apart


class Round(NamedTuple):
    """What the server sends in a round after the first."""

    code: SpectralCode
    """Of the differences from what it knows."""
    reach: float
    """See :class:`Known`."""


class Feedback:
    """The rounds after the first one, rehearsed on public images; made as they are asked for.

    Args:
        decoder: of the first round.
        public: N C H W in [0, 1], N at least 2.
    """

    def __init__(self, decoder: SpectralDecoder, public: Tensor) -> None:
        self._decoder = decoder
        self._public = public
        self._estimates = public
        self._rounds: list[Round] = []

    def round(self, number: int) -> Round:
        """Return what is sent in a round, 1 the one after the first."""
        while len(self._rounds) < number:
            self._rehearse()
        return self._rounds[number - 1]

    def _rehearse(self) -> None:
        """Play a round with the public images, and make the code for what it leaves open."""
        first, public = self._decoder, self._public
        if self._rounds:
            code = self._rounds[-1].code
            seed = derive_seed(first.seed, "round", len(self._rounds))
            sender = SpectralDecoder(code, first.noise_std, first.energy, seed)
            channels = [channel for _, channel in sender.rehearse(public - self._estimates)]
            told = torch.cat([code.decode(*channel) for channel in channels])
            self._estimates = (self._estimates + told).clamp(0, 1)
        else:
            found = [first.decode(channel) for _, channel in first.rehearse(public)]
            self._estimates = torch.cat(found)
        shape = first.code.image_shape
        left = public - self._estimates
        code = SpectralCode(left, shape, first.noise_std**2, first.energy)
        marks = marks_of(first.code)
        both = (code.transform(one).flatten(1)[:, marks] for one in (public, self._estimates))
        self._rounds.append(Round(code, reach_of(*both)))


def marks_of(code: SpectralCode) -> Tensor:
    """Return the coefficients that are sent with the most energy, by which images are told."""
    return code.order[:NUM_MARKS]


def reach_of(images: Tensor, estimates: Tensor) -> float:
    """Return the squared distance that lies between those of one image and of several.

    Distances of images from their own estimates, and from the nearest other one, are taken for
    normal in the logarithm, and the two kinds of error are made equally rare.

    Args:
        images: N K numbers of images, N at least 2.
        estimates: of the same images.
    """
    distance = torch.cdist(images.double(), estimates.double()).square()
    own = distance.diagonal().clamp_min(1e-12).log()
    others = distance.fill_diagonal_(torch.inf).amin(1).clamp_min(1e-12).log()
    spread = (own.std() + others.std()).clamp_min(1e-12)
    between = (own.mean() * others.std() + others.mean() * own.std()) / spread
    return float(between.exp())


def tell(
    payload: LocalPayload, known: Known, received: Received, most: int
) -> tuple[Known, Received]:
    """Return what is known after a round, and what the round said of each known image.

    Args:
        payload: of the round.
        known: what it held.
        received: what was read of its update.
        most: samples of the batch; a new image is taken up while there are fewer.

    Returns:
        The images, the one for unknown samples in front; and of each of the others what was
        received, of amplitude 0 where nothing was.
    """
    code = payload.code
    assert isinstance(code, SpectralCode)
    block = payload.block_of(received.row)
    new = (block == 0).nonzero().squeeze(1)
    room = new[: max(most + 1 - len(known.images), 0)]
    base = torch.cat([known.images[1:], known.images[:1].expand(len(room), -1, -1, -1)])
    strength = received.amplitude.abs()
    place, row = [], []  # of images of which the round told, and where
    for number in range(1, len(known.images)):
        here = (block == number).nonzero().squeeze(1)
        if len(here):
            place.append(number - 1)
            row.append(int(here[strength[here].argmax()]))
    place += range(len(known.images) - 1, len(base))
    row += room.tolist()

    def aligned(part: Tensor) -> Tensor:
        found = part.new_zeros(len(base), *part.shape[1:])
        found[place] = part[row]
        return found

    difference = code.decode(*received.channel)
    images = (base + aligned(difference)).clamp(0, 1)
    found = known._replace(
        images=torch.cat([known.images[:1], images]),
        rows_known=known.rows_known + len(block) - len(new),
        rows_new=known.rows_new + len(new),
    )
    parts = (received.received, received.amplitude, received.log_norm, received.row)
    read, amplitude, log_norm, rows = (aligned(part) for part in parts)
    notes = received.notes | {"rows_of_known": found.rows_known, "rows_of_new": found.rows_new}
    return found, Received(read, amplitude, log_norm, received.noise_std, notes, rows, base)
