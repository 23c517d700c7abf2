"""Rows of a table from an honest update: softmax for categories, and an ensemble of restarts.

Vero, Balunović, Dimitrov, Vechev, "TabLeak: Tabular Data Leakage in Federated Learning", ICML 2023,
arXiv 2210.01785.

- A category is optimised as logits, of which the network reads the softmax: what is discrete
  becomes smooth, and stays a distribution; a number in units of its standard deviation.
- Many restarts, each matching the direction of the update, are brought into the order of the best
  one (Kuhn, "The Hungarian Method", 1955) and pooled: the median of numbers, the mean of
  distributions, of which the likeliest value is returned.
- Where the restarts disagree, the guess is unsure.  The score of a row is the mean over its
  features of the entropy of the pooled distribution, over that of guessing evenly.

What differs: the network reads numbers in [0, 1], where the paper's reads standardised ones, and
they are kept there; a number's uncertainty is the share of restarts beyond its tolerance from the
median, where the paper takes the entropy of a Gaussian, which is on no common scale with a
category's; labels are granted as in the paper.  Pictures are rows of numbers.

What it needs not: a first linear layer of more rows than the batch holds samples gives the rows by
linear algebra (:class:`~lightning_recon.attacks.ExactInversion`), which the paper's setting is.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lightning_recon.attacks.gradient_matching import Evidence, GradientMatching
from lightning_recon.functional.gradient_distance import Distance
from lightning_recon.functional.tables import TOLERANCE, features
from lightning_recon.observation import Reconstruction
from lightning_recon.targets import Target
from lightning_recon.updates import Columns

_LEAST = 1e-3  # probability of a value, where logits stand for a row


def published_adam(parameters: Any) -> torch.optim.Adam:
    """Return Adam of the paper's rate, .06."""
    return torch.optim.Adam(parameters, lr=0.06, fused=True)


class TabLeak(GradientMatching):
    """Matches the update of rows of a table, and pools many restarts.

    Args:
        distance: between the simulated update and the observed one; ``cosine`` in the paper.
        num_restarts: members of the ensemble; 30 in the paper.
        iterations: steps on the dummy rows of one client; 1,500 in the paper.
        optimizer: makes the optimizer of the dummy rows; by default Adam of the paper's rate.
        lr_scheduler: makes its schedule; null: constant.
        **kwargs: the options of :class:`GradientMatching`.

    Raises:
        InputError: if an argument is out of its range.
    """

    citation = (
        "Vero, Balunović, Dimitrov, Vechev: TabLeak: Tabular Data Leakage in Federated Learning. "
        "ICML 2023, arXiv 2210.01785"
    )

    def __init__(
        self,
        target: Target,
        distance: Distance = "cosine",
        num_restarts: int = 30,
        iterations: int = 1500,
        optimizer: OptimizerCallable = published_adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            target,
            distance=distance,
            num_restarts=num_restarts,
            iterations=iterations,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            **kwargs,
        )

    @property
    def columns(self) -> Columns:
        """Of the table; of pictures a number for each pixel."""
        if self.spec.columns is not None:
            return self.spec.columns
        size = torch.Size(self.spec.image_shape).numel()
        return Columns((1,) * size, (0.0,) * size)

    def start(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Return numbers uniform in [0, 1] and standard normal logits, num_samples C H W."""
        drawn = torch.randn(num_samples, *self.dummy_shape, generator=generator)
        uniform = torch.rand(drawn.shape, generator=generator)
        return torch.where(self._is_number, uniform / self._unit, drawn)

    def decode(self, dummy: Tensor) -> Tensor:
        """Return rows: the softmax of every category's logits, and zeros behind the features."""
        rows = dummy * self._unit.to(dummy)
        if self.spec.columns is None:
            return rows
        parts = [
            part if part.shape[1] == 1 else part.softmax(1)
            for part in features(rows, self.spec.columns)
        ]
        flat = torch.cat(parts, 1)
        return F.pad(flat, (0, dummy[0].numel() - flat.shape[1])).view_as(dummy)

    def encode(self, images: Tensor) -> Tensor:
        """Return dummies that stand for rows."""
        logits = images.clamp_min(_LEAST).log()
        is_number = self._is_number.to(images.device)
        return torch.where(is_number, images / self._unit.to(images), logits)

    def project(self, dummy: Tensor) -> None:
        """Keep numbers in [0, 1]; logits are free."""
        is_number = self._is_number.to(dummy.device)
        most = (1 / self._unit).to(dummy).expand_as(dummy)
        dummy.copy_(torch.where(is_number, dummy.clamp_min(0).minimum(most), dummy))

    @property
    def _is_number(self) -> Tensor:
        """C H W, bool: where a dummy is no logit."""
        return self._laid_out([size == 1 for size in self.columns.sizes]) > 0

    @property
    def _unit(self) -> Tensor:
        """C H W: what a number is optimised in, its standard deviation; 1 for pixels and logits."""
        deviations = [tolerance / TOLERANCE for tolerance in self.columns.tolerances]
        return self._laid_out([deviation or 1.0 for deviation in deviations])

    def _laid_out(self, values: Sequence[float]) -> Tensor:
        """Return a value for each feature as an image of all places, C H W, then ones."""
        each = torch.tensor(values, dtype=torch.float32)
        each = each.repeat_interleave(torch.tensor(self.columns.sizes))
        size = torch.Size(self.spec.image_shape).numel()
        return F.pad(each, (0, size - len(each)), value=1.0).view(self.spec.image_shape)

    def finish(self, dummy: Tensor, evidence: Evidence) -> Reconstruction:
        """Return the rows on which the restarts agree best; the score is how little they do."""
        best = super().finish(dummy, evidence)
        rows = self.decode(dummy.detach()).clamp(0, 1)
        members = rows.view(self.num_restarts, -1, *rows.shape[1:])
        labels = self.labels_of(dummy, evidence)
        member_labels = labels.argmax(1) if labels.is_floating_point() else labels
        sets = [
            in_order_of(best.images, best.labels, member, given)
            for member, given in zip(members, member_labels.chunk(self.num_restarts), strict=True)
            if member.isfinite().all()
        ]
        if not sets:
            return best
        images, unsure = pooled(torch.stack(sets), self.columns)
        notes = {**best.notes, "objective": float(best.score[0]), "unsure": float(unsure.mean())}
        return best._replace(images=images, score=unsure, notes=notes)


def in_order_of(
    reference: Tensor, reference_labels: Tensor | None, rows: Tensor, labels: Tensor
) -> Tensor:
    """Return rows in the order in which they are nearest to others, one to one, label to label.

    Args:
        reference: B C H W.
        reference_labels: B; null: any row may stand for any other.
        rows: B C H W.
        labels: B.
    """
    cost = torch.cdist(reference.flatten(1).double(), rows.flatten(1).double()).square()
    if reference_labels is not None:  # rows of other labels come last
        cost = cost + (reference_labels[:, None] != labels) * (1 + cost.sum())
    _, order = linear_sum_assignment(cost.cpu().numpy())
    return rows[torch.from_numpy(order).to(rows.device)]


def pooled(members: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
    """Return what members of an ensemble agree on, B C H W, and how unsure that is, B in [0, 1].

    Args:
        members: M B C H W in [0, 1].
        columns: of the table.
    """
    count, size = members.shape[:2]
    parts, unsure = [], []
    each = features(members.flatten(0, 1), columns)
    for part, tolerance in zip(each, columns.tolerances, strict=True):
        values = part.view(count, size, -1)
        if values.shape[2] == 1:
            middle = values.median(0).values
            parts.append(middle)
            unsure.append(((values - middle).abs() > tolerance).float().mean(0)[:, 0])
            continue
        mean = values.mean(0)
        parts.append(F.one_hot(mean.argmax(1), mean.shape[1]).to(mean))
        entropy = -torch.special.xlogy(mean, mean).sum(1)
        unsure.append(entropy / torch.tensor(float(mean.shape[1])).log())
    flat = torch.cat(parts, 1)
    shape = members.shape[2:]
    images = F.pad(flat, (0, shape.numel() - flat.shape[1])).view(size, *shape)
    return images, torch.stack(unsure, 1).mean(1).clamp(0, 1)
