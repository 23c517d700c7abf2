"""Scores of an audit: one row for every true image, and their summary.

Nothing here is seen by an attack.  No true image is ever left out: one without a reconstruction
counts with the mean image, the best guess of someone who learned nothing from the update.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_recon.functional.image_quality import cw_ssim, mse, psnr, ssim
from lightning_recon.matching import match
from lightning_recon.structures import PrivateBatch, Reconstruction

Row = dict[str, float]
"""The scores of one true image, by name."""

_MEASURES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "mse": mse,
    "psnr": psnr,
    "ssim": ssim,
    "cw_ssim": cw_ssim,
}
METRICS = (*_MEASURES, *(f"{name}_subject" for name in _MEASURES))
"""The names that :func:`aggregate` summarises."""

_LOWER_IS_MORE_ALIKE = ("mse", "mse_subject")
_CHUNK = 16  # images scored at a time, to bound the memory of SSIM


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
        reconstruction: The attack's output, R images; those with a NaN or an infinity cannot be
            matched, values outside [0, 1] are clamped as a picture file would clamp them.
        truth: The client's batch, B images.
        mean_image: C H W in [0, 1]: the data set's mean.
        recovered_psnr: In dB.  The default of 19 dB is the bound above which Garov, Dimitrov,
            Jovanović, Vechev, "Hiding in Plain Sight: Disguising Data Stealing Attacks in
            Federated Learning", ICLR 2024, call an image well reconstructed.

    Returns:
        B rows in the order of the batch, with the keys ``image`` (position in the batch),
        ``index`` (place in the data set), ``label``, ``matched`` (position of the reconstruction,
        or -1), ``recovered`` (0 or 1), ``mse``, ``psnr`` (dB), ``ssim``, ``cw_ssim``, the same
        four with ``_subject`` over the mask alone, ``mask_area`` (share of the image, in [0, 1])
        and ``psnr_mean_image`` (dB).  The subject of an empty mask is the whole image.

    Raises:
        ValueError: If the shapes of the images disagree.
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


def aggregate(rows: Sequence[Row], num_reconstructions: int) -> dict[str, Any]:
    """Summarise the rows of :func:`score` over all images of all clients.

    Args:
        rows: One per true image.
        num_reconstructions: How many images the attack put out, matched or not.

    Returns:
        ``num_images``, ``num_reconstructions``, ``recovered`` (count), ``precision`` (recovered
        per reconstruction put out), ``recall`` (recovered per image; both 0 where there is nothing
        to divide by), ``metrics`` (for each of :data:`METRICS` the ``mean``, ``median`` and
        ``worst`` over ALL images) and ``null`` (``mean_image``: its mean ``psnr``).  Worst is
        worst for privacy, the image that leaked most: the highest PSNR or SSIM, the lowest MSE.
        Without rows, ``metrics`` and ``null`` are empty.
    """
    recovered = int(sum(row["recovered"] for row in rows))
    metrics = {}
    for name in METRICS if rows else ():
        values = [row[name] for row in rows]
        worst = min if name in _LOWER_IS_MORE_ALIKE else max
        metrics[name] = {
            "mean": statistics.fmean(values),
            "median": statistics.median(values),
            "worst": worst(values),
        }
    null = {}
    if rows:
        null["mean_image"] = {"psnr": statistics.fmean(row["psnr_mean_image"] for row in rows)}
    return {
        "num_images": len(rows),
        "num_reconstructions": num_reconstructions,
        "recovered": recovered,
        "precision": recovered / num_reconstructions if num_reconstructions else 0.0,
        "recall": recovered / len(rows) if rows else 0.0,
        "metrics": metrics,
        "null": null,
    }
