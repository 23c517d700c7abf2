"""The audit of one run as a page: ``report.html``.

Everything is read from the run's folder, so that the page can be made again from any run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_recon.audit.results import Control, Guarantee, Metric, Results
from lightning_recon.audit.scores import NOT_METRICS, Row
from lightning_recon.report import predicted
from lightning_recon.report.cards import cards_of_run, leak
from lightning_recon.report.figures import (
    NULLS,
    distribution,
    leakage,
    linearised,
    objective_curves,
)
from lightning_recon.report.findings import findings
from lightning_recon.report.folder import Run, read_run
from lightning_recon.report.page import (
    DASH,
    INTERVALS,
    MAX_TABLE_ROWS,
    Table,
    count,
    interval,
    metric_label,
    metric_names,
    number,
    share,
    shorten,
    write_page,
)

_MAX_CONFIG = 200_000  # characters of the configuration
_FLAGS = {
    "recovered": "Recovered",
    "recovered_convincing": "Convincingly",
    "identified": "Identified",
    "certified": "Certified",
    "exact": "Exact",
}
_YES_NO = {1.0: "yes", 0.0: "no"}


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a run.

    The page has at most 5 MB however many clients there are: it shows at most 48 images and 1,500
    lines of the table, and says what it leaves out.  Of a run of ``predict``, without the truth, it
    shows the reconstructions and no score (:mod:`lightning_recon.report.predicted`).

    Args:
        folder: the run's, with ``results.json``, and with ``clients.csv``, ``config.yaml`` and
            ``reconstructions`` where there are any.  A missing key leaves a gap, not an error.

    Returns:
        The path of the page.

    Raises:
        InputError: if there is no ``results.json``, or a file cannot be understood.
    """
    run = read_run(folder)
    results = run.results
    is_predicted = results.num_images == 0 and not run.rows
    content = predicted.content_of(run) if is_predicted else _content(run)
    subject = [results.attack, results.target, results.data.name]
    unprotected = "defenses unknown" if is_predicted else "no defense"
    content |= {
        "heading": run.name,
        "about": " · ".join(part for part in subject if part),
        "source": f"Made from the files of {folder.resolve().name}; nothing here is fetched.",
        "setting": _setting(results),
        "chain": ["Client's update", *(results.defenses or [unprotected]), "Attacker"],
        "privacy": _privacy(results),
        "privacy_gap": _privacy_gap(results),
        "command": results.command or "not recorded",
        "reproduce": _reproduce(results),
        "config": shorten(run.config, _MAX_CONFIG),
    }
    template = "predicted.html" if is_predicted else "run.html"
    return write_page(folder / "report.html", template, content)


def _content(run: Run) -> dict[str, Any]:
    """Return what the page says of a run with its truth."""
    results = run.results
    cards, pictures_note = cards_of_run(run)
    curves = objective_curves(results)
    return {
        "title": f"{run.name}: privacy audit",
        "kind": "Privacy audit of federated learning",
        "is_leak": bool(results.recovered),
        "status": _status(results),
        "verdict": verdict(results),
        "caveat": (
            "Recovered: matched to its true image at "
            f"{number(results.recovered_psnr or 19, unit='dB')} PSNR or more, and closer "
            "than the mean image. "
            f"{_convincing_caveat(results)}"
            f"{INTERVALS} An attack that fails does not prove that "
            "nothing leaked; a stronger one may not fail."
        ),
        "warnings": findings(results),
        "sections": {
            "figures": "Figures",
            "pictures": "Pictures",
            "distribution": "Distribution",
            "setting": "What was attacked",
            "privacy": "Privacy",
            **({"curves": "Curves"} if curves else {}),
            **({"images": "All images"} if run.rows else {}),
            "reproduce": "Reproduce",
        },
        "tiles": _tiles(results),
        "cards": cards,
        "pictures_note": pictures_note,
        "distribution": distribution(results, run.rows),
        "metrics": _metrics(results),
        "leakage": [*leakage(results), *linearised(results)],
        "curves": curves,
        "images": _image_table(run.rows, is_masked=results.is_masked),
    }


def verdict(results: Results) -> str:
    """Return the audit's outcome, with its confidence, as one sentence.

    Args:
        results: of the run.

    Returns:
        Plain text, not escaped.
    """
    num_images, recovered = results.num_images or 0, results.recovered or 0
    if not num_images:
        return "No image was audited."
    clients = results.num_clients
    images = count(num_images, "image") + (f" of {count(clients, 'client')}" if clients else "")
    low, high = results.recall_ci_low, results.recall_ci_high
    certainty = "a single client gives no interval" if clients == 1 else "no interval"
    if low is not None and high is not None:
        certainty = f"95 % interval {share(low)} to {share(high)}"
    if recovered:
        certainty = f"{share(recovered / num_images)}; {certainty}"
    convincing = results.recovered_convincing
    told = f", {convincing:,} of them convincingly" if recovered and convincing is not None else ""
    psnr = number(results.metric("psnr").mean, 1)
    null = number(results.control("mean_image").psnr, 1)
    return (
        f"{f'{recovered:,}' if recovered else 'None'} of {images} recovered{told} ({certainty}); "
        f"PSNR {psnr} dB on average, where guessing the mean image gives {null} dB."
    )


def _convincing_caveat(results: Results) -> str:
    if results.convincing_rule is None:
        return ""
    return f"Convincingly: {results.convincing_rule}, image by image. "


def _status(results: Results) -> str:
    if not results.num_images:
        return "Nothing audited"
    return "Images leak" if results.recovered else "Not recovered by this attack"


def _tiles(results: Results) -> list[tuple[str, str, str]]:
    """Return the figures to see first: name, value, and what it is to be read with."""
    psnr, null = results.metric("psnr"), results.control("mean_image").psnr
    low, high = results.recall_ci_low, results.recall_ci_high
    recall = share(results.recall)
    above = psnr.mean - null if psnr.mean is not None and null is not None else None
    tiles = [
        (
            "Images recovered",
            f"{number(results.recovered)} of {number(results.num_images)}",
            recall if low is None else f"{recall}; interval {share(low)} to {share(high)}",
        ),
        *_convincing_tile(results),
        *_certified_tile(results),
        (
            "PSNR, mean",
            number(psnr.mean, 1, "dB"),
            "no interval"
            if psnr.ci_low is None
            else f"interval {interval(psnr.ci_low, psnr.ci_high)} dB",
        ),
        ("PSNR, worst leak", number(psnr.worst, 1, "dB"), "the image that leaked most"),
        (
            "Above mean image",
            number(above, 1, "dB"),
            f"which scores {number(null, 1, 'dB')} without an update",
        ),
    ]
    identification = results.identification
    if identification.rate is not None:
        candidates = identification.num_candidates
        chance = f"chance {share(1 / candidates)}, among {candidates:,}" if candidates else ""
        tiles.append(("Images identified", share(identification.rate), chance))
    actual, claimed = results.privacy.actual.epsilon, results.privacy.claimed.epsilon
    epsilon = "none" if actual is None else number(actual)
    claim = "no claim" if claimed is None else f"claimed: {number(claimed)}"
    tiles.append(("Actual ε, one update", epsilon, claim))
    return tiles


def _convincing_tile(results: Results) -> list[tuple[str, str, str]]:
    if results.recovered_convincing is None:
        return []
    value = f"{number(results.recovered_convincing)} of {number(results.num_images)}"
    return [("Recovered convincingly", value, "far above what a guess gives for that image")]


def _metrics(results: Results) -> Table:
    """Return the summary of every metric beside the null controls."""
    metrics = results.metrics
    names = metric_names(shown_metrics(results))
    rows = [_metric_row(metrics[name], *metric_label(name)) for name in names]
    rows += [
        [f"{metric_label(name)[0]}: unavailable, {reason}", *[DASH] * 4]
        for name, reason in results.unavailable_metrics.items()
    ]
    rows += [
        _metric_row(_as_metric(results.null[name]), f"PSNR of {label}", "dB", 1)
        for name, label in NULLS.items()
        if name in results.null
    ]
    caption = (
        f"Recall is {share(results.recall)} of the images, precision "
        f"{share(results.precision)} of the {number(results.num_reconstructions)} "
        "reconstructions put out. An image that was not recovered counts, too. Worst is worst for "
        "privacy: the image that leaked most."
    )
    return Table(caption, ["Metric", "Mean", "95 % interval", "Median", "Worst"], rows)


def shown_metrics(results: Results) -> list[str]:
    """Return the metrics to show: those of the subject say nothing new where there are no masks."""
    metrics = results.metrics
    return [name for name in metrics if results.is_masked or not name.endswith("_subject")]


def _as_metric(control: Control) -> Metric:
    return Metric(mean=control.psnr, ci_low=control.ci_low, ci_high=control.ci_high)


def _metric_row(values: Metric, label: str, unit: str, decimals: int) -> list[str]:
    return [
        f"{label}, {unit}" if unit else label,
        number(values.mean, decimals),
        interval(values.ci_low, values.ci_high, decimals),
        *(number(value, decimals) for value in (values.median, values.worst)),
    ]


def _setting(results: Results) -> dict[str, str]:
    """Return who attacks what: threat model, oracles, data and masks."""
    attack = [results.attack, results.citation]
    return {
        "Attack": "; ".join(part for part in attack if part) or DASH,
        "Threat model": number(results.threat_model),
        "Given beyond that (oracles)": ", ".join(results.oracles) or "nothing",
        "Model under attack": number(results.target),
        "Update": communication(results),
        "Data": number(results.data.description or results.data.name),
        "Subject masks": _masks(results),
    }


def communication(results: Results) -> str:
    """Return the size of an update, a dash where it is not known."""
    sent = results.communication
    if sent.num_bits is None:
        return DASH
    return f"{number(sent.num_bits / 8e6)} MB, {number(sent.bits_per_parameter)} bits a parameter"


def _masks(results: Results) -> str:
    """Return a description of the subject masks."""
    masks = results.masks
    if masks.method in (None, "none"):
        return "none: the subject is the whole image"
    parts = [masks.method]
    if masks.mean_area is not None:
        parts.append(f"{number(100 * masks.mean_area, 0)} % of the image on average")
    if masks.replaced:
        parts.append(f"{masks.replaced} implausible and replaced")
    return ", ".join(parts)


def _privacy(results: Results) -> dict[str, str]:
    """Return the privacy that is claimed beside the one that holds."""
    privacy = results.privacy
    claim = f"ε = {number(privacy.claimed.epsilon)} ({privacy.claimed.rule or 'rule not stated'})"
    facts = {
        "Clipping norm C": number(privacy.clip_norm),
        "Noise, standard deviation": number(privacy.noise_std),
        "Claimed": "no claim" if privacy.claimed.epsilon is None else claim,
        "Actual, of one update": _epsilon(privacy.actual) or "no formal guarantee",
    }
    if privacy.zcdp_rho is not None:
        facts["Zero-concentrated DP"] = f"rho = {number(privacy.zcdp_rho)}"
    if privacy.rero_1000 is not None:
        bound = number(privacy.rero_1000)
        facts["Identification among 1,000"] = (
            "no bound below 1"
            if bound == "1"
            else f"succeeds for no attack with a probability above {bound}"
        )
    if privacy.rero_record_1000 is not None:
        bound = number(privacy.rero_record_1000)
        facts["The same of one record"] = f"with a probability of at most {bound}"
    if privacy.expected_psnr is not None:
        expected = number(privacy.expected_psnr, 1, "dB")
        facts["Best attack without a prior"] = f"{expected} PSNR expected"
        if privacy.expected_psnr_clamped is not None:
            clamped = number(privacy.expected_psnr_clamped, 1, "dB")
            facts["Best attack without a prior"] += f"; {clamped} with pixels clamped to [0, 1]"
    if results.bits.read is not None and results.bits.capacity is not None:
        read, capacity = round(results.bits.read), round(results.bits.capacity)
        facts["Read of an image"] = f"{read:,} bits, of {capacity:,} in the channel"
        if results.bits.noise_only is not None:
            facts["Read of an image"] += f"; {round(results.bits.noise_only):,} of noise alone"
    if record := _epsilon(privacy.record_level):
        facts["Actual, of one record"] = record
    return {**facts, "Statement": number(privacy.statement)}


def _epsilon(guarantee: Guarantee) -> str:
    """Return what holds, nothing where there is no guarantee."""
    if guarantee.epsilon is None:
        return ""
    return f"ε = {number(guarantee.epsilon)} at δ = {number(guarantee.delta)}"


def _certified_tile(results: Results) -> list[tuple[str, str, str]]:
    certified, wrong = results.noted("certified"), results.noted("certified_wrong")
    if certified is None or wrong is None:
        return []
    value = f"{certified:,} of {number(results.num_images)}"
    return [("Certified, without the truth", value, f"by the truth {wrong:,} of them are wrong")]


def _privacy_gap(results: Results) -> str:
    """Return a sentence where the mechanism gives less than the claim promises."""
    actual, claimed = results.privacy.actual.epsilon, results.privacy.claimed.epsilon
    if results.privacy.claim_holds or actual is None or claimed is None or not 0 < claimed < actual:
        return ""
    ratio = float(f"{actual / claimed:.2g}")
    return (
        f"The actual ε is {ratio:,.{0 if ratio >= 10 else 1}f} times the claimed one: the claim "
        "promises more privacy than the mechanism gives."
    )


def _image_table(rows: Sequence[Row], *, is_masked: bool) -> Table:
    """Return the images' scores, worst leak first."""
    columns = list(rows[0]) if rows else []
    whole = [name for name in ("client", "image", "index", "label") if name in columns]
    flags = [name for name in _FLAGS if name in columns]
    metrics = metric_names([name for name in columns if name not in NOT_METRICS])
    metrics = [name for name in metrics if is_masked or not name.endswith("_subject")]
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
        *(name.capitalize() for name in whole),
        *(_FLAGS[name] for name in flags),
        *(metric_label(name)[0] for name in metrics),
        *(f"PSNR of {NULLS[name]}" for name in nulls),
    ]
    shown = f"The {len(body):,} worst leaks of {len(rows):,} images; clients.csv holds all"
    caption = shown if len(body) < len(rows) else "One line for every true image, worst leak first"
    clients = [str(client) for client in sorted({row.get("client", 0) for row in ordered})]
    facets = {"Client": clients, "Recovered": ["yes", "no"]}
    return Table(f"{caption}.", heads, body, is_sortable=True, facets=facets)


def _reproduce(results: Results) -> dict[str, str]:
    """Return the seed, the versions and the cost of the run."""
    versions, memory = results.versions, results.peak_memory_bytes
    return {
        "Seed": DASH if results.seed is None else str(results.seed),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or DASH,
        "Device": number(results.device),
        "Processes": number(results.num_processes),
        "Precision": number(results.trainer_precision),
        "Wall time": number(results.wall_seconds, 1, "s"),
        "Peak memory": DASH if memory is None else number(memory / 2**30, 2, "GiB"),
    }
