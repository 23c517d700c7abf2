"""Trap weights: rows that few samples reach, so that some are reached by one alone.

Boenisch, Dziedzic, Schuster, Shamsabadi, Shumailov, Papernot, "When the Curious Abandon Honesty:
Federated Learning Is Not Private", IEEE EuroS&P 2023, section 5.

Half of a row's weights, at random places, are negative, and the other half are the same numbers
with a positive sign, shuffled and multiplied by ``scaling`` just below 1.  On images in [0, 1] the
negative half wins for most of them, so a ReLU lets few through; where it lets one through, the
quotient of the row's gradients is the image.

What differs: the scaling is the one with which most of the server's public images would be found
(null) and not a number tried out per data set.  The rows stand in front of any model, as the
imprint block of Robbing the Fed does.  Which rows hold one image is told from the rows
alone (:mod:`lightning_recon.attacks.linear_layer`); the paper counts those near the truth.
``peel`` is ours: the server knows its rows, so it can take an image that it found out of all rows
that this image passes, whereupon others stand alone.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_recon.attacks.analytic import AnalyticAttack
from lightning_recon.attacks.base import check_counts
from lightning_recon.attacks.linear_layer import (
    ON_GRID,
    Candidates,
    as_reconstruction,
    choose_rows,
    read_candidates,
)
from lightning_recon.attacks.robbing_the_fed import ImprintPayload
from lightning_recon.clients import Client
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.randomness import make_generator
from lightning_recon.targets import Target

NUM_SCALINGS = 256  # that are tried
PEELED = 1e-5  # of the largest bias gradient: what may be left of a row that was taken apart


class CuriousAbandonHonesty(AnalyticAttack):
    """A malicious server's trap weights in a linear layer in front of the model.

    Args:
        target: the model that the federation trains.
        client: the clients' protocol; null: FedSGD.
        defenses: the clients' defenses, in order.
        num_rows: of the layer, at least 1.
        scaling: of the positive weights, in (0, 1]; null: fitted to public images.
        num_samples: batch size that it is fitted for; null: the data's.
        gain: of the rows on the pixels; large: more of a clipping budget is the rows'.
        peel: whether images that were found are taken out of the rows that they share with others,
            until no new one appears: for gradients, and pixels of 8 bits.
        seed: of all randomness.

    Raises:
        InputError: if an argument is out of its range.
    """

    threat_model = (
        "a malicious server puts a linear layer in front of the model, and sees one update"
    )
    oracles = ("num_samples",)
    citation = "Boenisch et al., IEEE EuroS&P 2023"

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        num_rows: int = 1000,
        scaling: float | None = None,
        num_samples: int | None = None,
        gain: float = 1.0,
        peel: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(target, client, defenses, seed)
        check_counts("CuriousAbandonHonesty", num_rows=(num_rows, 1), num_samples=(num_samples, 1))
        if not 0 < gain < math.inf or (scaling is not None and not 0 < scaling <= 1):
            raise InputError(
                "CuriousAbandonHonesty: gain must be above 0 and scaling in (0, 1], not "
                f"{gain} and {scaling}"
            )
        self.num_rows = num_rows
        self.scaling = scaling
        self.num_samples = num_samples
        self.gain = gain
        self.peel = peel
        self.weight: tuple[Tensor, ...] = ()  # a tuple hides it from Lightning

    def learn_public(self, images: Tensor) -> None:
        """Draw the weights, and scale them for public images.

        Raises:
            InputError: if there are no public images and no scaling is given.
        """
        generator = make_generator(self.seed, "trap weights")
        size = torch.Size(self.known_shape).numel()
        positive = torch.zeros(self.num_rows, size)
        negative = torch.zeros(self.num_rows, size)
        for row in range(self.num_rows):
            places = torch.randperm(size, generator=generator)[: size - size % 2].view(2, -1)
            numbers = torch.randn(size // 2, generator=generator).abs() / size
            negative[row, places[0]] = numbers
            positive[row, places[1]] = numbers[torch.randperm(size // 2, generator=generator)]
        self.fitted_scaling = self.scaling or self._fit(images.cpu().float(), positive, negative)
        self.weight = (self.fitted_scaling * positive - negative,)

    def _fit(self, images: Tensor, positive: Tensor, negative: Tensor) -> float:
        """Return the scaling for which the most public images are expected to be found."""
        if len(images) < 2:
            raise InputError(
                "CuriousAbandonHonesty has fewer than two public images to fit its scaling on; set "
                "scaling, or take data with public images (num_public)"
            )
        num_samples = self.num_samples or self.spec.max_batch_size
        flat = images.flatten(1)
        # an image passes a row if the scaling is larger than this
        least = ((flat @ negative.T) / (flat @ positive.T).clamp_min(1e-12)).double().sort(1).values
        tried = torch.quantile(least[least <= 1], torch.linspace(0, 1, NUM_SCALINGS).double())
        rate = torch.searchsorted(least, tried.expand(len(least), -1).contiguous(), right=True)
        rate = rate.double() / self.num_rows  # images x scalings: rows that the image passes
        # of the batch's other images, each is like any of the public ones
        nobody_else = (1 - rate).mean(0) ** (num_samples - 1)
        found = 1 - (1 - rate * nobody_else) ** self.num_rows
        return float(tried[found.mean(0).argmax()])

    def server_payload(self, model: Target) -> ImprintPayload:
        """Return the model behind the rows."""
        return ImprintPayload(model, self.weight[0], torch.zeros(self.num_rows), self.gain)

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Return the quotients that one sample alone accounts for."""
        weight, bias = observation.update["rows.weight"], observation.update["rows.bias"]
        most = observation.num_samples
        found = read_candidates(weight, bias, self.known_shape)
        result = as_reconstruction(found, choose_rows(found, bias, most))
        if not self.peel or not result.notes["rows_on_grid"]:
            return result
        payload = observation.payload
        assert isinstance(payload, ImprintPayload)
        images = self._peel(payload, weight.clone(), bias.clone())[:most]
        return result._replace(images=images, score=images.new_zeros(len(images)))

    def _peel(self, payload: ImprintPayload, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the images that come to light as those found are taken out of all their rows."""
        images = weight.new_zeros(0, *self.known_shape)
        floor = PEELED * bias.abs().max()
        while True:
            found = read_candidates(weight, bias, self.known_shape)
            on_grid = (found.misfit <= ON_GRID).nonzero()[:, 0]
            found = Candidates(*(field[on_grid] for field in found))
            chosen = choose_rows(found, bias, None)
            if not chosen:
                return images
            new = (255 * found.images[chosen]).round() / 255
            images = torch.cat([images, new])
            for image, row in zip(new, found.rows[chosen], strict=True):
                # every row that the image passes has the same gradient from it
                slope = bias[row].clone()
                passes = payload.rows(image.flatten()) > 0
                weight[passes] -= slope * image.flatten()
                bias[passes] -= slope
            bias[bias.abs() <= floor] = 0
