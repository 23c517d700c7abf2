"""Labels as people give them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_recon.errors import InputError

_SHOWN = 5  # labels that a message names


def given_labels(
    labels: Any, what: str, num_samples: int | None = None, num_classes: int | None = None
) -> Tensor:
    """Return the labels of a batch as a vector, B, int64.

    Args:
        labels: whole numbers of any type: a tensor, an array or a sequence.
        what: where they stand, for the message.
        num_samples: how many there are to be; null: not known.
        num_classes: below which they are to lie; null: not known.

    Raises:
        InputError: if they are no vector of whole numbers in their range, or of another length.

    Examples:
        >>> given_labels([3, 1], "sent")
        tensor([3, 1])
    """
    end = "" if num_classes is None else f" from 0 to {num_classes - 1}"
    should = f"{what}: labels must be a vector of whole numbers{end}"
    try:
        known = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{should}, not a {type(labels).__name__}") from error
    if known.ndim > 1:
        size = "x".join(map(str, known.shape))
        raise InputError(
            f"{should}, not {size} numbers; of one-hot labels give the place of the one, argmax(1)"
        )
    is_whole = not (known.is_floating_point() or known.is_complex() or known.dtype == torch.bool)
    if known.ndim != 1 or not len(known) or not is_whole:
        raise InputError(f"{should}, not {_shown(known.flatten().tolist())}")
    known = known.to(torch.int64)
    if num_classes is not None:
        _check_range(what, known, num_classes)
    if num_samples is not None and len(known) != num_samples:
        raise InputError(
            f"{what}: {len(known)} labels, but num_samples is {num_samples}; give one per sample"
        )
    return known


def _check_range(what: str, known: Tensor, num_classes: int) -> None:
    wrong = known[(known < 0) | (known >= num_classes)].tolist()
    if not wrong:
        return
    from_one = int(known.min()) >= 1 and int(known.max()) == num_classes
    hint = "; if they count from 1, subtract 1" if from_one else ""
    raise InputError(
        f"{what}: labels must be whole numbers from 0 to {num_classes - 1}, not {_shown(wrong)}, "
        f"for the target has {num_classes} classes{hint}"
    )


def _shown(numbers: Sequence[Any]) -> str:
    """Return some numbers for people, the first of many."""
    more = " ..." if len(numbers) > _SHOWN else ""
    return ", ".join(f"{number:.4g}" for number in numbers[:_SHOWN]) + more or "none"
