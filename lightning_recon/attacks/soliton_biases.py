"""A malicious server that sets nothing but the first layer's biases, so that peeling goes through.

Shariati, 2026, after Luby, "LT codes", FOCS 2002: how many samples a row should hold is drawn from
the robust soliton distribution, and the row's bias is set to minus the quantile of its
pre-activation that as many of a batch exceed.  The weights are untouched, and every row fires for
some images, as in an honest network.

The quantile is that of public images, or of a normal distribution that needs none: for pixels
uniform and independent in [0, 1], mean .5 sum w and variance sum w^2 / 12.

Images are found and certified as :class:`~lightning_recon.attacks.ExactInversion` does it.

What differs: the certificate, see there; float32 suffices.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_recon.attacks.analytic import AnalyticAttack
from lightning_recon.attacks.exact.recovery import check_alone, recover
from lightning_recon.attacks.linear_layer import first_linear
from lightning_recon.clients import Client
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.randomness import make_generator
from lightning_recon.targets import Target


class SolitonBiases(AnalyticAttack):
    """Biases after the robust soliton distribution, and peeling with certificates.

    Args:
        target: a model whose first layer is linear and has a bias, a ReLU behind it.
        client: the clients' protocol; null: FedSGD.
        defenses: the clients' defenses, in order.
        uses_public: whether the quantiles are those of the server's public images; else no image is
            needed.
        num_samples: batch size that the biases are set for, at least 2; null: the data's.
        spike: the c of the distribution, above 0: how many rows of one sample there are at a time.
        failure: its delta in (0, 1): how often decoding may fail.
        snap: whether pixels near 8-bit levels are set to them: for pictures of 8 bits.
        seed: of all randomness.

    Raises:
        InputError: if an argument is out of its range.
    """

    threat_model = (
        "a malicious server sets the biases of the first layer, and sees one update of the client"
    )
    oracles = ("num_samples", "client")
    citation = "Shariati, 2026; Luby, FOCS 2002"

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        uses_public: bool = False,
        num_samples: int | None = None,
        spike: float = 0.05,
        failure: float = 0.1,
        snap: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(target, client, defenses, seed)
        if num_samples is not None and num_samples < 2:
            raise InputError(f"SolitonBiases: num_samples must be at least 2, not {num_samples}")
        if not spike > 0 or not 0 < failure < 1:
            raise InputError(
                "SolitonBiases: spike must be above 0 and failure in (0, 1), not "
                f"{spike} and {failure}"
            )
        self.uses_public = uses_public
        self.num_samples = num_samples
        self.spike = spike
        self.failure = failure
        self.snap = snap
        self._public: tuple[Tensor, ...] = ()  # a tuple hides it from Lightning

    def learn_public(self, images: Tensor) -> None:
        """Keep the images whose quantiles are taken.

        Raises:
            InputError: if quantiles of public images are wanted and there are fewer than two.
        """
        if self.uses_public and len(images) < 2:
            raise InputError(
                "SolitonBiases has fewer than two public images to take quantiles of; set "
                "uses_public to false, or take data with public images (num_public)"
            )
        self._public = (images,) if self.uses_public else ()

    def server_payload(self, model: Target) -> Target:
        """Return the model with other biases in its first layer.

        Raises:
            InputError: if it has no linear layer with a bias that reads the image, or mixes the
                samples of a batch.
        """
        first = first_linear(model, self.known_shape)
        check_alone(model, self.mode, type(self).__name__)
        payload = copy.deepcopy(model)
        layer = payload.get_submodule(first.prefix.removesuffix("."))
        assert isinstance(layer, nn.Linear)
        size = max(2, self.num_samples or self.spec.max_batch_size)
        odds = robust_soliton(size, self.spike, self.failure)
        generator = make_generator(self.seed, "soliton")
        degrees = 1 + torch.multinomial(odds, layer.out_features, True, generator=generator)
        share = (1 - degrees.double() / size).to(layer.weight.device)
        shift, scale = (part.flatten().double() for part in first.reads)
        weight = layer.weight.double()
        if self._public:
            seen = shift + scale * self._public[0].double().flatten(1)
            level = torch.stack(
                [row.quantile(at) for row, at in zip(weight @ seen.T, share, strict=True)]
            )
        else:
            weight = weight * scale
            spread = (weight.square().sum(1) / 12).sqrt()
            normal = torch.special.ndtri(share.clamp_min(0.5 / size))
            level = layer.weight.double() @ shift + weight.sum(1) / 2 + normal * spread
        with torch.no_grad():
            layer.bias.copy_(-level)
        return payload

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Return the images, marked, the surest first.

        Raises:
            InputError: if the batch is larger than the layer's rank allows.
        """
        return recover(observation, self.known_shape, type(self).__name__, snap=self.snap)


def robust_soliton(size: int, spike: float, failure: float) -> Tensor:
    """Return the probabilities of the degrees 1 to ``size``, float64 (Luby 2002, definition 11).

    Args:
        size: samples, at least 2.
        spike: c, above 0.
        failure: delta, in (0, 1).
    """
    degree = torch.arange(1, size + 1, dtype=torch.float64)
    ideal = 1 / (degree * (degree - 1))
    ideal[0] = 1 / size
    ripple = spike * math.log(size / failure) * math.sqrt(size)
    last = min(size, max(1, round(size / ripple)))
    extra = torch.where(degree < last, ripple / (degree * size), 0.0)
    extra[last - 1] = max(0.0, ripple * math.log(ripple / failure) / size)
    total = ideal + extra
    return total / total.sum()
