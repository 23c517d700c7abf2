"""What a payload makes of samples of the client's own: whose gradient stands in which row.

Every row of a gradient is a sum over the batch.  Where one sample alone stands in a row, the row
gives it away, whatever the batch size.  Sources: Boenisch et al., EuroS&P 2023 (rows that one
sample reaches); Garov, Dimitrov, Jovanović & Vechev, "Hiding in Plain Sight: Disguising Data
Stealing Attacks in Federated Learning", ICLR 2024 (D-SNR: the largest sample's gradient of a layer
over that of all others).  Ours: rows are compared with the next larger one, too, since imprint rows
are nested and only their differences hold one sample; D-SNR is of squared norms, the root taken.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.detect.rows import Evidence
from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.randomness import make_generator

_NUM_PROJECTIONS = 16  # of a row's gradient, which tell its size and its differences
_OWNED = 0.99  # share of a row's energy that is one sample's, from which it owns the row
_FAINT = 1e-10  # of the largest energy of a row: below, float32 has nothing to tell
_MIN_ROWS = 8
_MIN_REACHED = 16  # rows, by one sample


def canary_evidence(
    model: nn.Module, images: Tensor, labels: Tensor
) -> Iterator[tuple[str, Evidence]]:
    """Yield what the samples' own gradients tell.

    Args:
        model: the payload; it computes in eval mode, and stays as it was.
        images: B C H W, as the client trains on them, B at least 4.
        labels: B.

    Raises:
        InputError: if there are fewer than four samples, or the model does not take them.
    """
    if len(images) < 4 or len(images) != len(labels):
        raise InputError(
            f"sample should hold at least 4 images and as many labels, not {len(images)} and "
            f"{len(labels)}"
        )
    for name, drawn in _gradients(model, images, labels).items():
        energy = drawn.square().sum(2)  # B K
        total = energy.sum(0)
        if not total.max() > 0:
            continue
        owned = max(_owned(energy), _owned(_differences(drawn)))
        text = f"{owned:.0%} of the rows that your samples reach hold one of them alone"
        yield name, Evidence("owned-rows", owned, text)
        alike = _alike(drawn)
        text = f"all rows that a sample reaches get the same gradient, give or take 1/{alike:.3g}"
        yield name, Evidence("equal-gradients", alike, text)
        whole = energy.sum(1)
        ratio = math.sqrt(float(whole.max() / (whole.sum() - whole.max()).clamp_min(1e-30)))
        text = f"one sample's gradient is {ratio:.3g} times that of all others together (D-SNR)"
        yield name, Evidence("isolated-sample", ratio, text)


def _gradients(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return random projections of every sample's gradient of every weight: B K P, by name.

    Weights with one row a class are left out: a sample owns the row of its label.
    """
    weights: dict[str, Tensor] = {
        name: part
        for name, part in model.named_parameters()
        if part.ndim > 1 and len(part) >= _MIN_ROWS
    }
    if not weights:
        return {}
    wanted = {part: part.requires_grad for part in model.parameters()}
    generator = make_generator(0, "canary")
    onto = {
        name: torch.randn(part[0].numel(), _NUM_PROJECTIONS, generator=generator).to(part)
        for name, part in weights.items()
    }
    found: dict[str, list[Tensor]] = {name: [] for name in weights}
    try:
        with left_as_found(model, training=False, keeps_buffers=True), torch.enable_grad():
            for part in weights.values():
                part.requires_grad_()
            like = next(iter(weights.values()))
            # all samples at once, for a payload may look at the whole batch
            logits = model(images.to(like))
            losses = F.cross_entropy(logits, labels.to(like.device), reduction="none")
            weights = {name: part for name, part in weights.items() if len(part) != logits.shape[1]}
            for loss in losses if weights else ():
                parts = torch.autograd.grad(
                    loss, list(weights.values()), allow_unused=True, retain_graph=True
                )
                for (name, weight), part in zip(weights.items(), parts, strict=True):
                    dense = torch.zeros_like(weight) if part is None else part.to_dense()
                    found[name].append(dense.flatten(1) @ onto[name])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the payload does not take the sample: {reason}") from error
    finally:
        for part, is_wanted in wanted.items():
            part.requires_grad_(is_wanted)
    return {name: torch.stack(found[name]).cpu().double() for name in weights}


def _owned(energy: Tensor) -> float:
    """Return the share of rows with a gradient in which one sample stands alone, of B K."""
    total, most = energy.sum(0), energy.amax(0)
    reached = total > _FAINT * total.max()
    if not bool(reached.any()):
        return 0.0
    return float((most[reached] > _OWNED * total[reached]).float().mean())


def _alike(drawn: Tensor) -> float:
    """Return how much alike the rows' gradients of a sample are in size: their mean over spread.

    Rows that go on with the same weight, as those of an imprint layer do, are alike whatever they
    measure; in a network the next layer weighs them.  Of layers that read one vector a sample,
    whose rows' gradients are parallel; the median over the samples, of B K P.
    """
    found = []
    for rows in drawn:
        sizes = rows.norm(dim=1)
        rows, sizes = rows[sizes > 1e-5 * sizes.max()], sizes[sizes > 1e-5 * sizes.max()]
        if len(rows) < _MIN_REACHED:
            continue
        units = rows / sizes[:, None]
        if float((units @ units[0]).abs().min()) > 1 - 1e-3:
            found.append(float(sizes.mean() / sizes.std().clamp_min(1e-3 * sizes.mean())))
    return float(torch.tensor(found).median()) if found else 0.0


def _differences(drawn: Tensor) -> Tensor:
    """Return the energy of what a row has more than the next, B K - 1: nested rows come apart."""
    reached = drawn.square().sum(2) > 0
    order = torch.argsort(reached.sum(0), stable=True)
    return drawn[:, order].diff(dim=1).square().sum(2)
