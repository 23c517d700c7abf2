"""What an image can be guessed as without the update: the controls beside which it is scored."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_recon.audit.matching import match
from lightning_recon.audit.scores import Row
from lightning_recon.functional.identification import nearest_candidate
from lightning_recon.functional.image_quality import psnr
from lightning_recon.functional.tables import features_right
from lightning_recon.updates import Columns, PrivateBatch


def mean_of(public: Tensor, image_shape: tuple[int, ...]) -> Tensor:
    """Return the guess of one who learned nothing, C H W: grey where there are no public images.

    Args:
        public: N C H W in [0, 1], N may be 0.
        image_shape: C, H, W.
    """
    return public.mean(0) if len(public) else torch.full(image_shape, 0.5)


def shown(images: Tensor, truth: Tensor, mean_image: Tensor) -> Tensor:
    """Return for each true image its reconstruction, or the mean image, B C H W.

    Args:
        images: R C H W.
        truth: B C H W.
        mean_image: C H W.
    """
    row = match(images, truth).row
    found = mean_image.expand_as(truth).clone()
    found[row >= 0] = images[row[row >= 0]]
    return found


def aligned(images: Tensor, truth: Tensor, rows: Sequence[Row]) -> Tensor:
    """Return the reconstruction that each row matched, B C H W, NaN where there is none."""
    found = torch.full_like(truth, torch.nan)
    for position, row in enumerate(rows):
        if row["matched"] >= 0:
            found[position] = images[int(row["matched"])]
    return found


def add_public(
    rows: Sequence[Row], truth: PrivateBatch, public: Tensor, public_labels: Tensor
) -> None:
    """Add to rows what the public images alone come to, in dB.

    Args:
        rows: one per true image.
        truth: the true images.
        public: N C H W in [0, 1], N may be 0.
        public_labels: N; -1 where an image is of none of the clients' classes.
    """
    for row, image, label in zip(rows, truth.images, truth.labels, strict=True):
        row["psnr_class_mean"] = row["psnr_nearest_public"] = row["psnr_mean_image"]
        if len(public) == 0:
            continue
        everyone = psnr(public, image.expand_as(public))
        row["psnr_nearest_public"] = float(everyone.max())
        same_class = public[public_labels == label]
        if len(same_class):
            row["psnr_class_mean"] = float(psnr(same_class.mean(0)[None], image[None]))


def add_noise_only(rows: Sequence[Row], images: Tensor, truth: Tensor) -> Tensor:
    """Add to rows what the attack makes of an update without the client; return the PSNRs, in dB.

    Args:
        rows: one per true image.
        images: B C H W: what :func:`shown` is of the attack's images.
        truth: B C H W.
    """
    values = psnr(images, truth)
    for row, value in zip(rows, values.tolist(), strict=True):
        row["psnr_noise_only"] = value
    return values


def add_features(
    rows: Sequence[Row], name: str, found: Tensor, truth: Tensor, columns: Columns
) -> None:
    """Add to rows the share of the features of a table's row that a guess has right.

    Args:
        rows: one per true row.
        name: of the column.
        found: B C H W, the guess for each.
        truth: B C H W.
        columns: of the table.
    """
    share = features_right(found, truth, columns).float().mean(1)
    for row, value in zip(rows, share.tolist(), strict=True):
        row[name] = value


def add_identification(
    rows: Sequence[Row],
    found: Tensor,
    truth: PrivateBatch,
    places: Tensor,
    candidates: Tensor,
) -> None:
    """Add to rows whether the true image is the nearest of all candidates; a tie is a miss.

    Compared are thumbnails, within the subject's mask: the candidates have no masks, and what lies
    outside must not help.

    Args:
        rows: one per true image.
        found: B C H W, the reconstruction of each, NaN where there is none.
        truth: the true images.
        places: N, which image each candidate is, by the numbers of ``truth.indices``.
        candidates: N C h w.
    """
    nearest = nearest_candidate(found, candidates, truth.masks)
    for row, candidate, place in zip(rows, nearest.tolist(), truth.indices, strict=True):
        row["identified"] = int(candidate >= 0 and places[candidate] == place)
