"""The models under attack."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.randomness import derive_seed


class Target(nn.Module):
    """A classifier that a federation trains: B C H W in [0, 1] -> B num_classes logits.

    Args:
        num_classes: length of the output.
    """

    has_penalty: bool = False
    """Whether ``forward(images, with_penalty=True)`` gives, beside the logits, a scalar that
    clients add to the loss."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise InputError(f"{type(self).__name__}: num_classes must be at least 2")
        self.name = type(self).__name__
        """As results print it."""
        self.num_classes = num_classes

    def check_input(self, image_shape: tuple[int, int, int]) -> None:
        """Make sure that images of this shape pass through.

        Args:
            image_shape: C, H, W.

        Raises:
            InputError: if they do not.
        """
        parameter = next(self.parameters())
        images = torch.zeros(2, *image_shape, device=parameter.device, dtype=parameter.dtype)
        try:
            with left_as_found(self, training=False, keeps_buffers=True), torch.no_grad():
                self(images)
        except (RuntimeError, AssertionError, ValueError) as error:
            size = "x".join(str(n) for n in image_shape)
            raise InputError(
                f"the target {self.name} does not take images of {size}: {_first_line(error)}; set "
                "channels or image_size in the data, or choose another target"
            ) from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within this context random weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "target"))
        yield


def load_weights(model: nn.Module, path: str | None, rename: Callable[[str], str] = str) -> None:
    """Fill ``model`` from a file of tensors by name.

    Takes a plain ``state_dict``, one under the key ``state_dict``, and names that begin with
    ``module.`` (as DataParallel writes them).

    Args:
        model: what is filled.
        path: the file; null: the model stays as it is.
        rename: turns a name in the file into the model's own.

    Raises:
        InputError: if the file is missing, is no file of tensors, or does not fit the model.
    """
    if path is None:
        return
    file = Path(path)
    if not file.is_file():
        raise InputError(f"no weights file at {file.absolute()}")
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many types for a broken file
        raise InputError(f"{file} is no readable file of weights: {_first_line(error)}") from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError(f"{file} holds no weights by name; save the model's state_dict() to it")
    state = {rename(name.removeprefix("module.")): tensor for name, tensor in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise InputError(
            f"the weights in {file} do not fit the model: {' '.join(lines[:2])[:300]}"
        ) from error


def _first_line(error: Exception) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # torch writes in bold
    return (text.splitlines() or [type(error).__name__])[0][:200]
