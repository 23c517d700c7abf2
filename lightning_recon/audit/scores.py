"""Scores of an audit: one row for every true image, and their summary.

Nothing here is seen by an attack.  No true image is ever left out: one without a reconstruction
counts with the mean image, the best guess of someone who learned nothing from the update.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_recon.audit.matching import match
from lightning_recon.audit.schema import (
    ControlJson,
    IdentificationJson,
    LocalEstimateJson,
    MetricJson,
    ScoresJson,
)
from lightning_recon.audit.statistics import (
    bootstrap_interval,
    share_at,
    share_interval,
    worst_case,
)
from lightning_recon.functional.image_quality import cw_ssim, decibels, mse, psnr, ssim
from lightning_recon.observation import HALF_LEVEL, Mark, Reconstruction
from lightning_recon.updates import PrivateBatch

Row = dict[str, float]
"""The scores of one true image, by name."""

_MEASURES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "mse": mse,
    "psnr": psnr,
    "ssim": ssim,
    "cw_ssim": cw_ssim,
}
METRICS = (*_MEASURES, *(f"{name}_subject" for name in _MEASURES))
"""The names of the metrics that :func:`score` computes."""

LOWER_IS_MORE_ALIKE = ("mse", "lpips", "dists")
"""Metrics, with or without ``_subject``, of which a smaller value is a worse leak."""

THRESHOLDS = {"psnr": (15.0, 19.0, 25.0, 30.0), "lpips": (0.1, 0.2, 0.4)}
"""Where :func:`aggregate` counts how many images are at least that much alike."""

_NULLS = ("mean_image", "class_mean", "nearest_public")
NOT_METRICS = (
    *("client", "image", "index", "label", "matched", "recovered", "identified", "mask_area"),
    *(
        "recovered_convincing",
        "score",
        "certified",
        "exact",
        "p_value",
        "psnr_noise_only",
        "mse_local_estimate",
        *(f"psnr_{name}" for name in _NULLS),
    ),
)
"""Columns of a row that are no metric; all others are."""

CONVINCING_GAIN = 3.0
"""In dB: how far above its best control an image is that was recovered convincingly."""
CONVINCING_CONTROLS = ("mean_image", "class_mean", "noise_only")
"""Those that an image has to beat: what can be had without the update, or from noise alone.  The
nearest public image is chosen with the truth's help, and does not count."""

_RANGES = {
    "mse": (0.0, 1.0),
    "psnr": (0.0, 100.0),
    "ssim": (-1.0, 1.0),
    "cw_ssim": (0.0, 1.0),
    "tag_jaccard": (0.0, 1.0),
    **dict.fromkeys(("features", "features_mean_image", "features_noise_only"), (0.0, 1.0)),
}
_CHUNK = 4  # images scored at a time, to bound the memory of SSIM


def score(
    reconstruction: Reconstruction,
    truth: PrivateBatch,
    mean_image: Tensor,
    recovered_psnr: float = 19.0,
) -> list[Row]:
    """Match reconstructions to the true images and score each true image.

    A matched image counts with its own reconstruction however bad that is; an unmatched one with
    the mean image.  An image is recovered if it is matched, its PSNR is at least
    ``recovered_psnr``, and its PSNR is above that of the mean image.

    Args:
        reconstruction: the attack's output, R images; those with a NaN or an infinity cannot be
            matched, values outside [0, 1] are clamped as a picture file would clamp them.
        truth: the client's batch, B images.
        mean_image: C H W in [0, 1]: the data set's mean.
        recovered_psnr: in dB.  The default of 19 dB is the bound above which Garov, Dimitrov,
            Jovanović, Vechev, "Hiding in Plain Sight: Disguising Data Stealing Attacks in
            Federated Learning", ICLR 2024, call an image well reconstructed.

    Returns:
        B rows in the order of the batch, with the keys ``image`` (position in the batch),
        ``index`` (place in the data set), ``label``, ``matched`` (position of the reconstruction,
        or -1), ``recovered`` (0 or 1), ``mse``, ``psnr`` (dB), ``ssim``, ``cw_ssim``, the same
        four with ``_subject`` over the mask alone, ``mask_area`` (share of the image, in [0, 1])
        and ``psnr_mean_image`` (dB).  The subject of an empty mask is the whole image.

    Raises:
        ValueError: if the shapes of the images disagree.
    """
    if mean_image.shape != truth.images.shape[1:]:
        raise ValueError(
            f"mean_image must have the images' shape {tuple(truth.images.shape[1:])}; got "
            f"{tuple(mean_image.shape)}"
        )
    matched = match(reconstruction.images, truth.images).row
    rows: list[Row] = []
    for start in range(0, len(truth.images), _CHUNK):
        part = slice(start, start + _CHUNK)
        images, masks, found = truth.images[part], truth.masks[part], matched[part] >= 0
        mean_images = mean_image.to(images).expand_as(images)
        shown = mean_images.clone()
        chosen = matched[part][found].to(reconstruction.images.device)
        shown[found] = reconstruction.images[chosen].to(images).clamp(0.0, 1.0)
        area = masks.float().mean(dim=(1, 2, 3))
        subject = masks | (area == 0)[:, None, None, None]
        columns: dict[str, Tensor] = {
            "image": torch.arange(start, start + len(images)),
            "index": truth.indices[part],
            "label": truth.labels[part],
            "matched": matched[part],
            "recovered": found,  # provisional: its place among the columns
            **{name: measure(shown, images, None) for name, measure in _MEASURES.items()},
            **{
                f"{name}_subject": measure(shown, images, subject)
                for name, measure in _MEASURES.items()
            },
            "mask_area": area,
            "psnr_mean_image": psnr(mean_images, images),
        }
        is_close = columns["psnr"] >= recovered_psnr
        is_better = columns["psnr"] > columns["psnr_mean_image"]
        columns["recovered"] = (found & is_close & is_better).long()
        values = [column.tolist() for column in columns.values()]
        rows += [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
    return rows


def exact_pairs(images: Tensor, truth: Tensor) -> Tensor:
    """Return which images are which true ones exactly, every pixel within half a level: R B, bool.

    Args:
        images: R C H W in [0, 1].
        truth: B C H W in [0, 1].
    """
    if not len(images) or not len(truth):
        return torch.zeros(len(images), len(truth), dtype=torch.bool)
    furthest = [(truth - image).abs().flatten(1).amax(1) for image in images.to(truth)]
    return torch.stack(furthest) <= HALF_LEVEL * (1 + 1e-6)


def add_marks(rows: Sequence[Row], reconstruction: Reconstruction, truth: Tensor) -> dict[str, int]:
    """Add to rows what the attack said of its images, and whether it is so.

    Rows get ``certified`` and ``exact`` (0 or 1) and ``p_value``, if the attack has marks.

    Args:
        rows: of :func:`score`.
        reconstruction: with or without marks.
        truth: B C H W in [0, 1].

    Returns:
        ``certified_wrong``, the certified images that are none of the client's, matched or not;
        nothing without marks.
    """
    marks, p_values = reconstruction.marks, reconstruction.p_values
    if marks is None:
        return {}
    is_exact = exact_pairs(reconstruction.images, truth)
    for position, row in enumerate(rows):
        matched = int(row["matched"])
        is_there = matched >= 0
        row["certified"] = int(is_there and marks[matched] == Mark.CERTIFIED)
        row["exact"] = int(is_there and bool(is_exact[matched, position]))
        row["p_value"] = float(p_values[matched]) if is_there and p_values is not None else np.nan
    is_wrong = [
        mark == Mark.CERTIFIED and not fits
        for mark, fits in zip(marks, is_exact.any(1), strict=True)
    ]
    return {"certified_wrong": sum(is_wrong)}


def mark_convincing(rows: Sequence[Row]) -> None:
    """Add ``recovered_convincing`` (0 or 1) to rows: a recovery that is no guess.

    An image is recovered, its PSNR is at least 3 dB above the best of the controls mean image,
    class mean and noise only FOR THAT IMAGE, and its reconstruction is identified among the
    candidates.  A control, or identification, that a row does not have is left out of the rule.

    Args:
        rows: as :func:`score` gives them, the controls added.

    Examples:
        >>> row = {"recovered": 1, "psnr": 21.9, "psnr_mean_image": 19.9, "identified": 1}
        >>> mark_convincing([row])
        >>> row["recovered_convincing"]
        0
    """
    for row in rows:
        is_above = row["psnr"] >= best_control(row) + CONVINCING_GAIN
        is_told = row.get("identified", 1) == 1
        row["recovered_convincing"] = int(row["recovered"] == 1 and is_above and is_told)


def best_control(row: Row) -> float:
    """Return the best PSNR, in dB, that a control has of this image; minus infinity without any."""
    return max(row.get(f"psnr_{name}", -np.inf) for name in CONVINCING_CONTROLS)


def aggregate(
    rows: Sequence[Row], num_reconstructions: int, num_candidates: int | None = None
) -> ScoresJson:
    """Summarise the rows of :func:`score` over all images of all clients.

    Intervals are of the mean, at 95 %, with the clients resampled
    (:mod:`lightning_recon.audit.statistics`); rows without ``client`` belong to one client.  With a
    single client their ends are None.

    Args:
        rows: one per true image.  Columns that :func:`score` does not know are metrics as well;
            ``psnr_class_mean`` and ``psnr_nearest_public`` are null controls, ``identified`` (0 or
            1) is a hit among the candidates.  A value that is not finite is left out.
        num_reconstructions: how many images the attack put out, matched or not.
        num_candidates: among how many images each one was to be identified.

    Returns:
        - ``num_images``, ``num_reconstructions``, ``recovered`` (count);
        - ``recovered_convincing`` (count of what :func:`mark_convincing` marked; None without
          marks) and ``convincing_rule``, in words;
        - ``precision`` (recovered per reconstruction put out) and ``recall`` (recovered per image;
          both 0 where there is nothing to divide by), ``recall_ci_low``, ``recall_ci_high``;
        - ``metrics``: for each metric the ``mean``, ``median``, ``worst``, ``ci_low`` and
          ``ci_high`` over ALL images.  Worst is worst for privacy, the image that leaked most: the
          highest PSNR or SSIM, the lowest MSE;
        - ``null``: for the mean image, the class mean and the nearest public image the mean
          ``psnr`` with ``ci_low`` and ``ci_high``;
        - ``thresholds``: for ``psnr`` (dB) and ``lpips`` the share of all images at or beyond each
          of :data:`THRESHOLDS`; ``psnr_mean_image`` is that of the mean image, the control;
        - ``identification``: ``rate`` with ``ci_low`` and ``ci_high``, and ``num_candidates``;
          None where it was not asked for;
        - ``local_estimate``: of the images that have ``mse_local_estimate`` what the mean squared
          errors of the mean image, of the attack and of the estimate come to, in dB; None where
          there are none.

        Without rows, ``metrics``, ``null`` and ``thresholds`` are empty.
    """
    recovered = int(sum(row["recovered"] for row in rows))
    recall = _mean(rows, "recovered", is_share=True)
    names = [name for name in (rows[0] if rows else ()) if name not in NOT_METRICS]
    summaries = {name: _summary(rows, name) for name in names}
    thresholds = {name: _shares(rows, name) for name in ("psnr", "psnr_mean_image", "lpips")}
    return {
        "num_images": len(rows),
        "num_reconstructions": num_reconstructions,
        "recovered": recovered,
        "recovered_convincing": _num_convincing(rows),
        "convincing_rule": convincing_rule(rows),
        "precision": recovered / num_reconstructions if num_reconstructions else 0.0,
        "recall": recall.value if recall else 0.0,
        "recall_ci_low": recall.low if recall else None,
        "recall_ci_high": recall.high if recall else None,
        "metrics": {name: summary for name, summary in summaries.items() if summary},
        "null": _nulls(rows),
        "thresholds": {name: shares for name, shares in thresholds.items() if shares},
        "identification": _identification(rows, num_candidates),
        "local_estimate": _local_estimate(rows),
    }


def _num_convincing(rows: Sequence[Row]) -> int | None:
    if any("recovered_convincing" not in row for row in rows):
        return None
    return int(sum(row["recovered_convincing"] for row in rows))


def convincing_rule(rows: Sequence[Row]) -> str:
    """Return what a recovery has to be to convince, and what of that was off in these rows."""
    names = {"mean_image": "mean image", "class_mean": "class mean", "noise_only": "noise only"}
    used = [name for key, name in names.items() if any(f"psnr_{key}" in row for row in rows)]
    is_identified = any("identified" in row for row in rows)
    rule = (
        f"recovered, and {CONVINCING_GAIN:g} dB above the best of {', '.join(used) or 'no control'}"
    )
    if is_identified:
        rule += ", and identified among the candidates"
    off = [name for name in names.values() if name not in used]
    off += [] if is_identified else ["identification"]
    return rule + (f"; off in this run: {', '.join(off)}" if off else "")


def _summary(rows: Sequence[Row], name: str) -> MetricJson | None:
    """Return the mean with its interval, the median and the worst case of one metric."""
    mean = _mean(rows, name)
    if mean is None:
        return None
    values, _ = _column(rows, name)
    return {
        "mean": mean.value,
        "median": float(np.median(values)),
        "worst": worst_case(values, lower_is_more_alike=_is_lower_more_alike(name)),
        "ci_low": mean.low,
        "ci_high": mean.high,
    }


def _nulls(rows: Sequence[Row]) -> dict[str, ControlJson]:
    """Return what the controls that stand in the rows come to."""
    means = {name: _mean(rows, f"psnr_{name}") for name in _NULLS}
    return {
        name: {"psnr": mean.value, "ci_low": mean.low, "ci_high": mean.high}
        for name, mean in means.items()
        if mean
    }


def _identification(rows: Sequence[Row], num_candidates: int | None) -> IdentificationJson | None:
    """Return how many images were identified; None where that was not asked for."""
    rate = _mean(rows, "identified", is_share=True)
    if rate is None:
        return None
    return {
        "rate": rate.value,
        "ci_low": rate.low,
        "ci_high": rate.high,
        "num_candidates": num_candidates,
    }


def _local_estimate(rows: Sequence[Row]) -> LocalEstimateJson | None:
    """Return the mean image, the attack and the local estimate, by their mean squared errors."""
    there = [row for row in rows if np.isfinite(row.get("mse_local_estimate", np.nan))]
    if not there:
        return None
    errors = _mean(there, "mse_local_estimate")
    assert errors is not None
    mean_image = [10 ** (-row["psnr_mean_image"] / 10) for row in there]
    return {
        "num_images": len(there),
        "psnr_mean_image": _as_psnr(float(np.mean(mean_image))),
        "psnr_attack": _as_psnr(float(np.mean([row["mse"] for row in there]))),
        "psnr": _as_psnr(errors.value),
        "ci_low": None if errors.high is None else _as_psnr(errors.high),
        "ci_high": None if errors.low is None else _as_psnr(errors.low),
    }


def _as_psnr(error: float) -> float:
    """Return a mean squared error in dB, within the range of PSNR."""
    least, largest = _RANGES["psnr"]
    return max(decibels(error, largest), least)


class _Mean(NamedTuple):
    """The mean of a column with the ends of its interval."""

    value: float
    low: float | None
    high: float | None


def _mean(rows: Sequence[Row], name: str, *, is_share: bool = False) -> _Mean | None:
    """Return the mean of one column with its interval; None for no value."""
    values, clients = _column(rows, name)
    if not len(values):
        return None
    interval = (share_interval if is_share else bootstrap_interval)(values, clients)
    low, high = interval or (None, None)
    base = "psnr" if name.startswith("psnr") else name.removesuffix("_subject")
    if low is not None and high is not None and base in _RANGES:
        # stretched for few clients, an interval may leave what the metric can be
        least, largest = _RANGES[base]
        low, high = max(low, least), min(high, largest)
    return _Mean(float(values.mean()), low, high)


def _shares(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Return by threshold the share of images that reach it; none for no value."""
    values, _ = _column(rows, name)
    if not len(values):
        return {}
    levels = THRESHOLDS[name.removesuffix("_mean_image")]
    shares = share_at(values, levels, lower_is_more_alike=_is_lower_more_alike(name))
    return {f"{level:g}": share for level, share in zip(levels, shares, strict=True)}


def _column(rows: Sequence[Row], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the finite values of one column, and the client of each."""
    values = np.array([row.get(name, np.nan) for row in rows], dtype=float)
    clients = np.array([row.get("client", 0) for row in rows], dtype=float)
    is_there = np.isfinite(values)
    return values[is_there], clients[is_there]


def _is_lower_more_alike(name: str) -> bool:
    return name.removesuffix("_subject") in LOWER_IS_MORE_ALIKE
