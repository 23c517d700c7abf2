"""Objects are made from options: what they refuse is the input's fault, and gets one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentParser
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_recon.errors import InputError, input_error_in

_MISSING = re.compile(r"class_path '([\w.]+)':\s+Requirement '([^']+)' not met")
"""How Lightning's loggers say that a package is missing, and jsonargparse repeats it."""


@contextmanager
def making(name: str) -> Iterator[None]:
    """Within this context an object is made from options: what it refuses is the input's fault.

    Args:
        name: of the options, for the message.

    Raises:
        InputError: in the place of what says that arguments do not fit.
    """
    try:
        yield
    except (MisconfigurationException, TypeError, ValueError) as error:
        if input_error_in(error):
            raise
        if missing := re.search(_MISSING, str(error)):
            raise InputError(f"{missing[1]} needs a package: pip install '{missing[2]}'") from error
        raise InputError(f"{name}: {error}") from error


def check_optimizers(parser: ArgumentParser) -> None:
    """Have a parser look at optimizers too, which attacks make later, one for each client."""
    for made in (Optimizer, LRScheduler):
        parser.add_instantiator(_make, made)


def _make(class_type: type[Any], *args: Any, **kwargs: Any) -> Any:
    with making(class_type.__name__):
        return class_type(*args, **kwargs)
