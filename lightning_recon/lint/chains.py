"""A chain of this project's defenses, from the configuration of a run."""

from collections.abc import Mapping
from typing import Any

from lightning_recon.errors import InputError, instead
from lightning_recon.lint.facts import DELTA, Channel, Claim, Facts, Figure, Finding, Level
from lightning_recon.privacy.sensitivity import Adjacency


def chain(args: Mapping[str, Any], facts: Facts, where: str) -> Channel:
    """Return the channel of defenses, judged as every run judges them.

    Args:
        args: ``defenses``, a list of classes with their arguments, and ``client``, one or null.
        facts: of the federation; those that the run names already stand in them.
        where: the file, for messages.
    """
    from lightning_recon import clients, defenses
    from lightning_recon.audit.privacy_statement import chain_guarantee, privacy_statement
    from lightning_recon.defenses import bind_chain

    made = [_made(defenses, entry, where) for entry in args["defenses"] or ()]
    client = None if args["client"] is None else _made(clients, args["client"], where)
    bind_chain(made, getattr(client, "clip_norm", None))
    delta = facts.delta or DELTA
    stated = privacy_statement(made, client, facts.batch_size, facts.rounds, delta)

    def figure(level: Level, adjacency: Adjacency, rounds: int) -> Figure:
        held = chain_guarantee(made, client, facts.batch_size, level, adjacency, rounds, delta)
        if held is None:
            return Figure(level, adjacency, rounds, float("inf"), delta, "exact", "none is known")
        rule = held["rule"]
        return Figure(level, adjacency, rounds, held["epsilon"], held["delta"], "exact", rule)

    claimed = stated["claimed"]
    claim = None
    if facts.claim is not None:
        terms = (facts.level or "client", facts.adjacency or "replace", facts.rounds)
        claim = Claim(facts.claim, delta, *terms, "as you say")
    elif claimed is not None:
        claim = Claim(
            claimed["epsilon"],
            claimed["delta"],
            claimed["level"],
            claimed["adjacency"],
            1,
            claimed["rule"],
        )
    findings = []
    if stated["actual"] is None:
        text = f"no formal guarantee: {stated['statement'].removeprefix('no formal guarantee: ')}"
        findings.append(Finding("warning", "no-guarantee", text.split(";")[0]))
    clip, std = stated["clip_norm"], stated["noise_std"]
    is_clipped_and_noisy = bool(clip) and std is not None and stated["actual"] is not None
    ratio = std / clip if is_clipped_and_noisy and std and clip else None
    return Channel(
        figure,
        "the server, and all others",
        claim,
        0.0 if not made else ratio,
        facts.batch_size or 1,
        clip,
        lambda _: stated["rero_1000"],
        tuple(findings),
    )


def _made(room: Any, entry: Any, where: str) -> Any:
    """Return a defense or client, made of its class and arguments."""
    entry = {"class_path": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("class_path"), str):
        raise InputError(
            f"{where}: a defense or client is a class_path with init_args, not {entry}"
        )
    name = entry["class_path"].rpartition(".")[2]
    if name not in room.__all__:
        raise InputError(f"{where}: there is no class {name}{instead(name, room.__all__)}")
    try:
        return getattr(room, name)(**(entry.get("init_args") or {}))
    except TypeError as error:
        raise InputError(f"{where}: {name}: {error}") from error
