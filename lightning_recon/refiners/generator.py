"""The U-Nets of ROG: a class-conditional generator, and a denoiser of the latent.

Yue et al., "Gradient Obfuscation Gives a False Sense of Security in Federated Learning", USENIX
Security 2023, and the released code.  The architecture is theirs at ``width`` 64, so
that their files load: ``postmodel.pth`` into :class:`ConditionalGenerator`, ``denoiser.pth`` into
:class:`UNetDenoiser`.  Conditional batch normalisation: Dumoulin, Shlens & Kudlur, "A learned
representation for artistic style", ICLR 2017.

Where we differ: the embeddings begin at 0, which makes a class that was never seen, and one that is
not known, the average one; the last convolution begins with a copy of its input.  The released code
normalises before each transposed convolution of the generator and then drops the result, so there
is no such layer here, and its tensors in a file are passed over.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.refiners.base import TrainableRefiner, check_scale, decode, encode
from lightning_recon.targets.base import load_weights

_PLACES = {
    **{f"Conv{number + 1}": f"down.{number}" for number in range(4)},
    **{f"ConvT{number + 1}": f"up.{number}" for number in range(3)},
    **{f"Conv{number + 5}": f"mix.{number}" for number in range(3)},
    "Conv8": "merge",
    "Conv9": "last",
}
"""The names of the layers in the authors' files, and ours."""


class _UNetRefiner(TrainableRefiner):
    """What both have in common: three levels down by strides, and up with skips.

    Args:
        weights: a file with the tensors, or null.
        num_classes: of the conditional normalisation on the way up; null: instance normalisation.
        width: channels of the first layer; the deepest has eight times as many.
        scale: a side of the image over a side of the latent.

    Raises:
        InputError: if a number is out of range, or the weights cannot be used.
    """

    def __init__(
        self, weights: str | None, num_classes: int | None, width: int, scale: int
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_scale(scale, name)
        if width < 1 or (num_classes is not None and num_classes < 1):
            raise InputError(
                f"{name}: width and num_classes must be at least 1, not {width} and {num_classes}"
            )
        self.scale = scale
        self.num_classes = num_classes
        self.is_conditional = num_classes is not None
        w = width
        self.down = nn.ModuleList(
            [
                nn.Conv2d(3, w, 5, padding=2, padding_mode="reflect"),
                nn.Conv2d(w, 2 * w, 3, stride=2, padding=1),
                nn.Conv2d(2 * w, 4 * w, 3, stride=2, padding=1),
                nn.Conv2d(4 * w, 8 * w, 3, stride=2, padding=1),
            ]
        )
        channels = ((8 * w, 8 * w), (12 * w, 4 * w), (6 * w, 2 * w))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(c, c, 4, stride=2, padding=1) for c, _ in channels
        )
        self.mix = nn.ModuleList(nn.Conv2d(c, out, 3, padding=1) for c, out in channels)
        self.norms = nn.ModuleList(_Norm(out, num_classes) for _, out in channels)
        self.merge = nn.Conv2d(3 * w, w, 3, padding=1)
        self.last = nn.Conv2d(w + 3, 3, 3, padding=1)
        with torch.no_grad():  # tanh(2 x - 1): about the input
            self.last.weight *= 0.1
            self.last.weight[:, w:] = 0
            for channel in range(3):
                self.last.weight[channel, w + channel, 1, 1] = 2
            self.last.bias.fill_(-1)  # type: ignore[union-attr]
        load_weights(self, weights)
        self.eval()

    def load_state_dict(self, state_dict: Mapping[str, Any], *options: Any, **more: Any) -> Any:
        """Take the tensors by our names or by the authors'."""
        tensors = state_dict.get("gen_state_dict", state_dict)  # beside their discriminator's
        named = ((_own_name(name), tensor) for name, tensor in tensors.items())
        kept = {name: tensor for name, tensor in named if name is not None}
        return super().load_state_dict(kept, *options, **more)

    def _network(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return B 3 H W in (0, 1) of B 3 H W, whose sides are multiples of 8 and at least 16."""
        if x.shape[-2] % 8 or x.shape[-1] % 8 or min(x.shape[-2:]) < 16:
            raise InputError(
                f"{type(self).__name__} takes sides that are multiples of 8 and at least 16, not "
                f"{x.shape[-2]}x{x.shape[-1]}; take images of another size, or set scale"
            )
        features, skips = x, []
        for layer in self.down:
            features = F.relu(F.instance_norm(layer(features)))
            skips.append(features)
        skips.pop()
        for up, mix, norm in zip(self.up, self.mix, self.norms, strict=True):
            features = up(features)
            if not self.is_conditional:
                features = F.instance_norm(features)
            features = F.relu(norm(mix(F.relu(features)), labels))
            features = torch.cat([features, skips.pop()], dim=1)
        features = self.merge(features)
        return (torch.tanh(self.last(torch.cat([features, x], dim=1))) + 1) / 2


class ConditionalGenerator(_UNetRefiner):
    """The class-conditional generator, on the latent at full size: branch 1 of ROG.

    The latent is brought to full size by bilinear interpolation, as there.

    Args:
        weights: a file with the tensors, as ``fit`` writes or the authors' ``postmodel.pth``;
            null: random, to be trained.
        num_classes: number of labels; the authors' has 1000, numbered as torchvision does.
        width: channels of the first layer; the authors' has 64.
        scale: a side of the image over a side of the latent; 1: the image as it is.

    Raises:
        InputError: if a number is out of range, or the weights cannot be used.
    """

    def __init__(
        self,
        weights: str | None = None,
        num_classes: int = 1000,
        width: int = 64,
        scale: int = 4,
    ) -> None:
        super().__init__(weights, num_classes, width, scale)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the refined images; without labels those of no particular class."""
        if labels is not None and len(labels):
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= (self.num_classes or 0):
                raise InputError(
                    f"ConditionalGenerator: there are labels from {low} to {high}, but its "
                    f"num_classes is {self.num_classes}"
                )
        latents = encode(images, self.scale)
        enlarged = F.interpolate(latents, size=images.shape[-2:], mode="bilinear")
        return self._network(enlarged, labels)


class UNetDenoiser(_UNetRefiner):
    """The denoiser of the latent, an unconditional U-Net: the first half of branch 2 of ROG.

    What it makes of the latent is decoded by bicubic interpolation again; ``ChainedRefiner`` puts
    :class:`SuperResolution` behind it.

    Args:
        weights: a file with the tensors, as ``fit`` writes or the authors' ``denoiser.pth``;
            null: random, to be trained.
        width: channels of the first layer; the authors' has 64.
        scale: a side of the image over a side of the latent; 1: the image as it is.

    Raises:
        InputError: if a number is out of range, or the weights cannot be used.
    """

    def __init__(self, weights: str | None = None, width: int = 64, scale: int = 4) -> None:
        super().__init__(weights, None, width, scale)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the decoded latents without noise; labels have no part in it."""
        return decode(self._network(encode(images, self.scale), None), self.scale)


class _Norm(nn.Module):
    """Batch normalisation with a gain and a bias by class, or instance normalisation.

    Args:
        num_features: channels.
        num_classes: null: instance normalisation, which has no tensors.
    """

    def __init__(self, num_features: int, num_classes: int | None) -> None:
        super().__init__()
        self.num_classes = num_classes
        if num_classes is not None:
            self.batch_norm = nn.BatchNorm2d(num_features, affine=False)
            self.gain = nn.Embedding(num_classes, num_features)
            self.bias = nn.Embedding(num_classes, num_features)
            nn.init.zeros_(self.gain.weight)
            nn.init.zeros_(self.bias.weight)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return B C H W, normalised."""
        if self.num_classes is None:
            return F.instance_norm(x)
        x = self.batch_norm(x)
        if labels is None:
            return x
        gain, bias = (table(labels)[..., None, None] for table in (self.gain, self.bias))
        result: Tensor = x * (1 + gain) + bias
        return result


def _own_name(name: str) -> str | None:
    """Our name of a tensor in the authors' files; None where there is nothing of it here."""
    name = name.removeprefix("module.")
    layer, _, rest = name.partition(".")
    place = _PLACES.get(layer)
    if place is None:
        return name
    if not rest.startswith("bn."):
        return f"{place}.{re.sub(r'^convT?(_block.0)?[.]', '', rest)}"
    if place.startswith("up"):
        return None
    rest = rest.removeprefix("bn.").replace("stored_", "batch_norm.running_")
    return f"{place.replace('mix', 'norms')}.{rest}"
