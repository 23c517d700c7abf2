"""A network whose ReLUs and max-pools have no kinks, while images are sought.

A ReLU that is shut and a place that did not win its pool pass no gradient: what an image would have
to become is not seen from where it is.  At a temperature T, in units of the standard deviation of
what a layer sees, a ReLU is T log(1 + exp(x / T)) and a pool T log(sum(exp(x / T))).  Both tend to
the network's own as T falls to 0, and so do their derivatives, which gradient matching needs as
well: it begins on an objective with few valleys, and ends on its own.  Such graduated
non-convexity: Blake & Zisserman, "Visual Reconstruction", 1987.

Soft values are too large, by T log(4) where all four places of a pool are alike, and this adds up
from layer to layer: at the true images of a small network with three of each, features are wrong by
67 standard deviations at T = .6.  So values may stay the network's own, and derivatives alone be
those of the soft functions, as those of a straight-through estimator are (Bengio, Léonard &
Courville, arXiv:1308.3432): features of the true images are then exact at every T.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LEAST = 1e-12  # temperature in a layer that sees one number everywhere


class Softened(TorchFunctionMode):
    """Within this context ReLUs and max-pools of images are soft.

    Pools that are dilated, round up or return places stay as they are, as do ReLUs that write over
    their input by ``F.relu_``, and other kinks.

    Args:
        temperature: in standard deviations of what a layer sees, at least 0; 0: nothing changes.
        soft_values: whether the values are soft as well as all derivatives.

    Examples:
        >>> import torch.nn.functional as F
        >>> with Softened(0.1):
        ...     soft = F.relu(torch.tensor([-1.0, 0.0, 1.0]))
        >>> [round(value, 2) for value in soft.tolist()]
        [0.0, 0.06, 1.0]
    """

    def __init__(self, temperature: float, soft_values: bool = True) -> None:
        super().__init__()
        self.temperature = temperature
        self.soft_values = soft_values

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch, or what is soft in its stead."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        hard: Any = None
        soft: Tensor | None = None
        if self.temperature > 0 and name == "relu":
            x = args[0] if args else kwargs["input"]
            hard, soft = torch.relu(x), _soft_relu(x, self.temperature)
        elif self.temperature > 0 and name == "max_pool2d":
            hard, soft = func(*args, **kwargs), _soft_max_pool(self.temperature, *args, **kwargs)
        if soft is None:
            return func(*args, **kwargs) if hard is None else hard
        return soft if self.soft_values else soft + (hard - soft).detach()


def _soft_relu(x: Tensor, temperature: float) -> Tensor:
    width = _width(x, temperature)
    return width * F.softplus(x / width)


def _soft_max_pool(
    temperature: float,
    maps: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """Return the soft pool, B C h w; None if there is none of this kind."""
    if ceil_mode or return_indices or _pair(dilation) != (1, 1) or maps.ndim != 4:
        return None
    (height, width), (down, right) = _pair(kernel_size), _pair(stride or kernel_size)
    above, beside = _pair(padding)
    unit = _width(maps, temperature)
    padded = maps / unit
    if above or beside:
        padded = F.pad(padded, (beside, beside, above, above), value=-torch.inf)
    last = (padded.shape[2] - height) // down * down, (padded.shape[3] - width) // right * right
    places = [  # and no unfold, which vmap takes one image at a time
        padded[:, :, y : y + last[0] + 1 : down, x : x + last[1] + 1 : right]
        for y in range(height)
        for x in range(width)
    ]
    return unit * torch.stack(places).logsumexp(0)


def _width(x: Tensor, temperature: float) -> Tensor:
    return (temperature * x.detach().std(correction=0)).clamp_min(_LEAST)


def _pair(value: Any) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])
