"""Tensors as they were sent, in the model that they were declared to be of."""

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from lightning_recon.detect.checking import Detection, detect
from lightning_recon.errors import InputError
from lightning_recon.targets.names import named_as


def detect_sent(
    sent: Mapping[str, Tensor],
    declared: nn.Module | None,
    reference: Mapping[str, Tensor] | None = None,
    sample: tuple[Tensor, Tensor] | None = None,
) -> Detection:
    """Return what :func:`detect` says of tensors, or of the declared model with them.

    Args:
        sent: by name, in the model's order.
        declared: the architecture; it is copied.  Null: the tensors are looked at alone.
        reference: what was sent in the round before.
        sample: images and labels, as for :func:`detect`.

    Raises:
        InputError: if the tensors lack some of the model, or as :func:`detect`.
    """
    if declared is None:
        return detect(sent, reference, sample)
    try:
        fitting = named_as(declared, sent, "the payload")
    except InputError:
        own = {tuple(part.shape) for part in declared.parameters() if part.ndim > 1}
        if not own & {tuple(part.shape) for part in sent.values()}:
            raise  # of another model altogether
        found = detect(sent, declared)
        if "undeclared-layers" not in found.statistics:
            raise
        return found
    loaded = copy.deepcopy(declared)
    loaded.load_state_dict({**loaded.state_dict(), **fitting})
    return detect(loaded, reference, sample)
