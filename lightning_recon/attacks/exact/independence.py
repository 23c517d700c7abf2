"""Images from the span of a gradient's rows: its independent components.

Kariyappa, Guo, Maeng, Xiong, Suh, Qureshi, Lee, "Cocktail Party Attack: Breaking Aggregation-Based
Privacy in Federated Learning using Independent Component Analysis", ICML 2023, arXiv 2209.05578:
every row of the gradient of a linear layer's weights is a mixture of the batch's images, so that
these are the sources of a blind separation.

What differs.  The paper looks at the pixels, which are far from independent, and helps itself by
two penalties, on total variation and on cosines between rows of the unmixing matrix.  A mixture's
derivatives are the same mixture of the images' derivatives, which are sparse, and nearly
independent from image to image: here these are separated, the differences along x, along y and
along both, of all colours of a place as one vector.  FastICA (Hyvärinen, 1999) finds a start; the
likelihood of a Laplacian density of these vectors, which asks for no orthogonal mixing, is climbed
from there (Pham and Garat, 1997).  And the gradient of the bias, the last column, which is the same
1 for all images, tells scale, sign and brightness, where the paper stretches each image to [0, 1];
without a bias the brightest pixel is taken for white.
"""

import torch
from torch import Tensor

from lightning_recon.attacks.exact.scales import by_peak

_FIXED_STEPS = 60
_CLIMB_STEPS = 300
_MOST_WORK = 300 * 128**2  # steps times dimensions squared: of more dimensions fewer steps
_ROUND = 0.1  # of the variance: by which the modulus of a place is rounded, in FastICA
_SHARP = 0.01  # and in the likelihood
_STILL = 1e-5  # change of all directions, 1 - cosine, at which FastICA ends
_MEMORY = 20  # pairs that L-BFGS keeps
_FAINT = 1e-9  # of the largest variance: dimensions without derivatives


def independent_images(
    rows: Tensor, image_shape: tuple[int, int, int], generator: torch.Generator
) -> Tensor:
    """Return as many images as a span has dimensions, r D, nowhere clamped, in any order.

    Args:
        rows: V, r (D + 1), the last column that of the bias.
        image_shape: C, H, W with C H W = D; H and W at least 2.
        generator: of the start, on the CPU.
    """
    rank = len(rows)
    if rank == 0 or min(image_shape[1:]) < 2:
        return rows[:0, :-1]
    seen = _derivatives(rows[:, :-1].reshape(rank, *image_shape))  # r G P
    flat = seen.flatten(1)
    variance, axes = torch.linalg.eigh(flat @ flat.T / flat.shape[1])
    lives = variance > _FAINT * variance.max().clamp_min(1e-300)
    whiten = (axes[:, lives] * variance[lives].rsqrt()).T
    white = (whiten @ flat).float().view(-1, *seen.shape[1:])
    unmixing = _climb(white, _fixed_point(white, generator)).to(rows) @ whiten
    mixed = unmixing @ rows
    images = mixed[:, :-1] / mixed[:, -1:] if rows[:, -1].any() else by_peak(mixed[:, :-1])
    return images[images.isfinite().all(1)]


def _derivatives(images: Tensor) -> Tensor:
    """Return the differences of r C H W images, r 3C P, along x, y and both."""
    along_x, along_y = images.diff(dim=3)[:, :, :-1], images.diff(dim=2)[:, :, :, :-1]
    both = images.diff(dim=3).diff(dim=2)
    return torch.cat([along_x, along_y, both], 1).flatten(2)


def _fixed_point(white: Tensor, generator: torch.Generator) -> Tensor:
    """Return an orthogonal unmixing, r r, of whitened derivatives, r G P, by FastICA."""
    rank, size, _ = white.shape
    flat = white.flatten(1)
    start = torch.randn(rank, rank, generator=generator).to(white)
    unmixing: Tensor = torch.linalg.qr(start).Q
    for _ in range(_FIXED_STEPS):
        sources = (unmixing @ flat).view_as(white)
        inverse = (sources.square().mean(1, keepdim=True) + _ROUND).rsqrt()
        slope = (inverse - sources.square() / size * inverse**3).mean((1, 2))
        new = (sources * inverse).flatten(1) @ flat.T / flat.shape[1] - slope[:, None] * unmixing
        left, _, right = torch.linalg.svd(new)
        before, unmixing = unmixing, left @ right
        if ((unmixing * before).sum(1).abs() > 1 - _STILL).all():
            break
    return unmixing


def _climb(white: Tensor, unmixing: Tensor) -> Tensor:
    """Return an unmixing of larger likelihood, r r, not orthogonal."""
    _, size, places = white.shape
    flat = white.flatten(1)
    unmixing = unmixing.clone().requires_grad_()
    steps = max(1, min(_CLIMB_STEPS, _MOST_WORK // len(white) ** 2))
    optimizer = torch.optim.LBFGS(
        [unmixing], max_iter=steps, history_size=_MEMORY, line_search_fn="strong_wolfe"
    )

    def unlikelihood() -> Tensor:
        optimizer.zero_grad()
        moduli = ((unmixing @ flat).view_as(white).square().sum(1) + _SHARP).sqrt()
        loss: Tensor = (size + 1) ** 0.5 * moduli.sum() / places
        loss = loss - size * torch.linalg.slogdet(unmixing).logabsdet
        unmixing.grad = torch.autograd.grad(loss, unmixing)[0].contiguous()
        return loss

    with torch.enable_grad():
        optimizer.step(unlikelihood)  # type: ignore[no-untyped-call]
    return unmixing.detach()
