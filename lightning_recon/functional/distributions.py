"""How alike two sets of images are, from their features: the Fréchet and the kernel distance.

They compare many images with many and know no pairs: a prior that draws plausible strangers scores
as well as the truth.  Beside a leak they tell whether its pictures look real, no more.

Sources:
    FID: Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, "GANs Trained by a Two Time-Scale
    Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017.
    KID: Bińkowski, Sutherland, Arbel, Gretton, "Demystifying MMD GANs", ICLR 2018.
"""

import torch
from torch import Tensor

_CHUNK = 1024  # rows of a kernel matrix held at a time


def frechet_distance(
    mean_x: Tensor, covariance_x: Tensor, mean_y: Tensor, covariance_y: Tensor
) -> Tensor:
    """Return the squared Fréchet (2-Wasserstein) distance of two Gaussians, the FID's formula.

    ``|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))``, the trace of the root taken from the
    eigenvalues of the symmetric ``C_x^(1/2) C_y C_x^(1/2)``, which has the same ones and stays
    real for singular covariances (fewer images than features).

    Args:
        mean_x: D.
        covariance_x: D D, symmetric, no negative eigenvalues.
        mean_y: D.
        covariance_y: D D, as above.

    Returns:
        One value, float64, at least 0.

    Examples:
        >>> import torch
        >>> zero, one = torch.zeros(2), torch.eye(2)
        >>> frechet_distance(zero, one, zero + 3, 4 * one)
        tensor(20., dtype=torch.float64)
    """
    covariance_x, covariance_y = covariance_x.double(), covariance_y.double()
    values, vectors = torch.linalg.eigh(covariance_x)
    root = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.mT
    product = torch.linalg.eigvalsh(root @ covariance_y @ root).clamp(min=0.0)
    means = (mean_x.double() - mean_y.double()).square().sum()
    trace = covariance_x.trace() + covariance_y.trace() - 2.0 * product.sqrt().sum()
    distance: Tensor = (means + trace).clamp(min=0.0)
    return distance


def kernel_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the unbiased squared maximum mean discrepancy of two sets, the KID's formula.

    With the kernel ``k(a, b) = (a . b / D + 1)^3``: the mean of k over pairs of different x, plus
    that over pairs of different y, less twice the mean over all pairs of an x and a y.  All images
    take part at once, instead of the mean over random subsets that is usual.

    Args:
        x: N D, N at least 2.
        y: M D, M at least 2.

    Returns:
        One value, float64; 0 on average for sets of one distribution, and then often negative.

    Raises:
        ValueError: if the shapes disagree, or a set has less than two members.

    Examples:
        >>> import torch
        >>> kernel_distance(torch.zeros(2, 1), torch.ones(2, 1))
        tensor(7., dtype=torch.float64)
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            "features must be N D and M D with N and M of at least 2; got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    x, y = x.double(), y.double()
    within = [
        (_kernel_sum(z, z) - _kernel(z.square().sum(dim=1), z.shape[1]).sum())
        / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    return within[0] + within[1] - 2.0 * _kernel_sum(x, y) / (len(x) * len(y))


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    parts = [_kernel(part @ y.mT, y.shape[1]).sum() for part in torch.split(x, _CHUNK)]
    return torch.stack(parts).sum()


def _kernel(products: Tensor, num_features: int) -> Tensor:
    return (products / num_features + 1.0) ** 3
