"""Checkpoints that are whole or not there."""

import io
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO

from lightning_recon.files import expanded, write_atomically


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and renames it.

    Lightning's own stages it in the system's temporary folder: where that is another file system,
    it is copied into its place byte by byte, and who is killed then leaves half of it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(expanded(str(path)), content.getvalue())
