"""What every defense is: a change of the update, and what is claimed of it.

What really holds is a matter of the whole chain: see
:func:`~lightning_recon.audit.privacy_statement.privacy_statement`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.updates import Update

CHUNK = 2**20
"""Numbers that are worked on at once: bounds the memory that a defense takes."""


class Encoding(NamedTuple):
    """How an update is put into bits: values of so many bits each, and what stands beside them."""

    num_values: float
    bits_per_value: float
    overhead: float
    """Bits for scales, positions and the like."""

    @property
    def num_bits(self) -> float:
        """Of the whole message."""
        return self.num_values * self.bits_per_value + self.overhead


Shapes = Mapping[str, torch.Size]
"""Of an update's tensors, by parameter name."""


class Defense(nn.Module, ABC):
    """One step of the chain that an update passes on the client before it is sent."""

    citation: str
    """Where the defense was published."""

    def bind(self, norm_bound: float | None) -> float | None:
        """Learn the L2 bound of what reaches this defense; return the bound of what leaves it.

        Here None: whatever comes in, nothing bounds what leaves it.  A defense that makes no norm
        larger returns ``norm_bound``.

        Args:
            norm_bound: the L2 norm that no incoming update exceeds, or None if there is none.

        Raises:
            InputError: if the defense needs a bound and there is none.
        """
        return None

    @abstractmethod
    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the protected update.

        Args:
            update: what reaches the defense.  It is consumed: the tensors may be changed in
                place, since an update can be larger than the rest of the run together.
            generator: the source of all randomness, on the update's device.
        """

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return what an attacker expects this defense to have made of an update.

        The adaptive attacker passes the update that it simulates through the stand-ins of the
        chain before comparing it with the observed one; others, which attacks are by default
        (``adaptive: false``), never call it.  What the defense did at random is
        replaced by its expectation, by a straight-through pass, or by what the observed update
        tells of it, such as which entries were kept.  Must be differentiable in ``update``, run
        inside ``torch.func.vmap``, and change nothing in place.

        Args:
            update: what reaches the defense, as the attacker simulates it.
            observed: what the server received at the end of the chain.

        Returns:
            The same names and shapes; here, for a defense without bias, ``update`` itself.
        """
        return update

    def variance(self, update: Update, observed: Update) -> Update | None:
        """Return the variance of what this defense adds to every number, whose mean is 0.

        For an attacker or an auditor who weighs every number by its own error.  None: the mean of
        what leaves is not the update, and :meth:`stand_in` tells what is expected of it.

        Args:
            update: what reaches the defense, or an estimate of it; not changed.
            observed: what the server received at the end of the chain.
        """
        return None

    def encode(self, encoding: Encoding, shapes: Shapes) -> Encoding:
        """Return how what leaves this defense is put into bits; here as what reaches it.

        Args:
            encoding: of what reaches it.
            shapes: of the update.
        """
        return encoding

    @property
    def claimed(self) -> dict[str, Any] | None:
        """What the configuration claims of one release; None: nothing.

        ``epsilon`` and ``rule``, and where they differ from these, ``level`` ("client"),
        ``adjacency`` ("replace") and ``delta`` (that of the statement).
        """
        return None


class LocalRandomizer(Defense):
    """A defense whose output is epsilon-LDP by itself, whatever reaches it.

    It brings the update into its own domain (a ball, a cube), so that it needs no bound in front,
    and any two updates are as hard to tell apart as its epsilon says, with delta = 0: pure local
    differential privacy, for replacement of all of the client's data.  The proofs are about real
    numbers; floating-point numbers have gaps that an attacker of the least significant bits could
    use (Mironov, CCS 2012).

    Args:
        epsilon: the privacy budget of one release, above 0.
    """

    def encode(self, encoding: Encoding, shapes: Shapes) -> Encoding:
        """Return 32 bits for each value: noise has no zeros and no levels."""
        return dense(shapes)

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = positive(self, "epsilon", epsilon)

    @property
    def claimed(self) -> dict[str, Any]:
        """The epsilon, which is what holds."""
        rule = f"{type(self).__name__}: pure epsilon-LDP"
        return {"epsilon": self.epsilon, "rule": rule, "delta": 0.0}


def positive(owner: Defense, name: str, value: float) -> float:
    """Return ``value`` if it is a finite number above 0.

    Raises:
        InputError: if it is not.
    """
    if not 0 < value < math.inf:
        raise InputError(f"{type(owner).__name__}: {name} must be a number above 0, not {value}")
    return float(value)


def whole(owner: Defense, name: str, value: int, at_least: int) -> int:
    """Return ``value`` if it is a whole number of at least ``at_least``.

    Raises:
        InputError: if it is not.
    """
    if not isinstance(value, int) or value < at_least:
        raise InputError(
            f"{type(owner).__name__}: {name} must be a whole number of at least {at_least}, "
            f"not {value}"
        )
    return value


def chunks(update: Update) -> Iterator[Tensor]:
    """Yield all numbers of an update in order, as flat pieces that may be written in place.

    A tensor that does not lie in memory in one piece is first replaced in ``update`` by a copy
    that does.
    """
    for name, tensor in update.items():
        if not tensor.is_contiguous():
            update[name] = tensor = tensor.contiguous()
        yield from torch.split(tensor.view(-1), CHUNK)


def update_norm(update: Update, order: int = 2) -> float:
    """Return the norm over all numbers of an update together, added up in float64.

    Args:
        update: any; it is not changed but for the layout of its tensors.
        order: 1 or 2.

    Raises:
        InputError: if the norm is not finite: clipping would spread NaN over all numbers.
    """
    # as floats at once: a list of tiny tensors would break up the memory that the pieces free
    norms = [
        float(torch.linalg.vector_norm(chunk, order, dtype=torch.float64))
        for chunk in chunks(update)
    ]
    norm = math.hypot(*norms) if order == 2 else math.fsum(norms)
    if not math.isfinite(norm):
        raise InputError(
            f"the client's update has an L{order} norm of {norm} and cannot be clipped; check the "
            "images, the target's weights and the precision"
        )
    return norm


def clipped(update: Update, clip_norm: float, order: int = 2) -> Update:
    """Return ``update * min(1, clip_norm / norm)``, differentiable: for :meth:`Defense.stand_in`.

    Args:
        update: as the attacker simulates it; not changed.
        clip_norm: the bound, above 0.
        order: of the norm over all numbers together, 1 or 2.
    """
    powers = torch.stack([tensor.abs().pow(order).sum() for tensor in update.values()])
    norm = powers.sum().clamp_min(torch.finfo(powers.dtype).tiny).pow(1 / order)
    factor = (clip_norm / norm).clamp_max(1.0)
    return {name: tensor * factor for name, tensor in update.items()}


def bind_chain(defenses: Sequence[Defense], norm_bound: float | None = None) -> None:
    """Tell every defense of a chain the L2 bound that the ones before it ensure.

    Args:
        defenses: in the order in which an update passes them.
        norm_bound: the L2 norm that no update of the client exceeds, or None if there is none.
    """
    for defense in defenses:
        norm_bound = defense.bind(norm_bound)


@torch.no_grad()
def apply_chain(
    defenses: Sequence[Defense], update: Update, *, generator: torch.Generator
) -> Update:
    """Pass ``update`` through all defenses, in order; the update is consumed."""
    for defense in defenses:
        update = defense(update, generator=generator)
    return update


def stand_in_chain(defenses: Sequence[Defense], update: Update, observed: Update) -> Update:
    """Pass a simulated update through the stand-ins of a chain; see :meth:`Defense.stand_in`."""
    for defense in defenses:
        update = defense.stand_in(update, observed)
    return update


def expected_chain(defenses: Sequence[Defense], update: Update, observed: Update) -> Update:
    """Return the mean of what a chain makes of a simulated update, differentiable.

    A defense whose variance is known adds nothing in the mean; the others stand in by themselves.
    """
    for defense in defenses:
        if defense.variance(update, observed) is None:
            update = defense.stand_in(update, observed)
    return update


def chain_variance(defenses: Sequence[Defense], update: Update, observed: Update) -> Update | None:
    """Return the variance that a chain adds to every number; None: it adds nothing at random.

    Args:
        defenses: in the order in which an update passes them; one that scales or leaves out
            numbers after noise was added is not taken into account.
        update: an estimate of what reaches the chain.
        observed: what the server received.
    """
    total: Update | None = None
    for defense in defenses:
        added = defense.variance(update, observed)
        if added is None:
            update = defense.stand_in(update, observed)
        elif total is None:
            total = added
        else:
            total = {name: total[name] + added[name] for name in total}
    return total


def dense(shapes: Shapes, bits_per_value: float = 32.0) -> Encoding:
    """Return the encoding of an update that sends every value, whatever reached its defense."""
    num_values = sum(shape.numel() for shape in shapes.values())
    return Encoding(num_values, bits_per_value, 0.0)


def num_update_bits(defenses: Sequence[Defense], shapes: Shapes) -> float:
    """Return the size of a client's message in bits.

    Values are counted as 32-bit numbers unless a defense of the chain makes them smaller or
    fewer; the code of positions is the plain one, without entropy coding.

    Args:
        defenses: in the order in which an update passes them.
        shapes: of the update.
    """
    encoding = dense(shapes)
    for defense in defenses:
        encoding = defense.encode(encoding, shapes)
    return encoding.num_bits
