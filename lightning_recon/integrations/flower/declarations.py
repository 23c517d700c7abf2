"""What a client says that it does to its update; the server cannot see it, and takes its word."""

import json
from collections.abc import Callable
from typing import Any

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod

from lightning_recon.captures import ModJson
from lightning_recon.documents import parse_json
from lightning_recon.integrations.flower.messages import is_training
from lightning_recon.privacy.gaussian import classical_std

MODS = "lightning_recon.mods"
"""Key of the ConfigRecord in a reply, and of the JSON in it."""
App = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, App], Message]


def declare(reply: Message, name: str | None = None, **facts: Any) -> None:
    """Say in a reply what its update has passed, for the server's capture.

    It travels beside the arrays, in a ConfigRecord of its own, which strategies pass over.  What
    was said before in the same reply comes first.

    Args:
        reply: to the server, that holds no error.
        name: of what the update passed, such as ``"Opacus"``; null: nothing, which is different
            from not saying anything.
        facts: such as ``clip_norm``, ``noise_std``, ``epsilon`` and ``delta`` (see
            :class:`~lightning_recon.captures.ModJson`), and others that JSON knows.

    Raises:
        TypeError: if a fact is nothing that JSON knows.
    """
    said = declared_by(reply) if MODS in reply.content.config_records else []
    added = [] if name is None else [{"name": name, **facts}]
    reply.content[MODS] = ConfigRecord({MODS: json.dumps([*said, *added])})


def declared_by(reply: Message) -> list[ModJson]:
    """Return what a reply says, in the order in which its update passed it.

    Raises:
        ValueError: if it is nothing that :func:`declare` wrote.
    """
    said = parse_json(str(reply.content.config_records[MODS][MODS]))
    if not isinstance(said, list) or not all(isinstance(mod, dict) for mod in said):
        raise ValueError(f"{MODS} should hold a list of objects")
    return said


def declared(*mods: Mod) -> list[Mod]:
    """Return mods that say in every reply that they were there: ``mods=declared(LocalDpMod(...))``.

    Of Flower's own LocalDpMod, fixedclipping_mod and adaptiveclipping_mod the clipping norm and the
    noise are told, of any other one the name.  Without mods: that nothing changes the update.

    Args:
        mods: the app's client mods, the outermost first, as ``ClientApp`` takes them.  One that
            declares itself, such as :func:`.defense_mod`, is left as it is.
    """
    wrapped = [mod if getattr(mod, "declares_itself", False) else _declaring(mod) for mod in mods]
    return [*wrapped, _declare_nothing]


def _declare_nothing(message: Message, context: Context, call_next: App) -> Message:
    reply = call_next(message, context)
    if is_training(message) and not reply.has_error():
        declare(reply)
    return reply


def _declaring(mod: Mod) -> Mod:
    def wrapper(message: Message, context: Context, call_next: App) -> Message:
        facts = _facts(mod, message)
        reply = mod(message, context, call_next)
        if is_training(message) and not reply.has_error():
            declare(reply, **facts)
        return reply

    return wrapper


def _facts(mod: Mod, message: Message) -> dict[str, Any]:
    name = getattr(mod, "__name__", type(mod).__name__)
    if isinstance(mod, LocalDpMod):
        is_known = 0 < mod.delta < 1.25 and mod.epsilon
        noise_std = classical_std(mod.epsilon, mod.sensitivity, mod.delta) if is_known else None
        return {
            "name": name,
            "clip_norm": mod.clipping_norm,
            "noise_std": noise_std,
            "sensitivity": mod.sensitivity,
            "epsilon": mod.epsilon,
            "delta": mod.delta,
        }
    if mod in (fixedclipping_mod, adaptiveclipping_mod):
        configs = message.content.config_records.values()
        norms = [config["clipping_norm"] for config in configs if "clipping_norm" in config]
        return {"name": name, "clip_norm": norms[0] if norms else None}
    return {"name": name}
