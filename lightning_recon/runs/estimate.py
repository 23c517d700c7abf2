"""The command ``estimate``: what a linearised Gaussian attacker gets of a configuration's clients.

No attack runs; the attack of the configuration says what the server sends.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentError
from rich.progress import track

from lightning_recon.attacks import Attack
from lightning_recon.audit.local_estimate import Estimator, LocalEstimate, van_trees_mse
from lightning_recon.audit.privacy_statement import privacy_statement
from lightning_recon.audit.schema import PrivacyStatement
from lightning_recon.audit.statistics import bootstrap_interval
from lightning_recon.data import ClientDataModule
from lightning_recon.errors import InputError
from lightning_recon.files import write_json
from lightning_recon.functional.image_quality import decibels
from lightning_recon.observation import Grant
from lightning_recon.report.page import guarantee_words
from lightning_recon.runs.allowed import check_named
from lightning_recon.runs.cells import SECTIONS, read_yaml
from lightning_recon.runs.items import cell_parser
from lightning_recon.runs.refusals import explain

_NO_BOUND = (
    "No bound: other priors and kinks of the network may give an attacker more, and an attack may "
    "be weaker."
)


class Estimated(NamedTuple):
    """Of all clients of a configuration."""

    clients: list[LocalEstimate]
    bound_mse: float | None
    """Van Trees', for images of the prior; None: it is not known, see :func:`.van_trees_mse`."""


def estimate(
    config: Path,
    num_clients: int | None,
    output: Path | None,
    sampling_rate: float = 1.0,
    num_rounds: int | None = None,
) -> str:
    """Estimate the clients of a configuration, and return what is to be printed.

    Beside it stands what holds against every attack: (epsilon, delta) and ReRo.

    Args:
        config: the YAML of a run.
        num_clients: the first of its clients, at least 1; null: all.
        output: a JSON file to write; null: none.
        sampling_rate: probability with which a record takes part in a round, in (0, 1], where the
            clients run DP-SGD; for its ReRo alone.
        num_rounds: in how many rounds a client takes part, at least 1; null: in the attack's.

    Raises:
        InputError: if something cannot be used.
    """
    if num_clients is not None and num_clients < 1:
        raise InputError(f"--num-clients must be at least 1, not {num_clients}")
    if output is not None and not output.absolute().parent.is_dir():
        raise InputError(f"there is no folder {output.absolute().parent}; see --output")
    if not 0 < sampling_rate <= 1:
        raise InputError(f"--sampling-rate must lie in (0, 1], not {sampling_rate}")
    if num_rounds is not None and num_rounds < 1:
        raise InputError(f"--num-rounds must be at least 1, not {num_rounds}")
    attack, data = _made(config)
    available = data.num_clients
    if num_clients is not None and num_clients > available:
        raise InputError(f"{config} has {available} clients, and --num-clients is {num_clients}")
    estimated = estimated_clients(attack, data, num_clients or available)
    privacy = privacy_statement(
        attack.federation.defenses,
        client=attack.client,
        num_samples=data.batch_size,
        num_rounds=num_rounds or attack.num_rounds,
        sends_buffers=Grant.BUFFERS in attack.oracles,
        sampling_rate=sampling_rate,
    )
    summary = _summary(estimated, privacy) | {"sampling_rate": sampling_rate}
    if output is not None:
        write_json(output, summary)
    return _words(summary)


def estimated_clients(attack: Attack, data: ClientDataModule, number: int) -> Estimated:
    """Return the estimates of the first clients, by what the attack's server sends.

    Args:
        attack: bound to the data.
        data: set up.
        number: of clients, at least 1.
    """
    estimator = Estimator(attack, data.public_images(), data.seed)
    numbers = track(range(number), "estimating", disable=number < 2, transient=True)
    found = [estimator.estimate(data.client(client), client) for client in numbers]
    return Estimated(found, van_trees_mse(found, estimator.spectrum))


def _made(config: Path) -> tuple[Attack, ClientDataModule]:
    """Return the attack and the data of a configuration, ready to play rounds."""
    content = read_yaml(config)
    parser = cell_parser()
    known = {name: content[name] for name in SECTIONS if name in content}
    try:
        parsed = parser.parse_object(copy.deepcopy(known))
    except ArgumentError as error:
        raise InputError(f"{config}: {explain(str(error))}") from error
    check_named(parsed, Attack, ClientDataModule)
    parser.says_where(parsed)
    objects = parser.instantiate_classes(parsed)
    attack, data = objects.model, objects.data
    data.prepare_data()
    data.setup()
    attack.bind(data.spec, data.public_images())
    return attack, data


def _summary(estimated: Estimated, privacy: PrivacyStatement) -> dict[str, Any]:
    """Return what was found, for programs."""
    clients = estimated.clients
    mse = [float(value) for one in clients for value in one.mse]
    prior = [float(value) for one in clients for value in one.prior_mse]
    owner = [number for number, one in enumerate(clients) for _ in one.mse]
    interval = bootstrap_interval(mse, owner) if len(clients) > 1 else None
    return {
        "num_clients": len(clients),
        "num_images": len(mse),
        "num_equations": clients[0].num_equations,
        "num_unknowns": clients[0].num_unknowns,
        "num_told": [round(one.num_told, 1) for one in clients],
        "mse": {"mean": _mean(mse), "interval": interval, "images": mse},
        "mean_image_mse": _mean(prior),
        "van_trees_mse": estimated.bound_mse,
        "privacy": privacy,
    }


def _words(summary: dict[str, Any]) -> str:
    """Return the lines for a terminal."""
    mean, interval = summary["mse"]["mean"], summary["mse"]["interval"]
    said = "" if interval is None else f", 95 % interval {_span(interval)}"
    told = summary["num_told"]
    bound = summary["van_trees_mse"]
    lines = [
        f"{summary['num_images']} images of {summary['num_clients']} clients; "
        f"{summary['num_equations']} equations for {summary['num_unknowns']} unknowns of a client, "
        f"{min(told):.0f} to {max(told):.0f} directions told",
        f"mean image (null control)    {_decibels(summary['mean_image_mse'])}",
        f"local estimate               {_decibels(mean)}{said}",
    ]
    if bound is not None:
        lines.append(f"van Trees, for such a prior  at most {_decibels(bound)}")
    privacy = summary["privacy"]
    bounds = privacy["rero_1000"], privacy["rero_record_1000"]
    safe = guarantee_words(privacy["statement"], *bounds, summary["sampling_rate"])
    return "\n".join([*lines, _NO_BOUND, safe])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _decibels(mse: float) -> str:
    return f"{decibels(mse):.1f} dB"


def _span(interval: Sequence[float]) -> str:
    """Return an interval of errors in dB, the worse end first; few clients may leave it open."""
    if interval[0] <= 0:
        return f"above {_decibels(interval[1])}"
    return f"{_decibels(interval[1])} to {_decibels(interval[0])}"
