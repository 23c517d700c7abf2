"""From what the update tells of the features to images, by a decoder learned on public images.

It is fitted on maps with the same errors as those that were found: where the update is obfuscated,
the public images take the private ones' place in the batch, and their gradient is obfuscated in
the same way and solved again.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recon.attacks.features.linear_decoder import LinearDecoder, fit_linear_decoder
from lightning_recon.attacks.features.linear_layers import Reading, obfuscate, solve_inputs
from lightning_recon.attacks.features.reading import Sight, read_features
from lightning_recon.attacks.features.relus import learn_foresight, residuals_of_images
from lightning_recon.attacks.matching.evidence import Evidence

_NUM_REHEARSALS = 4  # of an analytic start, on which the optimisation improves
_NUM_LOOKS = 4  # at the images, to tell which ReLUs were open
_MIN_SEEN = 64  # public images from which the usual features are learned, where there are as many
_MIN_PUBLIC = 8  # images; fewer teach nothing that holds for others
_NUM_SYNTHETIC = 64
_SPECTRUM = 1.2  # amplitudes fall with that power of the frequency, in images made up


class Decoded(NamedTuple):
    """What a linear decoder makes of the features."""

    sight: Sight
    public: Tensor
    """N C H W, that the decoder was fitted on."""
    seen: Tensor
    """N F, their features."""
    estimated: Tensor
    """N F, the same as the attack finds them."""
    decoder: LinearDecoder
    features: Tensor
    """B F, found in the update."""
    images: Tensor
    """B C H W in [0, 1], decoded from them."""

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """C, h, w of the features of an image; h and w are 1 where they have no places."""
        return self.sight.stack.map_shape

    @property
    def has_places(self) -> bool:
        """Whether the features are maps, and not vectors."""
        return math.prod(self.map_shape[1:]) > 1


@contextmanager
def reading(update: Evidence) -> Iterator[None]:
    """Run the payload in the client's mode, in full precision, and keep no graph."""
    device = next(iter(update.observed.values())).device.type
    with (
        torch.no_grad(),
        torch.autocast(device, enabled=False),
        update.client.working(update.payload),
    ):
        yield


def decode_features(
    update: Evidence,
    public: Tensor,
    seed: int,
    *,
    is_adaptive: bool,
    num_rehearsals: int,
    kernel_size: int = 5,
) -> Decoded:
    """Read every sample's features off an update, and decode them; call it within ``reading``.

    Args:
        update: what was observed.
        public: N C H W in [0, 1], images that belong to no client, at least 2.
        seed: of the rehearsals' obfuscation.
        is_adaptive: whether the obfuscation is told from the entries; else all count as exact.
        num_rehearsals: batches of public images that the decoder is fitted on.
        kernel_size: of the decoder's convolution on feature maps; odd.

    Raises:
        InputError: if the payload does not end in a linear layer.
    """
    labels = update.labels
    sight = read_features(
        update,
        public[: max(num_rehearsals * len(labels), _MIN_SEEN)],
        is_adaptive=is_adaptive,
    )
    num_public = num_rehearsals * max(len(labels), _MIN_PUBLIC)
    public, seen = public[:num_public], sight.seen[:num_public]
    estimated = seen
    if sight.solved.reading != Reading("exact", 0.0):
        estimated = _rehearse(sight, seen, num_rehearsals, seed)
        public, seen = public[: len(estimated)], seen[: len(estimated)]
    maps = estimated.view(-1, *sight.stack.map_shape)
    generator = torch.Generator().manual_seed(seed)
    decoder = fit_linear_decoder(maps, public, kernel_size, generator)
    features, images = _look_again(sight, decoder, public, seen, maps)
    return Decoded(sight, public, seen, estimated, decoder, features, images)


def analytic_start(update: Evidence, public: Tensor, seed: int, *, is_adaptive: bool) -> Tensor:
    """Return what the linear layers' gradients tell of the images, B C H W, to begin with.

    Args:
        update: what was observed; a note is left.
        public: N C H W in [0, 1], images that belong to no client, at least 2.
        seed: of the rehearsals' obfuscation.
        is_adaptive: whether the obfuscation is told from the entries; else all count as exact.
    """
    with reading(update):
        decoded = decode_features(
            update, public, seed, is_adaptive=is_adaptive, num_rehearsals=_NUM_REHEARSALS
        )
    update.notes["analytic_start"] = 1.0
    return decoded.images


def _rehearse(sight: Sight, seen: Tensor, num_rehearsals: int, seed: int) -> Tensor:
    """Return what the attack finds where public features stand in for the private ones.

    Args:
        sight: of the update.
        seen: N F, features of public images.
        num_rehearsals: batches of them, at most.
        seed: of the obfuscation.
    """
    solved, observed, moments = sight.solved, sight.gradients[0], sight.moments[0]
    generator = torch.Generator(seen.device).manual_seed(seed)
    results = []
    for batch in torch.split(seen, len(solved.residuals))[:num_rehearsals]:
        residuals = solved.residuals[: len(batch)]
        gradient = obfuscate(residuals.T @ batch, solved.reading, observed, generator)
        results.append(solve_inputs(residuals, gradient, solved.reading, *moments))
    return torch.cat(results)


def _look_again(
    sight: Sight, decoder: LinearDecoder, public: Tensor, seen: Tensor, maps: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the features, B F, and what the decoder makes of them, B C H W.

    Where the features came through ReLUs that an obfuscated gradient shows badly, the images
    tell which of these were open, and the features are solved again.

    Args:
        sight: of the update.
        decoder: fitted on ``maps``.
        public: N C H W.
        seen: N F, the features of these.
        maps: N C h w, the same as the attack estimates them.
    """
    solved, size = sight.solved, public.shape[2:]
    found = solved.features
    images = decoder.decode(found.view(-1, *maps.shape[1:]), *size).clamp(0, 1)
    if solved.reading.kind not in ("rounded", "kept") or len(sight.stack.weights) == 1:
        return found, images
    rehearsed = sight.features_of(decoder.decode(maps, *size).clamp(0, 1))
    outputs = [sight.stack.forward(sight.parameters, features)[1] for features in (rehearsed, seen)]
    foresights = [learn_foresight(*pair) for pair in zip(*outputs, strict=True)][:-1]
    for _ in range(_NUM_LOOKS):
        residuals = residuals_of_images(
            sight.stack,
            sight.parameters,
            sight.gradients,
            sight.readings,
            sight.labels,
            sight.features_of(images),
            foresights,
        )
        found = solve_inputs(residuals, sight.gradients[0], solved.reading, *sight.moments[0])
        images = decoder.decode(found.view(-1, *maps.shape[1:]), *size).clamp(0, 1)
    return found, images


def teaching_images(public: Tensor, shape: tuple[int, int, int], seed: int) -> tuple[Tensor, bool]:
    """Return images to learn from, N C H W, and whether they were made up.

    Fewer than 8 public images are replaced by noise of a natural spectrum.

    Args:
        public: N C H W in [0, 1]; may be empty.
        shape: C, H, W of the images.
        seed: of the noise.
    """
    if len(public) >= _MIN_PUBLIC:
        return public, False
    generator = torch.Generator().manual_seed(seed)
    return _natural_noise(_NUM_SYNTHETIC, shape, generator).to(public), True


def _natural_noise(
    num_images: int, shape: tuple[int, int, int], generator: torch.Generator
) -> Tensor:
    """Return random fields with a spectrum as photographs have it, mostly grey, in [0, 1]."""
    channels, height, width = shape
    down, right = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    amplitude = (down.square() + right.square()).sqrt().clamp_min(1 / max(height, width))
    white = torch.randn(num_images, channels, height, width, generator=generator)
    white[:, 1:] = white[:, :1] + 0.3 * white[:, 1:]
    fields = torch.fft.irfft2(torch.fft.rfft2(white) / amplitude**_SPECTRUM, s=(height, width))
    images: Tensor = 0.45 + 0.25 * fields / fields.std()
    return images.clamp(0, 1)
