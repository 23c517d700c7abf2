"""Priors against their formulas, and the denoisers against noise."""

import pytest
import scipy.ndimage
import torch
from data_helpers import real_data

from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.priors import (
    DenoiserPrior,
    FFDNet,
    LocalShrinkage,
    TotalVariation,
    WaveletSparsity,
)
from lightning_recon.priors.shrinkage import blur


@pytest.fixture
def images():
    return torch.rand(2, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_total_variation_against_a_loop(images):
    found = TotalVariation(weight=3.0, smoothing=1e-9)(images)
    for number, image in enumerate(images):
        total = 0.0
        for row in range(6):
            for column in range(5):
                square = 0.0
                for channel in image:
                    if row < 5:
                        square += float(channel[row + 1, column] - channel[row, column]) ** 2
                    if column < 4:
                        square += float(channel[row, column + 1] - channel[row, column]) ** 2
                total += square**0.5
        assert found[number].item() == pytest.approx(3 * total / 30)


def test_total_variation_of_a_flat_image():
    flat = torch.full((1, 3, 8, 8), 0.3, dtype=torch.float64).requires_grad_()
    penalty = TotalVariation()(flat)
    (gradient,) = torch.autograd.grad(penalty.sum(), flat)
    assert penalty.item() == pytest.approx(1e-3)
    assert not gradient.any()


def test_wavelet_against_the_haar_filters(images):
    """The details by convolution with the outer products of (1, 1)/2 and (1, -1)/2, periodic."""
    low, high = torch.tensor([[0.5, 0.5], [0.5, -0.5]], dtype=torch.float64)
    expected = torch.zeros(2, dtype=torch.float64)
    for number, image in enumerate(images):
        for channel in image:
            smooth = channel.numpy()
            for level in range(2):
                for first, second in ((low, high), (high, low), (high, high)):
                    kernel = torch.zeros(2**level + 1, 2**level + 1, dtype=torch.float64)
                    kernel[:: 2**level, :: 2**level] = torch.outer(first, second)
                    detail = scipy.ndimage.correlate(smooth, kernel.numpy(), mode="wrap")
                    expected[number] += abs(detail).mean() / 3
                kernel.zero_()[:: 2**level, :: 2**level] = torch.outer(low, low)
                smooth = scipy.ndimage.correlate(smooth, kernel.numpy(), mode="wrap")
    found = WaveletSparsity(weight=2.0, num_levels=2, smoothing=1e-9)(images)
    assert torch.allclose(found, 2.0 * expected / 3)  # the mean over the three kinds of details


@pytest.mark.parametrize("prior", [TotalVariation(0.7), WaveletSparsity(0.7)])
def test_gradients(prior, images):
    assert torch.autograd.gradcheck(prior, images.requires_grad_())


@pytest.mark.parametrize("std", [0.7, 1.0, 2.5])
def test_blur_is_gaussian(images, std):
    expected = scipy.ndimage.gaussian_filter(
        images.numpy(), std, axes=(2, 3), mode="nearest", radius=int(3 * std + 0.5)
    )
    assert torch.allclose(blur(images, std), torch.from_numpy(expected))


def test_wide_blur_is_nearly_gaussian():
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    exact = torch.from_numpy(
        scipy.ndimage.gaussian_filter(image.numpy(), 6.0, axes=(2, 3), mode="nearest")
    )
    found = blur(image, 6.0)
    inside = (..., slice(24, -24), slice(24, -24))  # the border goes on as four pixels' mean
    both = torch.stack([found[inside].flatten(), exact[inside].flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.97
    ratio = float(found[inside].std() / exact[inside].std())
    assert ratio == pytest.approx(1, abs=0.15)
    assert blur(image[..., :5, :7], 8.0).shape == (1, 3, 5, 7)


def noisy_photographs(sample_data, std, seed):
    clean = sample_data.public_images()
    random = torch.Generator().manual_seed(seed)
    return clean, clean + std * torch.randn(clean.shape, generator=random)


class TestShrinkage:
    def test_changes_nothing_before_it_has_learned(self, sample_data):
        clean = sample_data.public_images()
        shrinkage = LocalShrinkage(torch.eye(3))
        assert torch.allclose(shrinkage(clean), clean)
        assert shrinkage(clean[:0]).shape == (0, 3, 32, 32)

    def test_removes_noise_from_images_that_it_never_saw(self, sample_data):
        clean, noisy = noisy_photographs(sample_data, 0.1, seed=0)
        shrinkage = LocalShrinkage(torch.eye(3), seed=1)
        examples = ((bad, None, good) for bad, good in zip(noisy[:16], clean[:16], strict=True))
        shrinkage.fit(examples, 16, steps=100)
        gain = psnr(shrinkage(noisy[16:]), clean[16:]) - psnr(noisy[16:], clean[16:])
        assert gain.mean() > 2

    def test_an_earlier_estimate_is_used(self, sample_data):
        clean, noisy = noisy_photographs(sample_data, 0.1, seed=0)
        shrinkage = LocalShrinkage(torch.eye(3), is_second=True)
        shrinkage.fit(zip(noisy, clean, clean, strict=True), len(clean), steps=100)
        right, wrong = shrinkage(noisy, clean), shrinkage(noisy, clean.flip(0))
        assert psnr(right, clean).mean() > psnr(wrong, clean).mean() + 1

    def test_same_seed_same_bits_whatever_the_global_state(self, sample_data):
        clean, noisy = noisy_photographs(sample_data, 0.1, seed=0)
        results = []
        for state in (1, 2):
            torch.manual_seed(state)
            shrinkage = LocalShrinkage(torch.eye(3), seed=5)
            before = torch.get_rng_state()
            shrinkage.fit([(noisy[0], None, clean[0])], 1, steps=3)
            assert torch.equal(torch.get_rng_state(), before)
            results.append(shrinkage(noisy[:2]))
        assert torch.equal(*results)


class Halver(torch.nn.Module):
    def forward(self, images, noise_std):
        return images / 2


class TestDenoiser:
    def test_gradient_is_the_residual(self, images):
        prior = DenoiserPrior(Halver(), noise_std=0.2, weight=3.0)
        images.requires_grad_()
        (gradient,) = torch.autograd.grad(prior(images).sum(), images)
        assert torch.allclose(gradient, 3.0 * (images - images / 2) / 0.04 / images[0].numel())

    def test_sizes_need_not_be_even(self):
        network = FFDNet(num_layers=3, num_features=4)
        result = network(torch.rand(2, 3, 7, 9), torch.tensor([0.1]))
        assert result.shape == (2, 3, 7, 9)

    def test_own_weights_come_back(self, tmp_path, images):
        first = FFDNet(num_layers=4, num_features=5)
        torch.save(first.state_dict(), tmp_path / "weights.pth")
        second = FFDNet(str(tmp_path / "weights.pth"), num_layers=4, num_features=5)
        level = torch.tensor([0.1])
        assert torch.equal(first(images.float(), level), second(images.float(), level))

    def test_weights_that_do_not_fit(self, tmp_path):
        torch.save(FFDNet(num_layers=3, num_features=5).state_dict(), tmp_path / "weights.pth")
        with pytest.raises(InputError, match="do not fit"):
            FFDNet(str(tmp_path / "weights.pth"), num_layers=4, num_features=5)
        with pytest.raises(InputError, match="no weights file"):
            FFDNet(str(tmp_path / "none.pth"))

    def test_published_weights_remove_noise(self, sample_data):
        network = FFDNet(str(real_data("weights/ffdnet_rgb.pth")))
        std = 15 / 255
        clean, noisy = noisy_photographs(sample_data, std, seed=0)
        with torch.no_grad():
            better = network(noisy, torch.tensor([std]))
        assert (psnr(better, clean) - psnr(noisy, clean)).mean() > 2.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TotalVariation(-1.0), "weight"),
        (lambda: WaveletSparsity(num_levels=0), "num_levels"),
        (lambda: FFDNet(num_layers=1), "num_layers"),
        (lambda: DenoiserPrior(FFDNet(num_layers=2, num_features=1), 0.0), "noise_std"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()
