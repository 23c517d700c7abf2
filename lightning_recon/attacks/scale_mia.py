"""Latent vectors of a whole batch from bins behind the convolutions, and a decoder for them.

Shi, Wang, Xiao, Zhang, Shi, Hou, Lou, "Scale-MIA: A Scalable Model Inversion Attack against Secure
Federated Learning via Latent Space Reconstruction", NDSS 2025, arXiv 2311.05808.

Nothing is put in front of the model.  Its first linear layer reads the latent vector that the
convolutions give; the server makes all rows of this layer measure the same of it, its mean, and
lets row k fire above the lower edge of bin k.  The next layer's columns are made equal, so that
every row gets the same gradient from a sample that reaches it, and between the gradients of two
neighbours stands what fell into one bin: its quotient is the latent vector, if the bin holds one
sample.  A sum over clients is a larger batch.  The vectors are turned into images by a decoder that
was trained on public images.

What differs: the convolutions stay as they are, while the paper trains them as an encoder together
with the decoder; the decoder is a linear one and a small network that corrects it
(:mod:`lightning_recon.attacks.features.network_decoder`).  The bins are quantiles of public images'
latent means.  A vector whose own mean does not lie in the bin where it was found is a mixture, and
comes last.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_recon.attacks.analytic import AnalyticAttack
from lightning_recon.attacks.features.latent_decoder import LatentDecoder, check_decoder
from lightning_recon.attacks.features.linear_stack import LinearStack, find_stack, run_all_features
from lightning_recon.attacks.linear_layer import FAINT
from lightning_recon.clients import Client
from lightning_recon.clients.base import randomness
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.randomness import derive_seed
from lightning_recon.targets import Target

MIN_PUBLIC = 8  # images; fewer teach no decoder that holds for others
SMOOTH = 1e-7  # of the spread of latent means: the least width of a bin
NEAR_EDGE = 0.05  # of a bin's usual width, by which rounding may move a mean past its edge


class ScaleMIA(AnalyticAttack):
    """A malicious server's bins in the first linear layer behind the convolutions.

    Args:
        target: a model that ends in at least two linear layers, a ReLU between them; the first has
            a bias.
        client: the clients' protocol; null: FedSGD.
        defenses: the clients' defenses, in order.
        kernel_size: of the linear decoder's convolution on feature maps; odd.
        decoder_steps: in which a small network is trained to correct the linear decoder; 0: the
            linear decoder alone.
        seed: of all randomness.

    Raises:
        InputError: if an argument is out of its range.
    """

    threat_model = (
        "a malicious server sets the weights of the linear layers behind the convolutions, and "
        "sees one update"
    )
    oracles = ("num_samples",)
    citation = "Shi et al., NDSS 2025, arXiv 2311.05808"

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        kernel_size: int = 5,
        decoder_steps: int = 960,
        seed: int = 0,
    ) -> None:
        super().__init__(target, client, defenses, seed)
        check_decoder("ScaleMIA", kernel_size, decoder_steps)
        self.kernel_size = kernel_size
        self.decoder_steps = decoder_steps
        self._edges: tuple[Tensor, ...] = ()  # a tuple hides it from Lightning

    def learn_public(self, images: Tensor) -> None:
        """Lay the bins' edges, and train the decoder.

        Raises:
            InputError: if there are fewer than eight public images, or the model has no such layer.
        """
        if len(images) < MIN_PUBLIC:
            raise InputError(
                f"ScaleMIA has {len(images)} public images, and trains its decoder on at least "
                f"{MIN_PUBLIC}; take data with public images (num_public)"
            )
        seed = derive_seed(self.seed, "decoder")
        with (
            torch.no_grad(),
            randomness(seed, images.device),
            left_as_found(self.target, training=self.mode == "train"),
        ):
            self.stack = _stack_of(self.target, images)
            latent = run_all_features(self.target, self.stack, images)
        parameters = dict(self.target.named_parameters())
        num_rows = len(parameters[self.stack.weights[0]])
        means = latent.double().mean(1)
        at = (torch.arange(num_rows, dtype=torch.float64) + 0.5) / (num_rows + 1)
        least = SMOOTH * float(means.std()) * torch.arange(num_rows).to(means)
        # the first edge lies below all, so that what lies left of the others is in a bin as well
        edges = means.quantile(at.to(means)) + least
        edges[0] = min(0.0, float(means.min())) - float(means.std())
        self._edges = (edges,)
        self.decode = LatentDecoder(
            self.stack.map_shape, latent, images, self.kernel_size, self.decoder_steps, seed
        )

    def server_payload(self, model: Target) -> Target:
        """Return the model with bins in its first linear layer."""
        payload = copy.deepcopy(model)
        parameters = dict(payload.named_parameters())
        weight, following = (parameters[name] for name in self.stack.weights[:2])
        bias = parameters[self.stack.biases[0] or ""]
        with torch.no_grad():
            weight.fill_(1 / weight.shape[1])
            bias.copy_(-self._edges[0])
            # all rows together move an output by what one row of the usual weights would
            following.copy_(following[:, :1].expand_as(following) / following.shape[1])
        return payload

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Take neighbouring rows' gradients apart, divide, and decode."""
        found, score = self.read_latent(observation)
        images = self.decode(found)
        notes = {"bins_read": float(len(found)), "in_their_bin": float((score == 0).sum())}
        return Reconstruction(images, None, score, notes)

    def read_latent(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Return the latent vectors that bins hold, R F, and how far each lies outside its bin, R.

        R is at most the number of samples; the surest come first.
        """
        update, edges = observation.update, self._edges[0]
        weight = update[self.stack.weights[0]].double()
        bias = update[self.stack.biases[0] or ""].double()
        weight = -torch.cat([weight, 0 * weight[:1]]).diff(dim=0)
        bias = -torch.cat([bias, 0 * bias[:1]]).diff()
        rows = (bias.abs() > FAINT * update[self.stack.biases[0] or ""].abs().max()).nonzero()[:, 0]
        latent = weight[rows] / bias[rows, None]
        mean = latent.mean(1)
        upper = torch.cat([edges[1:], edges.new_full((1,), torch.inf)])
        width = edges[1:].diff().median()
        outside = (edges[rows] - mean).clamp_min(0) + (mean - upper[rows]).clamp_min(0)
        score = (outside / width - NEAR_EDGE).clamp_min(0)
        order = (-bias[rows].abs()).argsort(stable=True)
        order = order[score[order].argsort(stable=True)][: observation.num_samples]
        return latent[order].to(edges.dtype).to(update[self.stack.weights[0]]), score[order]


def _stack_of(model: nn.Module, images: Tensor) -> LinearStack:
    """Return the linear layers at the end of a model; InputError if bins find no place there."""
    stack = find_stack(model, images[:2])
    lacks = (
        "has one linear layer behind its convolutions, and bins need two, a ReLU between them"
        if len(stack.weights) < 2
        else "has no bias in its first linear layer, which sets the bins"
        if stack.biases[0] is None
        else None
    )
    if lacks:
        raise InputError(
            f"ScaleMIA: {type(model).__name__} {lacks}; choose a target such as TutorialCNN, or "
            "RobbingTheFed, which puts its rows in front of any model"
        )
    return stack
