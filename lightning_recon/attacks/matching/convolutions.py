"""How convolutions are computed on a CPU.

By oneDNN's kernels, or for a few small images by torch's own; compiled, with the channels last.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recon.functional.stateless import left_as_found

FEW_PRODUCTS = 2**19
"""Of a convolution, up to which oneDNN takes longer to set up than it saves.

Measured on LeNet at 32x32: torch's own kernels make an iteration 1.7 times as fast at one image
(230,000 products), 1.2 times at two, and no faster at four.
"""


def largest_convolution(payload: nn.Module, image: Tensor) -> int:
    """Return the products of the costliest convolution that one image passes; 0 without any.

    Args:
        payload: 1 C H W -> logits; it runs in evaluation mode and is not changed.
        image: 1 C H W, of any content.
    """
    sizes = [0]

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        sizes.append(output[0].numel() * layer.weight[0].numel())

    with left_as_found(payload, training=False, keeps_buffers=True) as hooks, torch.no_grad():
        hooks += [
            module.register_forward_hook(count)
            for module in payload.modules()
            if isinstance(module, nn.Conv2d)
        ]
        payload(image)
    return max(sizes)


def channels_last(payload: nn.Module) -> nn.Module:
    """Return a copy whose weights lie with their channels last.

    Measured, two cores, compiled: 1.6 times as fast on ResNet-18 at 32x32, 1.2 times at 224x224,
    1.1 times on LeNet and ConvNet; not compiled .9 times.
    """
    return copy.deepcopy(payload).to(memory_format=torch.channels_last)


@contextmanager
def without_onednn() -> Iterator[None]:
    """Within this context torch's own kernels convolve on a CPU."""
    backend: Any = torch.backends.mkldnn
    before = backend.enabled
    backend.enabled = False
    try:
        yield
    finally:
        backend.enabled = before
