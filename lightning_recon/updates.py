"""What a client owns and what it sends; no I/O."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Update = dict[str, Tensor]
"""What a client sends, by parameter name: a gradient (FedSGD) or a weight delta (FedAvg)."""
Buffers = dict[str, Tensor]
"""A model's buffers, by name: the running statistics of batch norm, and whatever else it keeps."""


class PrivateBatch(NamedTuple):
    """One client's batch: what the client owns and the auditor keeps."""

    images: Tensor
    """B C H W in [0, 1], as the client trains on them: 0 outside the subject if it uses masks."""
    labels: Tensor
    """B, int64."""
    masks: Tensor
    """B 1 H W, bool: True on the subject; all True where no masks are used."""
    indices: Tensor
    """B, int64: the images' places in the data set."""


class Columns(NamedTuple):
    """How a row of a table lies in an image: feature after feature, then zeros.

    A number takes one place, scaled to [0, 1]; a category as many as it has values, one of them 1.
    """

    sizes: tuple[int, ...]
    """Places of each feature: 1 for a number, at least 2 for a category."""
    tolerances: tuple[float, ...]
    """Of each number, how near a guess is right, in [0, 1]; 0 for a category."""


class DataSpec(NamedTuple):
    """What a server knows of the data before it has seen an update."""

    image_shape: tuple[int, int, int]
    """C, H, W."""
    num_classes: int | None
    """Of the data set; None where nobody says."""
    max_batch_size: int
    """The most images that a client holds: how much room is made.  It tells an attack to which
    ``num_samples`` is not granted nothing of one client."""
    columns: Columns | None = None
    """Of rows of a table, whose encoding every server knows; None: the images are pictures."""
