"""RowSparse against a dense tensor that goes through the same defenses."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from lightning_recon.clients import FedSGD
from lightning_recon.defenses import ClipL2, GaussianNoise, Laplace, apply_chain
from lightning_recon.rowsparse import RowSparse, is_finite, read_rows, zeros_for
from lightning_recon.updates import PrivateBatch

K, N = 40, 300


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(dtype=torch.float64):
    """The same matrix as RowSparse and dense."""
    rows = torch.tensor([3, 17, 31])
    entries = torch.randn(3, N, generator=generator(1), dtype=dtype)
    dense = torch.zeros(K, N, dtype=dtype)
    dense[rows] = entries
    return RowSparse(rows, entries.clone(), K), dense


def test_reads_as_the_dense_matrix():
    sparse, dense = pair()
    asked = torch.tensor([31, 0, 3, 3])
    assert sparse.shape == dense.shape
    assert torch.equal(sparse.read_rows(asked), dense[asked])
    assert torch.equal(read_rows(dense, asked), read_rows(sparse, asked))
    assert not sparse.is_dense
    assert torch.equal(sparse.to_dense(), dense)


@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_clipping_equals_the_dense_one(clip_norm):
    sparse, dense = pair()
    other = torch.randn(7, generator=generator(2), dtype=torch.float64)
    clip = ClipL2(clip_norm)
    lazily = clip({"rows": sparse, "bias": other.clone()}, generator=generator())
    plainly = clip({"rows": dense.clone(), "bias": other.clone()}, generator=generator())
    assert not lazily["rows"].is_dense
    assert torch.allclose(lazily["rows"].to_dense(), plainly["rows"], rtol=1e-12)
    assert torch.allclose(lazily["bias"], plainly["bias"], rtol=1e-12)


def test_noise_is_that_of_the_dense_mechanism():
    sparse, dense = pair(torch.float32)
    released = GaussianNoise(0.3)({"rows": sparse}, generator=generator(5))["rows"]
    assert not released.is_dense
    noise = (released.to_dense() - dense).flatten().double().numpy() / 0.3
    # every entry has noise of its own: normal, and neither rows nor columns go together
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    matrix = torch.from_numpy(noise).view(K, N)
    for way in (matrix, matrix.T):
        correlation = torch.corrcoef(way) - torch.eye(len(way))
        bound = 5.5 / math.sqrt(way.shape[1])
        assert correlation.abs().max() < bound
    assert abs(matrix.mean()) < 5 / math.sqrt(K * N)


def test_noise_depends_on_the_generator_alone():
    first, _ = pair()
    second, _ = pair()
    third, _ = pair()
    for matrix, seed in ((first, 5), (second, 5), (third, 6)):
        GaussianNoise(0.3)({"rows": matrix}, generator=generator(seed))
    late = torch.tensor([30, 2])
    alone = first.read_rows(late)
    assert torch.equal(alone, first.read_rows(late))  # the same at every reading
    assert torch.equal(alone, second.to_dense()[late])  # and in any order
    assert torch.equal(alone, second.read_rows(late))
    assert not torch.equal(alone, third.read_rows(late))


def test_clipping_after_noise_counts_the_noise():
    sparse, _ = pair()
    sparse.add_noise_(0.3, generator())
    norm = sparse.squared_norm() ** 0.5
    before = sparse.read_rows(torch.arange(K))
    assert norm == pytest.approx(float(before.norm()), rel=1e-6)
    clipped = ClipL2(1.0)({"rows": sparse}, generator=generator())["rows"]
    assert torch.allclose(clipped.to_dense(), before / norm)


def test_two_layers_of_noise_are_independent():
    none = RowSparse(torch.zeros(0, dtype=torch.int64), torch.zeros(0, N), K)
    source = generator()
    none.add_noise_(3.0, source)
    none.add_noise_(4.0, source)
    assert float(none.to_dense().std()) == pytest.approx(5.0, rel=0.03)


def test_noise_on_what_is_held_already():
    sparse, dense = pair(torch.float32)
    sparse.to_dense()
    sparse.add_noise_(0.3, generator(5))
    lazily, _ = pair(torch.float32)
    lazily.add_noise_(0.3, generator(5))
    assert torch.equal(sparse.to_dense(), lazily.to_dense())
    assert not torch.equal(sparse.to_dense(), dense)


def test_any_other_operation_is_the_dense_one():
    sparse, dense = pair()
    assert torch.equal(sparse.abs().sum(1), dense.abs().sum(1))
    sparse, dense = pair()
    sparse.mul_(2)  # in place, and a view of it
    sparse.view(-1)[:5].add_(1)
    dense.mul_(2)
    dense.view(-1)[:5].add_(1)
    assert torch.equal(sparse.to_dense(), dense)


def test_a_defense_that_does_not_know_it():
    sparse, dense = pair(torch.float32)
    chain = [Laplace(clip_norm=1.0, epsilon=1.0)]
    lazily = apply_chain(chain, {"rows": sparse}, generator=generator(3))["rows"]
    plainly = apply_chain(chain, {"rows": dense}, generator=generator(3))["rows"]
    lazily = lazily.to_dense()
    assert torch.equal(lazily, plainly)


def test_finite():
    sparse, _ = pair()
    assert is_finite(sparse)
    assert not sparse.is_dense
    sparse.entries[1, 7] = torch.nan
    assert not is_finite(sparse)


def test_zeros_for_a_parameter():
    shared = nn.Parameter(torch.zeros(5).expand(1000, -1))
    zeros = zeros_for(shared)
    assert isinstance(zeros, RowSparse)
    assert torch.equal(zeros.to_dense(), torch.zeros(1000, 5))
    plain = zeros_for(nn.Parameter(torch.ones(4, 5)))
    assert not isinstance(plain, RowSparse)
    assert torch.equal(plain, torch.zeros(4, 5))


class Router(nn.Module):
    """Each sample reaches the row that its first pixel says; a dense and a sparse one."""

    def __init__(self, is_sparse):
        super().__init__()
        self.is_sparse = is_sparse
        shape = torch.zeros(12).expand(K, -1)
        self.rows = nn.Parameter(shape if is_sparse else shape.clone())
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        row = (images[:, 0, 0, 0] * K).long()
        chosen = F.embedding(row, self.rows, sparse=self.is_sparse)
        shift = (chosen * images.flatten(1)).sum(1) + self.scale * images.sum((1, 2, 3))
        return torch.stack([shift, -shift], dim=1)


def test_client_releases_rows():
    images = torch.rand(6, 3, 2, 2, generator=generator(4))
    images[1, 0, 0, 0] = images[0, 0, 0, 0]  # two samples in one row add up
    batch = PrivateBatch(
        images, torch.tensor([0, 1] * 3), torch.ones(6, 1, 2, 2).bool(), torch.arange(6)
    )
    sparse = FedSGD()(Router(True), batch, seed=0)
    dense = FedSGD()(Router(False), batch, seed=0)
    assert isinstance(sparse["rows"], RowSparse)
    assert len(sparse["rows"].rows) == 5
    assert torch.allclose(sparse["rows"].to_dense(), dense["rows"])
    assert torch.equal(sparse["scale"], dense["scale"])
