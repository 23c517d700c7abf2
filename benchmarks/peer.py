"""The peer: the package breaching 0.1.2, on the same model, image, labels and gradient."""

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn


def is_installed() -> bool:
    """Whether the peer can be imported."""
    try:
        import breaching  # noqa: F401
    except ImportError:
        return False
    return True


class Peer:
    """One of the peer's attacks, ready to run.

    Args:
        model: B C H W in [0, 1] -> logits.
        images: B C H W in [0, 1].
        labels: B.
        iterations: of one trial.
        attack: the name of the peer's configuration.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        iterations: int,
        attack: str = "invertinggradients",
    ) -> None:
        import breaching

        changes = [
            "case=1_single_image_small",
            f"attack={attack}",
            f"attack.optim.max_iterations={iterations}",
            "attack.optim.callback=1000000",
        ]
        config = breaching.get_config(overrides=changes)
        data = config.case.data
        data.shape = list(images.shape[1:])
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (data.mean, data.std))
        normalised = _Normalised(copy.deepcopy(model).requires_grad_(True), mean, std)
        setup = {"dtype": torch.float, "device": torch.device("cpu")}
        loss = nn.CrossEntropyLoss()
        candidate = (images - mean) / std
        value = loss(normalised(candidate), labels)
        gradients = torch.autograd.grad(value, list(normalised.parameters()))
        self._payload = [
            {
                "parameters": list(normalised.parameters()),
                "buffers": list(normalised.buffers()),
                "metadata": data,
            }
        ]
        self._shared = [
            {
                "gradients": [gradient.detach() for gradient in gradients],
                "buffers": None,
                "metadata": {
                    "num_data_points": len(images),
                    "labels": labels,
                    "local_hyperparams": None,
                },
            }
        ]
        self._attacker: Any = breaching.attacks.prepare_attack(
            normalised, loss, config.attack, setup
        )
        self._mean, self._std = mean, std

    def run(self) -> tuple[Tensor, float]:
        """Return the reconstruction, B C H W in [0, 1], and the seconds of one trial."""
        started = time.perf_counter()
        found, _ = self._attacker.reconstruct(self._payload, self._shared, {})
        seconds = time.perf_counter() - started
        return (found["data"] * self._std + self._mean).clamp(0, 1), seconds


class _Normalised(nn.Module):
    """A model of [0, 1] that takes what the peer optimises: pixels of mean 0 and variance 1."""

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images * self.std + self.mean)
        return logits
