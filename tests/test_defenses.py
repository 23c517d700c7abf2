import math
import re

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_recon import defenses as package
from lightning_recon.audit.privacy_statement import privacy_statement
from lightning_recon.defenses import (
    ClipL2,
    Defense,
    GaussianNoise,
    LocalRandomizer,
    apply_chain,
    bind_chain,
    gaussian,
)
from lightning_recon.defenses.base import CHUNK, chunks, update_norm
from lightning_recon.errors import InputError

UNUSED = torch.Generator()


def make_update(norm=1.0, dtype=torch.float64, seed=0):
    """Parameters of different shapes and sizes, with this norm over all of them together."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (6, 3, 5, 5), "conv.bias": (6,), "fc.weight": (10, 24), "scale": ()}
    update = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    factor = norm / total_norm(update)
    return {name: (tensor * factor).to(dtype) for name, tensor in update.items()}


def total_norm(update):
    """In float64, whatever the update's type."""
    return math.sqrt(math.fsum((t.double() ** 2).sum().item() for t in update.values()))


def copy_of(update):
    return {name: tensor.clone() for name, tensor in update.items()}


def noised(update, std=1.0, seed=0, **kwargs):
    """The update behind a GaussianNoise; the caller's own is left alone."""
    defense = GaussianNoise(std, **kwargs)
    return apply_chain([defense], copy_of(update), generator=torch.Generator().manual_seed(seed))


def noise_of(*shape, std=1.0, seed=0, dtype=torch.float32):
    return noised({"weight": torch.zeros(*shape, dtype=dtype)}, std, seed)["weight"]


@pytest.fixture
def small_chunks(monkeypatch):
    """Noise in pieces of a thousand numbers."""
    monkeypatch.setattr(gaussian, "_CHUNK", 1000)


# clipping


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
@pytest.mark.parametrize("clip_norm", [1e-3, 1, 10, 99])
def test_clip_brings_the_whole_update_to_the_bound(clip_norm, dtype, tolerance):
    update = make_update(norm=100, dtype=dtype)
    clipped = ClipL2(clip_norm)(copy_of(update), generator=UNUSED)
    assert total_norm(clipped) == pytest.approx(clip_norm, rel=tolerance)
    for name, tensor in update.items():
        assert clipped[name].dtype == dtype
        torch.testing.assert_close(clipped[name], tensor * (clip_norm / 100), rtol=2e-6, atol=0)


def test_clip_takes_all_parameters_together():
    """Each of the two is within the bound alone."""
    update = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    clipped = ClipL2(4.5)(update, generator=UNUSED)
    torch.testing.assert_close(clipped["a"], torch.tensor([2.7, 0.0]))
    torch.testing.assert_close(clipped["b"], torch.tensor([[3.6]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("norm", [1e-12, 0.5, 9.999])
def test_clip_leaves_smaller_updates_as_they_are(norm, dtype):
    update = make_update(norm, dtype)
    clipped = ClipL2(10)(copy_of(update), generator=UNUSED)
    assert list(clipped) == list(update)
    assert all(torch.equal(clipped[name], update[name]) for name in update)


def test_clip_exactly_at_the_bound():
    update = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    assert ClipL2(5)(copy_of(update), generator=UNUSED) == update
    assert ClipL2(4.9999)(copy_of(update), generator=UNUSED) != update


def test_clip_leaves_zero_zero():
    clipped = ClipL2(1)({"a": torch.zeros(5), "b": torch.zeros(0)}, generator=UNUSED)
    assert torch.equal(clipped["a"], torch.zeros(5))
    assert clipped["b"].shape == (0,)


def test_clip_of_a_huge_update():
    """Adding up 10^7 squares in float32 is off by a thousandth."""
    generator = torch.Generator().manual_seed(0)
    update = {
        "weight": torch.randn(4_000, 5_000, generator=generator),
        "bias": torch.randn(2_500_001, generator=generator),
    }
    clipped = ClipL2(10)(update, generator=UNUSED)
    assert clipped["weight"].dtype == torch.float32
    assert total_norm(clipped) == pytest.approx(10, rel=1e-4)


def test_clip_of_one_large_number_among_many_small_ones():
    update = {"weight": torch.full((3_000_000,), 1e-3)}
    update["weight"][2_999_999] = 1e3
    clipped = ClipL2(1)(update, generator=UNUSED)
    assert total_norm(clipped) == pytest.approx(1, rel=1e-4)


def test_clip_takes_tensors_in_any_layout():
    images = torch.randn(4, 6, 8, 3, generator=torch.Generator().manual_seed(0)) * 10
    update = {"a": images.permute(0, 3, 1, 2), "b": images[0, ::2, 1:, 0].clone().t()}
    before = copy_of(update)
    clipped = ClipL2(1)(update, generator=UNUSED)
    assert total_norm(clipped) == pytest.approx(1, rel=1e-6)
    for name, tensor in before.items():
        torch.testing.assert_close(clipped[name], tensor / total_norm(before))


@pytest.mark.parametrize("clip_norm", [0, 0.0, -1, -math.inf, math.inf, math.nan])
def test_clip_refuses_what_is_no_bound(clip_norm):
    with pytest.raises(InputError, match="clip_norm") as error:
        ClipL2(clip_norm)
    assert "\n" not in str(error.value)
    assert str(clip_norm) in str(error.value)


# the noise's distribution


@pytest.mark.parametrize("std", [2e-3, 1, 50])
def test_noise_has_the_stated_standard_deviation(std):
    noise = noise_of(300_000, std=std).double().numpy()
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], noise.size)
    assert low < (noise**2).sum() / std**2 < high
    assert abs(noise.mean()) < 4 * std / math.sqrt(noise.size)


@pytest.mark.usefixtures("small_chunks")
def test_noise_is_normal():
    noise = noise_of(200_000, std=3).double().numpy()
    assert stats.kstest(noise, "norm", args=(0, 3)).pvalue > 1e-3
    assert abs(stats.kurtosis(noise)) < 4 * math.sqrt(24 / noise.size)
    assert abs(stats.skew(noise)) < 4 * math.sqrt(6 / noise.size)
    assert 12 < np.abs(noise).max() < 18, "the tails of 200,000 draws reach 4 to 6 deviations"


@pytest.mark.usefixtures("small_chunks")
def test_noise_is_independent_between_parameters_and_chunks():
    update = {f"layer{i}": torch.zeros(10, 400) for i in range(10)}
    noise = torch.cat([tensor.view(-1) for tensor in noised(update).values()]).view(40, 1000)
    correlation = torch.corrcoef(noise.double()).numpy()
    pairs = correlation[np.triu_indices(40, 1)] * math.sqrt(1000)
    assert np.abs(pairs).max() < 5
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], pairs.size)
    assert low < (pairs**2).sum() < high


@pytest.mark.usefixtures("small_chunks")
def test_noise_is_independent_along_a_parameter():
    noise = noise_of(100_000).double()
    for lag in (1, 2, 8, 16, 999, 1000, 1001):
        correlation = (noise[lag:] * noise[:-lag]).mean().item()
        assert abs(correlation) * math.sqrt(100_000) < 4.5, lag


def test_noise_of_an_update_larger_than_a_chunk():
    extra = 200_000
    noise = noise_of(gaussian._CHUNK + extra)
    assert (noise == 0).sum() < 5
    head, tail = noise[:extra].double(), noise[-extra:].double()
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], extra)
    assert low < (tail**2).sum() < high
    assert abs((head * tail).mean().item()) * math.sqrt(extra) < 4.5


def test_noise_does_not_depend_on_the_update():
    update = make_update(norm=30)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in update.items()}
    protected, noise = noised(update, 0.1), noised(zeros, 0.1)
    for name in update:
        torch.testing.assert_close(protected[name] - update[name], noise[name], rtol=0, atol=1e-13)


def test_same_seed_same_bits():
    update = make_update()
    first, again, other = (noised(update, seed=seed) for seed in (5, 5, 6))
    for name in update:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_noise_goes_on_where_the_generator_stands():
    """Two clients that share a generator do not share their noise."""
    generator = torch.Generator().manual_seed(0)
    first, second = (
        apply_chain([GaussianNoise(1.0)], {"a": torch.zeros(1000)}, generator=generator)["a"]
        for _ in range(2)
    )
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.15


def test_noise_neither_reads_nor_changes_the_global_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = noise_of(100)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(noise_of(100), first)


@pytest.mark.parametrize("size", [1, 5, 15, 16, 17, 1001, 30_000])
@pytest.mark.parametrize("std", [1.0, 1.7e-3])
def test_float32_and_float64_see_the_same_noise(size, std):
    single, double = (
        noise_of(size, std=std, dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.permute(0, 3, 1, 2),
        lambda x: x.transpose(0, 1),
        lambda x: x[::2, 1:, :, 0],
        lambda x: x[0, 0, 0, :1].expand(7, 9),
        lambda x: x[0, 0, 0, 0],
        lambda x: x[:0],
    ],
    ids=["channels last", "transposed", "strided", "expanded", "one number", "empty"],
)
def test_noise_takes_tensors_in_any_layout(view):
    """The layout changes nothing; no number is missed, and none gets its noise twice."""
    base = torch.rand(6, 9, 10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = view(base).clone(memory_format=torch.contiguous_format)
    protected = apply_chain(
        [GaussianNoise(0.5)],
        {"before": torch.zeros(3), "weight": view(base.clone())},
        generator=torch.Generator().manual_seed(0),
    )
    expected = noised({"before": torch.zeros(3), "weight": plain}, 0.5)
    assert protected["weight"].shape == plain.shape
    assert torch.equal(protected["weight"], expected["weight"])
    assert not (protected["weight"] == plain).any()


def test_no_noise_changes_nothing():
    update = make_update()
    protected = noised(update, 0.0)
    assert list(protected) == list(update)
    assert all(torch.equal(protected[name], update[name]) for name in update)


# the noise's calibration


def test_rule_of_the_published_attack():
    """C = 10, epsilon = 10 and m = 1000 give .002."""
    noise = GaussianNoise(calibration="record_mean", epsilon=10, num_records=1000)
    bind_chain([ClipL2(10), noise])
    assert noise.std == pytest.approx(0.002, rel=1e-12)
    sent = apply_chain(
        [noise], {"a": torch.zeros(100_000)}, generator=torch.Generator().manual_seed(0)
    )
    assert sent["a"].std().item() == pytest.approx(0.002, rel=0.01)


@pytest.mark.parametrize(
    ("clip_norm", "epsilon", "num_records", "std"),
    [(2.5, 10, 1000, 5e-4), (10, 2.5, 1000, 8e-3), (10, 10, 1, 2), (20, 0.5, 16, 5)],
)
def test_rule_in_every_variable(clip_norm, epsilon, num_records, std):
    noise = GaussianNoise(None, "record_mean", epsilon, num_records)
    bind_chain([ClipL2(clip_norm), noise])
    assert noise.std == pytest.approx(std, rel=1e-12)


@pytest.mark.parametrize("norms", [(5, 10), (10, 5), (5, 5, 5), (30, 5, 10)])
def test_smallest_bound_in_front_counts(norms):
    noise = GaussianNoise(None, "record_mean", 1, 10)
    bind_chain([*map(ClipL2, norms), noise])
    assert noise.std == pytest.approx(1)


def calibrated():
    return GaussianNoise(None, "record_mean", epsilon=10, num_records=1000)


@pytest.mark.parametrize(
    "chain",
    [
        lambda: [calibrated()],
        lambda: [calibrated(), ClipL2(10)],
        lambda: [ClipL2(10), GaussianNoise(0.1), calibrated()],
        lambda: [ClipL2(10), calibrated(), calibrated()],
    ],
    ids=["alone", "clipped after", "noise between", "noise twice"],
)
def test_calibration_needs_a_bound_in_front(chain):
    with pytest.raises(InputError, match="ClipL2 in front") as error:
        bind_chain(chain())
    assert "\n" not in str(error.value)
    assert "noise_std" in str(error.value)


def test_clip_between_noises_bounds_again():
    noise = calibrated()
    bind_chain([GaussianNoise(1.0), ClipL2(10), noise])
    assert noise.std == pytest.approx(0.002)


def test_standard_deviation_is_unknown_before_the_chain_is_bound():
    with pytest.raises(RuntimeError, match="bind_chain"):
        _ = calibrated().std
    with pytest.raises(RuntimeError, match="bind_chain"):
        calibrated()({"a": torch.zeros(3)}, generator=UNUSED)


def test_noise_behind_a_clip_is_added_to_the_clipped_update():
    update = make_update(norm=1000)
    chain = [ClipL2(10), calibrated()]
    bind_chain(chain)
    sent = apply_chain(chain, copy_of(update), generator=torch.Generator().manual_seed(0))
    zeros = {name: torch.zeros_like(tensor) for name, tensor in update.items()}
    noise = noised(zeros, 0.002)
    for name in update:
        torch.testing.assert_close(sent[name], update[name] / 100 + noise[name])


def test_clip_behind_noise_is_applied_to_the_noise_too():
    chain = [GaussianNoise(10.0), ClipL2(1)]
    bind_chain(chain)
    sent = apply_chain(chain, make_update(), generator=torch.Generator().manual_seed(0))
    assert total_norm(sent) == pytest.approx(1)


RECORD_MEAN = {"calibration": "record_mean", "epsilon": 10.0, "num_records": 1000}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, ["noise_std", "calibration", "epsilon", "num_records"]),
        ({"noise_std": -0.1}, ["noise_std", "-0.1"]),
        ({"noise_std": math.nan}, ["noise_std", "nan"]),
        ({"noise_std": math.inf}, ["noise_std", "inf"]),
        ({"noise_std": 0.1, **RECORD_MEAN}, ["noise_std", "calibration", "epsilon"]),
        ({"noise_std": 0.0, **RECORD_MEAN}, ["noise_std", "calibration", "epsilon"]),
        ({"noise_std": 0.1, "epsilon": 10.0}, ["noise_std", "epsilon"]),
        ({"noise_std": 0.1, "calibration": "record_mean"}, ["noise_std", "calibration"]),
        ({**RECORD_MEAN, "epsilon": None}, ["epsilon"]),
        ({**RECORD_MEAN, "epsilon": 0.0}, ["epsilon", "0.0"]),
        ({**RECORD_MEAN, "epsilon": -1.0}, ["epsilon", "-1"]),
        ({**RECORD_MEAN, "epsilon": math.inf}, ["epsilon", "inf"]),
        ({**RECORD_MEAN, "epsilon": math.nan}, ["epsilon", "nan"]),
        ({**RECORD_MEAN, "num_records": None}, ["num_records", "None"]),
        ({**RECORD_MEAN, "num_records": 0}, ["num_records", "0"]),
        ({**RECORD_MEAN, "num_records": -5}, ["num_records", "-5"]),
        ({**RECORD_MEAN, "calibration": None}, ["calibration"]),
        ({"epsilon": 10.0}, ["calibration", "num_records"]),
        ({"num_records": 1000}, ["calibration", "epsilon"]),
        pytest.param(
            {"noise_std": 0.1, "num_records": 1000},
            ["noise_std", "num_records"],
        ),
        pytest.param(
            {**RECORD_MEAN, "calibration": "no rule"},
            ["calibration", "no rule"],
        ),
    ],
    ids=str,
)
def test_noise_refuses_what_does_not_fit_together(arguments, names):
    with pytest.raises(InputError, match=r"^GaussianNoise: ") as error:
        GaussianNoise(**arguments)
    message = str(error.value)
    assert "\n" not in message
    assert all(name in message for name in names)


# what is guaranteed


def test_actual_epsilon_of_the_published_setting():
    clip, noise = ClipL2(10), calibrated()
    bind_chain([clip, noise])
    assert noise.claimed["epsilon"] == 10
    assert "record_mean" in noise.claimed["rule"]
    told = privacy_statement([clip, noise])
    assert told["actual"]["epsilon"] == pytest.approx(50_042_648, rel=1e-6)
    assert told["actual"]["delta"] == 1e-5
    stated = re.match(r"\((\S+), 1e-05\)-DP", told["statement"])
    assert float(stated[1]) == pytest.approx(5e7, rel=0.01)
    for words in ("sensitivity 20 ", "standard deviation 0.002", "claimed epsilon 10 "):
        assert words in told["statement"]
    assert "no formal guarantee" not in told["statement"]


def test_actual_epsilon_of_noise_worth_the_name():
    """The published multiplier of epsilon 1 at delta 1e-5, times the sensitivity of 2 C."""
    noise = GaussianNoise(3.7306 * 2 * 4)
    told = privacy_statement([ClipL2(4), noise])
    assert told["actual"]["epsilon"] == pytest.approx(1, abs=1e-3)
    assert noise.claimed is None
    assert told["statement"].startswith("(1, 1e-05)-DP")
    assert "claimed" not in told["statement"]


@pytest.mark.parametrize(
    "chain",
    [
        lambda: [GaussianNoise(0.1)],
        lambda: [GaussianNoise(1e9)],
        lambda: [GaussianNoise(0.1), ClipL2(10)],
        lambda: [ClipL2(10), GaussianNoise(0.0)],
    ],
    ids=["alone", "large", "clipped after", "none"],
)
def test_noise_without_a_bound_guarantees_nothing(chain):
    told = privacy_statement(chain())
    assert told["actual"] is None
    assert "no formal guarantee" in told["statement"]
    assert "-DP" not in told["statement"]


def test_bound_of_another_chain_is_forgotten():
    noise = GaussianNoise(0.1)
    assert privacy_statement([ClipL2(10), noise])["actual"] is not None
    assert privacy_statement([noise])["actual"] is None


def test_clip_alone_guarantees_nothing():
    told = privacy_statement([ClipL2(7.5)])
    assert told["clip_norm"] == 7.5
    assert "no formal guarantee" in told["statement"]
    assert "at most 7.5 " in told["statement"]
    assert "-DP" not in told["statement"]


def test_no_defense_guarantees_nothing():
    assert "no formal guarantee" in privacy_statement([])["statement"]


# what defenses share


def test_pieces_cover_an_update_once_and_in_order():
    update = {
        "long": torch.arange(CHUNK + 3, dtype=torch.float64),
        "scalar": torch.tensor(7.0, dtype=torch.float64),
        "empty": torch.zeros(0, dtype=torch.float64),
        "turned": torch.arange(6, dtype=torch.float64).view(2, 3).t(),
    }
    expected = torch.cat([tensor.reshape(-1) for tensor in update.values()])
    pieces = list(chunks(update))
    assert max(len(piece) for piece in pieces) == CHUNK
    assert torch.equal(torch.cat(pieces), expected)
    for piece in pieces:
        piece += 1
    assert torch.equal(torch.cat([tensor.reshape(-1) for tensor in update.values()]), expected + 1)


@pytest.mark.parametrize("order", [1, 2])
def test_norm_of_an_update(order):
    update = make_update(norm=12.0, dtype=torch.float32)
    flat = np.concatenate([tensor.double().numpy().ravel() for tensor in update.values()])
    assert update_norm(update, order) == pytest.approx(np.linalg.norm(flat, order), rel=1e-12)
    assert update_norm({}, order) == 0
    many = {"weight": torch.full((20_000_000,), 0.1)}
    expected = float(torch.tensor(0.1)) * 20_000_000 ** (1 / order)
    assert update_norm(many, order) == pytest.approx(expected, rel=1e-9)
    assert update_norm({"a": torch.full((2,), 3e38)}, order) > 3e38, "no overflow in float32"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("order", [1, 2])
def test_norm_that_is_not_finite_is_one_line(value, order):
    update = {"a": torch.zeros(4), "b": torch.tensor([1.0, value])}
    with pytest.raises(InputError, match="cannot be clipped") as error:
        update_norm(update, order)
    assert "\n" not in str(error.value)


def test_bound_of_the_client_reaches_the_chain():
    noise = calibrated()
    bind_chain([noise], norm_bound=10.0)
    assert noise.std == pytest.approx(0.002)


@pytest.mark.parametrize("name", sorted(package.__all__))
def test_every_defense_is_documented(name):
    found = getattr(package, name)
    if not isinstance(found, type) or found in (Defense, LocalRandomizer):
        return
    assert found.__doc__.count("\n\n") >= 1
    assert "Args:" in found.__doc__
    if issubclass(found, LocalRandomizer):
        assert re.search(r"\d{4}$", found.citation), "ends with its year"
