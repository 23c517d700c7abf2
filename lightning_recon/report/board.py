"""What TensorBoard shows beside the scalars that the attack logs itself."""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from lightning_recon.audit.results import Results
from lightning_recon.audit.scores import Row

MAX_GRID_IMAGES = 8


def add_images(trainer: Trainer, client: int, truth: Tensor, shown: Tensor) -> None:
    """Add a grid of a client's first images, truth above its reconstruction.

    Args:
        trainer: with a TensorBoard logger.
        client: its number.
        truth: B C H W in [0, 1].
        shown: the reconstruction of each, or what stands in for it.
    """
    columns = torch.cat([truth, shown], dim=2)[:MAX_GRID_IMAGES]
    _experiment(trainer.logger).add_image(
        f"client_{client}/truth_above_reconstruction",
        torch.cat(list(columns), dim=2),
        trainer.global_step,
    )


def add_summary(logger: TensorBoardLogger, results: Results, rows: Sequence[Row]) -> None:
    """Add what stands at the end of a run.

    The threat model as text; histograms of PSNR over all images; a precision-recall curve of
    recovery, in which the attacker's own score ranks the images; and the row of the hparams tab,
    so that runs compare.

    Args:
        logger: of the run.
        results: of the run.
        rows: of all images.
    """
    board = _experiment(logger)
    board.add_text("threat_model", _threat_model(results))
    for name in ("psnr", "psnr_subject", "psnr_mean_image"):
        board.add_histogram(f"distribution/{name}", torch.tensor([row[name] for row in rows]))
    scored = [row for row in rows if row["matched"] >= 0]
    if scored:
        # the curve's abscissa is a threshold on the rank: 1 for the lowest, the best score
        order = torch.tensor([row["score"] for row in scored]).argsort(stable=True).argsort()
        confidence = 1 - order / len(scored)
        recovered = torch.tensor([row["recovered"] for row in scored])
        board.add_pr_curve("recovery_by_score", recovered, confidence)
    logger.log_hyperparams(_hyperparameters(results), _figures(results))


def _experiment(logger: Any) -> Any:
    return logger.experiment


def _threat_model(results: Results) -> str:
    granted = ", ".join(results.oracles) or "nothing"
    return (
        f"**{results.attack}** ({results.citation})\n\n"
        f"Threat model: {results.threat_model}.\n\n"
        f"Granted to the attacker: {granted}.\n\n"
        f"Privacy: {results.privacy.statement}.\n\n"
        f"Data: {results.data.description}."
    )


def _hyperparameters(results: Results) -> dict[str, Any]:
    # the tab shows the first five names of the alphabet: these are what runs differ in
    return {
        "attack": results.attack,
        "clip_norm": results.privacy.clip_norm or 0.0,
        "data": f"{results.data.name}, masks: {results.masks.method}",
        "experiment": results.experiment,
        "noise_std": results.privacy.noise_std or 0.0,
        "num_clients": results.num_clients,
        "seed": results.seed,
        "target": results.target,
    }


def _figures(results: Results) -> dict[str, float]:
    means = {name: results.metric(name).mean for name in ("psnr", "ssim", "cw_ssim")}
    others = {
        "psnr_worst": results.metric("psnr").worst,
        "recall": results.recall,
        "precision": results.precision,
    }
    figures = means | others
    return {f"hp/{name}": value for name, value in figures.items() if value is not None}
