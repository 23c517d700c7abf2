"""Whether what the first linear layer behind convolutions saw of a sample was found exactly.

The test is that of :mod:`.certificate`, put to features in the place of images: the slopes that the
layers behind compute of a sample's features lie in the span of the gradient's columns, and taking
them away with the features lowers its rank, at one scale for all samples.  Of mixtures neither
holds.  Features have no levels, so that instead of half of one a hundredth of the way to any other
sample must show in the tests.  Of two classes all slopes within one linear piece of the network lie
along one line, so that a little of the others in every sample does not show: nothing is certified.
"""

import torch
from torch import Tensor, nn

from lightning_recon.attacks.analytic import Normalisation
from lightning_recon.attacks.exact.certificate import (
    CERTAIN,
    TOLD,
    MixtureNull,
    examine_all,
    misfit,
    read_spans,
)
from lightning_recon.attacks.exact.slopes import SlopeModel
from lightning_recon.attacks.linear_layer import FirstLinear

_MIXTURES = 300
_STRANGERS = 16  # features in another order, which are mixed in
_NEAR = 0.05  # share of a mixture that is another sample's, at the least
_MOVE = 0.01  # of the way to another sample, that must show


def are_certified(
    weight: Tensor,
    bias: Tensor,
    tail: nn.Sequential,
    features: Tensor,
    generator: torch.Generator,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return which samples' features are certified, B, bool.

    Args:
        weight: K F, the layer's gradient.
        bias: K, that of its bias.
        tail: from the features to the logits; the layer is its first.
        features: B F, as they were found.
        generator: of the null hypothesis, on the CPU.
        label_smoothing: of the clients' cross-entropy.
    """
    gradient = torch.cat([weight, bias[:, None]], 1).double()
    shape = (features.shape[1], 1, 1)
    reads = Normalisation(torch.zeros(shape), torch.ones(shape))
    model = SlopeModel(
        nn.Sequential(nn.Flatten(), tail), FirstLinear("1.0.", reads), shape, label_smoothing
    )
    spans = read_spans(gradient, len(features), generator)
    outputs = tail(features[:1]).shape[1]
    if outputs == 2 or spans.rank < len(features):  # the latter: two samples that look alike
        return torch.zeros(len(features), dtype=torch.bool, device=features.device)
    images = features.double()
    null, near = _mixtures(images, generator)
    tested = examine_all(spans, model, images)
    fits = tested.fits_noise
    scale = float(tested.scale[fits].median()) if int(fits.sum()) > 1 else None
    here = misfit(tested, scale)
    rate = MixtureNull(examine_all(spans, model, null)).pass_rate(here, scale)
    told = torch.stack(
        [
            (TOLD * value < misfit(examine_all(spans, model, beside), scale)).all()
            for value, beside in zip(here, near, strict=True)
        ]
    )
    return fits & told & (rate * len(images) <= CERTAIN)


def _mixtures(images: Tensor, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
    """Return mixtures of samples, M F, and of each sample those that lie beside it."""
    order = torch.rand(_STRANGERS, images.shape[1], generator=generator).argsort(1)
    chosen = torch.randint(len(images), (_STRANGERS,), generator=generator)
    pool = torch.cat([images, images[chosen].gather(1, order.to(images.device))])
    first = torch.randint(len(pool), (_MIXTURES,), generator=generator)
    other = (first + torch.randint(1, len(pool), (_MIXTURES,), generator=generator)) % len(pool)
    share = _NEAR + (1 - 2 * _NEAR) * torch.rand(_MIXTURES, 1, generator=generator).to(images)
    mixed = share * pool[first] + (1 - share) * pool[other]
    others = [torch.cat([pool[:place], pool[place + 1 :]]) for place in range(len(images))]
    return mixed, [
        image + _MOVE * (other - image) for image, other in zip(images, others, strict=True)
    ]
