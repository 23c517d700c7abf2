"""What a linter is told, and what it says."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from lightning_recon.errors import InputError, instead
from lightning_recon.privacy.sensitivity import Adjacency

Level = Literal["client", "record"]
DELTA = 1e-5
"""At which epsilon is given where nobody names another."""


class Facts(NamedTuple):
    """What stands beside a mechanism: the federation around it, and what is claimed of it."""

    rounds: int = 1
    """In which one client takes part with the same data."""
    clients: int | None = None
    """Of the federation, from whom a round's are drawn."""
    batch_size: int | None = None
    """Images that share one update."""
    dataset_size: int | None = None
    """Records of one client."""
    steps: int | None = None
    """Local steps of a round."""
    num_parameters: int | None = None
    """Numbers of an update."""
    largest_share: float | None = None
    """Greatest weight of one client in the aggregate."""
    delta: float | None = None
    claim: float | None = None
    """An epsilon that is claimed beside the mechanism's own, of all rounds together."""
    adjacency: Adjacency | None = None
    """Of the claim."""
    level: Level | None = None
    """Of the claim."""
    sends: Literal["state_dict", "parameters"] = "state_dict"
    """Whether buffers are sent beside the parameters."""

    secure_sum: bool = False
    """Whether the server sees the sum of a round's updates alone."""


class Claim(NamedTuple):
    """An epsilon that somebody reads off a configuration, and what it must mean."""

    epsilon: float
    delta: float
    level: Level
    adjacency: Adjacency
    rounds: int
    rule: str
    """By what it is claimed."""


class Figure(NamedTuple):
    """An epsilon that holds."""

    level: Level
    adjacency: Adjacency
    rounds: int
    epsilon: float
    """Infinity: there is no guarantee."""
    delta: float
    bound: Literal["exact", "at most", "at least"]
    rule: str


class Finding(NamedTuple):
    """One thing that is wrong, or good to know."""

    severity: Literal["error", "warning", "note"]
    """``error``: what is claimed does not hold."""
    code: str
    """The same for the same fault, for programs."""
    text: str


FigureOf = Callable[[Level, Adjacency, int], Figure | None]
"""The figure of a level, an adjacency and so many rounds; None: the same as another, not stated."""


class Unprotected(NamedTuple):
    """Which tensors a mechanism leaves as they are."""

    unclipped: bool = False
    """Tensors of no dimension pass without clipping."""
    unnoised: bool = False
    """They pass without noise too."""
    fails_on_integers: bool = False
    """Whole numbers of one dimension and more stop it."""
    counts_buffers: bool = False
    """Buffers count in the norm that is clipped."""
    names: Callable[[str], bool] = lambda _: False
    """Whether it leaves out a tensor of a name."""


class Channel(NamedTuple):
    """What a mechanism does, brought to numbers."""

    figure: FigureOf
    protects_from: str
    """Who gets no more than the figures say."""
    claim: Claim | None = None
    ratio: float | None = None
    """Noise over the norm of what shares one clip, as the reader of an update meets it; 0: none."""
    sharing: float = 1.0
    """Images that share that norm."""
    clip_norm: float | None = None
    rero: Callable[[int], float] = lambda _: 1.0
    """ReRo bound of so many rounds, one of 1000 candidates for a client's (a record's) data."""
    findings: tuple[Finding, ...] = ()
    unprotected: Unprotected = Unprotected()
    draws_from: Literal["numpy", "torch"] | None = None
    """Library whose global generator the noise is from."""


class Report(NamedTuple):
    """What is said of one configuration."""

    title: str
    mechanism: str
    protects_from: str
    claim: Claim | None
    holds: bool | None
    """Whether the claim holds; None: nothing is claimed."""
    figures: list[Figure]
    rero: float
    bits_per_image: float
    best_psnr: str
    findings: list[Finding]

    @property
    def is_sound(self) -> bool:
        """Whether no claim fails."""
        return self.holds is not False and all(one.severity != "error" for one in self.findings)


def agreed_delta(facts: Facts, own: float | None, where: str) -> float:
    """Return the delta of a mechanism, or of the facts where it has none.

    Args:
        facts: of the federation.
        own: the mechanism's; null: none.
        where: it stands, for the message.

    Raises:
        InputError: if both are given and differ: an epsilon holds at its own delta alone.
    """
    if own is not None and facts.delta is not None and facts.delta != own:
        raise InputError(
            f"{where}: delta is {own:g} in the mechanism and {facts.delta:g} beside it; give one"
        )
    return own or facts.delta or DELTA


def own_claim(facts: Facts, delta: float, level: Level, adjacency: Adjacency) -> Claim | None:
    """Return what is claimed beside a mechanism; None: nothing.

    Args:
        facts: of the federation.
        delta: of the claim, where the facts have none.
        level: likewise.
        adjacency: likewise.
    """
    if facts.claim is None:
        return None
    terms = (facts.level or level, facts.adjacency or adjacency, facts.rounds)
    return Claim(facts.claim, facts.delta or delta, *terms, "as you say")


_WHOLE = ("rounds", "clients", "batch_size", "dataset_size", "steps", "num_parameters")
_WORDS = {
    "adjacency": ("replace", "add_remove"),
    "level": ("client", "record"),
    "sends": ("state_dict", "parameters"),
}


def read_facts(given: Mapping[str, Any], where: str) -> Facts:
    """Return facts as a file or a command line has them.

    Args:
        given: by name; null: not known.
        where: they stand, for the message.

    Raises:
        InputError: for a name that is none, or a value out of its range.
    """
    for name, value in given.items():
        if name not in Facts._fields:
            raise InputError(f"{where}: there is no key {name}{instead(name, Facts._fields)}")
        if value is None:
            continue
        if name in _WORDS:
            if value not in _WORDS[name]:
                words = " or ".join(_WORDS[name])
                raise InputError(f"{where}: {name} should be {words}, not {value!r}")
        elif name == "secure_sum":
            if not isinstance(value, bool):
                raise InputError(f"{where}: secure_sum should be true or false, not {value!r}")
        elif name in _WHOLE:
            whole(value, name, where)
        elif name == "delta":
            delta_of(value, where)
        else:
            number(value, name, where, above=0.0, most=1.0 if name == "largest_share" else math.inf)
    return Facts(**{name: value for name, value in given.items() if value is not None})


def number(
    value: Any, name: str, where: str, *, above: float | None = None, most: float = math.inf
) -> float:
    """Return a finite number of at least 0, or greater than a bound.

    Args:
        value: as it was given.
        name: of it.
        where: it stands.
        above: the bound, which the number must exceed; null: at least 0.
        most: the greatest that it may be.

    Raises:
        InputError: if it is none.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    low = is_number and (value >= 0 if above is None else value > above)
    if not (low and value <= most and math.isfinite(value)):
        bound = "of at least 0" if above is None else f"above {above:g}"
        end = f" and at most {most:g}" if math.isfinite(most) else ""
        raise InputError(f"{where}: {name} should be a number {bound}{end}, not {value!r}")
    return float(value)


def whole(value: Any, name: str, where: str) -> int:
    """Return a whole number of at least 1; InputError if it is none."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{where}: {name} should be a whole number of at least 1, not {value!r}")
    return value


def delta_of(value: Any, where: str) -> float:
    """Return a delta; InputError if it does not lie between 0 and 1."""
    if number(value, "delta", where, above=0.0) >= 1:
        raise InputError(f"{where}: delta should lie between 0 and 1, not {value!r}")
    return float(value)
