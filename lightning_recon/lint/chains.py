"""A chain of this project's defenses, from the configuration of a run."""

from collections.abc import Mapping
from typing import Any

from lightning_recon.errors import InputError, instead
from lightning_recon.lint.facts import (
    Channel,
    Claim,
    Facts,
    Figure,
    Finding,
    Level,
    agreed_delta,
    own_claim,
)
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

    listed = args["defenses"] or []
    if not isinstance(listed, list):
        raise InputError(f"{where}: defenses should be a list, not {listed!r}")
    made = [_made(defenses, entry, where) for entry in listed]
    client = None if args["client"] is None else _made(clients, args["client"], where)
    bind_chain(made, getattr(client, "clip_norm", None))
    # a claim of delta 0 is made for any
    claims = [defense.claimed for defense in made]
    own = next((claim["delta"] for claim in claims if claim and claim.get("delta")), None)
    delta = agreed_delta(facts, own, where)
    stated = privacy_statement(made, client, facts.batch_size, facts.rounds, delta)

    def figure(level: Level, adjacency: Adjacency, rounds: int) -> Figure:
        held = chain_guarantee(made, client, facts.batch_size, level, adjacency, rounds, delta)
        if held is None:
            return Figure(level, adjacency, rounds, float("inf"), delta, "exact", "none is known")
        rule = held["rule"]
        return Figure(level, adjacency, rounds, held["epsilon"], held["delta"], "exact", rule)

    claimed = stated["claimed"]
    claim = own_claim(facts, delta, "client", "replace")
    if claim is None and claimed is not None:
        claim = Claim(
            claimed["epsilon"],
            claimed["delta"],
            "record" if claimed["level"] == "record" else "client",
            claimed["adjacency"],
            1,
            claimed["rule"],
        )
    findings = []
    if stated["actual"] is None:
        text = f"no formal guarantee: {stated['statement'].removeprefix('no formal guarantee: ')}"
        findings.append(Finding("warning", "no-guarantee", text.split(";")[0]))
    clip, std, images = stated["clip_norm"], stated["noise_std"], facts.batch_size or 1
    ratio = std / clip if stated["actual"] is not None and std and clip else None
    if getattr(client, "clip_norm", None) is not None and ratio is not None:
        ratio, images = ratio * images, 1  # every image has a clip of its own
    return Channel(
        figure,
        "the server, and all others",
        claim,
        0.0 if not made else ratio,
        images,
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
