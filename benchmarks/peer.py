"""The peer: the package breaching 0.1.2, on the same model, images, labels and gradient.

It works on normalised pixels, so it gets the model behind a layer that undoes the normalisation;
the peer's malicious layers go in front of that.
"""

import contextlib
import copy
import io
import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recon.targets import PlainConvNet, TinyViT


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
        model: B C H W in [0, 1] -> logits.  The peer's models are in evaluation mode: with batch
            norm, give one that is, too.
        images: B C H W in [0, 1].
        labels: B.
        iterations: of one trial; null: an attack that has none.
        attack: the name of the peer's configuration.
        changes: further ``key=value`` of the peer's configuration.
        server: the peer's malicious server, which changes the model; null: an honest one.
        is_normalised: whether it works on pixels of mean 0 and variance 1, as is its default.
        knows_labels: whether it is told the labels.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        iterations: int | None = None,
        attack: str = "invertinggradients",
        changes: tuple[str, ...] = (),
        server: str | None = None,
        is_normalised: bool = True,
        knows_labels: bool = True,
    ) -> None:
        overrides = ["case=1_single_image_small", f"attack={attack}", *changes]
        if iterations is not None:
            overrides.append(f"attack.optim.max_iterations={iterations}")
            overrides.append("attack.optim.callback=1000000")
        if server is not None:
            overrides.insert(1, f"case/server={server}")
        config = _configuration(overrides)
        data = config.case.data
        data.shape = list(images.shape[1:])
        if not is_normalised:
            data.mean, data.std = [0.0] * 3, [1.0] * 3
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (data.mean, data.std))
        self._mean, self._std = mean.to(images), std.to(images)
        setup = {"dtype": torch.float, "device": images.device}
        loss = nn.CrossEntropyLoss()
        sent: Any = copy.deepcopy(model).requires_grad_(True)
        if is_normalised:
            sent = nn.Sequential(_Undo(self._mean, self._std), sent)
        secrets: dict[str, Any] = {}
        if server is not None:
            from breaching.cases.servers import construct_server

            malicious = construct_server(sent, loss, config.case, setup)
            with contextlib.redirect_stdout(io.StringIO()):
                sent = malicious.vet_model(sent).requires_grad_(True)
            secrets = malicious.secrets
        value = loss(sent((images - self._mean) / self._std), labels)
        gradients = torch.autograd.grad(value, list(sent.parameters()))
        self._run = _Run(sent, gradients, data, labels if knows_labels else None, len(images))
        self._secrets = secrets
        self._attacker: Any = _attacker(sent, loss, config.attack, setup)

    def run(self) -> tuple[Tensor, float]:
        """Return the reconstruction, R C H W in [0, 1], and the seconds of one trial."""
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            found, _ = self._attacker.reconstruct(
                self._run.payload(), self._run.shared(), self._secrets
            )
        if self._mean.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        return (found["data"].float() * self._std + self._mean).clamp(0, 1).detach(), seconds

    def watched(self, every: int) -> tuple[Tensor, float, list[tuple[float, Tensor]]]:
        """Return what :meth:`run` does, and the images on the way with their processor time.

        Args:
            every: iterations between two images that are put aside.
        """
        kept: list[tuple[float, Tensor]] = []
        make = self._attacker._init_optimizer

        def made(candidates: list[Tensor]) -> tuple[Any, Any]:
            optimizer, scheduler = make(candidates)
            advance, count = scheduler.step, 0

            def step() -> None:
                nonlocal count
                advance()
                count += 1
                if count % every == 0:
                    kept.append((time.process_time(), candidates[0].detach().clone()))

            scheduler.step = step
            return optimizer, scheduler

        self._attacker._init_optimizer = made
        found, seconds = self.run()
        images = [(at, (one * self._std + self._mean).clamp(0, 1)) for at, one in kept]
        return found, seconds, images


def _configuration(overrides: list[str]) -> Any:
    """Return the peer's configuration, without what it prints on the way."""
    import breaching

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return breaching.get_config(overrides=overrides)


def _attacker(model: nn.Module, loss: nn.Module, config: Any, setup: dict[str, Any]) -> Any:
    import breaching

    return breaching.attacks.prepare_attack(model, loss, config, setup)


class _Run:
    """What the peer's server sent and received, in its own form."""

    def __init__(
        self,
        model: nn.Module,
        gradients: tuple[Tensor, ...],
        metadata: Any,
        labels: Tensor | None,
        num_samples: int,
    ) -> None:
        self.model = model
        self.gradients = [gradient.detach() for gradient in gradients]
        self.metadata = metadata
        self.labels = labels
        self.num_samples = num_samples

    def payload(self) -> list[dict[str, Any]]:
        return [
            {
                "parameters": list(self.model.parameters()),
                "buffers": list(self.model.buffers()),
                "metadata": self.metadata,
            }
        ]

    def shared(self) -> list[dict[str, Any]]:
        metadata = {
            "num_data_points": self.num_samples,
            "labels": self.labels,
            "local_hyperparams": None,
        }
        return [{"gradients": list(self.gradients), "buffers": None, "metadata": metadata}]


class _Undo(nn.Flatten):
    """Pixels of mean 0 and variance 1 -> [0, 1].

    It flattens nothing, but where the peer looks for a model's first layer, to put its own in
    front, it looks for a Flatten among others.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        """Return images in [0, 1]."""
        return images * self.std + self.mean


def as_chain(target: PlainConvNet) -> nn.Sequential:
    """Return a target as the flat sequence of layers that the peer's R-GAP walks through."""
    return nn.Sequential(*target.features, nn.Flatten(), target.classifier)


def april(target: TinyViT, update: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Return what the peer's APRIL makes of our update, R C H W in [0, 1].

    The peer's reads timm's layout, so weights and gradient are put in that; timm's class token is
    given a gradient of zero.

    Args:
        target: plain, of square images.
        update: its gradient.
        labels: B.
    """
    config = _configuration(["case=1_single_image_small", "attack=april_analytic"])
    data = config.case.data
    side = round(target.position_embedding.shape[0] ** 0.5) * target.patch_embedding.kernel_size[0]
    data.shape, data.mean, data.std = [3, side, side], [0.0] * 3, [1.0] * 3
    weights = dict(target.named_parameters())
    setup = {"dtype": torch.float, "device": torch.device("cpu")}
    attacker = _attacker(_TimmLayout(weights), nn.CrossEntropyLoss(), config.attack, setup)
    gradients = tuple(_TimmLayout(update).parameters())
    run = _Run(_TimmLayout(weights), gradients, data, labels, len(labels))
    found, _ = attacker.reconstruct(run.payload(), run.shared(), {})
    images: Tensor = found["data"].float().clamp(0, 1)
    return images


class _TimmLayout(nn.Module):
    """The tensors of a transformer, or of its gradient, under the names that timm gives them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        positions = tensors["position_embedding"].detach()
        self.model = nn.Module()
        token = torch.zeros(1, 1, positions.shape[1])
        self.model.cls_token = nn.Parameter(token)
        self.model.pos_embed = nn.Parameter(torch.cat([token[0], positions])[None])
        weight = tensors["patch_embedding.weight"].detach()
        self.model.patch_embed = nn.Module()
        self.model.patch_embed.proj = nn.Conv2d(3, len(weight), weight.shape[2], weight.shape[2])
        self.model.patch_embed.proj.weight = nn.Parameter(weight.clone())
        bias = tensors["patch_embedding.bias"].detach()
        self.model.patch_embed.proj.bias = nn.Parameter(bias.clone())
        layers = [f"blocks.0.attention.{name}.weight" for name in ("query", "key", "value")]
        block = nn.Module()
        block.attn = nn.Module()
        block.attn.qkv = nn.Linear(len(weight), 3 * len(weight), bias=False)
        block.attn.qkv.weight = nn.Parameter(torch.cat([tensors[name].detach() for name in layers]))
        self.model.blocks = nn.ModuleList([block])
