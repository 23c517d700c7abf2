"""Clients that mix their images before they train on them: mixup and InstaHide."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.clients.aggregate import Aggregate
from lightning_recon.clients.base import Client, randomness
from lightning_recon.clients.wrapped import WrappedClient
from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import run_stateless
from lightning_recon.updates import Buffers, PrivateBatch, Update


class MixingClient(WrappedClient):
    """A client that hands a mixed batch on to another client's protocol.

    The batch is mixed once, however many local steps follow.  How is the client's secret: an
    attacker who simulates the client sees no mixing, and reconstructs mixed images.

    Args:
        client: the protocol that is run on the mixed batch.

    Raises:
        InputError: if that protocol clips each sample, of which a mixed image holds several, or
            is that of many clients.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        name = type(self).__name__
        if client.clip_norm is not None:
            raise InputError(
                f"{name}: {type(client).__name__} promises something of single samples, which are "
                "mixed here; use another client"
            )
        if isinstance(client, Aggregate):
            raise InputError(f"{name}: a client mixes its own images; it cannot hold an Aggregate")

    @abstractmethod
    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixed images and labels; the randomness is torch's global one.

        Args:
            images: B C H W in [0, 1].
            labels: B num_classes probabilities.

        Raises:
            InputError: if there are too few images to mix.
        """

    def run(self, payload: nn.Module, batch: PrivateBatch, *, seed: int) -> tuple[Update, Buffers]:
        """Return the inner client's update on the mixed batch, and its buffers."""
        with randomness(seed, batch.images.device), torch.no_grad():
            num_classes = self._num_classes(payload, batch.images)
            labels = F.one_hot(batch.labels, num_classes).to(batch.images)
            images, labels = self.mix(batch.images, labels)
        return self.client.run(payload, batch._replace(images=images, labels=labels), seed=seed)

    def _num_classes(self, payload: nn.Module, images: Tensor) -> int:
        with self.working(payload):
            return int(run_stateless(payload, {}, images).shape[1])


class MixUp(MixingClient):
    """Mixup: each image is mixed with another one of the batch, and so are their labels.

    Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018:
    x = l x_i + (1 - l) x_p(i) with a random permutation p and one l ~ Beta(alpha, alpha) for the
    batch; labels alike.  A regulariser, used as a defense by attack papers; no formal guarantee.

    Args:
        alpha: of the Beta distribution, above 0; 1 draws l uniformly, small values hardly mix.

    Raises:
        InputError: if an argument cannot be used.
    """

    def __init__(self, client: Client, alpha: float = 1.0) -> None:
        super().__init__(client)
        if not 0 < alpha < float("inf"):
            raise InputError(f"MixUp: alpha must be a number above 0, not {alpha}")
        self.alpha = alpha

    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix each image with one other or, by chance, with itself."""
        if len(images) < 2:
            raise InputError("MixUp: a batch of 1 has nothing to mix; take larger batches")
        weight = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        other = torch.randperm(len(images)).to(images.device)
        return (
            torch.lerp(images[other], images, weight),
            torch.lerp(labels[other], labels, weight),
        )


class InstaHide(MixingClient):
    """InstaHide: each image is mixed with others, and the signs of its pixels flip at random.

    Huang, Song, Li, Arora, "InstaHide: Instance-hiding Schemes for Private Distributed Learning",
    ICML 2020, within the private batch: sum_j l_j x_pj(i) with k - 1 random permutations beside
    the identity, l uniform on the simplex where no l_j exceeds 0.65, then every number of every
    mixed image changes its sign with probability 1/2.  Labels are mixed alike.  Pixels are brought
    from [0, 1] to [-1, 1] first, so that a flip turns p into 1 - p.

    No formal guarantee; Carlini et al., "Is Private Learning Possible with Instance Encoding?",
    IEEE S&P 2021, recover the images from the mixed ones.  Where it differs: the k images that are
    mixed are always different ones, and none is public.

    Args:
        num_mixed: k, images in each mixed one, at least 2.

    Raises:
        InputError: if an argument cannot be used.
    """

    max_weight = 0.65
    """Of one image in a mixed one; the bound of the paper's experiments."""

    def __init__(self, client: Client, num_mixed: int = 4) -> None:
        super().__init__(client)
        if num_mixed < 2:
            raise InputError(f"InstaHide: num_mixed must be at least 2, not {num_mixed}")
        self.num_mixed = num_mixed

    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix each image with ``num_mixed - 1`` others and flip signs."""
        num_samples = len(images)
        if num_samples < self.num_mixed:
            raise InputError(
                f"InstaHide: num_mixed {self.num_mixed} is more than the {num_samples} samples of "
                "the client; lower it, or take larger batches"
            )
        weights = self._weights(num_samples).to(images)
        # a random circle: the images at different distances along it are different ones
        circle = torch.randperm(num_samples)
        steps = 1 + torch.randperm(num_samples - 1)[: self.num_mixed - 1]
        places = circle.argsort()[:, None] + torch.cat([torch.zeros(1, dtype=torch.int64), steps])
        chosen = circle[places % num_samples].to(images.device)
        mixed = torch.einsum("bk,bk...->b...", weights, (2 * images - 1)[chosen])
        signs = 2 * torch.randint(2, images.shape).to(images) - 1
        return (signs * mixed + 1) / 2, torch.einsum("bk,bkc->bc", weights, labels[chosen])

    def _weights(self, num_samples: int) -> Tensor:
        """Return weights that add up to 1, none above the bound, B num_mixed."""
        simplex = torch.distributions.Dirichlet(torch.ones(self.num_mixed))
        weights = simplex.sample((num_samples,))
        while (is_over := weights.amax(1) > self.max_weight).any():
            weights[is_over] = simplex.sample((int(is_over.sum()),))
        return weights
