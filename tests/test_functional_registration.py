import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, shift
from sklearn.linear_model import LinearRegression

from lightning_recon.functional.image_quality import ms_ssim, psnr, ssim
from lightning_recon.functional.registration import (
    estimate_shift,
    match_colours,
    registered_psnr,
    shift_images,
)


def textures(count=3, size=32, margin=8, channels=3, seed=0):
    """Smooth random images with a margin around them, so that they can be moved without loss."""
    random = np.random.default_rng(seed)
    wide = random.standard_normal((count, channels, size + 2 * margin, size + 2 * margin))
    wide = gaussian_filter(wide, (0, 0, 1.5, 1.5))
    wide = 0.5 + 0.15 * wide / wide.std()
    return torch.from_numpy(wide.clip(0, 1))


def window(wide, down=0, right=0, margin=8):
    """What a camera moved by (down, right) pixels sees."""
    size = wide.shape[-1] - 2 * margin
    top, left = margin + down, margin + right
    return wide[..., top : top + size, left : left + size]


def noisy(images, std, seed=1):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return images + std * noise


def block_masks(images):
    masks = torch.zeros(len(images), 1, *images.shape[-2:], dtype=torch.bool)
    masks[..., 9:25, 6:20] = True
    return masks


MOVES = [(0, 0), (3, -2), (-4, 4), (1, 0)]


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_the_shift_undoes_a_move(move, channels, masked):
    wide = textures(channels=channels)
    target, preds = window(wide), noisy(window(wide, *move), 0.05)
    masks = block_masks(target) if masked else None
    assert estimate_shift(preds, target, 5, masks).tolist() == [list(move)] * 3


def test_the_shift_stays_within_its_bound():
    wide = textures(count=6)
    found = estimate_shift(window(wide, 6, -7), window(wide), max_shift=4)
    assert found.abs().max() <= 4
    assert estimate_shift(window(wide, 6, -7), window(wide), max_shift=7).tolist() == [[6, -7]] * 6
    assert estimate_shift(window(wide, 6, -7), window(wide), max_shift=0).tolist() == [[0, 0]] * 6


@pytest.mark.parametrize("max_shift", [-1, 16, 40])
def test_a_senseless_bound_is_refused(max_shift):
    images = window(textures())
    with pytest.raises(ValueError, match="max_shift"):
        registered_psnr(images, images, max_shift=max_shift)


def test_moved_images_agree_with_scipy():
    images = window(textures(count=4))
    moves = torch.tensor(MOVES)
    expected = [
        shift(image.numpy(), (0, *move), order=0, mode="nearest")
        for image, move in zip(images, MOVES, strict=True)
    ]
    assert np.array_equal(shift_images(images, moves).numpy(), np.stack(expected))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("move", [*MOVES, None])
def test_registered_psnr_is_the_best_over_all_moves(move, masked):
    wide = textures()
    target = window(wide)
    preds = noisy(window(wide, *move) if move else target.flip(0, 3), 0.05)
    masks = block_masks(target) if masked else torch.ones(3, 1, 32, 32, dtype=torch.bool)
    best = []
    for p, t, m in zip(preds.numpy(), target.numpy(), masks.numpy(), strict=True):
        inside = np.broadcast_to(m, t.shape)
        errors = [
            np.mean((shift(p, (0, down, right), order=0, mode="nearest") - t)[inside] ** 2)
            for down in range(-4, 5)
            for right in range(-4, 5)
        ]
        best.append(-10 * np.log10(min(errors)))
    found = registered_psnr(preds, target, masks if masked else None)  # 32 / 8 = 4 pixels
    assert found.tolist() == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("fit_colours", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_registration_never_lowers_the_value(fit_colours, masked):
    target = window(textures(count=8))
    masks = block_masks(target) if masked else None
    for preds in (noisy(target, 0.3), target.flip(0), torch.full_like(target, 0.4), target):
        plain = psnr(preds, target, masks)
        assert (registered_psnr(preds, target, masks, None, fit_colours) >= plain - 1e-9).all()
    assert registered_psnr(target, target, cap=60.0).tolist() == [60.0] * 8


@pytest.mark.parametrize("masked", [False, True])
def test_with_fitted_colours_no_move_is_a_choice_too(masked):
    wide = textures(count=60, size=16)
    target, preds = window(wide), window(wide).roll(1, dims=0)
    masks = torch.zeros(60, 1, 16, 16, dtype=torch.bool)
    masks[..., 4:9, 3:12] = True
    masks = masks if masked else None
    unmoved = psnr(match_colours(preds, target, masks), target, masks)
    assert (registered_psnr(preds, target, masks, 7, fit_colours=True) >= unmoved - 1e-9).all()


def test_pixels_outside_the_mask_do_not_count():
    target = window(textures())
    masks, preds = block_masks(target), noisy(window(textures()), 0.1)
    changed = torch.where(masks, preds, 0.0)
    assert torch.equal(
        registered_psnr(changed, target, masks, max_shift=0), psnr(preds, target, masks)
    )
    # moves of up to 3 pixels bring in what lies that near the mask, and nothing else
    masks[:] = False
    masks[..., 12:20, 12:20] = True
    changed = preds.clone()
    changed[..., :9, :] = changed[..., 23:, :] = changed[..., :9] = changed[..., 23:] = 0.0
    assert torch.equal(
        registered_psnr(changed, target, masks, max_shift=3),
        registered_psnr(preds, target, masks, max_shift=3),
    )


@pytest.mark.parametrize("masked", [False, True])
def test_matched_colours_agree_with_a_linear_regression(masked):
    target = window(textures())
    preds = noisy(target.roll(1, dims=1) * 0.4 + 0.3, 0.05)
    masks = block_masks(target) if masked else None
    found = match_colours(preds, target, masks)
    for i in range(3):
        p, t = (images[i].flatten(1).T.numpy() for images in (preds, target))
        chosen = masks[i].flatten().numpy() if masked else slice(None)
        expected = LinearRegression().fit(p[chosen], t[chosen]).predict(p)
        np.testing.assert_allclose(found[i].flatten(1).T.numpy(), expected, atol=1e-9)


def test_colours_of_gray_and_flat_images_can_be_matched():
    target = window(textures())
    mean = target.mean(dim=(2, 3), keepdim=True).expand_as(target)
    for flat in (torch.zeros_like(target), torch.full_like(target, 0.7)):
        torch.testing.assert_close(match_colours(flat, target), mean)
    gray = target.mean(dim=1, keepdim=True).expand_as(target)
    assert (psnr(match_colours(gray, target), target) > psnr(mean, target)).all()


def test_a_changed_white_balance_costs_nothing_once_colours_are_fitted():
    wide = textures()
    gain = torch.tensor([0.2, 0.8, 0.6]).view(3, 1, 1)
    preds = window(wide, 2, 3) * gain + 0.2
    moved = registered_psnr(preds, window(wide))
    fitted = registered_psnr(preds, window(wide), fit_colours=True)
    uncovered = registered_psnr(window(wide, 2, 3), window(wide))
    assert (fitted > moved + 3).all()
    assert (fitted >= uncovered - 1e-9).all()


# MS-SSIM


def slow_ms_ssim(x, y, weights):
    """MS-SSIM of two C H W images with scipy's Gaussian filter."""
    total = 1.0
    for scale, weight in enumerate(weights):

        def blur(image):
            return gaussian_filter(image, (0, 1.5, 1.5), mode="mirror", radius=(0, 5, 5))

        mean_x, mean_y = blur(x), blur(y)
        variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
        covariance = blur(x * y) - mean_x * mean_y
        structure = (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2)
        if scale < len(weights) - 1:
            value = structure[:, 5:-5, 5:-5].mean()
        else:
            luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
            value = (luminance * structure).mean()
        total *= max(value, 0.0) ** weight
        height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
        x, y = (
            image[:, :height, :width].reshape(len(image), height // 2, 2, width // 2, 2)
            .mean(axis=(2, 4))
            for image in (x, y)
        )  # fmt: skip
    return total


@pytest.mark.parametrize(
    ("size", "scales"), [(21, 1), (22, 2), (32, 2), (44, 3), (98, 3), (99, 4), (176, 5)]
)
def test_ms_ssim_agrees_with_a_slow_computation(size, scales):
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    weights = weights / weights.sum()
    target = window(textures(2, size=size))
    preds = noisy(target, 0.1)
    expected = [
        slow_ms_ssim(p.numpy(), t.numpy(), weights) for p, t in zip(preds, target, strict=True)
    ]
    assert ms_ssim(preds, target).tolist() == pytest.approx(expected, abs=1e-6)
    assert ms_ssim(target, target).tolist() == pytest.approx([1, 1])


def test_ms_ssim_of_a_negative_is_zero_and_not_nan():
    target = window(textures())
    assert ms_ssim(1 - target, target).tolist() == [0.0] * 3
    small = target[..., :16, :16]
    assert (ssim(1 - small, small) < 0).all()
    assert ms_ssim(1 - small, small).tolist() == [0.0] * 3


def test_ms_ssim_keeps_the_type():
    target = window(textures())
    assert ms_ssim(target.float(), target.float()).dtype == torch.float32
    with pytest.raises(ValueError, match="pixels"):
        ms_ssim(target[..., :6, :], target[..., :6, :])
