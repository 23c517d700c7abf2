"""Images from the rows of a linear layer that the server puts in front of the model.

Fowl, Geiping, Czaja, Goldblum, Goldstein, "Robbing the Fed: Directly Obtaining Private Data in
Federated Learning with Modified Models", ICLR 2022.

The K rows of the layer measure the same of an image, here its brightness, and row k fires above
the lower edge of bin k.  All rows go on with the same weight, so they get the same gradient from a
sample that reaches them, and between the gradients of two neighbours stands what fell into one
bin: (dL/dW_k - dL/dW_k+1) / (dL/db_k - dL/db_k+1) is the image, if the bin holds one.  With bins
of equal mass that happens to n (1 - 1/K)^(n-1) of n samples.  A common factor cancels: the change
of weights by federated averaging serves as well, as long as the local steps do not move the rows
by more than a bin (small ``gain``).

- ``sparse``: a row passes no more than its own bin's width, so that a sample reaches one row and no
  difference is taken (the paper's variant for federated averaging): half the noise variance.
- ``one_shot``: a single bin of mass 1/n, for one image of a batch, or a round, of n that may be
  large; it holds exactly one with a probability of (1 - 1/n)^(n-1), about 1/e.

What differs: the layer behind the rows, whose columns are equal in the paper, is their mean, and
has no weights that training could make unequal; what it gives is added to the image.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import laplace, norm
from torch import Tensor, nn

from lightning_recon.attacks.analytic import AnalyticAttack
from lightning_recon.attacks.base import check_counts
from lightning_recon.attacks.linear_layer import as_reconstruction, choose_rows, read_candidates
from lightning_recon.clients import Client
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.targets import Target

Bins = Literal["normal", "laplace", "empirical", "linear"]
MARGIN = 1e-3  # by which the outermost edges lie beyond [0, 1]


def shifted(images: Tensor, answer: Tensor, limit: Tensor | None, gain: float) -> Tensor:
    """Return images to whose every pixel the mean of the rows that fire is added.

    Args:
        images: B C H W.
        answer: B K, of the rows.
        limit: K, the most that each row passes; None: no limit.
        gain: of the mean.
    """
    fired = F.relu(answer)
    if limit is not None:
        fired = torch.minimum(fired, limit)
    shift = gain * fired.mean(1)
    return images + shift[:, None, None, None]


class ImprintPayload(nn.Module):
    """A model behind a linear layer whose rows' mean is added to every pixel of the image.

    Args:
        model: the target.
        weight: K D, of the rows.
        bias: K.
        gain: of the rows' mean.
        limit: K, the most that each row passes; null: no limit.
    """

    limit: Tensor | None

    def __init__(
        self,
        model: Target,
        weight: Tensor,
        bias: Tensor,
        gain: float,
        limit: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.gain = gain
        parameter = next(model.parameters())
        self.rows = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        self.rows.weight = nn.Parameter(weight.to(parameter))
        self.rows.bias = nn.Parameter(bias.to(parameter))
        self.register_buffer("limit", None if limit is None else limit.to(parameter))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B C H W images."""
        with torch.autocast(images.device.type, enabled=False):
            answer = self.rows(images.to(self.rows.weight).flatten(1))
            images = shifted(images, answer, self.limit, self.gain)
        logits: Tensor = self.model(images)
        return logits


class RobbingTheFed(AnalyticAttack):
    """A malicious server's imprint block with bins of brightness, in front of the model.

    Args:
        target: the model that the federation trains.
        client: the clients' protocol; null: FedSGD.
        defenses: the clients' defenses, in order.
        num_bins: rows K, at least 2.
        bins: where their edges lie: at the quantiles of a normal or Laplace distribution fitted to
            public images, or at those of the images themselves, or evenly in [0, 1].
        location: of the normal or Laplace distribution of mean brightness; null: fitted.
        scale: of that distribution; null: fitted.
        sparse: whether a row passes no more than its bin's width.
        one_shot: a single bin of mass 1/n around the median; ``num_bins`` does not count.
        num_samples: the n of ``one_shot``; null: the data's batch size.
        gain: of the rows on the pixels; large: more of a clipping budget is the rows'.
        seed: of all randomness.

    Raises:
        InputError: if an argument is out of its range.
    """

    threat_model = (
        "a malicious server puts a linear layer in front of the model, and sees one update"
    )
    oracles = ("num_samples",)
    citation = "Fowl et al., ICLR 2022"

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        num_bins: int = 1024,
        bins: Bins = "normal",
        location: float | None = None,
        scale: float | None = None,
        sparse: bool = False,
        one_shot: bool = False,
        num_samples: int | None = None,
        gain: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(target, client, defenses, seed)
        check_counts("RobbingTheFed", num_bins=(num_bins, 2), num_samples=(num_samples, 1))
        if not 0 < gain < math.inf or (scale is not None and not scale > 0):
            raise InputError(
                f"RobbingTheFed: gain and scale must be above 0, not {gain} and {scale}"
            )
        self.num_bins = num_bins
        self.bins = bins
        self.location = location
        self.scale = scale
        self.sparse = sparse
        self.one_shot = one_shot
        self.num_samples = num_samples
        self.gain = gain

    def learn_public(self, images: Tensor) -> None:
        """Lay the bins' edges.

        Raises:
            InputError: if there are fewer than two public images to fit them on.
        """
        brightness = images.mean((1, 2, 3), dtype=torch.float64).cpu().numpy()
        is_given = self.location is not None and self.scale is not None
        needs_images = self.bins == "empirical" or (self.bins != "linear" and not is_given)
        if needs_images and len(brightness) < 2:
            raise InputError(
                "RobbingTheFed has fewer than two public images to fit its bins on; set location "
                "and scale, or bins to linear, or take data with public images (num_public)"
            )
        if len(brightness) == 0:
            brightness = np.zeros(1)  # for what is given
        if self.one_shot:
            mass = 1 / (self.num_samples or self.spec.max_batch_size)
            edges = self._quantiles(brightness, np.array([0.5 - mass / 2, 0.5 + mass / 2]))
        else:
            inner = np.arange(1, self.num_bins) / self.num_bins
            edges = self._quantiles(brightness, inner)
            first, last = min(edges[0], 0.0) - MARGIN, max(edges[-1], 1.0) + MARGIN
            edges = np.concatenate([[first], edges, [last]])
        self.edges = torch.from_numpy(edges)

    def _quantiles(self, brightness: NDArray[np.float64], at: NDArray[np.float64]) -> Any:
        if self.bins == "linear":
            return at
        if self.bins == "empirical":
            # steps between equal values would be bins of no width
            return np.quantile(brightness, at) + np.arange(len(at)) * 1e-9
        middle, spread = float(np.mean(brightness)), float(np.std(brightness))
        if self.bins == "laplace":
            middle = float(np.median(brightness))
            spread = float(np.abs(brightness - middle).mean())
        location = middle if self.location is None else self.location
        scale = max(spread, 1e-6) if self.scale is None else self.scale
        family = norm if self.bins == "normal" else laplace
        return family.ppf(at, loc=location, scale=scale)

    def server_payload(self, model: Target) -> ImprintPayload:
        """Return the model behind the imprint block."""
        lower = self.edges[:-1] if self.sparse or not self.one_shot else self.edges
        size = torch.Size(self.known_shape).numel()
        return ImprintPayload(
            model,
            torch.full((len(lower), size), 1 / size),
            -lower,
            self.gain,
            self.edges.diff() if self.sparse else None,
        )

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Take neighbouring rows' gradients apart, and divide."""
        weight, bias = observation.update["rows.weight"], observation.update["rows.bias"]
        if not self.sparse:
            end = [] if self.one_shot else [weight[:1] * 0]
            weight = -torch.cat([weight, *end]).diff(dim=0)
            bias = -torch.cat([bias, *[row[:, 0] for row in end]]).diff()
        found = read_candidates(weight, bias, self.known_shape)
        chosen = choose_rows(found, bias, observation.num_samples, all_rows=True)
        return as_reconstruction(found, chosen)
