"""The auditor: here, and only here, a reconstruction meets the truth.

Beside the scores stand the null controls, without which a prior cannot be told from a leak:

- ``mean_image``: the mean of the server's public images, for every image;
- ``class_mean``: the mean of the public images of the true class, where there are any;
- ``nearest_public``: the public image nearest to the truth, chosen with the truth's help: more
  than any guess can reach;
- ``noise_only``: the same attack on the update of a client that sent nothing but noise;
- ``other_client``: the reconstruction from this client's update against the next client's images.

Of rows of a table ``features`` is the share of features that are right, ``features_mean_image``
that of the mean public row, which says the most frequent value of every category, and
``features_noise_only`` that of the attack on noise.

And, where it is asked for, what a linearised attacker would get
(:mod:`~lightning_recon.audit.local_estimate`): an attack far below it is weak here.
"""

from collections.abc import Mapping

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_recon.attacks import Attack, GradientMatching
from lightning_recon.audit.bits import channel_bits, powers
from lightning_recon.audit.guesses import (
    add_features,
    add_identification,
    add_noise_only,
    add_public,
    aligned,
    mean_of,
    shown,
)
from lightning_recon.audit.local_estimate import Estimator
from lightning_recon.audit.privacy_statement import privacy_statement
from lightning_recon.audit.records import ClientRecord
from lightning_recon.audit.scores import Row, add_marks, mark_convincing, score
from lightning_recon.data import ClientDataModule
from lightning_recon.defenses import num_update_bits
from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.functional.stateless import sent_buffers
from lightning_recon.metrics import PerImageMetric
from lightning_recon.observation import Failure, Grant, Reconstruction
from lightning_recon.privacy.reconstruction import clamped_psnr, expected_psnr
from lightning_recon.randomness import make_generator
from lightning_recon.updates import PrivateBatch

THUMBNAIL_SIZE = 32  # longest side in pixels, of the pictures that are compared for identification


class Auditor:
    """Scores one client after the other; the same whatever process it runs in.

    Args:
        data: who holds what.
        recovered_psnr: least PSNR, in dB, of an image that counts as recovered.
        null_controls: whether the attack is run on a noise-only update of each client, too.
        num_candidates: images among which a reconstruction is to be identified, the client's own
            included, fewer if the data set ends; 0: none, and no rate.
        extra_metrics: further scores of each image, by the name of their column; those that are
            ``unavailable`` are left out.
        num_estimated_clients: clients, by number, of whose images is told what a linearised
            attacker would get.

    Raises:
        InputError: if a further metric cannot score such images.
    """

    def __init__(
        self,
        data: ClientDataModule,
        recovered_psnr: float = 19.0,
        null_controls: bool = True,
        num_candidates: int = 1000,
        extra_metrics: Mapping[str, PerImageMetric] | None = None,
        num_estimated_clients: int = 0,
    ) -> None:
        self.data = data
        self.num_estimated_clients = num_estimated_clients
        self._estimator: Estimator | None = None
        self.recovered_psnr = recovered_psnr
        self.null_controls = null_controls
        self.public = data.public_images()
        self.public_labels = data.public_labels()
        self.columns = data.spec.columns
        shape = data.image_shape
        self.mean_image = mean_of(self.public, shape)
        """C H W: the guess of one who learned nothing."""
        wanted = max(num_candidates, data.batch_size) if num_candidates else 0
        self.num_candidates = min(wanted, len(data.source))
        self._thumbnail_size = min(THUMBNAIL_SIZE, max(shape[1:]))
        self.extra_metrics = {
            name: metric for name, metric in (extra_metrics or {}).items() if not metric.unavailable
        }
        _try(self.extra_metrics, torch.zeros(1, *shape))
        self._candidates: tuple[Tensor, Tensor] | None = None

    @property
    def candidates(self) -> tuple[Tensor, Tensor]:
        """Places in the data set, N, and thumbnails, N C h w, of the candidates."""
        if self._candidates is None:
            places = self.data.candidates(self.num_candidates)
            self.num_candidates = len(places)  # less if images cannot be read
            thumbnails = self.data.thumbnails(places, self._thumbnail_size)
            self._candidates = torch.tensor(places), thumbnails
        return self._candidates

    def candidates_for(self, truth: PrivateBatch) -> tuple[Tensor, Tensor]:
        """Return :attr:`candidates`, a client's images in place of the last ones if missing."""
        places, thumbnails = self.candidates
        missing = sorted(set(truth.indices.tolist()) - set(places.tolist()))
        if not missing:
            return places, thumbnails
        others = (~torch.isin(places, truth.indices)).nonzero()[:, 0]
        kept = torch.ones(len(places), dtype=torch.bool)
        kept[others[len(others) - len(missing) :]] = False
        own = self.data.thumbnails(missing, self._thumbnail_size)
        return torch.cat([places[kept], torch.tensor(missing)]), torch.cat([thumbnails[kept], own])

    def audit(
        self,
        attack: Attack,
        client: int,
        outcome: Reconstruction | Failure,
        seconds: float,
        noise: Reconstruction | Failure | None = None,
    ) -> tuple[ClientRecord, Tensor]:
        """Score the attack on one client.

        Args:
            attack: for the noise-only control.
            client: its number.
            outcome: what the attack gave back.
            seconds: that the attack took.
            noise: what the attack made of the noise-only update; null: it is run here.

        Returns:
            The record, and the reconstruction of each true image, B C H W, NaN where there is none.
        """
        truth = self.data.client(client)
        is_failure = isinstance(outcome, Failure)
        reconstruction = _nothing(truth) if isinstance(outcome, Failure) else _on_cpu(outcome)
        rows = score(reconstruction, truth, self.mean_image, self.recovered_psnr)
        matching = aligned(reconstruction.images, truth.images, rows)
        add_public(rows, truth, self.public, self.public_labels)
        if self.num_candidates:
            add_identification(rows, matching, truth, *self.candidates_for(truth))
        self._add_metrics(rows, matching, truth)
        for row in rows:
            matched = int(row["matched"])
            row["score"] = float(reconstruction.score[matched]) if matched >= 0 else torch.nan
        wrong = add_marks(rows, reconstruction, truth.images)
        notes = {**reconstruction.notes, **wrong}
        if client < self.num_estimated_clients:
            notes |= self._estimate(attack, client, truth, rows)
        federation = attack.federation
        if federation.has_payload:
            shapes = {name: tensor.shape for name, tensor in federation.payload.named_parameters()}
            notes["update_bits"] = num_update_bits(federation.defenses, shapes)
            if Grant.BUFFERS in federation.grants:  # they are sent as they are
                sizes = (part.nbytes for part in sent_buffers(federation.payload).values())
                notes["update_bits"] += 8.0 * sum(sizes)
            notes["update_parameters"] = float(sum(shape.numel() for shape in shapes.values()))
        shown_images = {"attack": matching}
        controls: dict[str, dict[str, float]] = {}
        if not is_failure:
            if self.null_controls:
                controls["noise_only"], shown_images["noise_only"] = self._noise_only(
                    attack, client, truth, rows, noise
                )
            controls |= self._controls(attack, client, reconstruction, truth)
        capacity = channel_bits(
            federation.channel,
            federation.defenses,
            len(truth.images),
            int(notes.get("columns", truth.images[0].numel())),
        )
        bounded = None
        if capacity is not None and truth.images.shape[1] in (1, 3):
            bounded = powers(shown_images, truth.images, self.mean_image)
            notes["bits_capacity"] = attack.num_rounds * capacity
        mark_convincing(rows)
        record = ClientRecord(
            client=client,
            rows=[{"client": client, **row} for row in rows],
            num_reconstructions=len(reconstruction.images),
            notes=notes,
            controls=controls,
            curve=list(reconstruction.curve),
            seconds=round(seconds, 3),
            failure=outcome.reason if isinstance(outcome, Failure) else None,
            powers=bounded,
        )
        return record, matching

    def noise_outcomes(
        self, attack: GradientMatching, outcomes: Mapping[int, Reconstruction | Failure]
    ) -> dict[int, Reconstruction | Failure]:
        """Return what an attack makes of the noise-only updates of clients, computed as one.

        Args:
            attack: on the clients.
            outcomes: what it gave back, by client; where it failed there is no control.
        """
        if not self.null_controls:
            return {}
        clients = [c for c, outcome in outcomes.items() if not isinstance(outcome, Failure)]
        return dict(zip(clients, attack.attack_together(clients, noise_only=True), strict=True))

    def _noise_only(
        self,
        attack: Attack,
        client: int,
        truth: PrivateBatch,
        rows: list[Row],
        noise: Reconstruction | Failure | None,
    ) -> tuple[dict[str, float], Tensor]:
        """Return the control of noise alone, and what was shown of each true image, B C H W."""
        if noise is None:
            noise = attack.attempt(attack.attack_noise, client)
        found = _nothing(truth) if isinstance(noise, Failure) else _on_cpu(noise)
        images = shown(found.images, truth.images, self.mean_image)
        values = add_noise_only(rows, images, truth.images)
        if self.columns is not None:
            add_features(rows, "features_noise_only", images, truth.images, self.columns)
        floor = torch.tensor([row["psnr_mean_image"] for row in rows])
        recovered = (values >= self.recovered_psnr) & (values > floor)
        control = {"psnr": float(values.mean()), "recovered": float(recovered.sum())}
        return control | ({"failed": 1.0} if isinstance(noise, Failure) else {}), images

    def _controls(
        self, attack: Attack, client: int, reconstruction: Reconstruction, truth: PrivateBatch
    ) -> dict[str, dict[str, float]]:
        controls: dict[str, dict[str, float]] = {}
        bound = self._prior_free_bound(attack, client, truth)
        if bound is not None:
            controls["prior_free_bound"] = bound
        if self.data.num_clients > 1:
            other = self.data.client((client + 1) % self.data.num_clients).images
            values = psnr(shown(reconstruction.images, other, self.mean_image), other)
            controls["other_client"] = {"psnr": float(values.mean())}
        return controls

    def _estimate(
        self, attack: Attack, client: int, truth: PrivateBatch, rows: list[Row]
    ) -> dict[str, float]:
        """Add to rows what a linearised attacker gets, and return notes on it; none if unknown."""
        if self._estimator is None or self._estimator.attack is not attack:
            self._estimator = Estimator(attack, self.public, self.data.seed)
        try:
            found = self._estimator.estimate(truth, client)
        except InputError as error:
            rank_zero_warn(f"client {client} has no local estimate: {error}")
            return {}
        for row, value in zip(rows, found.mse.tolist(), strict=True):
            row["mse_local_estimate"] = value
        return {
            "estimate_equations": float(found.num_equations),
            "estimate_unknowns": float(found.num_unknowns),
            "estimate_told": found.num_told,
        }

    def _prior_free_bound(
        self, attack: Attack, client: int, truth: PrivateBatch
    ) -> dict[str, float] | None:
        """Return what the best attack without a prior would reach in one round.

        None without clip and noise, and for several rounds, which may build on each other.
        """
        if attack.num_rounds > 1:
            return None
        privacy = privacy_statement(
            attack.federation.defenses, client=attack.client, num_samples=len(truth.images)
        )
        energy = float(truth.images.double().square().sum())
        if not privacy["clip_norm"] or not privacy["noise_std"] or not energy:
            return None
        multiplier = privacy["noise_std"] / privacy["clip_norm"]
        generator = make_generator(attack.seed, client, "bound")
        clamped = clamped_psnr(truth.images, multiplier, generator=generator, energy=energy)
        return {
            "expected_psnr": expected_psnr(multiplier, energy, truth.images[0].numel()),
            "expected_psnr_clamped": float(clamped.mean()),
        }

    def _add_metrics(self, rows: list[Row], matching: Tensor, truth: PrivateBatch) -> None:
        """Add the further metrics; the mean image stands where there is no reconstruction."""
        filled = torch.where(matching.isnan(), self.mean_image, matching).clamp(0, 1)
        if self.columns is not None:
            mean_row = self.mean_image.expand_as(filled)
            add_features(rows, "features", filled, truth.images, self.columns)
            add_features(rows, "features_mean_image", mean_row, truth.images, self.columns)
        for name, metric in self.extra_metrics.items():
            metric.reset()
            metric.update(filled, truth.images)
            for row, value in zip(rows, metric.per_image().tolist(), strict=True):
                row[name] = value
            metric.reset()


def _try(metrics: Mapping[str, PerImageMetric], images: Tensor) -> None:
    """Raise InputError now, and not after the attack, if a metric cannot score such images."""
    for name, metric in metrics.items():
        try:
            metric.update(images, images)
        except (RuntimeError, ValueError, TypeError) as error:  # torch raises the first
            raise InputError(
                f"audit.extra_metrics.{name} cannot score images of {tuple(images.shape[1:])}: "
                f"{' '.join(str(error).split())[:200]}; leave it out"
            ) from error
        metric.reset()


def _on_cpu(reconstruction: Reconstruction) -> Reconstruction:
    return reconstruction._replace(
        images=reconstruction.images.detach().cpu().float(),
        score=reconstruction.score.detach().cpu(),
        p_values=None if reconstruction.p_values is None else reconstruction.p_values.cpu(),
    )


def _nothing(truth: PrivateBatch) -> Reconstruction:
    images = truth.images
    return Reconstruction(images[:0], labels=None, score=images.new_zeros(0), notes={})
