"""What the auditor says of one client."""

import math

import pytest
import torch
from attack_helpers import bind_to
from torch import nn

from lightning_recon.attacks import (
    CodedLDPAttack,
    InvertingGradients,
    LDPAttack,
    SpectralLDPAttack,
)
from lightning_recon.audit.auditor import Auditor
from lightning_recon.audit.bits import ROUNDING, bits_told, channel_bits, powers, told_of_run
from lightning_recon.audit.guesses import add_identification
from lightning_recon.data import SampleImagesDataModule
from lightning_recon.defenses import (
    ClipL2,
    GaussianNoise,
    Laplace,
    LaplaceNoise,
    PrivUnit2,
    PrivUnitG,
)
from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.metrics import MSE
from lightning_recon.observation import Channel, Failure, Reconstruction
from lightning_recon.runs.results import summarise
from lightning_recon.targets import ConvNet


@pytest.fixture(scope="module")
def data():
    module = SampleImagesDataModule(batch_size=4, num_clients=2, image_size=32, num_public=8)
    module.setup()
    return module


def attack():
    return LDPAttack(ConvNet(num_classes=20, width=8), num_samples=4)


def result(images):
    score = torch.arange(len(images), dtype=torch.float32)
    return Reconstruction(images, None, score, {"rows_hit": 4.0}, ((0, 3.0),))


def audit(data, outcome, client=0, **settings):
    auditor = Auditor(data, null_controls=False, **settings)
    return auditor.audit(attack(), client, outcome, 1.5)


def test_perfect_reconstruction(data):
    truth = data.client(0).images
    record, aligned = audit(data, result(truth.flip(0)))
    assert torch.equal(aligned, truth)
    assert [row["matched"] for row in record.rows] == [3, 2, 1, 0]
    assert [row["score"] for row in record.rows] == [3.0, 2.0, 1.0, 0.0]
    assert all(row["identified"] == 1 and row["recovered"] == 1 for row in record.rows)
    assert record.failure is None
    assert record.seconds == 1.5
    assert record.curve == [(0, 3.0)]


def test_reconstruction_of_other_images_identifies_nobody(data):
    record, _ = audit(data, result(data.client(1).images))
    assert all(row["identified"] == 0 for row in record.rows)
    # the control compares with the next client: here that is whom the images belong to
    assert record.controls["other_client"]["psnr"] == pytest.approx(100.0)


def test_two_equal_candidates_identify_nobody(data):
    truth = data.client(0)
    auditor = Auditor(data, null_controls=False)
    places, thumbnails = auditor.candidates
    own = int((places == truth.indices[0]).nonzero())
    thumbnails[(own + 1) % len(places)] = thumbnails[own]
    record, _ = auditor.audit(attack(), 0, result(truth.images), 0.0)
    assert record.rows[0]["identified"] == 0
    assert all(row["identified"] == 1 for row in record.rows[2:])


def test_nothing_outside_the_subject_identifies(data):
    """A reconstruction that is right outside of the subject only is not of that image."""
    truth = data.client(0)
    masks = torch.zeros_like(truth.masks)
    masks[..., 8:24, 8:24] = True
    wrong = truth.images.roll(1, 0) * masks + truth.images * ~masks
    auditor = Auditor(data, null_controls=False)
    rows = [{"matched": float(i)} for i in range(4)]
    masked = truth._replace(masks=masks)
    add_identification(rows, wrong, masked, *auditor.candidates_for(truth))
    assert [row["identified"] for row in rows] == [0, 0, 0, 0]


def test_controls_of_the_public_images(data):
    auditor = Auditor(data, null_controls=False)
    truth = data.client(0)
    record, _ = auditor.audit(attack(), 0, result(truth.images), 0.0)
    for row, image, label in zip(record.rows, truth.images, truth.labels, strict=True):
        nearest = max(float(psnr(public[None], image[None])) for public in auditor.public)
        assert row["psnr_nearest_public"] == pytest.approx(nearest)
        same = [p for p, n in zip(auditor.public, auditor.public_labels, strict=True) if n == label]
        expected = row["psnr_mean_image"]
        if same:
            expected = float(psnr(torch.stack(same).mean(0)[None], image[None]))
        assert row["psnr_class_mean"] == pytest.approx(expected)


def test_failed_client_counts_with_the_mean_image(data):
    record, aligned = audit(data, Failure("the update is not finite"))
    assert record.failure == "the update is not finite"
    assert record.num_reconstructions == 0
    assert aligned.isnan().all()
    for row in record.rows:
        assert row["psnr"] == pytest.approx(row["psnr_mean_image"])
        assert row["recovered"] == row["identified"] == 0
        assert math.isnan(row["score"])


def test_no_candidates_no_rate(data):
    record, _ = audit(data, result(data.client(0).images), num_candidates=0)
    assert all("identified" not in row for row in record.rows)


def test_extra_metrics_score_the_mean_image_where_nothing_came_back(data):
    truth = data.client(0).images
    auditor = Auditor(data, null_controls=False, extra_metrics={"mse_again": MSE()})
    record, _ = auditor.audit(attack(), 0, result(truth[1:] * 0.5), 0.0)
    assert [row["matched"] >= 0 for row in record.rows].count(False) == 1
    for row in record.rows:
        assert row["mse_again"] == pytest.approx(row["mse"], rel=1e-5)


def test_noise_only_control_is_that_of_the_attack(data):
    class Copycat(LDPAttack):
        def attack_noise(self, client):
            return result(data.client(client).images)

    copycat = Copycat(ConvNet(num_classes=20, width=8), num_samples=4)
    record, _ = Auditor(data).audit(copycat, 1, result(data.client(1).images), 0.0)
    assert record.controls["noise_only"] == {"psnr": pytest.approx(100.0), "recovered": 4}


def test_clients_beyond_the_candidates_are_among_them(data):
    """The clients come first: of many clients, later ones' images would be no candidates."""
    auditor = Auditor(data, null_controls=False, num_candidates=6)
    places, _ = auditor.candidates
    truth = data.client(1)
    assert sum(int(place in places) for place in truth.indices) == 2
    record, _ = auditor.audit(attack(), 1, result(truth.images), 0.0)
    assert all(row["identified"] == 1 for row in record.rows)
    own, thumbnails = auditor.candidates_for(truth)
    assert len(own) == len(set(own.tolist())) == len(thumbnails) == 6
    assert set(truth.indices.tolist()) <= set(own.tolist())
    for place, thumbnail in zip(own, thumbnails, strict=True):
        assert torch.equal(thumbnail, data.thumbnails([int(place)], 32)[0])


def test_buffers_that_are_sent_count_in_the_message(data):
    sizes = []
    for known in (["labels"], ["labels", "buffers"]):
        attack = InvertingGradients(ConvNet(num_classes=20, width=4), known=known)
        attack.bind(data.spec, data.public_images())
        assert attack.federation.payload is attack.target
        images = data.client(0).images
        record, _ = Auditor(data, null_controls=False).audit(attack, 0, result(images), 0.0)
        sizes.append(record.notes["update_bits"])
    numbers = sum(weight.numel() for weight in attack.target.parameters())
    assert sizes[0] == 32 * numbers
    # of each batch norm the mean and the variance, and a count of 64 bits
    norms = [module for module in attack.target.modules() if isinstance(module, nn.BatchNorm2d)]
    assert sizes[1] - sizes[0] == sum(64 * norm.num_features + 64 for norm in norms) > 0


def gaussian_bits(estimate, truth, guess):
    """Of images in two clients, pooled."""
    parts = [
        powers({"attack": one}, true, guess)
        for one, true in zip(estimate.chunk(2), truth.chunk(2), strict=True)
    ]
    return bits_told(parts, "attack", len(truth))


def test_bits_of_a_gaussian_source_through_noise():
    """Against the capacity that white Gaussian images and a linear decoder reach."""
    random = torch.Generator().manual_seed(0)
    truth = torch.randn(40, 3, 16, 16, generator=random)
    noise = torch.randn(truth.shape, generator=random)
    ratio = 2.0  # of an image's energy to that of its noise
    estimate = (ratio * truth + ratio**0.5 * noise) / (ratio + 1)
    guess = torch.zeros(3, 16, 16)
    size = guess.numel()
    channel = Channel(clip_norm=1.0, noise_std=(40 * ratio * size) ** -0.5)
    capacity = channel_bits(channel, [], 40, size)
    assert capacity == pytest.approx(size / 2 * math.log2(1 + ratio))
    assert channel_bits(channel._replace(noise_std=0.0), [], 40, size) is None
    assert gaussian_bits(estimate, truth, guess) == pytest.approx(capacity, rel=0.02)
    assert gaussian_bits(torch.full_like(truth, torch.nan), truth, guess) == 0
    assert gaussian_bits(truth, truth, guess) < size / 2 * math.log2(2 / ROUNDING)


def test_errors_are_pooled_over_clients_before_their_logarithm():
    """Of half of the images everything is told, of the others nothing: that is half a bit."""
    truth = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    estimate = torch.cat([truth[:4], torch.zeros_like(truth[4:])])
    told = gaussian_bits(estimate, truth, torch.zeros(3, 16, 16))
    assert told == pytest.approx(truth[0].numel() / 2, rel=0.05)


def test_no_more_bits_than_the_channel_carries_and_no_fewer_than_none():
    truth = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    part = powers({"attack": truth, "noise_only": 1 - truth}, truth, truth.mean(0))
    assert bits_told([part], "attack", 4) > 100 > 0 > bits_told([part], "noise_only", 4)
    told = told_of_run([part], [100.0], 4)
    assert told == {"read": 100.0, "capacity": 100.0, "noise_only": 0.0}
    assert told_of_run([], [], 0) is None


class TestOtherChannels:
    def test_laplace_noise_carries_at_most_twice_what_gaussian_noise_does(self):
        channel = Channel(clip_norm=1.0, noise_std=0.0)
        size, scale = 10**6, 0.01
        told = channel_bits(channel, [LaplaceNoise(scale)], 4, size)
        gaussian = channel_bits(channel._replace(noise_std=2**0.5 * scale), [], 4, size)
        assert told == pytest.approx(2 * gaussian, rel=0.01)
        few = channel_bits(channel, [LaplaceNoise(scale)], 4, 10)
        assert few == pytest.approx(5 * math.log2((1 + 125) * math.pi / math.e), rel=1e-6)
        assert channel_bits(Channel(), [LaplaceNoise(scale)], 4, 10) is None

    def test_laplace_bounds_by_its_own_norm(self):
        told = channel_bits(Channel(), [Laplace(epsilon=2.0, clip_norm=1.0)], 1, 10**6)
        assert told == pytest.approx(0.5 * math.log2(math.e), rel=0.01)

    @pytest.mark.parametrize("kind", [PrivUnit2, PrivUnitG])
    def test_a_direction_of_privunit_tells_less_than_its_budget(self, kind):
        told = [channel_bits(Channel(), [kind(epsilon, 1.0)], 1, 1000) for epsilon in (1.0, 100.0)]
        assert 0 < told[0] < told[1] < 100 * math.log2(math.e)
        half = channel_bits(Channel(), [kind(1.0, 1.0)], 2, 1000)
        assert half == pytest.approx(told[0] / 2, rel=0.01)

    def test_the_narrowest_of_several(self):
        channel = Channel(clip_norm=1.0, noise_std=0.01)
        both = channel_bits(channel, [PrivUnit2(1.0, 1.0)], 1, 1000)
        assert both == channel_bits(Channel(), [PrivUnit2(1.0, 1.0)], 1, 1000)


def test_bits_stand_beside_the_capacity_where_noise_bounds_what_comes_through(data):
    records = []
    for defenses in ([], [ClipL2(1.0), GaussianNoise(0.01)]):
        attack = InvertingGradients(ConvNet(num_classes=20, width=4), defenses=defenses)
        attack.bind(data.spec, data.public_images())
        images = data.client(0).images
        found = [Auditor(data, null_controls=False).audit(attack, 0, result(images), 0.0)[0]]
        records.append(summarise(attack, found)["bits"])
    assert records[0] is None
    assert records[1]["read"] == records[1]["capacity"] > 0  # all was "read"
    assert records[1]["noise_only"] is None


def test_no_fewer_candidates_than_a_client_has_images(data):
    auditor = Auditor(data, null_controls=False, num_candidates=2)
    assert auditor.num_candidates == 4
    record, _ = auditor.audit(attack(), 1, result(data.client(1).images), 0.0)
    assert all(row["identified"] == 1 for row in record.rows)


def test_failed_noise_only_control(data):
    class Failing(LDPAttack):
        def attack_noise(self, client):
            raise InputError("nothing stands out")

    failing = Failing(ConvNet(num_classes=20, width=8), num_samples=4)
    truth = data.client(1).images
    with pytest.raises(InputError, match="nothing stands out"):
        Auditor(data).audit(failing, 1, result(truth), 0.0)
    failing.records_failures = True
    record, _ = Auditor(data).audit(failing, 1, result(truth), 0.0)
    mean = sum(row["psnr_mean_image"] for row in record.rows) / 4
    expected = {"psnr": pytest.approx(mean), "recovered": 0, "failed": 1}
    assert record.controls["noise_only"] == expected
    summary = summarise(failing, [record, record])
    assert summary["null"]["noise_only"]["failed"] == 2


@pytest.mark.parametrize("kind", [LDPAttack, SpectralLDPAttack, CodedLDPAttack])
@pytest.mark.parametrize(
    "defenses",
    [
        [ClipL2(10.0), GaussianNoise(0.01)],
        [ClipL2(10.0), LaplaceNoise(0.01)],
        [Laplace(epsilon=2000.0, clip_norm=10.0)],
        [PrivUnit2(epsilon=1000.0, clip_norm=10.0)],
        [PrivUnitG(epsilon=1000.0, clip_norm=10.0)],
    ],
    ids=lambda chain: type(chain[-1]).__name__,
)
def test_noise_alone_tells_less_than_a_hundredth_of_the_capacity(data, kind, defenses):
    settings = {} if kind is LDPAttack else {"shrinkage_steps": 0}
    target = ConvNet(num_classes=20, width=8)
    attack = kind(target, defenses=defenses, num_bins=64, num_samples=4, **settings)
    bind_to(attack, data)
    found, noise = attack.attack_client(0), attack.attack_noise(0)
    record, _ = Auditor(data).audit(attack, 0, found, 0.0, noise=noise)
    bits = summarise(attack, [record])["bits"]
    assert 0 <= bits["noise_only"] < 0.01 * bits["capacity"]
    assert bits["read"] <= bits["capacity"]
