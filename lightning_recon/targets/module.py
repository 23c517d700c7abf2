"""Any classifier at all: the federation's own module as it is."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_recon.errors import InputError
from lightning_recon.targets.base import Target, load_weights, seeded

_WRAPPED = {"DataParallel": "module", "DistributedDataParallel": "module"}
_WRAPPED |= {"GradSampleModule": "_module", "OptimizedModule": "_orig_mod"}
"""By the name of a class around a model: where the model is."""


class ModuleTarget(Target):
    """Any ``torch.nn.Module`` that gives B num_classes logits, under its own parameters' names.

    Layers, parameters and buffers of the module are the target's, so that an update speaks of
    ``conv1.weight`` as the federation does.  A parameter that requires no gradient is not trained,
    and no part of an update: it becomes a buffer, unless none requires one.

    In a configuration ``module`` is a class path with ``init_args``.  To name a class imports its
    module, which runs that module's code.

    Args:
        module: what makes the module, such as its class; random weights depend on ``seed`` alone.
            From Python it may be a module: it is copied with its weights, and stays as it is.
        num_classes: length of the output.
        mean: by which the images in [0, 1] are normalised before the module sees them, a number
            or one for each channel; null: 0.
        std: by which they are divided then, alike; null: 1.
        weights: a file with the module's tensors, or null for those that it was made with.
        seed: of the random weights.

    Raises:
        InputError: if the module cannot be made or used, or an argument is out of its range.
    """

    _module: nn.Module
    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        module: Callable[[], nn.Module],
        num_classes: int,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        weights: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes)
        made = _made(module, seed)
        self.name = type(made).__name__
        load_weights(made, weights)
        _set_apart_untrained(made)
        self._take_over(made)
        self.training = made.training
        self.is_handed_over = isinstance(module, nn.Module)
        self.is_normalised = mean is not None or std is not None
        parameter = next(made.parameters())
        for name, values in zip(("_mean", "_std"), _normalisation(mean, std), strict=True):
            if self.is_normalised:
                self.register_buffer(name, values.to(parameter), persistent=False)

    def _take_over(self, module: nn.Module) -> None:
        """Hold all that a module holds: both have the same registries from now on."""
        for name in [*module._parameters, *module._buffers, *module._modules]:
            if name in ("_mean", "_std", "_module") or hasattr(self, name):
                raise InputError(
                    f"ModuleTarget: a part of {self.name} is named {name}, which a target needs "
                    "for itself; rename it"
                )
        for registry in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            object.__setattr__(self, registry, getattr(module, registry))
        object.__setattr__(self, "_module", module)  # no part of the target: its parts are

    def check_input(self, image_shape: tuple[int, int, int]) -> None:
        """Make sure that images of this shape give logits.

        Args:
            image_shape: C, H, W.

        Raises:
            InputError: if they do not, or ``mean`` and ``std`` are of other channels.
        """
        if self.is_normalised and len(self._mean) not in (1, image_shape[0]):
            raise InputError(
                f"ModuleTarget: mean and std are of {len(self._mean)} channels, but the images "
                f"have {image_shape[0]}; give one number, or one for each channel"
            )
        super().check_input(image_shape)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B C H W images in [0, 1]."""
        if self.is_normalised:
            images = (images - self._mean) / self._std
        if self._module.training != self.training:  # a forward may ask for it
            self._module.training = self.training
        logits: Tensor = self._module(images)
        return logits


def _made(module: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a module of one's own."""
    name = _name_of(module)
    try:
        with seeded(seed):
            made = _copied(module) if isinstance(module, nn.Module) else module()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"ModuleTarget: {name} cannot be made or copied: {' '.join(str(error).split())}; see "
            "module and its init_args"
        ) from error
    if not isinstance(made, nn.Module):
        raise InputError(
            f"ModuleTarget: module must be a torch.nn.Module or what makes one, but {name} gave a "
            f"{type(made).__name__}"
        )
    parameters = list(made.parameters())
    if not parameters:
        raise InputError(f"ModuleTarget: {name} has no parameters; there is nothing to train")
    if any(is_lazy(parameter) for parameter in parameters):
        raise InputError(
            f"ModuleTarget: {name} has lazy layers, whose shapes the first images decide; run it "
            "on images once before, or give the layers their sizes"
        )
    return made


def _name_of(module: Any) -> str:
    """Return the name of what makes a module; of a class with arguments its own."""
    if isinstance(module, partial):
        classes = [part for part in (module.func, *module.args) if isinstance(part, type)]
        module = classes[0] if classes else module.func
    return getattr(module, "__name__", type(module).__name__)


def _copied(module: nn.Module) -> nn.Module:
    """Return a copy of a module, without what DataParallel or torch.compile put around it."""
    while inner := _WRAPPED.get(type(module).__name__):
        module = getattr(module, inner)
    return copy.deepcopy(module)


def _set_apart_untrained(module: nn.Module) -> None:
    """Make buffers of the parameters that are not trained, unless none is."""
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and not parameter.requires_grad:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach())


def _normalisation(
    mean: float | Sequence[float] | None, std: float | Sequence[float] | None
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, 1 1 1 or C 1 1."""
    means = [mean] if isinstance(mean, int | float) else list(mean or [0.0])
    stds = [std] if isinstance(std, int | float) else list(std or [1.0])
    if 1 not in (len(means), len(stds)) and len(means) != len(stds):
        raise InputError(
            f"ModuleTarget: mean holds {len(means)} numbers and std {len(stds)}; give as many"
        )
    if not all(math.isfinite(number) for number in means) or not all(
        0 < number < math.inf for number in stds
    ):
        raise InputError(
            f"ModuleTarget: mean must hold numbers and std numbers above 0, not {means} and {stds}"
        )
    size = max(len(means), len(stds))
    first, second = (torch.tensor(numbers).repeat(size)[:size] for numbers in (means, stds))
    return first.reshape(-1, 1, 1), second.reshape(-1, 1, 1)
