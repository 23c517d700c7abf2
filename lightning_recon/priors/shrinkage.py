"""Local shrinkage: what a pixel is, given what surrounds it, learned on public images.

Wiener's filter treats all places of an image alike.  Images are not: there are flat parts, edges,
and black surroundings of a subject.  Here every pixel of the improved image is a weighted sum of
that pixel in the given image and in copies of it blurred by Gaussians of several widths; the
weights come from a small network that sees the energies around the pixel, band by band and at
several sizes, its colour and its place.  A weight of 1 for the unblurred copy alone changes
nothing, weights of 0 blacken the pixel (a blind soft mask of the subject), and what lies between
shrinks each band as its energy deserves, as local Wiener filters do (Mihcak, Kozintsev,
Ramchandran & Moulin, "Low-complexity image denoising based on statistical modeling of wavelet
coefficients", IEEE Signal Processing Letters 6, 1999), but with a rule that is learned.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.targets.base import seeded

_WIDTHS = (1.0, 2.0, 4.0, 8.0)  # of the blurred copies, standard deviations in pixels
_BAND_WINDOWS = ((1.0,), (2.0, 4.0), (4.0, 8.0), (8.0,))  # of each band's energy
_ENERGY_WINDOWS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)  # of the image's
_FLOOR = 1e-7  # of an energy, so that it has a logarithm
_NUM_FEATURES = 2 * (sum(map(len, _BAND_WINDOWS)) + len(_ENERGY_WINDOWS)) + 3  # and 3 a channel
_CONTEXT_WINDOWS = (0.0, 1.0, 3.0, 8.0)  # of the energies of an earlier estimate
_EDGE_WINDOWS = (1.0, 3.0)
_NUM_CONTEXT_FEATURES = 2 * len(_CONTEXT_WINDOWS) + len(_EDGE_WINDOWS)  # and 1 a channel
_NUM_HIDDEN = 48
_NUM_PIXELS = 2**18  # that it learns from, of all images together
_BATCH = 4096
_LEARNING_RATE = 2e-3

MIN_IMAGES = 8
"""Fewer images teach nothing that holds for others."""


def blur(images: Tensor, std: float) -> Tensor:
    """Return the images behind a Gaussian, B C H W; beyond the border the edge goes on.

    Args:
        images: B C H W.
        std: in pixels; 0 changes nothing.  From 4 on on a grid of every fourth pixel.
    """
    if std == 0:
        return images
    if std >= 4 and min(images.shape[2:]) >= 4:
        small = F.avg_pool2d(images, 4, ceil_mode=True, count_include_pad=False)
        return F.interpolate(blur(small, std / 4), size=images.shape[2:], mode="bilinear")
    reach = int(3 * std + 0.5)
    place = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = (-0.5 * (place / std).square()).exp()
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    horizontal = F.conv2d(padded, kernel, groups=images.shape[1])
    return F.conv2d(horizontal, kernel.transpose(2, 3), groups=images.shape[1])


def _energies(colours: Tensor) -> Tensor:
    """Return the energy of luminance and that of the chrominances, 0 of grey, B 2 H W."""
    squares = colours.square()
    return torch.stack([squares[:, 0], squares[:, 1:].sum(1)], dim=1)


Example = tuple[Tensor, Tensor | None, Tensor]
"""C H W each: an image with errors, an earlier estimate of it or None, the image without errors."""


class LocalShrinkage(nn.Module):
    """Improves images by what it has learned of their errors.

    Args:
        opponent: C C, orthonormal: rows turn red, green and blue into luminance and two
            chrominances; 1 1 for grey images.
        is_second: whether it is told an earlier estimate of the same images, too.
        seed: of its first weights and of the pixels that it learns from.
    """

    opponent: Tensor
    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, opponent: Tensor, is_second: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.channels = len(opponent)
        num_features = _NUM_FEATURES + 3 * self.channels
        num_features += _NUM_CONTEXT_FEATURES + self.channels if is_second else 0
        self.seed = seed
        with seeded(seed):
            self.network = nn.Sequential(
                nn.Linear(num_features, _NUM_HIDDEN),
                nn.GELU(),
                nn.Linear(_NUM_HIDDEN, _NUM_HIDDEN),
                nn.GELU(),
                nn.Linear(_NUM_HIDDEN, 2 * (1 + len(_WIDTHS))),
            )
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.register_buffer("opponent", opponent.clone())
        self.register_buffer("feature_mean", torch.zeros(num_features))
        self.register_buffer("feature_std", torch.ones(num_features))
        self.to(opponent)

    def _describe(self, images: Tensor, earlier: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return features, B F H W, and the copies in opponent colours, B K C H W."""
        colours = torch.einsum("oc,bchw->bohw", self.opponent, images)
        copies = [colours, *(blur(colours, width) for width in _WIDTHS)]
        features = []
        for finer, coarser, windows in zip(copies, copies[1:], _BAND_WINDOWS, strict=False):
            energy = _energies(finer - coarser)
            features += [(blur(energy, window) + _FLOOR).log() for window in windows]
        energy = _energies(colours)
        features += [(blur(energy, window) + _FLOOR).log() for window in _ENERGY_WINDOWS]
        features += [copies[0], copies[1], copies[3]]
        height, width = images.shape[2:]
        down = torch.linspace(-1, 1, height).to(images)[:, None].expand(height, width)
        right = torch.linspace(-1, 1, width).to(images).expand(height, width)
        place = torch.stack([down, right, down.square() + right.square()])
        features.append(place.expand(len(images), -1, -1, -1))
        if earlier is not None:
            colours = torch.einsum("oc,bchw->bohw", self.opponent, earlier)
            energy = _energies(colours)
            features += [(blur(energy, window) + _FLOOR).log() for window in _CONTEXT_WINDOWS]
            edges = (colours - blur(colours, 1.0))[:, :1].square()
            features += [(blur(edges, window) + _FLOOR).log() for window in _EDGE_WINDOWS]
            features.append(colours)
        return torch.cat(features, dim=1), torch.stack(copies, dim=1)

    def _combine(self, features: Tensor, copies: Tensor) -> Tensor:
        """Return opponent colours, P C, from features, P F, and copies, P K C."""
        weights = self.network((features - self.feature_mean) / self.feature_std)
        weights = weights.view(len(features), -1, 2)[..., [0, 1, 1][: self.channels]]
        result: Tensor = copies[:, 0] + (weights * copies).sum(1)
        return result

    def fit(self, examples: Iterable[Example], num_examples: int, steps: int) -> None:
        """Learn from images with errors and the same images without.

        An image's squared error counts in units of the error that it has, so that all images
        count alike in decibels.

        Args:
            examples: images with errors, earlier estimates, and the images without errors.
            num_examples: how many there are.
            steps: of Adam, each on a few thousand pixels.
        """
        generator = torch.Generator().manual_seed(self.seed)
        features, copies, wanted, weights = [], [], [], []
        with torch.no_grad():
            for degraded, earlier, clean in examples:
                found, copied = self._describe(
                    degraded[None], None if earlier is None else earlier[None]
                )
                order = torch.randperm(clean[0].numel(), generator=generator)
                pixels = order[: max(1, _NUM_PIXELS // num_examples)].to(clean.device)
                features.append(found[0].flatten(1)[:, pixels].T)
                copies.append(copied[0].flatten(2)[:, :, pixels].permute(2, 0, 1))
                wanted.append((self.opponent @ clean.flatten(1)[:, pixels]).T)
                error = (degraded - clean).square().mean().clamp_min(1e-12)
                weights.append((1 / error).expand(len(pixels)))
        data = [torch.cat(parts) for parts in (features, copies, wanted, weights)]
        self.feature_mean.copy_(data[0].mean(0))
        self.feature_std.copy_(data[0].std(0) + 1e-3)
        optimizer = torch.optim.Adam(self.network.parameters(), lr=_LEARNING_RATE)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        parameters = list(self.network.parameters())
        with torch.enable_grad():
            for _ in range(steps):
                chosen = torch.randint(len(data[0]), (_BATCH,), generator=generator)
                described, copied, colours, weight = (part[chosen] for part in data)
                error = (self._combine(described, copied) - colours).square().mean(1)
                gradients = torch.autograd.grad((weight * error).mean(), parameters)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                scheduler.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def forward(self, images: Tensor, earlier: Tensor | None = None) -> Tensor:
        """Return the improved images, B C H W.

        Args:
            images: B C H W.
            earlier: B C H W: the earlier estimate, for one that ``is_second``.
        """
        improved = torch.empty_like(images)
        for place in range(len(images)):  # one at a time bounds the memory
            part = slice(place, place + 1)
            features, copies = self._describe(
                images[part], None if earlier is None else earlier[part]
            )
            colours = self._combine(features[0].flatten(1).T, copies[0].flatten(2).permute(2, 0, 1))
            improved[place] = (self.opponent.T @ colours.T).view(images.shape[1:])
        return improved
