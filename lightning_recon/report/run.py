"""The audit of one run as a page: ``report.html``.

Everything is read from the run's folder, so that the page can be made again from any run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_recon.audit.scores import NOT_METRICS, Row
from lightning_recon.report.cards import cards_of_run, leak
from lightning_recon.report.figures import (
    NULLS,
    distribution,
    leakage,
    null_marks,
    objective_curves,
)
from lightning_recon.report.folder import epsilons, lookup, read_run
from lightning_recon.report.page import (
    DASH,
    MAX_TABLE_ROWS,
    Table,
    count,
    interval,
    is_number,
    metric_label,
    metric_names,
    number,
    share,
    shorten,
    write_page,
)

_MAX_NAMED = 12  # clients that are named one by one
_MAX_CONFIG = 200_000  # characters of the configuration
_YES_NO = {1.0: "yes", 0.0: "no"}


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a run.

    The page has at most 5 MB however many clients there are: it shows at most 48 images and 1,500
    lines of the table, and says what it leaves out.

    Args:
        folder: The run's, with ``results.json``, and with ``clients.csv``, ``config.yaml`` and
            ``reconstructions`` where there are any.  A missing key leaves a gap, not an error.

    Returns:
        The path of the page.

    Raises:
        InputError: If there is no ``results.json``, or a file cannot be understood.
    """
    run = read_run(folder)
    results = run.results
    cards, pictures_note = cards_of_run(run)
    curves = objective_curves(results)
    subject = [results.get("attack"), results.get("target"), lookup(results, "data", "name")]
    sections = {
        "figures": "Figures",
        "pictures": "Pictures",
        "distribution": "Distribution",
        "setting": "What was attacked",
        "privacy": "Privacy",
        **({"curves": "Curves"} if curves else {}),
        **({"images": "All images"} if run.rows else {}),
        "reproduce": "Reproduce",
    }
    content = {
        "title": f"{run.name}: privacy audit",
        "kind": "Privacy audit of federated learning",
        "heading": run.name,
        "about": " · ".join(str(part) for part in subject if part),
        "is_leak": bool(results.get("recovered")),
        "status": _status(results),
        "verdict": verdict(results),
        "caveat": (
            "Recovered: matched to its true image at "
            f"{number(results.get('recovered_psnr') or 19, unit='dB')} PSNR or more, and closer "
            "than the mean image. Intervals are at 95 %, with whole clients resampled. An attack "
            "that fails does not prove that nothing leaked; a stronger one may not fail."
        ),
        "warnings": _warnings(results),
        "sections": sections,
        "source": f"Made from the files of {folder.resolve().name}; nothing here is fetched.",
        "tiles": _tiles(results),
        "cards": cards,
        "pictures_note": pictures_note,
        "distribution": distribution(results, run.rows),
        "metrics": _metrics(results),
        "setting": _setting(results),
        "chain": ["Client's update", *(results.get("defenses") or ["no defense"]), "Attacker"],
        "privacy": _privacy(results),
        "privacy_gap": _privacy_gap(results),
        "leakage": leakage(results),
        "curves": curves,
        "images": _image_table(run.rows),
        "command": str(results.get("command") or "not recorded"),
        "reproduce": _reproduce(results),
        "config": shorten(run.config, _MAX_CONFIG),
    }
    return write_page(folder / "report.html", "run.html", content)


def verdict(results: Mapping[str, Any]) -> str:
    """Return the audit's outcome, with its confidence, as one sentence.

    Args:
        results: The content of ``results.json``.

    Returns:
        Plain text, not escaped.
    """
    num_images, recovered = results.get("num_images") or 0, results.get("recovered") or 0
    if not num_images:
        return "No image was audited."
    clients = results.get("num_clients")
    images = count(num_images, "image") + (f" of {count(clients, 'client')}" if clients else "")
    low, high = results.get("recall_ci_low"), results.get("recall_ci_high")
    certainty = "a single client gives no interval" if clients == 1 else "no interval"
    if low is not None and high is not None:
        certainty = f"95 % interval {share(low)} to {share(high)}"
    if recovered:
        certainty = f"{share(recovered / num_images)}; {certainty}"
    psnr = number(lookup(results, "metrics", "psnr", "mean"), 1)
    null = number(lookup(results, "null", "mean_image", "psnr"), 1)
    return (
        f"{f'{recovered:,}' if recovered else 'None'} of {images} recovered ({certainty}); PSNR "
        f"{psnr} dB on average, where guessing the mean image gives {null} dB."
    )


def _status(results: Mapping[str, Any]) -> str:
    if not results.get("num_images"):
        return "Nothing audited"
    return "Images leak" if results.get("recovered") else "Not recovered by this attack"


def _warnings(results: Mapping[str, Any]) -> list[str]:
    """Return all that keeps the figures from meaning what they seem to mean."""
    messages = []
    if failures := results.get("failures"):
        reasons = [
            f"client {failure.get('client')}: {str(failure.get('reason'))[:200]}"
            for failure in failures
        ]
        messages.append(
            f"The attack failed on {len(failures):,} of {number(results.get('num_clients'))} "
            f"clients ({_listed(reasons, '; ')}). Their images count with the mean image, which "
            "says nothing about what they leak."
        )
    if unrecovered := results.get("clients_unrecovered"):
        noun = "client" if len(unrecovered) == 1 else "clients"
        messages.append(
            f"No image was recovered of {noun} {_listed([str(client) for client in unrecovered])}."
        )
    if fallback := lookup(results, "data", "fallback"):
        name = lookup(results, "data", "name") or "the configured data set"
        messages.append(
            f"The data set {name} was not found. This audit ran on a stand-in ({fallback}); its "
            "figures say nothing about the data set itself."
        )
    if lookup(results, "masks", "method") == "grabcut":
        messages.append(
            "The subject masks come from the GrabCut fallback, not from Segment Anything: "
            "subject-only figures are less certain."
        )
    if false_finds := lookup(results, "null", "noise_only", "recovered"):
        messages.append(
            f"The attack also recovers {number(false_finds)} image(s) from noise alone, with no "
            "client behind it: what it finds cannot all come from the update."
        )
    psnr = lookup(results, "metrics", "psnr", "mean")
    better = [mark for mark in null_marks(results) if is_number(psnr) and mark.value >= psnr]
    if results.get("recovered") and better:
        names = " and ".join(f"{mark.label} ({mark.value:.1f} dB)" for mark in better)
        messages.append(
            "On average the attack comes no closer to the truth than what never saw the update: "
            f"{names}. Prior knowledge cannot be told from a leak here."
        )
    return messages


def _listed(names: Sequence[str], comma: str = ", ") -> str:
    """Return the names in one line, or the first ones and how many more there are."""
    if len(names) <= _MAX_NAMED:
        return comma.join(names)
    left = len(names) - _MAX_NAMED
    return f"{comma.join(names[:_MAX_NAMED])} and {left:,} more, all in results.json"


def _tiles(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the figures to see first: name, value, and what it is to be read with."""
    psnr = lookup(results, "metrics", "psnr") or {}
    mean, null = psnr.get("mean"), lookup(results, "null", "mean_image", "psnr")
    low, high = results.get("recall_ci_low"), results.get("recall_ci_high")
    recall = share(results.get("recall"))
    tiles = [
        (
            "Images recovered",
            f"{number(results.get('recovered'))} of {number(results.get('num_images'))}",
            recall if low is None else f"{recall}; interval {share(low)} to {share(high)}",
        ),
        (
            "PSNR, mean",
            number(mean, 1, "dB"),
            f"interval {interval(psnr.get('ci_low'), psnr.get('ci_high'))} dB",
        ),
        ("PSNR, worst leak", number(psnr.get("worst"), 1, "dB"), "the image that leaked most"),
        (
            "Above mean image",
            number(mean - null if is_number(mean) and is_number(null) else None, 1, "dB"),
            f"which scores {number(null, 1, 'dB')} without an update",
        ),
    ]
    if identification := lookup(results, "identification"):
        candidates = identification.get("num_candidates")
        chance = f"chance {share(1 / candidates)}, among {candidates:,}" if candidates else ""
        tiles.append(("Images identified", share(identification.get("rate")), chance))
    actual, claimed = epsilons(results)
    epsilon = "none" if actual is None else number(actual)
    claim = "no claim" if claimed is None else f"claimed: {number(claimed)}"
    tiles.append(("Actual ε, one update", epsilon, claim))
    return tiles


def _metrics(results: Mapping[str, Any]) -> Table:
    """Return the summary of every metric beside the null controls."""
    metrics = lookup(results, "metrics") or {}
    rows = [_metric_row(metrics[name], *metric_label(name)) for name in metric_names(list(metrics))]
    missing = lookup(results, "unavailable_metrics") or {}
    rows += [
        [f"{metric_label(name)[0]}: unavailable, {reason}", *[DASH] * 4]
        for name, reason in missing.items()
    ]
    rows += [
        _metric_row({"mean": null.get("psnr"), **null}, f"PSNR of the control: {label}", "dB", 1)
        for name, label in NULLS.items()
        if (null := lookup(results, "null", name))
    ]
    caption = (
        f"Recall is {share(results.get('recall'))} of the images, precision "
        f"{share(results.get('precision'))} of the {number(results.get('num_reconstructions'))} "
        "reconstructions put out. An image that was not recovered counts, too. Worst is worst for "
        "privacy: the image that leaked most."
    )
    return Table(caption, ["Metric", "Mean", "95 % interval", "Median", "Worst"], rows)


def _metric_row(values: Mapping[str, Any], label: str, unit: str, decimals: int) -> list[str]:
    return [
        f"{label}, {unit}" if unit else label,
        number(values.get("mean"), decimals),
        interval(values.get("ci_low"), values.get("ci_high"), decimals),
        *(number(values.get(key), decimals) for key in ("median", "worst")),
    ]


def _setting(results: Mapping[str, Any]) -> dict[str, str]:
    """Return who attacks what: threat model, oracles, data and masks."""
    oracles = results.get("oracles") or []
    attack = [results.get("attack"), results.get("citation")]
    return {
        "Attack": "; ".join(str(part) for part in attack if part) or DASH,
        "Threat model": number(results.get("threat_model")),
        "Given beyond that (oracles)": ", ".join(map(str, oracles)) or "nothing",
        "Model under attack": number(results.get("target")),
        "Update": _communication(results),
        "Data": number(lookup(results, "data", "description") or lookup(results, "data", "name")),
        "Subject masks": _masks(results),
    }


def _communication(results: Mapping[str, Any]) -> str:
    """Return the size of an update."""
    sent = lookup(results, "communication")
    if not sent:
        return DASH
    megabytes = number(sent["num_bits"] / 8e6)
    return f"{megabytes} MB, {number(sent['bits_per_parameter'])} bits a parameter"


def _masks(results: Mapping[str, Any]) -> str:
    """Return a description of the subject masks."""
    method, area = lookup(results, "masks", "method"), lookup(results, "masks", "mean_area")
    if method in (None, "none"):
        return "none: the subject is the whole image"
    parts = [str(method)]
    if is_number(area):
        parts.append(f"{number(100 * area, 0)} % of the image on average")
    if replaced := lookup(results, "masks", "replaced"):
        parts.append(f"{replaced} implausible and replaced")
    return ", ".join(parts)


def _privacy(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the privacy that is claimed beside the one that holds."""
    privacy = lookup(results, "privacy") or {}
    actual, claimed = epsilons(results)
    rule = lookup(privacy, "claimed", "rule") or "rule not stated"
    delta = number(lookup(privacy, "actual", "delta"))
    facts = {
        "Clipping norm C": number(privacy.get("clip_norm")),
        "Noise, standard deviation": number(privacy.get("noise_std")),
        "Claimed": "no claim" if claimed is None else f"ε = {number(claimed)} ({rule})",
        "Actual, of one update": "no formal guarantee"
        if actual is None
        else f"ε = {number(actual)} at δ = {delta}",
    }
    if privacy.get("zcdp_rho") is not None:
        facts["Zero-concentrated DP"] = f"rho = {number(privacy['zcdp_rho'])}"
    if privacy.get("rero_1000") is not None:
        bound = number(privacy["rero_1000"])
        facts["Identification among 1,000"] = (
            "no bound below 1"
            if bound == "1"
            else f"succeeds for no attack with a probability above {bound}"
        )
    if privacy.get("expected_psnr") is not None:
        expected = number(privacy["expected_psnr"], 1, "dB")
        facts["Best attack without a prior"] = f"{expected} PSNR expected"
        if privacy.get("expected_psnr_clamped") is not None:
            clamped = number(privacy["expected_psnr_clamped"], 1, "dB")
            facts["Best attack without a prior"] += f"; {clamped} with pixels clamped to [0, 1]"
    record = lookup(privacy, "record_level") or {}
    if record.get("epsilon") is not None:
        facts["Actual, of one record"] = (
            f"ε = {number(record['epsilon'])} at δ = {number(record.get('delta'))}"
        )
    return {**facts, "Statement": number(privacy.get("statement"))}


def _privacy_gap(results: Mapping[str, Any]) -> str:
    """Return a sentence where the mechanism gives less than the claim promises."""
    actual, claimed = epsilons(results)
    if lookup(results, "privacy", "claim_holds"):
        return ""
    if not (is_number(claimed) and is_number(actual) and 0 < claimed < actual):
        return ""
    ratio = float(f"{actual / claimed:.2g}")
    return (
        f"The actual ε is {ratio:,.{0 if ratio >= 10 else 1}f} times the claimed one: the claim "
        "promises more privacy than the mechanism gives."
    )


def _image_table(rows: Sequence[Row]) -> Table:
    """Return the images' scores, worst leak first."""
    columns = list(rows[0]) if rows else []
    whole = [name for name in ("client", "image", "index", "label") if name in columns]
    flags = [name for name in ("recovered", "identified") if name in columns]
    metrics = metric_names([name for name in columns if name not in NOT_METRICS])
    nulls = [name for name in NULLS if f"psnr_{name}" in columns]
    ordered = sorted(rows, key=leak, reverse=True)[:MAX_TABLE_ROWS]
    body = [
        [
            *(str(row[name]) for name in whole),
            *(_YES_NO.get(row[name], DASH) for name in flags),
            *(number(row.get(name), metric_label(name)[2]) for name in metrics),
            *(number(row.get(f"psnr_{name}"), 1) for name in nulls),
        ]
        for row in ordered
    ]
    heads = [
        *(name.capitalize() for name in (*whole, *flags)),
        *(metric_label(name)[0] for name in metrics),
        *(f"PSNR of {NULLS[name]}" for name in nulls),
    ]
    shown = f"The {len(body):,} worst leaks of {len(rows):,} images; clients.csv holds all"
    caption = shown if len(body) < len(rows) else "One line for every true image, worst leak first"
    return Table(f"{caption}.", heads, body, is_sortable=True, facets=("Client", "Recovered"))


def _reproduce(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the seed, the versions and the cost of the run."""
    versions, memory = results.get("versions") or {}, results.get("peak_memory_bytes")
    return {
        "Seed": str(results.get("seed", DASH)),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or DASH,
        "Device": number(results.get("device")),
        "Processes": number(results.get("num_processes")),
        "Precision": number(results.get("trainer_precision")),
        "Wall time": number(results.get("wall_seconds"), 1, "s"),
        "Peak memory": number(memory / 2**30, 2, "GiB") if is_number(memory) else DASH,
    }
