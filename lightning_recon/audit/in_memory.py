"""Scores of what :func:`lightning_recon.reconstruct` found, by an audit's own rules."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_recon.audit.guesses import (
    add_identification,
    add_noise_only,
    add_public,
    aligned,
    mean_of,
    shown,
)
from lightning_recon.audit.scores import Row, mark_convincing
from lightning_recon.audit.scores import score as score_rows
from lightning_recon.errors import InputError
from lightning_recon.observation import Reconstruction
from lightning_recon.updates import PrivateBatch


def score(
    found: Reconstruction,
    images: Tensor,
    labels: Tensor | Sequence[int] | None = None,
    *,
    public_images: Tensor | None = None,
    public_labels: Tensor | Sequence[int] | None = None,
    nothing: Reconstruction | None = None,
    recovered_psnr: float = 19.0,
) -> list[Row]:
    """Return the scores of each true image beside those of a guess, as ``test`` computes them.

    Reconstructions are assigned to the true images one to one, at the least total error; a true
    image without one counts with the mean image.

    Args:
        found: by an attack, in any order.
        images: B C H W in [0, 1], the truth, before any normalisation.
        labels: B, for the class mean; null: there is none.
        public_images: N C H W in [0, 1], none of them true ones: the mean of them is the guess of
            one who learned nothing, and an image is identified among them and the true ones; null:
            the guess is grey.
        public_labels: N; null: there is no class mean.
        nothing: what the attack made of an update of zeros, the control of its prior; null: it is
            left out of the rule.
        recovered_psnr: least PSNR, in dB, of an image that counts as recovered.

    Returns:
        B dictionaries in the order of ``images``.  ``matched`` is the place in ``found.images``, or
        -1; ``psnr`` (dB), ``ssim``, ``mse``, ``cw_ssim``; ``psnr_mean_image``,
        ``psnr_class_mean``, ``psnr_nearest_public`` and ``psnr_noise_only``, the same of the
        controls; ``identified``, ``recovered`` and ``recovered_convincing``, 0 or 1, as in
        docs/evaluation.md.

    Raises:
        InputError: if the shapes disagree.

    Examples:
        >>> truth = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> found = Reconstruction(truth.flip(0), None, torch.zeros(2), {})
        >>> rows = score(found, truth)
        >>> [(row["matched"], row["recovered_convincing"]) for row in rows]
        [(1, 1), (0, 1)]
    """
    images = images.detach().cpu().float()
    public = images[:0] if public_images is None else public_images.detach().cpu().float()
    for name, given in {"found": found.images, "public_images": public}.items():
        if given.shape[1:] != images.shape[1:]:
            raise InputError(
                f"{name} must be images of {tuple(images.shape[1:])} like the true ones, not "
                f"{tuple(given.shape[1:])}"
            )
    truth = PrivateBatch(
        images,
        _labels("labels", labels, len(images)),
        torch.ones(len(images), 1, *images.shape[2:], dtype=torch.bool),
        torch.arange(len(images)),
    )
    seen = found._replace(images=found.images.detach().cpu().float())
    mean_image = mean_of(public, images.shape[1:])
    rows = score_rows(seen, truth, mean_image, recovered_psnr)
    add_public(rows, truth, public, _labels("public_labels", public_labels, len(public), -2))
    places = torch.arange(len(images) + len(public))
    candidates = torch.cat([images, public])
    add_identification(rows, aligned(seen.images, images, rows), truth, places, candidates)
    if nothing is not None:
        of_nothing = shown(nothing.images.detach().cpu().float(), images, mean_image)
        add_noise_only(rows, of_nothing, images)
    mark_convincing(rows)
    return rows


def _labels(
    name: str, given: Tensor | Sequence[int] | None, count: int, unknown: int = -1
) -> Tensor:
    """Return so many labels; where they are not given, one that nothing else has."""
    labels = torch.full((count,), unknown) if given is None else torch.as_tensor(given).cpu()
    if labels.shape != (count,):
        raise InputError(f"{name} must be {count}, one for each image, not {tuple(labels.shape)}")
    return labels
