"""What a reader must know before the figures: one list, for the terminal and for the pages."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from lightning_recon.audit.results import Results
from lightning_recon.report.figures import null_marks
from lightning_recon.report.page import count, number

MAX_NAMED = 12
"""Clients or cells that a sentence names one by one."""

_MAX_REASON = 200  # characters


class Finding(NamedTuple):
    """One sentence or two, plain text."""

    severity: Literal["alarm", "note"]
    """``alarm``: the figures do not mean what they seem to mean."""
    text: str


def findings(results: Results) -> list[Finding]:
    """Return all that keeps a run's figures from meaning what they seem to mean, alarms first."""
    return [Finding(severity, text) for severity, find in _CHECKS for text in find(results)]


def listed(names: Sequence[str], comma: str = ", ", rest: str = "") -> str:
    """Return the names in one line, or the first ones and how many more there are.

    Args:
        names: of clients or cells.
        comma: between them.
        rest: where the others are found.
    """
    if len(names) <= MAX_NAMED:
        return comma.join(names)
    left = len(names) - MAX_NAMED
    return f"{comma.join(names[:MAX_NAMED])} and {left:,} more{rest}"


def _partial(results: Results) -> Iterator[str]:
    clients, planned = results.num_clients, results.num_clients_planned
    if clients is not None and planned is not None and clients < planned:
        yield (
            f"Partial run: {clients:,} of {count(planned, 'client')}. The figures speak of these "
            "alone."
        )
    steps, whole = results.iterations, results.iterations_planned
    if steps is not None and whole is not None and steps < whole:
        yield (
            f"Partial run: {steps:,} of {count(whole, 'iteration')} a client. The whole attack may "
            "recover more."
        )


def _failures(results: Results) -> Iterator[str]:
    if not results.failures:
        return
    reasons = [
        f"client {number(failure.client)}: {number(failure.reason)[:_MAX_REASON]}"
        for failure in results.failures
    ]
    yield (
        f"The attack failed on {len(reasons):,} of {number(results.num_clients)} clients "
        f"({listed(reasons, '; ', _REST)}). Their images count with the mean image, which says "
        "nothing about what they leak."
    )


def _wrong_certificates(results: Results) -> Iterator[str]:
    if wrong := results.noted("certified_wrong"):
        yield (
            f"{count(wrong, 'image')} of {results.noted('certified'):,} that the attack certified "
            "to be exact are not: the certificate does not hold in this setting."
        )


def _no_certificate(results: Results) -> Iterator[str]:
    if results.noted("certified") == 0:
        yield (
            "No image is certified: every row mixes samples, or noise, quantisation, sparsification"
            " or several local steps hide what a proof needs. That proves nothing of what leaks."
        )


def _prior_alone(results: Results) -> Iterator[str]:
    if recovered := results.control("noise_only").recovered:
        yield (
            f"The attack also recovers {count(recovered, 'image')} from noise alone, with no "
            "client behind it: that is its prior and no leak, and what it finds cannot all come "
            "from the update."
        )


def _no_better(results: Results) -> Iterator[str]:
    psnr = results.metric("psnr").mean
    better = [mark for mark in null_marks(results) if psnr is not None and mark.value >= psnr]
    if results.recovered and better:
        names = " and ".join(f"{mark.label} ({mark.value:.1f} dB)" for mark in better)
        yield (
            "On average the attack comes no closer to the truth than what never saw the update: "
            f"{names}. Prior knowledge cannot be told from a leak here."
        )


def _stand_in_data(results: Results) -> Iterator[str]:
    if fallback := results.data.fallback:
        stand_in = "sample photographs" if fallback == "samples" else fallback
        yield (
            f"The data set {results.data.name or 'of the configuration'} was not found. This audit "
            f"ran on a stand-in ({stand_in}); its figures say nothing about the data set itself."
        )


def _stand_in_masks(results: Results) -> Iterator[str]:
    if results.masks.method == "grabcut":
        yield (
            "The subject masks come from the GrabCut fallback, not from Segment Anything: "
            "subject-only figures are less certain."
        )


def _unavailable(results: Results) -> Iterator[str]:
    for name, reason in results.unavailable_metrics.items():
        yield f"The metric {name} is unavailable: {reason}"


def _failed_control(results: Results) -> Iterator[str]:
    if failed := results.control("noise_only").failed:
        yield (
            f"The noise-only control failed on {failed:,} of {number(results.num_clients)} "
            "clients: the mean image counts there, and nothing is known of what the attack makes "
            "of noise."
        )


def _buffers(results: Results) -> Iterator[str]:
    is_protected = results.defenses or results.privacy.clip_norm is not None
    if "buffers" in results.oracles and is_protected:
        yield (
            "The client's buffers are sent beside the update and pass no defense: what is done to "
            "the update guarantees nothing."
        )


def _unsimulated(results: Results) -> Iterator[str]:
    if names := results.unsimulated:
        yield (
            f"The attacker does not simulate {' and '.join(dict.fromkeys(names))} (adaptive: "
            "false): one who knows the defenses may recover more."
        )


def _unrecovered(results: Results) -> Iterator[str]:
    if clients := results.clients_unrecovered:
        noun = "client" if len(clients) == 1 else "clients"
        yield f"No image was recovered of {noun} {listed([str(c) for c in clients], rest=_REST)}."


def _weak_attack(results: Results) -> Iterator[str]:
    found = results.local_estimate
    if found.psnr is None or found.psnr_attack is None or found.psnr_mean_image is None:
        return
    if found.psnr >= found.psnr_attack + _WEAK:
        yield (
            f"The attack stays {found.psnr - found.psnr_attack:.1f} dB below what a linearised "
            "attacker would get of these images: a stronger one may recover more."
        )
    elif found.psnr <= found.psnr_mean_image + _NOTHING:
        yield (
            "A linearised attacker would get no more than the mean image of this update. Other "
            "attackers may: this is no guarantee."
        )


_WEAK = 3.0  # dB
_NOTHING = 0.5  # dB
_REST = ", all in results.json"
_CHECKS: tuple[tuple[Literal["alarm", "note"], Callable[[Results], Iterator[str]]], ...] = (
    ("alarm", _partial),
    ("alarm", _failures),
    ("alarm", _wrong_certificates),
    ("alarm", _prior_alone),
    ("alarm", _no_better),
    ("alarm", _stand_in_data),
    ("alarm", _stand_in_masks),
    ("alarm", _unavailable),
    ("note", _no_certificate),
    ("note", _failed_control),
    ("note", _buffers),
    ("note", _unsimulated),
    ("note", _weak_attack),
    ("note", _unrecovered),
)
