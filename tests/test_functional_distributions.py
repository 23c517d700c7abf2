import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.signal import convolve2d

from lightning_recon.functional.distributions import frechet_distance, kernel_distance
from lightning_recon.functional.perceptual import dists, l2_pool, lpips


def features(count, size=6, seed=0, scale=1.0):
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((size, size))
    return torch.from_numpy(random.standard_normal((count, size)) @ mixing * scale + 0.1 * seed)


def moments(x):
    return x.mean(dim=0), torch.from_numpy(np.cov(x.numpy(), rowvar=False))


@pytest.mark.parametrize("counts", [(50, 80), (9, 9)])
def test_the_frechet_distance_agrees_with_a_matrix_root(counts):
    x, y = features(counts[0]), features(counts[1], seed=1, scale=2.0)
    (m, c), (n, d) = moments(x), moments(y)
    root = sqrtm((c @ d).numpy())
    expected = (m - n).square().sum() + (c + d).trace() - 2 * np.trace(root).real
    assert frechet_distance(m, c, n, d).item() == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(n, d, m, c).item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_frechet_distance_of_commuting_and_of_singular_covariances():
    """Closed form: for diagonal covariances the sum of squared differences of deviations."""
    a, b = torch.tensor([1.0, 4.0, 0.0, 0.0]), torch.tensor([9.0, 0.0, 0.25, 0.0])
    mean = torch.tensor([1.0, -2.0, 0.0, 2.0])
    found = frechet_distance(mean, a.diag(), torch.zeros(4), b.diag())
    assert found.item() == pytest.approx(9 + 4 + 4 + 0.25)
    x = features(4, size=12)  # fewer points than dimensions
    assert frechet_distance(*moments(x), *moments(x)).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("counts", [(2, 2), (7, 12)])
def test_the_kernel_distance_agrees_with_loops(counts):
    x, y = (features(n, seed=i).numpy() for i, n in enumerate(counts))

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    within = [np.mean([kernel(a, b) for a, b in itertools.permutations(z, 2)]) for z in (x, y)]
    across = np.mean([kernel(a, b) for a, b in itertools.product(x, y)])
    found = kernel_distance(torch.from_numpy(x), torch.from_numpy(y))
    assert found.item() == pytest.approx(sum(within) - 2 * across, rel=1e-9)


def test_the_kernel_distance_in_chunks(monkeypatch):
    x, y = features(40), features(25, seed=1)
    whole = kernel_distance(x, y)
    monkeypatch.setattr("lightning_recon.functional.distributions._CHUNK", 7)
    assert kernel_distance(x, y).item() == pytest.approx(whole.item(), rel=1e-12)


def test_the_kernel_distance_is_unbiased():
    """Of two samples of one distribution it is 0 on average, however few they are."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(2000):
        x, y = torch.randn(2, 4, 3, generator=generator)
        values.append(kernel_distance(x, y))
    values = torch.stack(values)
    assert values.mean().abs() < 4 * values.std() / len(values) ** 0.5
    assert (values < 0).any()


def test_sets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="N D and M D"):
        kernel_distance(torch.zeros(5, 2), torch.zeros(5, 3))


# LPIPS and DISTS, given features


def layers(seed, shapes=((2, 4, 6, 5), (2, 7, 3, 3))):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_lpips_agrees_with_loops():
    x, y, weights = layers(0), layers(1), layers(2, ((4,), (7,)))
    expected = np.zeros(2)
    for a, b, w in zip(x, y, weights, strict=True):
        for image, i, j in np.ndindex(2, *a.shape[2:]):
            p, q = a[image, :, i, j].numpy(), b[image, :, i, j].numpy()
            p, q = p / np.linalg.norm(p), q / np.linalg.norm(q)
            expected[image] += np.dot(w.numpy(), (p - q) ** 2) / (a.shape[2] * a.shape[3])
    assert lpips(x, y, weights).tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert lpips(x, x, weights).tolist() == [0.0, 0.0]


def test_dists_agrees_with_loops():
    x, y = layers(0), layers(1)
    alpha, beta = layers(2, ((4,), (7,))), layers(3, ((4,), (7,)))
    norm = sum(float(w.sum()) for w in (*alpha, *beta))
    expected = np.ones(2)
    for a, b, texture, structure in zip(x, y, alpha, beta, strict=True):
        for image, channel in np.ndindex(a.shape[:2]):
            p, q = a[image, channel].flatten().numpy(), b[image, channel].flatten().numpy()
            covariance = np.cov(p, q, bias=True)
            likeness = (2 * p.mean() * q.mean() + 1e-6) / (p.mean() ** 2 + q.mean() ** 2 + 1e-6)
            expected[image] -= float(texture[channel]) / norm * likeness
            likeness = (2 * covariance[0, 1] + 1e-6) / (np.trace(covariance) + 1e-6)
            expected[image] -= float(structure[channel]) / norm * likeness
    assert dists(x, y, alpha, beta).tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    assert dists(x, x, alpha, beta).tolist() == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("size", [(6, 7), (1, 1), (2, 5)])
def test_l2_pooling_agrees_with_scipy(size):
    x = layers(0, ((2, 3, *size),))[0]
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = [
        [np.sqrt(convolve2d(channel**2, kernel, mode="same"))[::2, ::2] for channel in image]
        for image in x.numpy()
    ]
    np.testing.assert_allclose(l2_pool(x).numpy(), expected, rtol=1e-6)
