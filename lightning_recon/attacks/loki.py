"""Rows of the gradient that belong to one client alone, through secure aggregation.

Zhao, Sharma, Elkordy, Ezzeldin, Avestimehr, Bagchi, "Loki: Large-scale Data Reconstruction Attack
against Federated Learning through Model Manipulation", IEEE S&P 2024, arXiv 2303.12233.

In front of the model stand a convolution and a linear layer whose rows are bins of brightness
(:mod:`.robbing_the_fed`).  The convolution has a set of kernels for each client of the round, which
hand the image on (an identity mapping set), and every client is sent a version in which only its
own set is not zero.  Of the linear layer's columns each client fills those behind its own set, so
that the sum over clients keeps their images apart, and tells whose they are.  The kernels are
larger by the convolutional scaling factor, and the rows smaller by it: kernels that should stay
zero are then moved less by the local steps of federated averaging.  A row passes no more than the
width of its bin, so that a sample reaches one row.

What differs: the gradients of the rows' biases are sums over all clients, and tell no client's
scale.  One more kernel in each set, without weights and of a constant bias, is the client's own in
their place, so that images have their scale, and mixtures show by their grey levels.  Rows go on to
the model as their mean, added to the image, as in :mod:`.robbing_the_fed`.

``apart`` is ours.  Columns that measure the image have weights, which cost local steps twice: the
other clients' kernels are moved through them and leave a little of every client's image in all
sets, and the change of a weight is rounded to its digits, so that the gain cannot be small.  Each
set has one more kernel, the image's grey value; the rows measure it alone, and the columns that
record the image begin at 0.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_recon.attacks.analytic import AnalyticAttack
from lightning_recon.attacks.base import check_counts
from lightning_recon.attacks.linear_layer import Candidates, choose_rows, read_candidates
from lightning_recon.attacks.robbing_the_fed import MARGIN, shifted
from lightning_recon.clients import Client
from lightning_recon.clients.aggregate import ClientPayload
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.targets import Target

EXTRA = 2  # kernels of a set beside the image's: the constant, then grey
CONSTANT = 0.05  # what the kernel without weights gives, in units of white
LEAST_WIDTH = 1e-9  # of a bin


class LokiPayload(ClientPayload):
    """A model behind a set of kernels for each client, and rows of which each reads all sets.

    Args:
        model: the target.
        kernels: of num_clients (C + 2) channels: C that are the image, a constant and grey.
        rows: of num_clients (C + 2) H W columns.
        limit: K, the most that each row passes.
        gain: of the rows' mean on the image.
    """

    limit: Tensor

    def __init__(
        self, model: Target, kernels: nn.Conv2d, rows: nn.Linear, limit: Tensor, gain: float
    ) -> None:
        super().__init__()
        self.model = model
        self.kernels = kernels
        self.rows = rows
        self.gain = gain
        self.register_buffer("limit", limit)

    def for_client(self, place: int) -> "LokiPayload":
        """Return the version in which one client's kernels alone are not zero."""
        kernels = copy.deepcopy(self.kernels)
        size = self.kernels.in_channels + EXTRA
        is_other = torch.arange(kernels.out_channels, device=self.limit.device) // size != place
        with torch.no_grad():
            kernels.weight[is_other] = 0
            assert kernels.bias is not None
            kernels.bias[is_other] = 0
        return LokiPayload(self.model, kernels, self.rows, self.limit, self.gain)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B C H W images."""
        with torch.autocast(images.device.type, enabled=False):
            maps = self.kernels(images.to(self.kernels.weight))
            images = shifted(images, self.rows(maps.flatten(1)), self.limit, self.gain)
        logits: Tensor = self.model(images)
        return logits


class Loki(AnalyticAttack):
    """A malicious server's kernels for each client, and rows of bins behind them.

    The clients of a round are those of an :class:`~lightning_recon.clients.Aggregate`.

    Args:
        target: the model that the federation trains.
        client: the clients' protocol; null: FedSGD of one client.
        defenses: the clients' defenses, in order.
        num_bins: rows K, at least 2; null: four times the samples of a client, as in the paper.
        scaling: the convolutional scaling factor, above 0.
        gain: of the rows on the pixels, above 0; the smaller, the less do local steps move rows
            past their bins.
        apart: whether the image is recorded in other columns than those that measure it; if not,
            as published, a small gain loses the image in rounding the change of weights.
        seed: of all randomness.

    Raises:
        InputError: if an argument is out of its range.
    """

    threat_model = (
        "a malicious server puts layers in front of the model, with other weights for each client "
        "of the round, and sees the mean update of all"
    )
    oracles = ("num_samples",)
    citation = "Zhao et al., IEEE S&P 2024, arXiv 2303.12233"

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        num_bins: int | None = None,
        scaling: float = 1.0,
        gain: float = 0.01,
        apart: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(target, client, defenses, seed)
        check_counts("Loki", num_bins=(num_bins, 2))
        for name, value in {"scaling": scaling, "gain": gain}.items():
            if not 0 < value < float("inf"):
                raise InputError(f"Loki: {name} must be above 0, not {value}")
        self.num_bins = num_bins
        self.scaling = scaling
        self.gain = gain
        self.apart = apart
        self.edges: tuple[Tensor, ...] = ()  # a tuple hides it from Lightning

    def learn_public(self, images: Tensor) -> None:
        """Lay the bins' edges at the quantiles of public images' brightness.

        Raises:
            InputError: if there are fewer than two public images, or too many rows are wanted.
        """
        if len(images) < 2:
            raise InputError(
                "Loki has fewer than two public images to fit its bins on; take data with public "
                "images (num_public)"
            )
        share = -(-self.spec.max_batch_size // self.num_clients)
        num_bins = self.num_bins or max(2, 4 * share)
        check_counts("Loki", **{"num_bins times clients": (num_bins * self.num_clients, 2)})
        brightness = images.mean((1, 2, 3), dtype=torch.float64)
        at = torch.arange(1, num_bins, dtype=torch.float64) / num_bins
        # steps between equal values would be bins of no width
        inner = brightness.quantile(at.to(brightness)) + LEAST_WIDTH * torch.arange(1, num_bins).to(
            brightness
        )
        first, last = inner[:1].clamp_max(0) - MARGIN, inner[-1:].clamp_min(1) + MARGIN
        self.edges = (torch.cat([first, inner, last]),)

    def server_payload(self, model: Target) -> LokiPayload:
        """Return the model behind the kernels of all clients."""
        channels, height, width = self.known_shape
        num_clients = self.num_clients
        (edges,) = self.edges
        parameter = next(model.parameters())
        outputs = num_clients * (channels + EXTRA)
        with torch.device("meta"):  # no random weights are drawn
            kernels = nn.Conv2d(channels, outputs, 3, padding=1, dtype=parameter.dtype)
            rows = nn.Linear(outputs * height * width, len(edges) - 1, dtype=parameter.dtype)
        kernels.to_empty(device=parameter.device)
        rows.to_empty(device=parameter.device)
        assert kernels.bias is not None
        with torch.no_grad():
            kernels.weight.zero_()
            sets = kernels.weight.view(num_clients, channels + EXTRA, channels, 3, 3)
            one = torch.arange(channels)
            sets[:, one, one, 1, 1] = self.scaling
            sets[:, -1, :, 1, 1] = self.scaling / channels
            kernels.bias.zero_()
            kernels.bias.view(num_clients, -1)[:, channels] = self.scaling * CONSTANT
            rows.weight.zero_()
            parts = rows.weight.view(-1, num_clients, channels + EXTRA, height * width)
            measuring = parts[:, :, -1:] if self.apart else parts[:, :, :channels]
            measuring[:] = 1 / (measuring[0, 0].numel() * self.scaling)
            rows.bias.copy_(-edges[:-1])
        limit = edges.diff().to(parameter)
        return LokiPayload(model, kernels.to(parameter), rows.to(parameter), limit, self.gain)

    def read_client(self, observation: Observation, place: int) -> tuple[Candidates, Tensor]:
        """Return the images that rows hold of one client, and the rows' slopes, K.

        Args:
            observation: of the round.
            place: of the client in it, from 0 on.
        """
        channels, height, width = self.known_shape
        columns = (channels + EXTRA) * height * width
        part = observation.update["rows.weight"][:, place * columns : (place + 1) * columns]
        part = part.view(len(part), channels + EXTRA, height * width)
        slopes = part[:, channels].mean(1) / CONSTANT
        return read_candidates(part[:, :channels].flatten(1), slopes, self.known_shape), slopes

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Return the images of one client after the other."""
        assert observation.num_samples is not None
        most = -(-observation.num_samples // self.num_clients)
        images, scores = [], []
        for place in range(self.num_clients):
            found, slopes = self.read_client(observation, place)
            chosen = choose_rows(found, slopes, most, all_rows=True)
            images.append(found.images[chosen].clamp(0, 1))
            scores.append(found.misfit[chosen])
        notes = {"clients_read": float(sum(len(part) > 0 for part in images))}
        return Reconstruction(torch.cat(images), None, torch.cat(scores), notes)
