"""What the trainings of priors and refiners share: checkpoints, and the weights at the end."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from rich.console import Console
from torch import nn

from lightning_recon.errors import InputError
from lightning_recon.files import run_folder, write_atomically


def check_same_network(
    training: LightningModule, checkpoint: Mapping[str, Any], network: str, remedy: str
) -> None:
    """Raise InputError if a checkpoint is of another network than a training's.

    Args:
        training: that goes on with it.
        checkpoint: as Lightning loaded it.
        network: what is trained, for the message.
        remedy: what to give.
    """
    shapes = {name: tensor.shape for name, tensor in training.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}:
        raise InputError(
            f"the checkpoint holds another network than the configuration's {network}; "
            f"give {remedy}"
        )


def save_weights(
    training: LightningModule, network: nn.Module, levels: Sequence[float], before: str
) -> None:
    """Write ``weights.pth`` into the folder of the run, and print where and the last figures.

    Args:
        training: that came to its end; all processes call this.
        network: whose ``state_dict`` is written.
        levels: of the noise, at which it was validated.
        before: the logged figure beside ``psnr``, without what the network does.

    Raises:
        InputError: if the weights are not finite.
    """
    folder = run_folder(training.trainer)
    if not training.trainer.is_global_zero:
        return
    state = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise InputError("the training diverged: its weights are not finite; lower lr")
    content = io.BytesIO()
    torch.save(state, content)
    path = folder / "weights.pth"
    write_atomically(path, content.getvalue())
    console = Console(highlight=False, soft_wrap=True)
    figures = training.trainer.callback_metrics
    for level in levels:
        if f"psnr/{level:g}" in figures:
            first, last = figures[f"{before}/{level:g}"], figures[f"psnr/{level:g}"]
            console.print(f"noise {level:g}: PSNR {first:.2f} -> {last:.2f} dB")
    console.print(f"weights: {path}", markup=False)
