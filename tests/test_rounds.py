"""SpectralLDPAttack over several rounds of one client: what feedback gains, and must not do."""

import pytest
import torch
from test_spectral import CLIP, make_attack, mean_psnr

from lightning_recon.attacks.spectral import local_payload
from lightning_recon.attacks.spectral.feedback import reach_of
from lightning_recon.attacks.spectral.local_payload import LocalPayload
from lightning_recon.audit.auditor import Auditor
from lightning_recon.audit.bits import bits_told, channel_bits
from lightning_recon.clients import FedAvg
from lightning_recon.errors import InputError
from lightning_recon.privacy.gaussian import gaussian_epsilon
from lightning_recon.runs.results import describe_attack

STD = 0.03


@pytest.fixture
def public(sample_data):
    return sample_data.public_images()


def found_by(attack, batch, later=()):
    with attack.computing():
        return attack.initialize(attack.federation.play(batch, 0, later=later))


def averaged(public, batch, rounds, **kwargs):
    """What the mean of so many rounds of one payload comes to: less noise."""
    attack = make_attack(public, std=STD / rounds**0.5, **kwargs)
    return mean_psnr(found_by(attack, batch)[0], batch.images)


@pytest.mark.parametrize(
    "client", [None, FedAvg(0.1, 1, 2, momentum=0.9)], ids=["gradient", "steps"]
)
def test_feedback_is_better_than_averaging(public, batch, client):
    attack = make_attack(public, std=STD, client=client, num_rounds=4, num_bins=1024)
    images, evidence = found_by(attack, batch)
    assert len(images) == 8
    assert evidence.notes["rows_of_known"] == 3 * 8
    assert evidence.notes["rows_of_new"] == 0
    assert mean_psnr(images, batch.images) > averaged(public, batch, 4) + 3


def test_other_batches_are_noticed_and_change_nothing(public, batch):
    one = make_attack(public, std=STD, num_rounds=2, num_bins=1024)
    attack = make_attack(public, std=STD, num_rounds=3, num_bins=1024)
    others = batch._replace(images=batch.images.flip(2, 3).roll(1, 1))
    images, evidence = found_by(attack, batch, [others])
    # what one round tells stands in the payload of the second
    first = one.federation.play(batch, 0).payload.known.images[1:]
    torch.testing.assert_close(images, first)
    assert evidence.notes["rows_of_known"] == 0
    assert evidence.notes["rows_of_new"] >= 14


def test_an_image_that_one_round_lost_is_found_in_another(public, batch):
    attack = make_attack(public, std=STD, num_rounds=3, num_bins=1024)
    first = batch._replace(images=batch.images[:5], labels=batch.labels[:5])
    images, evidence = found_by(attack, first, [batch])
    assert len(images) == 8
    assert evidence.notes["rows_of_new"] >= 3
    alone = found_by(make_attack(public, std=STD), batch)[0]
    assert mean_psnr(images, batch.images) > mean_psnr(alone, batch.images) + 3


def test_rows_are_found_by_as_many_columns_as_pay(public, batch, monkeypatch):
    monkeypatch.setattr(local_payload, "NUM_HEAD_COLUMNS", 8)
    attack = make_attack(public, std=STD, num_rounds=6, num_bins=1024)
    first = attack.federation.payload
    last = attack.federation.play(batch, 0).payload
    assert first.num_head < 0.2 * first.num_used, "photographs are in the coarse columns"
    assert last.num_head > 0.5 * last.num_used, "what is left of them after five rounds is in all"


def test_noise_alone_gives_nothing(public, batch):
    attack = make_attack(public, std=STD, num_rounds=3)
    images, _ = attack.initialize(attack.federation.play_noise(batch.labels, 0))
    assert len(images) == 0


def test_noise_and_payload_are_new_in_every_round(public, batch):
    attack = make_attack(public, std=STD, num_rounds=2)
    second = attack.federation.play(batch, 0)
    assert second.rounds == 2
    assert second.payload is not attack.federation.payload
    payload = second.payload
    assert isinstance(payload, LocalPayload)
    again = make_attack(public, std=STD, num_rounds=2).federation.play(batch, 0)
    assert torch.equal(again.update["rows"], second.update["rows"])
    first = make_attack(public, std=STD, num_rounds=1, num_bins=len(second.update["rows"]))
    assert first.federation.play(batch, 0).rounds == 1


def test_blocks_of_rows_tell_the_images_apart(public, batch):
    attack = make_attack(public, std=STD, num_rounds=2, num_bins=1024)
    payload = attack.federation.play(batch, 0).payload.eval()
    known = payload.known.images
    nearest = payload.nearest(torch.cat([known[1:] + 1e-3, 1 - known[1:2]]))
    assert nearest.argmax(1).tolist() == [*range(1, 9), 0]
    assert nearest.max(1).values.min() > 0.999
    rows = torch.arange(payload.num_bins)
    block = payload.block_of(rows)
    assert block.bincount().tolist() == [2 * payload.num_levels] * 9
    # a row of each table, and no sample sees the others
    update = attack.client(payload, batch, seed=1)["rows"]
    hit = update.norm(dim=1).nonzero().squeeze(1)
    assert sorted(block[hit].tolist()) == sorted([*range(1, 9)] * 2)


def test_reach_lies_between_own_and_others():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(10, 192, generator=generator)
    noise = 0.05 * torch.randn(images.shape, generator=generator)
    own = noise.square().sum(1)
    others = torch.cdist(images, images).square().fill_diagonal_(torch.inf)
    assert own.max() < reach_of(images, images + noise) < others.min()


def test_what_is_not_known_yet_does_not_make_images_alike(public, batch):
    # one round tells the coarse half of a picture; a flat one is near it in all of the pixels
    attack = make_attack(public, std=STD, num_rounds=2, num_bins=1024)
    with attack.computing():
        payload = attack.federation.play(batch, 0).payload
        images = payload.known.images[1:]
        fine = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        code = payload.code
        spectrum = code.transform(fine).flatten(1)
        spectrum[:, payload.known.marks] = 0
        fine = code.inverse(spectrum.view_as(fine))
        assert payload.nearest(images + fine).argmax(1).tolist() == [*range(1, 9)]


def test_bad_input_is_one_line(public, sample_data):
    with pytest.raises(InputError, match="num_rounds must be at least 1, not 0"):
        make_attack(public, num_rounds=0)
    with pytest.raises(InputError, match="2 rounds are rehearsed on at least 8 public images"):
        make_attack(public[:3], num_rounds=2)
    attack = make_attack(public, num_rounds=2)
    with pytest.raises(InputError, match="captured update 0 is of one round"):
        attack.federation.receive({"update": {}, "num_samples": 8}, 0)


def test_privacy_and_capacity_compose_over_the_rounds(public, batch, sample_data):
    attack = make_attack(public, std=STD, num_rounds=3, num_bins=1024)
    told = describe_attack(attack, num_samples=8)
    privacy = told["privacy"]
    assert privacy["num_rounds"] == 3
    expected = gaussian_epsilon(2 * CLIP, STD, 1e-5, 3)
    assert privacy["actual"]["epsilon"] == pytest.approx(expected)
    assert "3 protected updates of the client" in told["threat_model"]
    assert "3 rounds of the same data" in told["threat_model"]

    images, evidence = found_by(attack, batch)
    auditor = Auditor(sample_data, null_controls=False, num_candidates=0)
    record, _ = auditor.audit(attack, 0, attack.finish(images, evidence), seconds=0.0)
    one = channel_bits(attack.federation.channel, [], 8, evidence.notes["columns"])
    assert record.notes["bits_capacity"] == pytest.approx(3 * one)
    assert 0 < bits_told([record.powers], "attack", 8) < record.notes["bits_capacity"]
    assert "prior_free_bound" not in record.controls
