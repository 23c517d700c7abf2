"""LPIPS and DISTS with backbones from files of the user: nothing is downloaded.

The backbones are torchvision's, trained on ImageNet; the weights that people's judgements gave to
their features come with torchmetrics.  Its own modules of these metrics are not used because they
fetch the backbone from the network and take no file.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torchmetrics
import torchvision
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.files import expanded
from lightning_recon.functional import perceptual
from lightning_recon.metrics.base import Frozen, PerImageMetric
from lightning_recon.targets.base import load_weights

_NETS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
_LAYERS = {  # those whose outputs are compared: rectified, the last ones of each resolution
    "alex": (1, 4, 7, 9, 11),
    "vgg": (3, 8, 15, 22, 29),
    "squeeze": (1, 4, 7, 9, 10, 11, 12),
}
_LEAST_SIDE = {"alex": 31, "vgg": 16, "squeeze": 17}  # pixels that leave one at the deepest layer


class Backbone(nn.Module):
    """The convolutional part of a torchvision classifier, which returns several layers.

    Args:
        net: ``alex`` (AlexNet), ``vgg`` (VGG-16) or ``squeeze`` (SqueezeNet 1.1).
        weights: torchvision's file of ImageNet weights for it; layers of its head are ignored.
        metric: name of what needs it, for the message.
        pool: what stands in for max-pooling, or None.

    Raises:
        InputError: if the file is missing (the message says where it comes from) or does not fit.
    """

    def __init__(
        self,
        net: str,
        weights: str,
        metric: str,
        pool: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if net not in _NETS:
            raise InputError(f"{metric} has no net {net!r}; choose one of {', '.join(_NETS)}")
        if not expanded(weights).is_file():
            raise InputError(f"{metric} finds {_missing(net, expanded(weights))}")
        self.net = net
        self.pool = pool
        with torch.device("meta"):  # neither memory nor time for weights that are replaced
            classifier = torchvision.models.get_model(_NETS[net], weights=None)
        self.features = classifier.features.to_empty(device="cpu")
        load_weights(self, weights)

    def load_state_dict(self, state_dict: Mapping[str, Any], *options: Any, **more: Any) -> Any:
        """Take the layers of the backbone from a classifier's, and leave its head."""
        kept = {name: t for name, t in state_dict.items() if name.startswith("features.")}
        return super().load_state_dict(kept, *options, **more)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the compared layers' outputs, B C h w each, of B 3 H W normalised images."""
        outputs = []
        x = images
        for place, layer in enumerate(self.features[: _LAYERS[self.net][-1] + 1]):
            pools = self.pool is not None and isinstance(layer, nn.MaxPool2d)
            x = self.pool(x) if pools and self.pool else layer(x)
            if place in _LAYERS[self.net]:
                outputs.append(x)
        return outputs


class LPIPS(PerImageMetric):
    """Learned perceptual image patch similarity, version 0.1: a distance, mean over images.

    Images of one channel count as gray ones.

    Args:
        net: ``alex`` (the usual one for scores), ``vgg`` or ``squeeze``.
        weights: torchvision's file of ImageNet weights for AlexNet, VGG-16 or SqueezeNet 1.1;
            null: the one in torchvision's cache, and without it the metric is unavailable.

    Raises:
        InputError: if the file that ``weights`` names is missing, or the file does not fit.
    """

    higher_is_better = False

    importance: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self, net: Literal["alex", "vgg", "squeeze"] = "alex", weights: str | None = None
    ) -> None:
        super().__init__()
        self.net = net
        weights, self.unavailable = _find_weights(net, weights, "LPIPS")
        if self.unavailable:
            return
        self.backbone = Frozen(Backbone(net, weights, "LPIPS"))
        published = _published(f"lpips_models/{net}.pth")
        weights_of_layers = [
            published[f"lin{layer}.model.1.weight"].flatten() for layer in range(len(_LAYERS[net]))
        ]
        self.sizes = [len(values) for values in weights_of_layers]
        self.register_buffer("importance", torch.cat(weights_of_layers), persistent=False)
        # the mean and standard deviation of ImageNet, as LPIPS rounds them for images in [-1, 1]
        self.register_buffer("mean", _channels(-0.030, -0.088, -0.188), persistent=False)
        self.register_buffer("std", _channels(0.458, 0.448, 0.450), persistent=False)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in B reconstructions and their truths, B C H W in [0, 1], C 1 or 3."""
        _check_available(self)
        features = [
            self.backbone((2.0 * images - 1.0 - self.mean) / self.std)
            for images in _check(preds, target, "LPIPS", _LEAST_SIDE[self.net])
        ]
        weights = torch.split(self.importance, self.sizes)
        self.append(perceptual.lpips(features[0], features[1], weights))


class DISTS(PerImageMetric):
    """Deep image structure and texture similarity: a distance, mean over images.

    VGG-16 whose max-pooling is replaced by a smooth one.  Images are compared at their own size
    (the authors' script shrinks large ones to a shorter side of 256 pixels first); those of one
    channel count as gray ones.

    Args:
        weights: torchvision's file of ImageNet weights for VGG-16; null: the one in torchvision's
            cache, and without it the metric is unavailable.

    Raises:
        InputError: if the file that ``weights`` names is missing, or the file does not fit.
    """

    higher_is_better = False
    mean: Tensor
    std: Tensor
    texture: Tensor
    structure: Tensor

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        weights, self.unavailable = _find_weights("vgg", weights, "DISTS")
        if self.unavailable:
            return
        self.backbone = Frozen(Backbone("vgg", weights, "DISTS", pool=perceptual.l2_pool))
        published = _published("dists_models/weights.pt")
        self.register_buffer("texture", published["alpha"].flatten(), persistent=False)
        self.register_buffer("structure", published["beta"].flatten(), persistent=False)
        self.register_buffer("mean", _channels(0.485, 0.456, 0.406), persistent=False)
        self.register_buffer("std", _channels(0.229, 0.224, 0.225), persistent=False)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in B reconstructions and their truths, B C H W in [0, 1], C 1 or 3."""
        _check_available(self)
        features = [
            [images, *self.backbone((images - self.mean) / self.std)]
            for images in _check(preds, target, "DISTS", _LEAST_SIDE["vgg"])
        ]
        sizes = [layer.shape[1] for layer in features[0]]
        self.append(
            perceptual.dists(
                features[0],
                features[1],
                torch.split(self.texture, sizes),
                torch.split(self.structure, sizes),
            )
        )


def _find_weights(net: str, weights: str | None, metric: str) -> tuple[str, str | None]:
    """Return the file of a backbone's weights, and why there is none; a named file is taken."""
    if weights is not None:
        return weights, None
    if net not in _NETS:
        raise InputError(f"{metric} has no net {net!r}; choose one of {', '.join(_NETS)}")
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(_url(net)).name
    return str(cached), None if cached.is_file() else _missing(net, cached)


def _missing(net: str, path: Path) -> str:
    return (
        f"no weights of {_NETS[net]} at {path.absolute()}: download {_url(net)}, put it there, or "
        "give its path as weights"
    )


def _url(net: str) -> str:
    return str(torchvision.models.get_model_weights(_NETS[net]).DEFAULT.url)


def _check_available(metric: PerImageMetric) -> None:
    if metric.unavailable:
        raise InputError(f"{type(metric).__name__} is unavailable: {metric.unavailable}")


def _published(name: str) -> dict[str, Tensor]:
    """Return the tensors of a file that torchmetrics carries."""
    path = Path(torchmetrics.__file__).parent / "functional" / "image" / name
    if not path.is_file():
        raise InputError(
            f"torchmetrics {torchmetrics.__version__} does not carry {name}; install 1.7 or later"
        )
    tensors: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    return tensors


def _channels(*values: float) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)


def _check(preds: Tensor, target: Tensor, metric: str, least_side: int) -> list[Tensor]:
    """Return both as B 3 H W, float32."""
    if preds.ndim != 4 or preds.shape != target.shape or preds.shape[1] not in {1, 3}:
        raise ValueError(
            "preds and target must both be B C H W with C of 1 or 3; got "
            f"{tuple(preds.shape)} and {tuple(target.shape)}"
        )
    if min(preds.shape[-2:]) < least_side:
        raise InputError(
            f"{metric} needs images of at least {least_side} pixels on a side; these have "
            f"{tuple(preds.shape[-2:])}: leave it out, or choose another net"
        )
    return [images.detach().float().expand(-1, 3, -1, -1) for images in (preds, target)]
