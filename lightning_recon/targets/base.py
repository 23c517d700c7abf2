"""The models under attack."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recon.captures.loading import load_torch
from lightning_recon.errors import InputError
from lightning_recon.files import expanded
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.randomness import derive_seed
from lightning_recon.targets.names import misfit, under_wanted_names, unwrapped, weights_in

_REFUSALS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a module raises where it does not take what it is given."""


class Target(nn.Module):
    """A classifier that a federation trains: B C H W in [0, 1] -> B num_classes logits.

    Args:
        num_classes: length of the output.
    """

    has_penalty: bool = False
    """Whether ``forward(images, with_penalty=True)`` gives, beside the logits, a scalar that
    clients add to the loss."""
    is_handed_over: bool = False
    """Whether somebody else made the model, and left its layers in modes of their choice."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise InputError(f"{type(self).__name__}: num_classes must be at least 2")
        self.name = type(self).__name__
        """As results print it."""
        self.num_classes = num_classes

    def check_input(self, image_shape: tuple[int, int, int]) -> None:
        """Make sure that images of this shape give logits.

        Args:
            image_shape: C, H, W.

        Raises:
            InputError: if they do not.
        """
        try:
            with left_as_found(self, training=False, keeps_buffers=True):
                output = self._try(2, image_shape)
        except _REFUSALS as error:
            raise InputError(
                f"the target {self.name} does not take images of {_size(image_shape)}: "
                f"{_first_line(error)}; take images of another size or number of channels "
                "(docs/data.md), or a target that is made for these"
            ) from error
        self._check_logits(output, 2)

    def check_batch(self, image_shape: tuple[int, int, int], num_samples: int) -> None:
        """Make sure that a batch gives logits in the mode in which the target is.

        Args:
            image_shape: C, H, W.
            num_samples: of the batch; more than two are tried as two.

        Raises:
            InputError: if it does not, above all a single image where batch norm needs several.
        """
        num_samples = min(num_samples, 2)
        try:
            with left_as_found(self, keeps_buffers=True):
                output = self._try(num_samples, image_shape)
        except _REFUSALS as error:
            batch = "a single image" if num_samples == 1 else "images"
            larger = ", or take larger images or batches" if num_samples == 1 else ""
            raise InputError(
                f"the target {self.name} cannot be trained on {batch} of {_size(image_shape)}: "
                f"{_first_line(error)}; set the client's mode to eval{larger}"
            ) from error
        self._check_logits(output, num_samples, "in the client's mode ")

    def _try(self, num_samples: int, image_shape: tuple[int, int, int]) -> Any:
        """Return what grey images give; the global random state stays as it was."""
        parameter = next(self.parameters())
        kind = {"device": parameter.device, "dtype": parameter.dtype}
        images = torch.zeros(num_samples, *image_shape, **kind)  # type: ignore[call-overload]
        devices = [parameter.device] if parameter.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            return self(images)

    def _check_logits(self, output: Any, num_samples: int, when: str = "") -> None:
        """Raise InputError unless an output is of the shape of logits."""
        if not isinstance(output, Tensor):
            raise InputError(
                f"the target {self.name} {when}gives a {type(output).__name__}, not a tensor of "
                "logits; let its forward return the logits alone (docs/python.md)"
            )
        if tuple(output.shape) == (num_samples, self.num_classes):
            return
        shape = "x".join(str(length) for length in output.shape) or "a number"
        is_flat = output.ndim == 2 and len(output) == num_samples
        remedy = f"set num_classes to {output.shape[1]}" if is_flat else "flatten its output"
        raise InputError(
            f"the target {self.name} {when}gives {shape} for a batch of {num_samples}, not "
            f"{num_samples}x{self.num_classes}, the logits of num_classes; {remedy}, or change the "
            "model's last layer"
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within this context random weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "target"))
        yield


def load_weights(model: nn.Module, path: str | None, rename: Callable[[str], str] = str) -> None:
    """Fill ``model`` from a file of tensors by name.

    Takes a plain ``state_dict`` and checkpoints that keep one under a key (``state_dict``,
    ``model``, ``model_state_dict``, ``net``), with the names that DataParallel, torch.compile,
    Opacus, FSDP and Lightning write: see :func:`.under_wanted_names`.

    Args:
        model: what is filled.
        path: the file, with ``~`` or variables as people write them; null: the model stays as it
            is.
        rename: turns a name in the file into the model's own.

    Raises:
        InputError: if the file is missing, is no file of tensors, or does not fit the model.
    """
    if path is None:
        return
    file = expanded(path)
    state = load_torch(file, "weights file")
    found = weights_in(state)
    if found is None:
        raise InputError(f"{file} holds no weights by name; save the model's state_dict() to it")
    wanted = model.state_dict()
    forms = [  # the authors' names may stand behind those of a wrapper
        {rename(form(name)): tensor for name, tensor in found.items()} for form in (str, unwrapped)
    ]
    found = max(forms, key=lambda named: len(named.keys() & wanted.keys()))
    found = under_wanted_names(found, wanted.keys())
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        said = str(error)  # of several lines by torch, of one by a model that says it better
        told = misfit(found, wanted) if "\n" in said else said
        reason = told or _first_line(error)
        raise InputError(f"the weights in {file} do not fit the model: {reason}") from error


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(length) for length in shape)


def _first_line(error: Exception) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # torch writes in bold
    return (text.splitlines() or [type(error).__name__])[0][:200]
