import doctest
import importlib
import itertools
import json
import math
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

import lightning_recon
from lightning_recon.audit.scores import METRICS, aggregate, mark_convincing, score
from lightning_recon.audit.statistics import bootstrap_interval, share_interval
from lightning_recon.functional.image_quality import cw_ssim, mse, psnr, ssim
from lightning_recon.observation import Reconstruction
from lightning_recon.updates import PrivateBatch

MEASURES = [mse, psnr, ssim, cw_ssim]


def _images(count=3, channels=3, height=32, width=32, seed=0, dtype=torch.float64):
    """Smooth images with edges: shapes of random colour, place and size on a gradient."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    images = np.zeros((count, channels, height, width))
    for image in images:
        image += random.random((channels, 1, 1)) * y / height
        for _ in range(6):
            cy, cx = random.random(2) * (height, width)
            radius = random.uniform(0.08, 0.25) * height
            inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
            image[:, inside] = random.random((channels, 1))
    return torch.from_numpy(images.clip(0, 1)).to(dtype)


def _noisy(images, std, seed=0):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + std * noise).clamp(0, 1)


def _masks(images):
    masks = torch.zeros(len(images), 1, *images.shape[-2:], dtype=torch.bool)
    for i, mask in enumerate(masks):
        mask[:, 6 + i : 20, 3 : 12 + 5 * i] = True
    return masks


@pytest.mark.parametrize(
    "name",
    [
        module.name
        for module in pkgutil.walk_packages(lightning_recon.__path__, "lightning_recon.")
        if ">>> " in Path(module.module_finder.find_spec(module.name).origin).read_text()
    ],
)
def test_doctests(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_functional_has_doctests():
    module = importlib.import_module("lightning_recon.functional.image_quality")
    assert doctest.testmod(module).attempted > 8


# MSE and PSNR


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_mse_and_psnr_agree_with_a_loop_over_pixels(dtype, masked):
    target = _images(channels=2, height=24, width=20, dtype=dtype)
    preds = _noisy(target, 0.2).to(dtype)
    masks = _masks(target) if masked else torch.ones(3, 1, 24, 20, dtype=torch.bool)
    errors, ratios = [], []
    for p, t, m in zip(preds.numpy(), target.numpy(), masks.numpy(), strict=True):
        squares = [
            (float(p[c, i, j]) - float(t[c, i, j])) ** 2
            for c, i, j in itertools.product(*map(range, p.shape))
            if m[0, i, j]
        ]
        errors.append(sum(squares) / len(squares))
        ratios.append(10 * math.log10(1 / errors[-1]))
    argument = masks if masked else None
    assert mse(preds, target, argument).tolist() == pytest.approx(errors, rel=1e-5)
    assert psnr(preds, target, argument).tolist() == pytest.approx(ratios, rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_an_exact_copy_has_the_capped_psnr(masked):
    target = _images()
    masks = _masks(target) if masked else None
    assert psnr(target, target, masks).tolist() == [100.0] * 3
    assert psnr(target, target, masks, cap=60.0).tolist() == [60.0] * 3
    assert psnr(1 - target, target, masks).max() < 60


@pytest.mark.parametrize("measure", [mse, psnr])
def test_pixels_outside_the_mask_have_no_influence(measure):
    target = _images()
    preds, masks = _noisy(target, 0.1), _masks(target)
    before = measure(preds, target, masks)
    outside = ~masks.expand_as(preds)
    for value in (0.0, 1.0, float("nan")):
        changed = preds.clone()
        changed[outside] = value
        assert torch.equal(measure(changed, target, masks), before)


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_are_per_image(measure):
    target = _images(4)
    preds, masks = _noisy(target, 0.1), _masks(target)
    for argument in (None, masks):
        together = measure(preds, target, argument)
        alone = torch.cat(
            [
                measure(
                    preds[i, None], target[i, None], None if argument is None else masks[i, None]
                )
                for i in range(4)
            ]
        )
        assert together.shape == (4,)
        assert together.dtype == torch.float64
        torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_full_mask_is_no_mask(measure):
    target = _images(height=30, width=45)
    preds = _noisy(target, 0.1)
    full = torch.ones(3, 1, 30, 45, dtype=torch.bool)
    torch.testing.assert_close(measure(preds, target, full), measure(preds, target))


@pytest.mark.parametrize("measure", MEASURES)
def test_float32_is_accurate_enough(measure):
    target = _images(height=64, width=64)
    preds = _noisy(target, 0.05)
    single = measure(preds.float(), target.float()).double()
    torch.testing.assert_close(single, measure(preds, target), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("measure", MEASURES)
def test_bad_arguments_are_refused(measure):
    images = _images()
    masks = _masks(images)
    masks[1] = False
    with pytest.raises(ValueError, match="empty"):
        measure(images, images, masks)
    with pytest.raises(ValueError, match="bool"):
        measure(images, images, _masks(images).float())
    with pytest.raises(ValueError, match="bool"):
        measure(images, images, _masks(images).expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match="B C H W"):
        measure(images, images[:2])
    with pytest.raises(ValueError, match="B C H W"):
        measure(images[0], images[0])
    with pytest.raises(ValueError, match="pixels"):
        measure(images[..., :6], images[..., :6])


# SSIM


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (3, 48)])
@pytest.mark.parametrize("whole", [False, True])
def test_ssim_agrees_with_scikit_image(channels, size, whole):
    target = _images(channels=channels, height=size, width=size)
    preds = _noisy(target, 0.1)
    inner = torch.zeros(3, 1, size, size, dtype=torch.bool)
    inner[..., 5:-5, 5:-5] = True
    # scikit-image leaves out five pixels at the edges: mirrored edges are then what it leaves out.
    margin = ((0, 0), (5, 5), (5, 5)) if whole else 0
    expected = [
        structural_similarity(
            np.pad(p.numpy(), margin, mode="reflect"),
            np.pad(t.numpy(), margin, mode="reflect"),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for p, t in zip(preds, target, strict=True)
    ]
    found = ssim(preds, target, None if whole else inner)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_masked_ssim_does_not_see_beyond_its_windows():
    target = _images(height=64, width=64)
    preds = _noisy(target, 0.1)
    masks = torch.zeros(3, 1, 64, 64, dtype=torch.bool)
    masks[..., 20:40, 20:40] = True
    changed = preds.clone()
    changed[..., :15, :] = changed[..., 45:, :] = changed[..., :, :15] = changed[..., :, 45:] = 0.5
    torch.testing.assert_close(ssim(changed, target, masks), ssim(preds, target, masks))


# CW-SSIM


def _slow_cw_ssim(x, y, mask=None):
    """CW-SSIM of two square gray images in numpy: whole-size bands, then windows one by one."""
    size = len(x)
    orientations = 6
    octaves = {28: 2, 32: 2, 56: 3, 64: 3}[size]
    frequency = np.fft.fftfreq(size)
    v, u = np.meshgrid(frequency, frequency, indexing="ij")
    radius, angle = np.sqrt(u**2 + v**2), np.arctan2(v, u)
    constant = 0.01 / 255**2
    results = []
    for octave in range(octaves):
        step = 2**octave
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.log2(radius) - np.log2(0.25 / step)
            radial = np.where(np.abs(distance) < 1, np.cos(np.pi / 2 * distance), 0.0)
        for k in range(orientations):
            turned = np.angle(np.exp(1j * (angle - np.pi * k / orientations)))
            angular = np.where(np.abs(turned) < np.pi / 2, np.cos(turned) ** 5, 0.0)
            # The squares of the two-sided angular gains must add up to 1 over the orientations.
            total = sum(np.cos(np.pi * j / orientations) ** 10 for j in range(orientations))
            gain = 2 * radial * angular / np.sqrt(total)
            a = np.fft.ifft2(np.fft.fft2(x) * gain)[::step, ::step]
            b = np.fft.ifft2(np.fft.fft2(y) * gain)[::step, ::step]
            values = np.empty(a.shape)
            for i, j in np.ndindex(a.shape):
                window = np.s_[max(i - 3, 0) : i + 4, max(j - 3, 0) : j + 4]
                p, q = a[window].ravel(), b[window].ravel()
                power = np.vdot(p, p).real + np.vdot(q, q).real
                values[i, j] = (2 * abs(np.vdot(q, p)) + constant) / (power + constant)
            weights = np.ones(a.shape)
            if mask is not None:
                small = size // step
                weights = mask.reshape(small, step, small, step).mean(axis=(1, 3))
            results.append(np.average(values, weights=weights))
    return np.mean(results)


@pytest.mark.parametrize("size", [28, 32, 64])
@pytest.mark.parametrize("masked", [False, True])
def test_cw_ssim_agrees_with_a_slow_computation(size, masked):
    target = _images(1, channels=1, height=size, width=size)
    preds = _noisy(target, 0.1)
    masks = _masks(target) if masked else None
    mask = masks[0, 0].numpy() if masked else None
    expected = _slow_cw_ssim(preds[0, 0].numpy(), target[0, 0].numpy(), mask)
    assert cw_ssim(preds, target, masks).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", [(7, 9), (16, 16), (28, 28), (61, 45), (112, 130)])
def test_cw_ssim_is_one_for_a_copy_and_symmetric(size):
    x = _images(2, height=size[0], width=size[1])
    y = _noisy(x.flip(0), 0.1)
    assert cw_ssim(x, x).tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(cw_ssim(x, y), cw_ssim(y, x))
    assert 0 <= cw_ssim(x, y).min() <= cw_ssim(x, y).max() < 0.9


def test_cw_ssim_forgives_a_shift_and_ssim_does_not():
    random = np.random.default_rng(0)
    texture = gaussian_filter(random.standard_normal((4, 3, 72, 72)), (0, 0, 2, 2))
    wide = torch.from_numpy((0.5 + texture).clip(0, 1))
    target, shifted = wide[..., 4:-4, 4:-4], wide[..., 4:-4, 6:-2]
    assert (cw_ssim(shifted, target) > 0.8).all()
    assert (cw_ssim(shifted, target) > ssim(shifted, target) + 0.2).all()
    unlike = target.roll(1, dims=0)
    assert (cw_ssim(shifted, target) > cw_ssim(unlike, target) + 0.3).all()


def test_cw_ssim_falls_with_noise():
    target = _images(3, height=64, width=64)
    values = torch.stack([cw_ssim(_noisy(target, std), target) for std in (0.0, 0.05, 0.2, 0.5)])
    assert (values[:-1] - values[1:] > 0.02).all()


def test_cw_ssim_of_flat_images():
    flat = torch.full((1, 3, 32, 32), 0.5)
    assert cw_ssim(flat, flat + 0.2).item() == pytest.approx(1, abs=1e-3)
    assert cw_ssim(flat, _images(1, dtype=torch.float32)).item() < 0.2


def test_masked_cw_ssim_sees_the_subject():
    target = _images(2, height=64, width=64)
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    masks[..., :, :32] = True
    preds = torch.where(masks, target, target.flip(0))
    assert (cw_ssim(preds, target, masks) > cw_ssim(preds, target, ~masks) + 0.2).all()


# score and aggregate


def _truth(count=4, size=32):
    images = _images(count, height=size, width=size, dtype=torch.float32)
    return PrivateBatch(
        images, torch.arange(count) + 5, _masks(images), 10 * torch.arange(count) + 3
    )


def _reconstruction(images):
    return Reconstruction(images, None, torch.zeros(len(images)), {})


def test_rows_hold_every_image_in_the_order_of_the_batch():
    truth = _truth()
    mean_image = truth.images.mean(dim=0)
    order = [2, 0, 3, 1]
    rows = score(_reconstruction(_noisy(truth.images[order], 0.02)), truth, mean_image)
    names = ["image", "index", "label", "matched", "recovered", *METRICS]
    assert [list(row) for row in rows] == [[*names, "mask_area", "psnr_mean_image"]] * 4
    assert [row["image"] for row in rows] == [0, 1, 2, 3]
    assert [row["index"] for row in rows] == [3, 13, 23, 33]
    assert [row["label"] for row in rows] == [5, 6, 7, 8]
    assert [row["matched"] for row in rows] == [1, 3, 0, 2]
    assert [row["recovered"] for row in rows] == [1, 1, 1, 1]
    assert all(isinstance(row["matched"], int) for row in rows)
    shown = _noisy(truth.images[order], 0.02)[torch.tensor([1, 3, 0, 2])]
    for name, measure in zip(METRICS, MEASURES * 2, strict=True):
        masks = truth.masks if name.endswith("_subject") else None
        expected = measure(shown, truth.images, masks).tolist()
        assert [row[name] for row in rows] == pytest.approx(expected)
    null = psnr(mean_image.expand_as(truth.images), truth.images).tolist()
    assert [row["psnr_mean_image"] for row in rows] == pytest.approx(null)
    area = truth.masks.float().mean(dim=(1, 2, 3)).tolist()
    assert [row["mask_area"] for row in rows] == pytest.approx(area)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_an_image_without_a_reconstruction_counts_with_the_mean_image(kept):
    truth = _truth()
    rows = score(_reconstruction(truth.images[:kept]), truth, truth.images.mean(dim=0))
    assert len(rows) == 4
    for i, row in enumerate(rows):
        if i < kept:
            assert (row["matched"], row["recovered"], row["psnr"]) == (i, 1, 100.0)
        else:
            assert (row["matched"], row["recovered"]) == (-1, 0)
            assert row["psnr"] == row["psnr_mean_image"]


def test_the_mean_image_itself_is_never_a_recovery():
    truth = _truth()
    base = truth.images[:1]
    truth = truth._replace(images=(base + 0.01 * torch.randn(4, 3, 32, 32)).clamp(0, 1))
    mean_image = base[0]
    rows = score(_reconstruction(truth.images[:0]), truth, mean_image)
    assert all(row["psnr"] > 19 and row["recovered"] == 0 for row in rows)
    rows = score(_reconstruction(mean_image.expand(4, -1, -1, -1)), truth, mean_image)
    assert all(row["psnr"] > 19 and row["matched"] >= 0 and row["recovered"] == 0 for row in rows)


def test_recovered_needs_the_psnr_asked_for():
    truth = _truth(1)
    mean_image = torch.zeros(3, 32, 32)
    images = (truth.images * 0.5 + 0.25).clamp(0, 1)
    found = score(_reconstruction(images), truth, mean_image)[0]["psnr"]
    assert found > score(_reconstruction(images), truth, mean_image)[0]["psnr_mean_image"]
    for bound, recovered in ((found - 0.01, 1), (found, 1), (found + 0.01, 0)):
        assert score(_reconstruction(images), truth, mean_image, bound)[0]["recovered"] == recovered


def test_a_bad_match_counts_with_its_own_reconstruction():
    truth = _truth(2)
    rows = score(_reconstruction(1 - truth.images), truth, truth.images.mean(dim=0))
    assert all(row["matched"] >= 0 and row["psnr"] < row["psnr_mean_image"] for row in rows)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e12, 1e30])
def test_a_diverged_reconstruction_is_a_failure_and_not_a_crash(value):
    truth = _truth()
    images = truth.images.clone()
    images[2] = value
    rows = score(_reconstruction(images), truth, truth.images.mean(dim=0))
    assert [row["recovered"] for row in rows] == [1, 1, 0, 1]
    assert all(math.isfinite(row[name]) for row in rows for name in METRICS)
    assert all(0 <= row["mse"] <= 1 for row in rows)
    assert aggregate(rows, 4)["recall"] == 0.75


def test_an_empty_mask_means_the_whole_image():
    truth = _truth(2)
    truth.masks[1] = False
    rows = score(_reconstruction(_noisy(truth.images, 0.1)), truth, truth.images.mean(dim=0))
    assert rows[1]["mask_area"] == 0
    for name in ("mse", "psnr", "ssim", "cw_ssim"):
        assert rows[1][f"{name}_subject"] == pytest.approx(rows[1][name])


def test_batches_larger_than_a_chunk():
    truth = _truth(35, size=28)
    rows = score(_reconstruction(truth.images.flip(0)), truth, truth.images.mean(dim=0))
    assert [row["image"] for row in rows] == list(range(35))
    assert [row["matched"] for row in rows] == list(range(34, -1, -1))
    assert all(row["psnr"] == 100 for row in rows)


def test_a_mean_image_of_another_shape_is_refused():
    truth = _truth(1)
    with pytest.raises(ValueError, match="mean_image"):
        score(_reconstruction(truth.images), truth, torch.zeros(1, 32, 32))


def _rows(num_clients, batch=4, seed=0, **more):
    random = np.random.default_rng(seed)
    return [
        {
            "client": client,
            "image": image,
            "index": client * batch + image,
            "recovered": int(random.random() < 0.7),
            **{
                name: float(random.normal(20, 3)) / (1 if "psnr" in name else 40)
                for name in METRICS
            },
            "score": float(random.random()),
            "psnr_mean_image": float(random.normal(12, 1)),
            **{name: function(random) for name, function in more.items()},
        }
        for client in range(num_clients)
        for image in range(batch)
    ]


def test_aggregate_of_known_rows():
    rows = []
    for value, recovered in ((0.1, 0), (0.2, 1), (0.6, 1)):
        row = dict.fromkeys(METRICS, value)
        rows.append({**row, "recovered": recovered, "psnr_mean_image": 10 * value})
    result = aggregate(rows, 4)
    assert result["num_images"] == 3
    assert result["num_reconstructions"] == 4
    assert result["recovered"] == 2
    assert result["precision"] == 0.5
    assert result["recall"] == pytest.approx(2 / 3)
    assert set(result["metrics"]) == set(METRICS)
    one_client = {"ci_low": None, "ci_high": None}
    psnrs = {"mean": 0.3, "median": 0.2, "worst": 0.6}
    assert result["metrics"]["psnr"] == pytest.approx(psnrs | one_client)
    assert result["metrics"]["cw_ssim_subject"]["worst"] == 0.6
    assert result["metrics"]["mse"]["worst"] == 0.1
    assert result["metrics"]["mse_subject"]["worst"] == 0.1
    assert result["null"] == {"mean_image": pytest.approx({"psnr": 3.0} | one_client)}
    assert result["recall_ci_low"] is result["recall_ci_high"] is None
    assert result["identification"] is None


def test_aggregate_resamples_clients():
    rows = _rows(6)
    result = aggregate(rows, len(rows))
    clients = [row["client"] for row in rows]
    for name in METRICS:
        low, high = bootstrap_interval([row[name] for row in rows], clients)
        assert (result["metrics"][name]["ci_low"], result["metrics"][name]["ci_high"]) == (
            low,
            high,
        )
        assert low < result["metrics"][name]["mean"] < high
    recovered = share_interval([row["recovered"] for row in rows], clients)
    assert (result["recall_ci_low"], result["recall_ci_high"]) == recovered
    null = bootstrap_interval([row["psnr_mean_image"] for row in rows], clients)
    found = result["null"]["mean_image"]
    assert (found["ci_low"], found["ci_high"]) == null


def test_aggregate_counts_the_images_at_thresholds():
    rows = _rows(3, lpips=lambda random: float(random.random()))
    result = aggregate(rows, 1)["thresholds"]
    assert {name: list(levels) for name, levels in result.items()} == {
        "psnr": ["15", "19", "25", "30"],
        "psnr_mean_image": ["15", "19", "25", "30"],
        "lpips": ["0.1", "0.2", "0.4"],
    }
    assert result["psnr"]["19"] == np.mean([row["psnr"] >= 19 for row in rows])
    assert result["psnr_mean_image"]["15"] == np.mean(
        [row["psnr_mean_image"] >= 15 for row in rows]
    )
    assert result["lpips"]["0.4"] == np.mean([row["lpips"] <= 0.4 for row in rows])


def test_aggregate_of_further_columns():
    rows = _rows(
        4,
        lpips=lambda random: float(random.random()),
        identified=lambda random: int(random.random() < 0.5),
        psnr_class_mean=lambda random: float(random.normal(13)),
        psnr_nearest_public=lambda random: float(random.normal(14)),
        mask_area=lambda random: 0.3,
    )
    result = aggregate(rows, 16, num_candidates=1000)
    assert set(result["metrics"]) == {*METRICS, "lpips"}
    assert result["metrics"]["lpips"]["worst"] == min(row["lpips"] for row in rows)
    assert set(result["null"]) == {"mean_image", "class_mean", "nearest_public"}
    nearest = np.mean([row["psnr_nearest_public"] for row in rows])
    assert result["null"]["nearest_public"]["psnr"] == pytest.approx(nearest)
    identification = result["identification"]
    assert identification["rate"] == np.mean([row["identified"] for row in rows])
    assert identification["num_candidates"] == 1000
    assert identification["ci_low"] < identification["rate"] < identification["ci_high"]


def test_aggregate_leaves_out_what_was_not_computed():
    rows = _rows(2, lpips=lambda random: float("nan"), dists=lambda random: 0.5)
    del rows[3]["dists"]
    rows[4]["psnr"] = float("nan")
    result = aggregate(rows, 8)
    assert "lpips" not in result["metrics"]
    assert "lpips" not in result["thresholds"]
    assert result["metrics"]["dists"]["mean"] == 0.5
    expected = np.mean([row["psnr"] for row in rows if not math.isnan(row["psnr"])])
    assert result["metrics"]["psnr"]["mean"] == pytest.approx(expected)
    json.dumps(result, allow_nan=False)


def test_aggregate_of_nothing():
    result = aggregate([], 0)
    assert (result["num_images"], result["precision"], result["recall"]) == (0, 0.0, 0.0)
    assert (result["recall_ci_low"], result["recall_ci_high"]) == (None, None)
    assert result["metrics"] == result["null"] == result["thresholds"] == {}


def test_an_interval_stays_where_the_metric_can_be():
    psnrs, similarities = (2.0, 97.0), (0.1, 0.95)
    rows = [
        {"client": client, "recovered": 0, "psnr": psnrs[client], "cw_ssim": similarities[client]}
        for client in (0, 1)
    ]
    metrics = aggregate(rows, 2)["metrics"]
    assert (metrics["psnr"]["ci_low"], metrics["psnr"]["ci_high"]) == (0.0, 100.0)
    assert (metrics["cw_ssim"]["ci_low"], metrics["cw_ssim"]["ci_high"]) == (0.0, 1.0)


# convincing recoveries


def _row(**values):
    row = {"recovered": 1, "psnr": 25.0, "psnr_mean_image": 20.0, "psnr_class_mean": 21.0}
    return row | {"psnr_noise_only": 19.0, "psnr_nearest_public": 24.9, "identified": 1} | values


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (_row(), 1),
        (_row(psnr=23.99), 0),
        (_row(psnr=24.0), 1),
        (_row(psnr_noise_only=22.1), 0),
        (_row(psnr_mean_image=22.1), 0),
        (_row(identified=0), 0),
        (_row(recovered=0), 0),
        ({"recovered": 1, "psnr": 21.9, "psnr_mean_image": 19.9}, 0),  # nothing of it can be seen
        ({"recovered": 1, "psnr": 23.0, "psnr_mean_image": 19.9}, 1),
    ],
)
def test_a_convincing_recovery_beats_the_controls_of_its_own_image(row, expected):
    mark_convincing([row])
    assert row["recovered_convincing"] == expected


def test_convincing_recoveries_are_counted_and_the_rule_says_what_was_off():
    rows = [_row(), _row(psnr=22.0), _row(recovered=0)]
    mark_convincing(rows)
    full = dict.fromkeys(METRICS, 0.5)
    whole = aggregate([{**full, **row} for row in rows], 3)
    assert (whole["recovered"], whole["recovered_convincing"]) == (2, 1)
    assert "off in this run" not in whole["convincing_rule"]
    bare = [{**full, "recovered": 1, "psnr": 30.0, "psnr_mean_image": 10.0}]
    assert aggregate(bare, 1)["recovered_convincing"] is None
    mark_convincing(bare)
    found = aggregate(bare, 1)
    assert found["recovered_convincing"] == 1
    assert found["convincing_rule"].endswith(
        "off in this run: class mean, noise only, identification"
    )
