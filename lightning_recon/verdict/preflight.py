"""What an audit finds before any attack: the declaration, beside what the numbers show."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from lightning_recon.captures import ModJson, Reply
from lightning_recon.detect import detect
from lightning_recon.errors import InputError
from lightning_recon.privacy.gaussian import classical_std, gaussian_epsilon
from lightning_recon.updates import Update
from lightning_recon.verdict.finding import Finding
from lightning_recon.verdict.numbers import Numbers

DELTA = 1e-5
"""At which epsilon is given where nobody declares another."""
_FACTOR = 1.5  # between a declared and a measured noise, from which they contradict each other
_NOISE_MODS = ("noise_std", "epsilon", "noise_multiplier")


class Declared(NamedTuple):
    """What the client says that it does, brought to numbers; None: not said."""

    is_known: bool
    """Whether anybody said anything, be it "nothing"."""
    names: tuple[str, ...]
    clip_norm: float | None
    noise_std: float | None
    delta: float
    says_noise: bool


def read_declared(mods: Sequence[ModJson] | None) -> Declared:
    """Return what a client's declaration comes to.

    ``LocalDpMod`` of Flower adds Gaussian noise by the classical formula
    (:func:`~lightning_recon.privacy.gaussian.classical_std`).

    Args:
        mods: as the capture has them; null: nobody said.
    """
    if mods is None:
        return Declared(False, (), None, None, DELTA, False)
    clips = [float(mod["clip_norm"]) for mod in mods if mod.get("clip_norm") is not None]
    noises, delta = [], DELTA
    for mod in mods:
        delta = float(mod.get("delta") or delta)
        if mod.get("noise_std") is not None:
            noises.append(float(mod["noise_std"]))
        elif mod.get("epsilon") and mod.get("name") == "LocalDpMod":
            sensitivity = float(mod.get("sensitivity") or mod.get("clip_norm") or 1.0)  # type: ignore[arg-type]
            noises.append(classical_std(float(mod["epsilon"]), sensitivity, delta))
    names = tuple(str(mod.get("name", "unnamed")) for mod in mods)
    return Declared(
        True,
        names,
        min(clips, default=None),
        math.hypot(*noises) if noises else None,
        delta,
        any(mod.get(key) for mod in mods for key in _NOISE_MODS),
    )


def privacy_lines(declared: Declared, numbers: Numbers) -> dict[str, str]:
    """Return what is declared, what shows, and what guarantee that makes, in words.

    Args:
        declared: by the client.
        numbers: of its update.
    """
    said = "unknown: nobody said what the client does to its update"
    if declared.is_known:
        said = " → ".join(declared.names) or "nothing, as the client says"
    return {
        "Declared": said,
        "Noise on the update": _noise_words(numbers),
        "Guarantee": _guarantee(declared),
    }


def _noise_words(numbers: Numbers) -> str:
    if numbers.noise_std is None:
        return "cannot be told from the numbers"
    if numbers.noise_std == 0:
        return "none to be seen"
    return f"Gaussian-like, standard deviation {numbers.noise_std:.3g} an entry, as measured"


def _guarantee(declared: Declared) -> str:
    """Return the guarantee of what is declared; of numbers alone none follows."""
    if not declared.is_known:
        return "unknown: no guarantee follows from numbers alone"
    clip, noise = declared.clip_norm, declared.noise_std
    if clip is None or not noise:
        return "none: no clipping with noise behind it is declared"
    add, replace = (
        gaussian_epsilon(sensitivity, noise, declared.delta) for sensitivity in (clip, 2 * clip)
    )
    return (
        f"epsilon {add:.3g} for leaving the client out, {replace:.3g} for replacing its data, at "
        f"delta {declared.delta:g} a round, if it does what it declares"
    )


def preflight(reply: Reply, declared: Declared, numbers: Numbers) -> list[Finding]:
    """Return what the declaration and the numbers tell before any attack.

    Args:
        reply: of the client.
        declared: by it.
        numbers: of its update.
    """
    found: list[Finding] = []
    if numbers.norm == 0:
        return [Finding("warning", "the update is zero: the client did not train, or sent nothing")]
    found += _noise_findings(declared, numbers)
    clip = declared.clip_norm
    if clip is not None:
        noise = declared.noise_std or numbers.noise_std or 0.0
        count = sum(part.numel() for part in reply.tensors.values() if part.is_floating_point())
        limit = math.hypot(clip, noise * math.sqrt(count)) * 1.05
        if numbers.norm > limit:
            found.append(
                Finding(
                    "contradiction",
                    f"clipping to {clip:g} is declared, but the norm is {numbers.norm:.3g}, where "
                    f"clipping and noise allow {limit:.3g}",
                )
            )
    kind, size = numbers.reading.kind, numbers.reading.size
    words = {
        "signs": "the entries are signs alone",
        "rounded": f"the entries lie on the grid of a quantiser of step {size:.3g}",
        "kept": "only some entries were sent: the others are exactly 0",
    }
    if kind in words:
        found.append(Finding("note", f"{words[kind]}; this is no protection by itself"))
    examples, batch = reply.facts.get("num_examples"), reply.facts.get("batch_size")
    if examples and not batch:
        found.append(
            Finding(
                "note",
                f"num_examples is {examples}, the size of the client's data set; the batch is not "
                "known from it",
            )
        )
    return found


def _noise_findings(declared: Declared, numbers: Numbers) -> list[Finding]:
    measured = numbers.noise_std
    if declared.noise_std and measured is not None:
        ratio = measured / declared.noise_std
        if not 1 / _FACTOR < ratio < _FACTOR:
            found = f"{measured:.3g}" if measured else "none"
            return [
                Finding(
                    "contradiction",
                    f"noise of standard deviation {declared.noise_std:.3g} is declared, but the "
                    f"update shows {found}",
                )
            ]
    elif declared.says_noise and measured == 0:
        return [Finding("contradiction", "noise is declared, but the update shows none")]
    if declared.is_known and not declared.says_noise and measured:
        return [
            Finding(
                "contradiction",
                f"no noise is declared, but the update shows one of std {measured:.3g}",
            )
        ]
    return []


def payload_finding(state: Update) -> list[Finding]:
    """Return whether what the client was sent looks like a model that is there to be trained.

    Args:
        state: the payload's tensors, in the model's order.
    """
    with suppress(InputError):  # there is nothing to look at
        found = detect(state)
        if found.verdict == "suspicious":
            strange = found.findings[0]
            text = (
                f"the model that the client was sent is suspicious (score {found.score:.2f}): "
                f"{strange.where}: {strange.text}"
            )
            return [Finding("warning", text)]
    return []


def compare_replies(updates: Mapping[str, str]) -> dict[str, Finding]:
    """Return what the replies tell beside each other: equal updates.

    Args:
        updates: :func:`fingerprint` of each reply's update, by the reply's name.
    """
    alike: dict[str, list[str]] = {}
    for name, fingerprint in updates.items():
        alike.setdefault(fingerprint, []).append(name)
    return {
        name: Finding(
            "warning",
            f"the update equals that of {', '.join(other for other in names if other != name)}, "
            "bit for bit: was one client recorded twice?",
        )
        for names in alike.values()
        if len(names) > 1
        for name in names
    }


def fingerprint(update: Update) -> str:
    """Return the SHA-256 of an update's numbers."""
    digest = hashlib.sha256()
    for name in sorted(update):
        digest.update(name.encode() + update[name].detach().cpu().numpy().tobytes())
    return digest.hexdigest()
