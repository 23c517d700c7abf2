"""PRECODE: a variational bottleneck in front of a target's classifier, as a defense.

Scheliga, Mäder, Seeland, "PRECODE - A Generic Model Extension to Prevent Deep Gradient Leakage",
WACV 2022.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.targets.base import Target, seeded
from lightning_recon.targets.representation import represent, split_classifier


class VariationalBottleneck(Target):
    """A target whose representation passes through a variational bottleneck, as in PRECODE.

    A linear encoder gives the mean mu and the standard deviation sigma = softplus(s) of K latent
    features; z = mu + sigma * noise is decoded linearly to a representation of the former size,
    which the classifier reads.  The client's loss grows by beta * KL(N(mu, sigma^2) || N(0, 1)),
    in bits, summed over the features and averaged over the samples.

    No formal guarantee: gradients of the layers in front of the bottleneck depend on the noise of
    one draw, which the attacker does not know but can fit together with the images (Balunović,
    Dimitrov, Staab, Vechev, "Bayesian Framework for Gradient Leakage", ICLR 2022).  An attacker
    who simulates the client here draws noise of its own.

    Where it differs: in evaluation mode z is mu, without noise.

    Args:
        target: any whose logits are the output of its last linear layer; it is copied.
        num_latents: K, at least 1.
        kl_weight: beta, at least 0.
        seed: of the random weights of encoder and decoder.

    Raises:
        InputError: if an argument is out of its range, or the target has no linear layer.
    """

    has_penalty = True

    def __init__(
        self, target: Target, num_latents: int = 256, kl_weight: float = 0.001, seed: int = 0
    ) -> None:
        super().__init__(target.num_classes)
        if num_latents < 1:
            raise InputError(
                f"VariationalBottleneck: num_latents must be at least 1, not {num_latents}"
            )
        if not 0 <= kl_weight < math.inf:
            raise InputError(
                f"VariationalBottleneck: kl_weight must be a number of at least 0, not {kl_weight}"
            )
        self.name = f"{target.name} with a bottleneck of {num_latents}"
        self.kl_weight = kl_weight
        self.body, classifier = split_classifier(target, "VariationalBottleneck")
        with seeded(seed):
            self.encoder = nn.Linear(classifier.in_features, 2 * num_latents)
            self.decoder = nn.Linear(num_latents, classifier.in_features)
        self.classifier = classifier  # last: the last linear layer of this target, too

    def forward(
        self, images: Tensor, *, with_penalty: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the logits of B C H W images in [0, 1].

        Args:
            images: B C H W.
            with_penalty: whether the penalty of the batch is returned, too, a scalar.
        """
        representation, penalty = represent(self.body, images)
        mean, std = self.encoder(representation).chunk(2, dim=1)
        std = F.softplus(std)
        latents = mean + std * torch.randn_like(std) if self.training else mean
        logits: Tensor = self.classifier(self.decoder(latents))
        if not with_penalty:
            return logits
        divergence = (mean.square() + std.square() - 1) / 2 - std.log()  # nats
        return logits, penalty + self.kl_weight / math.log(2) * divergence.sum(1).mean()
