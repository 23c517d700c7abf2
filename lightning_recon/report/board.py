"""What loggers get beside the scalars that the attack logs itself, of a run's first process."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger
from torch import Tensor

from lightning_recon.audit.records import ClientRecord
from lightning_recon.audit.results import Results
from lightning_recon.audit.scores import Row
from lightning_recon.report.pictures import as_picture

MAX_GRID_IMAGES = 8
_LOGGED = ("psnr", "ssim", "cw_ssim", "psnr_subject")


def add_images(
    loggers: Sequence[Logger], client: int, truth: Tensor, shown: Tensor, step: int
) -> None:
    """Add a grid of a client's first images, truth above its reconstruction.

    TensorBoard, MLflow and loggers with ``log_image``, as wandb's, show pictures; others do not.

    Args:
        loggers: of the run.
        client: its number.
        truth: B C H W in [0, 1].
        shown: the reconstruction of each, or what stands in for it.
        step: of the run.
    """
    columns = torch.cat([truth, shown], dim=2)[:MAX_GRID_IMAGES]
    grid = torch.cat(list(columns), dim=2).nan_to_num()  # black where nothing was recovered
    name = f"pictures/client_{client}_truth_above_reconstruction"
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            _experiment(logger).add_image(name, grid, step)
        elif isinstance(logger, MLFlowLogger):
            _experiment(logger).log_image(logger.run_id, as_picture(grid), key=name, step=step)
        elif "log_image" in dir(type(logger)):
            _image_logger(logger).log_image(key=name, images=[as_picture(grid)], step=step)


def add_figures(loggers: Sequence[Logger], figures: Mapping[str, float], step: int) -> None:
    """Add figures at the step that they are of; what Lightning logs waits for the next one."""
    for logger in loggers:
        logger.log_metrics(dict(figures), step=step)


def add_scores(loggers: Sequence[Logger], record: ClientRecord) -> None:
    """Add the scores of a client, means over its images; the step is its number."""
    if rows := record.rows:
        means = {f"client/{name}": sum(row[name] for row in rows) / len(rows) for name in _LOGGED}
        add_figures(loggers, means, record.client)


def add_summary(loggers: Sequence[Logger], results: Results, rows: Sequence[Row]) -> None:
    """Add what stands at the end of a run.

    The settings and figures by which runs compare, in TensorBoard as the row of the hparams tab;
    there also the threat model as text, and a precision-recall curve of recovery, in which the
    attacker's own score ranks the images.  How figures spread over the images the report shows.

    Args:
        loggers: of the run.
        results: of the run.
        rows: of all images.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            _add_to_tensorboard(logger, results, rows)
        else:
            logger.log_hyperparams(_hyperparameters(results))
            logger.log_metrics(_figures(results), step=0)


def _add_to_tensorboard(logger: TensorBoardLogger, results: Results, rows: Sequence[Row]) -> None:
    board = _experiment(logger)
    board.add_text("threat_model", _threat_model(results))
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


def _image_logger(logger: Any) -> Any:
    return logger


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
