"""Compressions and plain noise: against their formulas, and the attacker's stand-ins for them.

Seeds are fixed.  Where a draw decides, a true defense fails a check with a probability of about
1e-4 or less.
"""

import math

import pytest
import torch
from scipy import stats
from torch.func import grad, vmap

from lightning_recon.audit.privacy_statement import privacy_statement
from lightning_recon.defenses import (
    QSGD,
    ClipL2,
    Duchi,
    GaussianNoise,
    Hybrid,
    Laplace,
    LaplaceNoise,
    Piecewise,
    PowerSGD,
    PrivUnit2,
    PrivUnitG,
    RandomK,
    SignSGD,
    TernGrad,
    TopK,
    UniformQuantiser,
    apply_chain,
    bind_chain,
    num_update_bits,
    stand_in_chain,
)
from lightning_recon.defenses.base import CHUNK
from lightning_recon.defenses.rounding import largest, smallest
from lightning_recon.defenses.top_k import num_kept
from lightning_recon.errors import InputError
from lightning_recon.rowsparse import RowSparse

COMPRESSIONS = {
    "QSGD": lambda: QSGD(4),
    "QSGD of one step": lambda: QSGD(2),
    "QSGD, L2": lambda: QSGD(16, scale="l2"),
    "UniformQuantiser": lambda: UniformQuantiser(4),
    "TernGrad": TernGrad,
    "SignSGD": SignSGD,
    "SignSGD, scaled": lambda: SignSGD(scaled=True),
    "SignSGD, zeros": lambda: SignSGD(scaled=True, keep_zeros=True),
    "TopK": lambda: TopK(0.8),
    "RandomK": lambda: RandomK(0.8),
    "RandomK, biased": lambda: RandomK(0.8, unbiased=False),
    "PowerSGD": lambda: PowerSGD(2),
}
NOISES = {
    "LaplaceNoise": lambda: LaplaceNoise(1e-6),
    "GaussianNoise": lambda: GaussianNoise(1e-6),
    "Laplace": lambda: Laplace(1e9, clip_norm=3.0),
}
CHAINS = {
    "clip, top-k, QSGD": lambda: [ClipL2(1.0), TopK(0.8), QSGD(4)],
    "clip, top-k, signs": lambda: [ClipL2(1.0), TopK(0.8), SignSGD(True, keep_zeros=True)],
    "random-k, QSGD": lambda: [RandomK(0.5), QSGD(4)],
    "top-k, top-k": lambda: [TopK(0.5), TopK(0.9)],
    "clip, PowerSGD": lambda: [ClipL2(0.5), PowerSGD(1)],
    "top-k, random-k": lambda: [TopK(0.5), RandomK(0.5)],
    "clip, top-k, nearest": lambda: [ClipL2(1.0), TopK(0.8), UniformQuantiser(16)],
    "clip, TernGrad": lambda: [ClipL2(1.0), TernGrad()],
}
COMPRESSED = pytest.mark.parametrize("make", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
ANY = pytest.mark.parametrize(
    "make", [*COMPRESSIONS.values(), *NOISES.values()], ids=[*COMPRESSIONS, *NOISES]
)
SHAPES = {
    "conv": (6, 3, 5, 5),
    "bias": (7,),
    "fc": (10, 24),
    "one": (1,),
    "scalar": (),
    "off": (9,),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_update(dtype=torch.float32, seed=0):
    """Parameters of different shapes, with zeros inside one and throughout another."""
    generator = seeded(seed)
    update = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in SHAPES.items()
    }
    update["fc"][3] = 0
    update["off"].zero_()
    return update


def sent(defenses, update, seed=0):
    """What becomes of a copy of the update, a tensor or a dictionary."""
    if isinstance(update, torch.Tensor):
        return sent(defenses, {"weight": update}, seed)["weight"]
    chain = defenses if isinstance(defenses, list) else [defenses]
    update = {name: tensor.clone() for name, tensor in update.items()}
    return apply_chain(chain, update, generator=seeded(seed))


def stand_in(defenses, update, observed):
    chain = defenses if isinstance(defenses, list) else [defenses]
    return stand_in_chain(chain, update, observed)


def distance(first, second):
    return sum(float((first[name] - second[name]).square().sum()) for name in second) ** 0.5


def norm_of(update):
    return sum(float(tensor.double().square().sum()) for tensor in update.values()) ** 0.5


# --- quantisers -------------------------------------------------------------------------------

VALUES = torch.tensor([0.0, 0.03, -0.2, 1 / 3, -0.5, 0.77, 0.9999, -1.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "order", "num_steps"),
    [
        (lambda: QSGD(4), math.inf, 3),
        (lambda: QSGD(2), math.inf, 1),
        (lambda: QSGD(16), math.inf, 15),
        (lambda: QSGD(5, scale="l2"), 2, 4),
        (TernGrad, math.inf, 1),
    ],
)
@pytest.mark.parametrize("size", [1e-6, 2.5])
def test_stochastic_rounding_has_the_stated_mean_and_variance(make, order, num_steps, size):
    copies = 4000
    update = {str(i): size * VALUES for i in range(copies)}
    draws = torch.stack(list(sent(make(), update).values()))
    scale = size * torch.linalg.vector_norm(VALUES, order)
    position = size * VALUES.abs() / scale * num_steps
    fraction = position - (position + 1e-12).floor()
    variance = fraction * (1 - fraction).clamp_min(0) * (scale / num_steps) ** 2
    error = (variance.clamp_min(0) / copies).sqrt()
    assert ((draws.mean(0) - size * VALUES).abs() <= 4 * error + 1e-9 * size).all()
    spread = (draws - size * VALUES).square().mean(0)
    # of a square of two values, the standard error is below (step / 2) sqrt(variance / n)
    tolerance = 4 * (scale / num_steps) * error + 1e-9 * size**2
    assert ((spread - variance).abs() <= tolerance).all()


@pytest.mark.parametrize("num_levels", [2, 3, 4, 16, 256])
@pytest.mark.parametrize("kind", [QSGD, UniformQuantiser])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantisers_send_levels_of_the_largest_entry(kind, num_levels, dtype):
    tensor = torch.randn(5000, generator=seeded()).to(dtype)
    levels = sent(kind(num_levels), tensor) / tensor.abs().max() * (num_levels - 1)
    whole = levels.round()
    torch.testing.assert_close(levels, whole, rtol=0, atol=1e-4)
    assert whole.abs().max() == num_levels - 1, "no level above the largest entry, and that is hit"
    assert len(whole.abs().unique()) == num_levels or num_levels == 256
    assert (whole * tensor.sign() >= 0).all()


def test_largest_entry_is_sent_exactly():
    for seed in range(200):
        tensor = torch.randn(7, generator=seeded(seed))
        for defense in (QSGD(16), QSGD(7), UniformQuantiser(10), TernGrad()):
            assert sent(defense, tensor).abs().max() == tensor.abs().max()


def test_uniform_quantiser_by_hand():
    tensor = torch.tensor([0.0, 0.49, -0.51, 1.6, 2.4, -3.0])
    expected = torch.tensor([0.0, 0.0, -1.0, 2.0, 2.0, -3.0])
    assert torch.equal(sent(UniformQuantiser(4), tensor), expected)
    assert torch.equal(sent(UniformQuantiser(4), tensor, seed=1), expected)


@pytest.mark.parametrize("scale", ["max", "l2"])
def test_qsgd_of_a_tensor_larger_than_a_chunk(scale):
    tensor = torch.randn(CHUNK + 500, generator=seeded())
    found = sent(QSGD(3, scale=scale), tensor)
    order = math.inf if scale == "max" else 2
    step = float(torch.linalg.vector_norm(tensor.double(), order)) / 2
    assert (found - tensor).abs().max() <= step * (1 + 1e-6)
    assert found[CHUNK:].any()


def test_pieces_of_a_tensor_have_draws_of_their_own():
    tensor = torch.full((CHUNK + 500,), 0.25)
    tensor[0] = 1.0
    found = sent(QSGD(3), tensor)
    assert 0 < found[CHUNK:].count_nonzero() < 500
    assert not torch.equal(found[1:500], found[CHUNK + 1 :])


# --- signs ------------------------------------------------------------------------------------


def test_signs_by_hand():
    tensor = torch.tensor([[0.0, -0.5], [2.0, -1.5]])
    signs = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    assert torch.equal(sent(SignSGD(), tensor), signs)
    assert torch.equal(sent(SignSGD(scaled=True), tensor), signs)  # the mean is 1
    kept = torch.tensor([[0.0, -1.0], [1.0, -1.0]])
    assert torch.equal(sent(SignSGD(keep_zeros=True), tensor), kept)
    torch.testing.assert_close(sent(SignSGD(True, keep_zeros=True), tensor), kept * 4 / 3)


@pytest.mark.parametrize("keep_zeros", [False, True])
def test_scaled_signs_are_a_contraction(keep_zeros):
    for seed in range(20):
        tensor = torch.randn(50, generator=seeded(seed)) ** 3
        found = sent(SignSGD(True, keep_zeros), tensor)
        bound = 1 - tensor.abs().sum() ** 2 / (50 * tensor.square().sum())
        error = (found - tensor).square().sum() / tensor.square().sum()
        assert error <= bound * (1 + 1e-5)
        assert found.norm() <= tensor.norm() * (1 + 1e-6)


# --- sparsification ---------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.9, 0.99, 0.999999])
@pytest.mark.parametrize("size", [1, 2, 10, 100, 1000])
def test_number_of_kept_entries(sparsity, size):
    tensor = torch.rand(size, generator=seeded()) + 0.1
    kept = math.ceil(round((1 - sparsity) * size, 3))
    for defense in (TopK(sparsity), RandomK(sparsity)):
        assert sent(defense, tensor).count_nonzero() == max(kept, 1)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.99])
def test_top_k_keeps_the_largest_as_they_are_and_contracts(sparsity):
    update = make_update(torch.float64)
    found = sent(TopK(sparsity), update)
    for name, tensor in update.items():
        kept = found[name] != 0
        assert torch.equal(found[name][kept], tensor[kept])
        if kept.any() and not kept.all():
            assert tensor[~kept].abs().max() <= tensor[kept].abs().min()
        error = float((found[name] - tensor).square().sum())
        assert error <= sparsity * float(tensor.square().sum()) + 1e-12


@pytest.mark.parametrize("unbiased", [True, False])
def test_random_k_has_the_stated_mean_and_error(unbiased):
    size, copies, sparsity = 10, 4000, 0.7
    tensor = torch.linspace(-2, 3, size, dtype=torch.float64)
    draws = torch.stack(
        list(
            sent(
                RandomK(sparsity, unbiased), dict.fromkeys(map(str, range(copies)), tensor)
            ).values()
        )
    )
    factor = 10 / 3 if unbiased else 1.0
    assert ((draws == 0) | (draws - factor * tensor).abs().lt(1e-12)).all()
    hits = (draws != 0).sum(0)
    for count in hits.tolist():
        assert stats.binomtest(count, copies, 0.3).pvalue > 1e-5
    square = tensor.square().sum()
    expected = (factor - 1) * square if unbiased else 0.7 * square
    errors = (draws - tensor).square().sum(1)
    assert abs(float(errors.mean() - expected)) < 4 * float(errors.std()) / math.sqrt(copies)


# --- PowerSGD ---------------------------------------------------------------------------------


def test_powersgd_is_exact_on_matrices_of_its_rank():
    generator = seeded()
    for rank in (1, 2, 3):
        left = torch.randn(30, rank, generator=generator, dtype=torch.float64)
        right = torch.randn(rank, 4, 2, 5, generator=generator, dtype=torch.float64)
        tensor = torch.einsum("ar,rbcd->abcd", left, right)
        torch.testing.assert_close(sent(PowerSGD(rank), tensor), tensor)
        torch.testing.assert_close(sent(PowerSGD(rank + 1), tensor), tensor)


@pytest.mark.parametrize("rank", [1, 3])
def test_powersgd_projects_on_few_directions(rank):
    tensor = torch.randn(40, 5, 3, 3, generator=seeded(), dtype=torch.float64)
    matrix, found = tensor.flatten(1), sent(PowerSGD(rank), tensor).flatten(1)
    assert torch.linalg.matrix_rank(found) == rank
    assert abs(float(((matrix - found) * found).sum())) < 1e-9, "an orthogonal projection"
    left = torch.linalg.svd(found, full_matrices=False).U[:, :rank]
    torch.testing.assert_close(left @ left.T @ matrix, found)
    best = torch.linalg.svdvals(matrix)[:rank].square().sum()
    assert found.square().sum() <= best * (1 + 1e-9)
    random = torch.stack(
        [sent(PowerSGD(rank), tensor, seed=seed).square().sum() for seed in range(20)]
    )
    # better than directions that do not look at the matrix, which catch rank/40 of it
    assert random.mean() > 1.2 * rank / 40 * matrix.square().sum()


def test_powersgd_leaves_what_it_would_not_shorten():
    update = {
        "bias": torch.randn(50, generator=seeded()),
        "small": torch.randn(4, 4, generator=seeded()),
        "scalar": torch.tensor(3.0),
    }
    found = sent(PowerSGD(2), update)
    assert all(torch.equal(found[name], update[name]) for name in update)


# --- Laplace noise ----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 2.0])
def test_laplace_noise_has_its_distribution(scale):
    noise = sent(LaplaceNoise(scale), torch.zeros(100_000)).double().numpy()
    assert stats.kstest(noise, stats.laplace(scale=scale).cdf).pvalue > 1e-4
    assert torch.equal(sent(LaplaceNoise(0.0), VALUES), VALUES)


# --- bits -------------------------------------------------------------------------------------

SIZES = {"a": torch.Size((64, 3, 5, 5)), "b": torch.Size((100,)), "c": torch.Size(())}
TOTAL, LARGE = 4901, 4800


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ([], 32 * TOTAL),
        ([ClipL2(1.0)], 32 * TOTAL),
        ([QSGD(16)], 5 * TOTAL + 96),
        ([QSGD(4, scale="l2")], 3 * TOTAL + 96),
        ([QSGD(2)], 2 * TOTAL + 96),
        ([UniformQuantiser(256)], 9 * TOTAL + 96),
        ([TernGrad()], math.log2(3) * TOTAL + 96),
        ([SignSGD()], TOTAL),
        ([SignSGD(scaled=True)], TOTAL + 96),
        ([SignSGD(keep_zeros=True)], math.log2(3) * TOTAL),
        ([TopK(0.95)], 240 * (32 + 13) + 5 * (32 + 7) + 32),
        ([RandomK(0.95)], 246 * 32 + 64),
        ([PowerSGD(2)], 32 * (2 * (64 + 75) + 101)),
        ([PowerSGD(40)], 32 * TOTAL),
        ([TopK(0.95), QSGD(16)], 240 * (5 + 13) + 5 * (5 + 7) + 5 + 96),
        ([TopK(0.95), SignSGD(True, keep_zeros=True)], 240 * (1 + 13) + 5 * (1 + 7) + 1 + 96),
        ([TopK(0.95), SignSGD()], TOTAL),
        ([RandomK(0.95), TernGrad()], 246 * math.log2(3) + 64 + 96),
        ([PowerSGD(2), QSGD(16)], 5 * TOTAL + 96),
        ([TopK(0.95), GaussianNoise(0.1)], 32 * TOTAL),
        ([QSGD(4), LaplaceNoise(0.1)], 32 * TOTAL),
        ([QSGD(4), GaussianNoise(0.0), LaplaceNoise(0.0)], 3 * TOTAL + 96),
        ([TopK(0.95), PrivUnitG(1.0, 1.0)], 32 * TOTAL),
        ([Piecewise(5.0, 1.0)], 2 * (32 + 13)),
        ([Hybrid(1.0, 1.0)], 32 + 13),
        ([Duchi(5.0, 1.0)], 2 * (1 + 13)),
    ],
)
def test_bits_of_a_message(chain, expected):
    assert num_update_bits(chain, SIZES) == pytest.approx(expected, rel=1e-12)


# --- bounds of the norm -----------------------------------------------------------------------


@COMPRESSED
def test_bound_that_is_stated_holds(make):
    for seed in range(5):
        defense, update = make(), make_update(torch.float64, seed)
        bound = defense.bind(norm_of(update))
        assert defense.bind(None) is None
        if bound is not None:
            assert norm_of(sent(defense, update, seed)) <= bound * (1 + 1e-9)


def test_which_defenses_keep_a_bound():
    for defense in (TopK(0.5), RandomK(0.5, unbiased=False), PowerSGD(1), SignSGD(scaled=True)):
        assert defense.bind(3.0) == 3.0
    assert RandomK(0.75).bind(3.0) == 12.0
    for defense in (QSGD(), QSGD(scale="l2"), UniformQuantiser(4), TernGrad(), SignSGD()):
        assert defense.bind(3.0) is None
    assert LaplaceNoise(1.0).bind(3.0) is None
    bind_chain([ClipL2(1.0), TopK(0.9), GaussianNoise(None, "record_mean", 1.0, 10)])
    with pytest.raises(InputError, match="norm bound"):
        bind_chain([ClipL2(1.0), QSGD(), GaussianNoise(None, "record_mean", 1.0, 10)])


# --- the attacker's stand-ins -----------------------------------------------------------------

EXACT = [
    "UniformQuantiser",
    "TopK",
    "RandomK",
    "RandomK, biased",
    "PowerSGD",
    "top-k, top-k",
    "clip, PowerSGD",
    "top-k, random-k",
    "clip, top-k, nearest",
]
"""Of which the truth leaves nothing to explain: no noise, and no softened sign."""
STOOD_IN = pytest.mark.parametrize(
    "make", [*COMPRESSIONS.values(), *CHAINS.values()], ids=[*COMPRESSIONS, *CHAINS]
)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_truth_passed_through_the_stand_in_is_what_was_observed(name, dtype):
    for seed in range(10):
        defenses, update = {**COMPRESSIONS, **CHAINS}[name](), make_update(dtype, seed)
        observed = sent(defenses, update, seed)
        found = stand_in(defenses, update, observed)
        rounding = 100 * torch.finfo(dtype).eps * (norm_of(observed) + norm_of(update))
        assert distance(found, observed) <= rounding


@STOOD_IN
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_truth_is_nearer_to_what_was_observed_than_another_update(make, dtype):
    for seed in range(10):
        defenses, update = make(), make_update(dtype, seed)
        observed = sent(defenses, update, seed)
        found = stand_in(defenses, update, observed)
        other = stand_in(defenses, make_update(dtype, seed + 10), observed)
        assert distance(found, observed) < 0.9 * distance(other, observed)
        for name, tensor in update.items():
            assert found[name].shape == tensor.shape
            assert found[name].dtype == dtype


@pytest.mark.parametrize("make", [lambda: QSGD(4), lambda: QSGD(4, scale="l2"), TernGrad])
def test_residual_of_the_truth_is_weighted_and_zero_in_the_mean(make):
    """The attacker's objective has its least value, in the mean, at the truth."""
    update = {str(i): VALUES for i in range(4000)}
    observed = sent(make(), update)
    found = make().stand_in(update, observed)
    residuals = torch.stack([found[name] - observed[name] for name in update])
    error = residuals.std(0) / math.sqrt(len(update))
    assert (residuals.mean(0).abs() <= 4 * error + 1e-3).all()  # .9999 is rarely rounded down
    weight = residuals[0] / (VALUES - observed["0"])
    weight = weight[weight.isfinite()]
    assert (weight >= 1 - 1e-9).all()
    assert (weight < 1.88).all()


def test_weights_of_stochastic_rounding_by_hand():
    observed = {"w": torch.tensor([3.0, 1.0, 1.0, 0.0])}
    update = {"w": torch.tensor([3.0, 0.5, 2.0, -0.2])}
    expected = torch.tensor([3.0, 0.5, 1 + 3.5**0.5, -0.2 * (0.35 / 0.26) ** 0.5])
    torch.testing.assert_close(QSGD(4).stand_in(update, observed)["w"], expected)


@pytest.mark.parametrize("make", NOISES.values(), ids=NOISES.keys())
def test_truth_passed_through_noise_is_near_what_was_observed(make):
    update = make_update()
    observed = sent(make(), update)
    assert 0 < distance(stand_in(make(), update, observed), observed) < 1e-4


@pytest.mark.parametrize(
    "make",
    [
        lambda: Laplace(2.0, clip_norm=1.0),
        lambda: PrivUnit2(6.0, clip_norm=0.7),
        lambda: PrivUnitG(6.0, clip_norm=0.7),
    ],
)
@pytest.mark.parametrize("size", [0.1, 5.0])
def test_stand_in_of_an_unbiased_randomizer_is_its_mean(make, size):
    tensor = size * torch.tensor([0.5, -0.2, 0.1, 0.4], dtype=torch.float64)
    generator = seeded()
    draws = torch.stack(
        [
            apply_chain([make()], {"w": tensor.clone()}, generator=generator)["w"]
            for _ in range(4000)
        ]
    )
    expected = make().stand_in({"w": tensor}, {"w": draws[0]})["w"]
    assert ((draws.mean(0) - expected).abs() < 4 * draws.std(0) / math.sqrt(4000)).all()


@pytest.mark.parametrize("kind", [Duchi, Piecewise, Hybrid])
def test_stand_in_of_coordinate_sampling_is_the_mean_where_something_was_released(kind):
    tensor = torch.tensor([0.9, -0.2, 0.1, 0.4, -0.3], dtype=torch.float64)
    defense, generator = kind(6.0, clip_value=0.5), seeded()
    total, expected = torch.zeros(2, 5, dtype=torch.float64)
    for _ in range(4000):
        draw = apply_chain([defense], {"w": tensor.clone()}, generator=generator)
        assert draw["w"].count_nonzero() == 2
        total += draw["w"]
        expected += defense.stand_in({"w": tensor}, draw)["w"]
    assert (expected / 4000 - tensor.clamp(-0.5, 0.5)).abs().max() < 0.07
    assert ((total - expected) / 4000).abs().max() < 0.07


@pytest.mark.parametrize(
    "make",
    [*COMPRESSIONS.values(), *NOISES.values(), *CHAINS.values(), lambda: Duchi(5.0, 1.0)],
    ids=[*COMPRESSIONS, *NOISES, *CHAINS, "Duchi"],
)
def test_stand_in_is_differentiable_and_runs_in_vmap(make):
    defenses = make()
    observed = sent(defenses, make_update(seed=1))
    dummies = [make_update(seed=seed) for seed in (2, 3)]
    dummies.append({name: torch.zeros_like(tensor) for name, tensor in observed.items()})
    stacked = {name: torch.stack([dummy[name] for dummy in dummies]) for name in observed}

    def loss(update):
        found = stand_in(defenses, update, observed)
        return sum((found[name] - observed[name]).square().sum() for name in observed)

    together, slopes = vmap(loss)(stacked), vmap(grad(loss))(stacked)
    for i, dummy in enumerate(dummies):
        before = {name: tensor.clone() for name, tensor in dummy.items()}
        torch.testing.assert_close(together[i], loss(dummy), rtol=1e-4, atol=1e-5)
        for name, slope in grad(loss)(dummy).items():
            assert slope.isfinite().all()
            torch.testing.assert_close(slopes[name][i], slope, rtol=1e-3, atol=1e-4)
            assert torch.equal(dummy[name], before[name])
    assert all(slopes[name][:2].any() for name in ("conv", "fc"))


@pytest.mark.parametrize("make", [lambda: UniformQuantiser(4), SignSGD, lambda: PowerSGD(2)])
def test_gradient_of_the_stand_in(make):
    """Against finite differences, away from the edges of the intervals."""
    observed = sent(make(), make_update(torch.float64))["fc"]

    def loss(tensor):
        found = make().stand_in({"fc": tensor}, {"fc": observed})["fc"]
        return (found - observed).square().sum()

    dummy = (5 * make_update(torch.float64, seed=4)["fc"]).requires_grad_()
    assert loss(dummy) > 0
    assert torch.autograd.gradcheck(loss, [dummy])


def test_dead_zone_by_hand():
    observed = {"w": torch.tensor([3.0, 1.0, 0.0, -2.0])}
    update = {"w": torch.tensor([5.0, -0.5, 0.9, -2.4])}
    found = UniformQuantiser(4).stand_in(update, observed)["w"]
    torch.testing.assert_close(found, torch.tensor([4.5, 0.0, 0.4, -2.0]))


def test_stand_in_for_signs_knows_no_size():
    observed = {"w": torch.tensor([2.5, 2.5, -2.5, 0.0])}
    update = torch.tensor([0.5, -2.0, -0.5, 0.1])
    mean = 3.1 / 3
    expected = 2.5 * (update / (0.3 * mean)).tanh()
    for factor in (1e-8, 1.0, 1e8):
        found = SignSGD().stand_in({"w": factor * update}, observed)["w"]
        torch.testing.assert_close(found, expected)


# --- all of them ------------------------------------------------------------------------------


@ANY
def test_same_seed_same_bits_and_no_global_state(make):
    update = make_update()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sent(make(), update, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = sent(make(), update, seed=4), sent(make(), update, seed=5)
    assert all(torch.equal(first[name], again[name]) for name in update)
    is_random = not isinstance(make(), UniformQuantiser | SignSGD | TopK)
    assert any(not torch.equal(first[name], other[name]) for name in update) == is_random


@ANY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_and_shape_stay(make, dtype):
    update = make_update(dtype)
    for name, tensor in sent(make(), update).items():
        assert tensor.dtype == dtype
        assert tensor.shape == update[name].shape
        assert tensor.isfinite().all()


@COMPRESSED
def test_zeros_one_number_and_nothing_at_all(make):
    defense = make()
    update = {"zero": torch.zeros(20, 9), "one": torch.tensor([-2.0]), "none": torch.zeros(0, 3)}
    found = sent(defense, update)
    assert all(tensor.isfinite().all() for tensor in found.values())
    if not isinstance(defense, SignSGD):
        assert not found["zero"].any()
        assert found["one"].item() in (-2.0, 0.0) or defense.scale == "l2"
    assert found["one"].item() <= 0
    assert found["none"].shape == (0, 3)
    stood = stand_in(defense, update, found)
    assert all(tensor.isfinite().all() for tensor in stood.values())
    assert sent(defense, {}) == {}
    assert defense.stand_in({}, {}) == {}
    assert num_update_bits([defense], {}) <= 64
    assert num_update_bits([defense], {"none": torch.Size((0, 3))}) <= 64


@ANY
@pytest.mark.parametrize(
    "view",
    [lambda x: x.permute(2, 0, 1), lambda x: x[::2, 1:], lambda x: x[:1, :1, :1].expand(4, 3, 2)],
    ids=["permuted", "strided", "expanded"],
)
def test_layout_changes_nothing(make, view):
    base = torch.rand(6, 5, 4, generator=seeded(), dtype=torch.float64)
    plain = view(base).clone(memory_format=torch.contiguous_format)
    odd = apply_chain([make()], {"w": view(base.clone())}, generator=seeded())["w"]
    torch.testing.assert_close(odd, sent(make(), plain), rtol=0, atol=0)


@ANY
def test_matrices_of_few_rows_get_what_dense_ones_get(make):
    def update():
        rows = RowSparse(torch.tensor([1, 5]), torch.linspace(-1, 1, 14).view(2, 7), 9)
        return {"before": torch.linspace(0, 1, 5), "rows": rows, "after": torch.tensor(0.3)}

    dense = update()
    dense["rows"] = dense["rows"].to_dense().clone()
    sparse = apply_chain([make()], update(), generator=seeded())
    for name, expected in apply_chain([make()], dense, generator=seeded()).items():
        found = sparse[name]
        found = found.to_dense() if isinstance(found, RowSparse) else found
        if isinstance(make(), GaussianNoise) and name == "rows":
            continue  # whose noise is drawn by row, see test_rowsparse
        assert torch.equal(found, expected)


@ANY
def test_guarantees_nothing(make):
    defense = make()
    if isinstance(defense, Laplace):
        return
    assert defense.claimed is None
    assert privacy_statement([defense])["actual"] is None


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: QSGD(1), ["QSGD", "num_levels", "1"]),
        (lambda: QSGD(0), ["QSGD", "num_levels"]),
        (lambda: QSGD(2.5), ["QSGD", "num_levels", "2.5"]),
        (lambda: QSGD(16, scale="mean"), ["QSGD", "scale", "mean"]),
        (lambda: UniformQuantiser(1), ["UniformQuantiser", "num_levels"]),
        (lambda: UniformQuantiser(-4), ["UniformQuantiser", "num_levels", "-4"]),
        (lambda: TopK(1), ["TopK", "sparsity", "1"]),
        (lambda: TopK(-0.1), ["TopK", "sparsity", "-0.1"]),
        (lambda: TopK(95), ["TopK", "sparsity", "95"]),
        (lambda: TopK(math.nan), ["TopK", "sparsity", "nan"]),
        (lambda: RandomK(1.0), ["RandomK", "sparsity", "1.0"]),
        (lambda: RandomK(math.inf), ["RandomK", "sparsity", "inf"]),
        (lambda: PowerSGD(0), ["PowerSGD", "rank", "0"]),
        (lambda: PowerSGD(1.5), ["PowerSGD", "rank", "1.5"]),
        (lambda: LaplaceNoise(-1.0), ["LaplaceNoise", "scale", "-1"]),
        (lambda: LaplaceNoise(math.nan), ["LaplaceNoise", "scale", "nan"]),
        (lambda: LaplaceNoise(math.inf), ["LaplaceNoise", "scale", "inf"]),
    ],
)
def test_refuses_what_is_out_of_range(make, names):
    with pytest.raises(InputError) as error:
        make()
    message = str(error.value)
    assert "\n" not in message
    assert all(name in message for name in names)


# --- edges ------------------------------------------------------------------------------------


@ANY
def test_an_empty_tensor_in_front_changes_nothing(make):
    tensor = torch.linspace(-1, 2, 40).view(5, 8)
    found = sent(make(), {"none": torch.zeros(0, 3), "w": tensor})
    assert found["none"].shape == (0, 3)
    assert torch.equal(found["w"], sent(make(), tensor))


def test_largest_and_smallest_by_hand():
    tensor = torch.tensor([[0.0, -3.0], [0.5, 2.0]])
    assert (largest(tensor), smallest(tensor)) == (3.0, 0.5)
    for nothing in (torch.zeros(0), torch.zeros(3)):
        assert (largest(nothing), smallest(nothing)) == (0.0, math.inf)


@pytest.mark.parametrize("make", [lambda: QSGD(4), TernGrad])
def test_a_draw_of_zero_moves_no_entry_that_is_on_a_level(make, monkeypatch):
    """One draw in 2^24 is exactly 0; the zeros of a sparse update are more."""
    tensor = torch.tensor([0.0, 3.0, -3.0, 0.0])
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    assert torch.equal(sent(make(), tensor), tensor)


def test_sign_and_mean_of_one_number_are_the_number():
    tensor = torch.tensor([-1.7])
    for keep_zeros in (False, True):
        torch.testing.assert_close(sent(SignSGD(True, keep_zeros), tensor), tensor)


def test_stand_in_for_signs_counts_the_one_entry_that_was_sent():
    update, observed = torch.tensor([0.4, 0.1]), torch.tensor([2.0, 0.0])
    found = SignSGD(True, keep_zeros=True).stand_in({"w": update}, {"w": observed})["w"]
    torch.testing.assert_close(found, 2.0 * (update / (0.3 * 0.5)).tanh())


@pytest.mark.parametrize("rank", [1, 2])
def test_powersgd_of_a_matrix_has_its_rank(rank):
    matrix = torch.randn(12, 30, generator=seeded(), dtype=torch.float64)
    found = sent(PowerSGD(rank), matrix)
    assert torch.linalg.matrix_rank(found) == rank
    other = matrix + torch.randn(12, 30, generator=seeded(1), dtype=torch.float64)
    stood = PowerSGD(rank).stand_in({"w": other}, {"w": found})["w"]
    assert torch.linalg.matrix_rank(stood) == rank


@pytest.mark.parametrize(("size", "bits"), [(1, 0), (2, 1), (3, 2), (256, 8), (257, 9)])
def test_bits_of_a_position(size, bits):
    """ceil(log2) of the number of places."""
    shapes = {"w": torch.Size((size,))}
    kept = num_kept(size, 0.9)
    assert num_update_bits([TopK(0.9)], shapes) == kept * (32 + bits)
    assert num_update_bits([Duchi(1.0, 1.0)], shapes) == 1 + bits
    assert num_update_bits([Piecewise(1.0, 1.0)], shapes) == 32 + bits


def test_qsgd_has_sixteen_levels_unless_told():
    tensor = torch.randn(5000, generator=seeded())
    assert torch.equal(sent(QSGD(), tensor), sent(QSGD(16, scale="max"), tensor))
    assert num_update_bits([QSGD()], {"w": torch.Size((100,))}) == 100 * (1 + 4) + 32


def test_l2_scale_of_many_small_entries():
    """Added up in float32 the norm would be 1 % short."""
    found = sent(QSGD(2, scale="l2"), torch.full((20_000_000,), 0.1))
    expected = float(torch.tensor(0.1)) * 20_000_000**0.5
    assert float(found.abs().max()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("make", [TernGrad, lambda: QSGD(2)])
def test_stand_in_beyond_the_largest_that_was_seen_has_the_weight_of_a_level(make):
    """The fraction of a step is 0 there: the weight is the root of .35 / .1."""
    update, observed = {"w": torch.tensor([3.0, -2.5])}, {"w": torch.tensor([2.0, -2.0])}
    expected = torch.tensor([2 + 3.5**0.5, -2 - 0.5 * 3.5**0.5])
    torch.testing.assert_close(make().stand_in(update, observed)["w"], expected)
