"""The mechanism of CodedLDPAttack: polar code, compression, and what the server makes of both."""

import itertools
import math

import numpy as np
import pytest
import torch
from attack_helpers import bind
from scipy.ndimage import gaussian_filter

from lightning_recon.attacks import CodedLDPAttack, SpectralLDPAttack
from lightning_recon.attacks.coded import wavelet
from lightning_recon.attacks.coded.code import DigitalCode
from lightning_recon.attacks.coded.compression import compress, decompress
from lightning_recon.attacks.coded.hybrid import HybridCode
from lightning_recon.attacks.coded.polar import PolarCode, binary_capacity, bit_log_errors
from lightning_recon.attacks.coded.polar_list import decode_list
from lightning_recon.attacks.coded.public_coder import _STEPS, PublicCoder
from lightning_recon.audit.matching import match
from lightning_recon.clients import DPSGD
from lightning_recon.data import SampleImagesDataModule
from lightning_recon.defenses import ClipL2, DPSGDNoise, GaussianNoise, SignSGD
from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.targets import ConvNet

CLIP = 10.0


def make_attack(public, std, *, defenses=None, **settings):
    settings = {"num_bins": 128, "shrinkage_steps": 0, "num_samples": 8} | settings
    defenses = [ClipL2(CLIP), GaussianNoise(std)] if defenses is None else defenses
    attack = CodedLDPAttack(ConvNet(num_classes=20, width=8), defenses=defenses, **settings)
    bind(attack, public, 8)
    return attack


def num_exact(images, truth):
    """How many true images came back with every pixel."""
    row = match(images, truth).row.tolist()
    return sum(
        at >= 0 and torch.equal((255 * images[at]).round(), (255 * true).round())
        for at, true in zip(row, truth, strict=True)
    )


@pytest.fixture
def public(sample_data):
    return (255 * sample_data.public_images()).round() / 255


@pytest.fixture
def exact_batch(batch):
    """Images of 8 bits."""
    return batch._replace(images=(255 * batch.images).round() / 255)


def mean_psnr(images, truth):
    """Of all true images; one that is missing counts with grey."""
    row = match(images, truth).row
    shown = torch.where((row < 0)[:, None, None, None], 0.5, images[row])
    return float(psnr(shown, truth).mean())


def coder_steps(coded):
    return _STEPS[[data[0] for data in coded]]


def random_bits(*shape, seed=0):
    return torch.randint(
        0, 2, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


class TestPolarCode:
    def test_symbols_are_the_kronecker_power_of_the_bits(self):
        code = PolarCode(4, 1.0, 1.0, 16)
        word = torch.zeros(3, 16, dtype=torch.int64)
        bits = random_bits(3, code.num_bits)
        word[:, code.is_information] = bits.long()
        matrix = np.array([[1]])
        for _ in range(4):
            matrix = np.kron(matrix, np.array([[1, 0], [1, 1]]))
        expected = 1 - 2 * ((word.numpy() @ matrix) % 2)
        assert np.array_equal(code.encode(bits).numpy(), expected)

    def test_decoder_decides_as_the_plain_recursion_does(self):
        """Against successive cancellation bit by bit, from the definition."""
        code = PolarCode(6, 0.6, 0.3, 64)
        noise = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
        ratio = 2 * 0.6**0.5 * (0.6**0.5 * code.encode(random_bits(20, code.num_bits)) + noise)

        def decide(values, frozen):
            if len(values) == 1:
                bit = 0 if frozen[0] else int(values[0] < 0)
                return [bit], [1 - 2 * bit]
            half = len(values) // 2
            left, right = values[:half], values[half:]
            product = np.clip(np.tanh(left / 2) * np.tanh(right / 2), -1 + 1e-15, 1 - 1e-15)
            first, a = decide(2 * np.arctanh(product), frozen[:half])
            second, b = decide(right + np.array(a) * left, frozen[half:])
            return first + second, [x * y for x, y in zip(a, b, strict=True)] + b

        kept = code.is_information.numpy()
        found = code.decode(ratio).numpy()
        same = [
            np.array_equal(np.array(decide(row, ~kept)[0])[kept], bits)
            for row, bits in zip(ratio.double().numpy(), found, strict=True)
        ]
        # a subtree with one bit frozen is decided at once, better than bit by bit
        assert sum(same) >= 19

    @pytest.mark.parametrize("snr", [0.3, 0.75, 3.0])
    def test_blocks_come_through_near_capacity(self, snr):
        code = PolarCode(13, snr, 1e-3, 2**13)
        rate = code.num_bits / code.num_symbols
        assert 0.5 * binary_capacity(snr) < rate < binary_capacity(snr)
        bits = random_bits(24, code.num_bits)
        noise = torch.randn(24, 2**13, generator=torch.Generator().manual_seed(2))
        ratio = 2 * snr**0.5 * (snr**0.5 * code.encode(bits) + noise)
        assert torch.equal(code.decode(ratio), bits)
        # half the energy is below the limit for this rate
        assert not (code.decode(ratio - snr * code.encode(bits)) == bits).all(1).any()

    def test_best_and_worst_bit_of_two(self):
        """The sum of two looks has twice the mean; the product's is found by integration."""
        first, second = np.exp(bit_log_errors(1, 0.5))
        assert second == pytest.approx(0.5 * math.erfc(1.0 / 2**0.5), rel=1e-6)
        random = np.random.default_rng(0)
        looks = 1.0 + 2**0.5 * random.standard_normal((2, 400_000))
        assert first == pytest.approx((np.prod(looks, axis=0) < 0).mean(), rel=0.05)

    def test_more_bits_than_wanted_are_not_carried(self):
        assert PolarCode(8, 4.0, 1e-3, 40).num_bits == 40


class TestListOfPolarCode:
    def test_a_list_of_one_decides_as_successive_cancellation_does(self):
        code = PolarCode(8, 0.5, 0.3, 256)
        noise = torch.randn(16, 256, generator=torch.Generator().manual_seed(1))
        ratio = 2 * 0.5**0.5 * (0.5**0.5 * code.encode(random_bits(16, code.num_bits)) + noise)
        assert torch.equal(decode_list(code, ratio, 1)[:, 0], code.decode(ratio))

    def test_all_words_are_found_where_the_list_is_as_long_and_the_best_comes_first(self):
        code = PolarCode(4, 0.4, 1.0, 4)
        assert code.num_bits == 4
        ratio = 2 * torch.randn(5, 16, generator=torch.Generator().manual_seed(3))
        words = torch.tensor(list(itertools.product([0, 1], repeat=4)), dtype=torch.uint8)
        likelihood = ratio @ code.encode(words).float().T
        found = decode_list(code, ratio, 64)[:, :16]
        for bits, order in zip(found, likelihood.argsort(1, descending=True), strict=True):
            assert torch.equal(bits[:3], words[order][:3])
            assert len(bits.unique(dim=0)) == 16

    def test_a_longer_list_holds_words_that_a_shorter_one_lost(self):
        code = PolarCode(10, 0.5, 1.0, 2**10)
        bits = random_bits(40, code.num_bits)
        noise = torch.randn(40, 2**10, generator=torch.Generator().manual_seed(4))
        ratio = 2 * 0.5**0.5 * (0.5**0.5 * code.encode(bits) + noise)
        held = [
            (decode_list(code, ratio, size) == bits[:, None]).all(2).any(1).sum().item()
            for size in (1, 8, 64)
        ]
        assert held[0] < held[1] < held[2]
        assert held[2] >= 38


@pytest.fixture(scope="module")
def images():
    """Smooth ones, B H W C."""
    noise = np.random.default_rng(0).standard_normal((20, 32, 32, 3))
    return np.clip(0.5 + 3 * gaussian_filter(noise, (0, 3, 3, 0)), 0, 1)


@pytest.mark.parametrize("shape", [(2, 112, 56, 3), (1, 33, 40, 1)])
def test_wavelets_are_undone_and_nearly_orthonormal(shape):
    images = np.random.default_rng(0).standard_normal(shape)
    bands = wavelet.forward(images)
    assert sum(band.size for band in bands.values()) == images.size
    assert np.allclose(wavelet.inverse(bands), images)
    energy = sum(np.square(band).sum() for band in bands.values())
    assert energy == pytest.approx(np.square(images).sum(), rel=0.15)


class TestPublicCoder:
    @pytest.mark.parametrize("num_bytes", [30, 120])
    def test_others_come_back_as_well_as_the_bytes_allow(self, images, num_bytes):
        coder = PublicCoder(images[:16], num_bytes)
        coded = coder.compress(images[16:])
        assert {len(data) for data in coded} == {num_bytes}
        found = np.stack([coder.decompress(data) for data in coded])
        error = np.square(found - images[16:]).mean()
        variance = np.square(images[:16].mean(0) - images[16:]).mean()
        assert variance / error > {30: 4.5, 120: 45}[num_bytes]
        # the room is used: one more step's worth would not fit
        quantised = coder._quantise(wavelet.forward(images[16:] - coder.mean), coder_steps(coded))
        assert quantised.bits.mean() > 0.8 * 8 * num_bytes

    def test_values_beyond_what_is_counted(self, images):
        """White on black where the public images are grey."""
        coder = PublicCoder(0.5 + (images[:16] - 0.5) / 20, 200)
        wild = np.zeros((1, 32, 32, 3))
        wild[:, 8:24, 8:24] = 1
        found = coder.decompress(coder.compress(wild)[0])
        assert np.square(found - wild[0]).mean() < 0.02


class TestCompression:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_exact_where_it_fits_and_better_with_more_bytes(self, public, channels):
        pixels = (255 * public[0, :channels]).byte().permute(1, 2, 0).numpy()
        errors = []
        for num_bytes in (4096, 350, 100):
            data = compress(pixels, num_bytes)
            assert len(data) == num_bytes
            found = decompress(data, pixels.shape)
            errors.append(np.square(found.astype(float) - pixels).mean())
        assert errors[0] == 0
        assert 0 < errors[1] < errors[2] < 4000

    def test_a_wrong_byte_is_noticed(self, public):
        pixels = (255 * public[0]).byte().permute(1, 2, 0).numpy()
        data = bytearray(compress(pixels, 700))
        data[100] ^= 1
        assert decompress(bytes(data), pixels.shape) is None

    @pytest.mark.parametrize("num_bytes", [0, 5, 12])
    def test_no_room(self, num_bytes):
        data = compress(np.zeros((16, 16, 3), np.uint8), num_bytes)
        assert data == bytes(num_bytes)
        assert decompress(data, (16, 16, 3)) is None


class TestAttack:
    def test_every_pixel_where_the_linear_code_gives_40_db(self, public, exact_batch):
        attack = make_attack(public, 0.01)
        assert attack.is_digital
        found = attack.reconstruct(attack.federation.play(exact_batch, 0))
        assert num_exact(found.images, exact_batch.images) == 8
        assert found.notes["rows_garbled"] == 0
        assert found.notes["bits_an_image"] < found.notes["bits_capacity"]

    def test_in_much_noise_it_is_the_linear_code(self, public, batch):
        attack = make_attack(public, 0.4)
        assert not attack.is_digital
        observation = attack.federation.play(batch, 0)
        found = attack.reconstruct(observation)
        assert torch.equal(found.images, attack.linear.reconstruct(observation).images)

    def test_a_client_that_clips_samples_gets_the_linear_code(self, public, batch):
        noise = DPSGDNoise(CLIP, num_samples=8, noise_multiplier=1e-3)
        settings = {"client": DPSGD(CLIP), "defenses": [noise], "num_samples": 8}
        attack = make_attack(public, 0, shrinkage_steps=5, **settings)
        assert not attack.is_digital
        spectral = SpectralLDPAttack(
            ConvNet(num_classes=20, width=8), num_bins=128, shrinkage_steps=5, **settings
        )
        bind(spectral, public, 8)
        found = attack.reconstruct(attack.federation.play(batch, 0)).images
        expected = spectral.initialize(spectral.federation.play(batch, 0))[0]
        assert torch.equal(found, expected)

    @pytest.mark.parametrize("logit_scale", [None, 1.0])
    def test_a_sure_target_gets_the_linear_code_if_its_logits_are_kept(self, public, logit_scale):
        attack = CodedLDPAttack(
            ConvNet(num_classes=20, width=8),
            defenses=[ClipL2(CLIP), GaussianNoise(0.01)],
            num_bins=128,
            logit_scale=logit_scale,
            shrinkage_steps=0,
        )
        with torch.no_grad():
            last = list(attack.target.parameters())[-1]
            last[3] += 30  # of all images it says class 3
        bind(attack, public, 8)
        assert attack.is_digital == (logit_scale is None)

    def test_signs_alone_carry_it(self, public, exact_batch):
        attack = make_attack(public, 0, defenses=[SignSGD()])
        found = attack.reconstruct(attack.federation.play(exact_batch, 0))
        assert num_exact(found.images, exact_batch.images) == 8

    @pytest.mark.parametrize("shrinkage_steps", [0, 20])
    def test_few_bits_are_a_coarse_picture_and_the_rest_is_linear(self, shrinkage_steps):
        data = SampleImagesDataModule(batch_size=8, num_clients=1, image_size=64, num_public=24)
        data.setup()
        attack = make_attack(data.public_images(), 0.13, shrinkage_steps=shrinkage_steps)
        assert isinstance(attack.digital, HybridCode)
        assert attack.is_digital
        batch = data.client(0)
        found = attack.reconstruct(attack.federation.play(batch, 0))
        assert found.notes["bits_an_image"] < 0.7 * found.notes["bits_capacity"]
        # rows are found by their first columns: there stands what has most energy a column
        sent = attack.digital.encode(batch.images)[0].square()
        assert (sent[:, :50].mean(1) > 2 * sent.mean(1)).all()
        linear = SpectralLDPAttack(
            ConvNet(num_classes=20, width=8),
            defenses=[ClipL2(CLIP), GaussianNoise(0.13)],
            num_samples=8,
            num_bins=128,
            shrinkage_steps=shrinkage_steps,
        )
        bind(linear, data.public_images(), 8)
        others = linear.initialize(linear.federation.play(batch, 0))[0]
        assert mean_psnr(found.images, batch.images) > mean_psnr(others, batch.images) + 0.2
        nothing = attack.reconstruct(
            attack.federation.play_noise(torch.zeros(8, dtype=torch.int64), 0)
        )
        assert len(nothing.images) == 0

    def test_noise_alone_gives_nothing(self, public):
        attack = make_attack(public, 0.01)
        found = attack.reconstruct(
            attack.federation.play_noise(torch.zeros(8, dtype=torch.int64), 0)
        )
        assert len(found.images) == 0

    def test_twice_the_noise_is_told_and_not_shown(self, public, exact_batch):
        """What the checksum refuses is no image."""
        attack = make_attack(public, 0.03, noise_std=0.01)
        found = attack.reconstruct(attack.federation.play(exact_batch, 0))
        assert len(found.images) == 0
        assert found.notes["rows_garbled"] == 8

    def test_without_public_images_bits_are_sent_where_there_are_many(self):
        none = torch.zeros(0, 3, 32, 32)
        assert make_attack(none, 0.002).is_digital
        assert not make_attack(none, 0.5).is_digital

    @pytest.mark.parametrize("settings", [{"block_error": 0}, {"margin": -1}, {"margin": 2**31}])
    def test_options_out_of_range(self, settings):
        with pytest.raises(InputError, match="block_error"):
            CodedLDPAttack(ConvNet(num_classes=20, width=8), **settings)


def test_the_shortest_code_that_holds_all_pixels():
    code = DigitalCode((3, 16, 16), 1e-12, 1.0, 1e-4, 0.0)
    assert code.num_bytes >= 3 * 16 * 16 + 64
    assert PolarCode(12, 4.0, 1.0, 2**12).num_bits < code.num_bits
    assert code.num_columns == 2**13
