"""SpectralLDPAttack under local steps: what rows hold after them, and what must not happen."""

import pytest
import torch
import torch.nn.functional as F
from test_spectral import CLIP, make_attack, mean_psnr
from test_spectral_rows import rows_of, unit_samples
from torch.func import functional_call

from lightning_recon.attacks.spectral import local_steps
from lightning_recon.attacks.spectral.local_payload import hadamard
from lightning_recon.attacks.spectral.rows import unmix
from lightning_recon.audit.privacy_statement import privacy_statement
from lightning_recon.clients import Aggregate, Client, FedAvg, FedAvgAdamW, FedSGD
from lightning_recon.defenses import ClipL2, GaussianNoise
from lightning_recon.errors import InputError
from lightning_recon.privacy.gaussian import gaussian_epsilon
from lightning_recon.targets import ConvNet
from lightning_recon.updates import PrivateBatch

STD = 0.005
SHUFFLED = FedAvg(0.1, 1, 2, momentum=0.9, weight_decay=5e-4)


@pytest.fixture
def public(sample_data):
    return sample_data.public_images()


def found_by(attack, batch):
    with attack.computing():
        return attack.initialize(attack.federation.play(batch, 0))


def rows_after(attack, batch):
    """The rows' change by the client's steps, before clip and noise."""
    return attack.client(attack.federation.payload, batch, seed=1)["rows"]


class TestSteps:
    @pytest.mark.parametrize("payload_class", ["A", "B"])
    @pytest.mark.parametrize(
        "client",
        [
            SHUFFLED,
            FedAvg(0.01, 3, 2),
            FedAvg(0.1, 5, momentum=0.9),
            Aggregate(FedAvg(0.1, 2, 2), 2),
        ],
        ids=["momentum", "three epochs", "whole batches", "aggregate"],
    )
    def test_they_cost_next_to_nothing(self, public, batch, client, payload_class):
        one = make_attack(public, std=STD)
        images, _ = found_by(one, batch)
        attack = make_attack(
            public, std=STD, client=client, payload_class=payload_class, num_bins=1024
        )
        after, evidence = found_by(attack, batch)
        assert len(after) == 8
        assert mean_psnr(after, batch.images) > mean_psnr(images, batch.images) - 1
        assert evidence.noise_std == pytest.approx(STD, rel=0.02)

    def test_noise_alone_gives_nothing(self, public, batch):
        attack = make_attack(public, client=SHUFFLED)
        images, _ = attack.initialize(attack.federation.play_noise(batch.labels, 0))
        assert len(images) == 0

    @pytest.mark.parametrize("payload_class", ["A", "B"])
    def test_momentum_leaves_samples_alike(self, public, batch, payload_class):
        attack = make_attack(public, client=SHUFFLED, payload_class=payload_class, num_bins=2048)
        norm = rows_after(attack, batch).norm(dim=1)
        norm = norm[norm > 0]
        assert len(norm) >= 15  # two a sample, of which two may want the same
        assert int(((norm / norm.median()).log().abs() > 0.05).sum()) <= 1

    def test_a_confident_target_is_as_good_as_any(self, public, batch):
        scores = []
        for confidence in (1, 300):
            target = ConvNet(num_classes=20, width=8)
            target.classifier.weight.data *= confidence
            attack = make_attack(public, std=STD, target=target, client=SHUFFLED)
            scores.append(mean_psnr(found_by(attack, batch)[0], batch.images))
        assert scores[1] == pytest.approx(scores[0], abs=0.5)
        # what it believes matters where its logits are kept
        attack = make_attack(public, std=STD, target=target, client=SHUFFLED, logit_scale=1.0)
        assert mean_psnr(found_by(attack, batch)[0], batch.images) < scores[1] - 3

    def test_of_adam(self, public, batch, monkeypatch):
        monkeypatch.setattr(local_steps, "MAX_NUMBERS", 2**21)
        client = FedAvgAdamW(1e-3, epochs=2, minibatch_size=2)
        attack = make_attack(public, std=5e-4, client=client)
        update = client(attack.federation.payload, batch, seed=1)
        rows = update.pop("rows")
        assert rows.shape == (64, 2**15)
        assert rows.abs().max() <= 1e-3 * client.num_steps(8)
        # nothing but weight decay moves the target: far less than a step of Adam
        assert max(float(part.abs().max()) for part in update.values()) < 1e-4
        images, _ = found_by(attack, batch)
        nothing, _ = attack.initialize(attack.federation.play_noise(batch.labels, 0))
        assert len(nothing) == 0
        mean = public.mean(0).expand_as(batch.images)
        assert mean_psnr(images, batch.images) > mean_psnr(mean, batch.images) + 12


class TestPayloadOfClassB:
    def test_a_row_is_written_once_and_then_keeps_still(self, public, batch):
        attack = make_attack(public, client=FedAvg(0.1, 2))
        payload = attack.federation.payload.eval()
        after = {"rows": FedAvg(0.1)(payload, batch, seed=1)["rows"].requires_grad_()}
        logits = functional_call(payload, after, (batch.images,))
        kept = payload.logit_scale * payload.model(batch.images)
        assert (logits - kept).abs().max() < 0.01
        loss = F.cross_entropy(logits, batch.labels)
        assert not torch.autograd.grad(loss, after["rows"])[0].any()

    def test_every_sample_is_seen_by_itself(self, public, batch):
        attack = make_attack(public, client=SHUFFLED)
        payload = attack.federation.payload.eval()
        written = {"rows": rows_after(attack, batch)}
        together = functional_call(payload, written, (batch.images,))
        alone = [functional_call(payload, written, (image[None],)) for image in batch.images]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)

    def test_class_a_changes_no_logit(self, public, batch):
        attack = make_attack(public, client=SHUFFLED, payload_class="A")
        payload = attack.federation.payload.eval()
        logits = functional_call(payload, {"rows": rows_after(attack, batch)}, (batch.images,))
        assert torch.equal(logits, payload.logit_scale * payload.model(batch.images))


def test_hadamard_is_orthonormal_and_its_own_inverse():
    numbers = torch.randn(2, 64, dtype=torch.float64)
    assert torch.allclose(hadamard(hadamard(numbers)), numbers)
    matrix = hadamard(torch.eye(64, dtype=torch.float64))
    assert torch.allclose(matrix.abs(), torch.full((64, 64), 1 / 8, dtype=torch.float64))


def test_a_sample_without_its_other_copy_is_kept():
    table = torch.tensor([[0, 3], [1, 4], [2, 5]])
    size = torch.tensor([1.0, 3.0, 0.8])[:, None]  # hits at different times
    samples = size * unit_samples(3)
    rows, is_first = rows_of(samples, table, 0.001, 0)
    found = unmix(rows[1:], is_first[1:], 1e-6, 1e-6, keeps_alone=True)
    assert found.first.tolist() == [0, 1, 2]
    assert found.num_shared == 0
    norm = found.received.norm(dim=1)
    expected = torch.tensor([3.0 * 2**0.5, 0.8 * 2**0.5, 1.0]).double()
    torch.testing.assert_close(norm, expected, atol=0.03, rtol=0)
    assert 2 not in unmix(rows[1:], is_first[1:], 1e-6, 1e-6).first.tolist()


def test_a_sample_like_one_that_lost_a_copy_is_kept_apart():
    one, other, third = unit_samples(3)
    like = 0.6 * one + 0.8 * other
    samples = torch.stack([one, like, third])
    table = torch.tensor([[0, 3], [1, 4], [2, 5]])
    rows, is_first = rows_of(samples, table, 0.001, 0)
    keeps = torch.arange(len(rows)) != 1  # that row was closed before
    found = unmix(rows[keeps], is_first[keeps], 1e-6, 1e-6, keeps_alone=True)
    assert len(found.received) == 3
    unit = found.received / found.received.norm(dim=1, keepdim=True)
    assert (unit @ samples.T).amax(0).min() > 0.99


def test_a_rare_norm_is_told_by_its_number_and_a_usual_one_by_its_row(public):
    payload = make_attack(public, client=SHUFFLED).federation.payload
    amplitude, spread = torch.tensor(3.0), payload.code.log_norm_std
    place = torch.cat([torch.linspace(-1, 1, 9), torch.tensor([-3.9, -3.3, 3.6])])
    norm = payload.code.log_norm_mean + spread * place
    row = torch.bucketize(norm, payload.thresholds)
    size = amplitude * payload.norm_size / payload.scale
    received = torch.zeros(len(norm), 2)
    received[:, 1] = place * spread / payload.norm_reach * size

    def error(shift, row=row):
        """Of the norm, in standard deviations of all norms; so is the number's own error."""
        noise = size * shift * spread / payload.norm_reach
        told = payload.log_norm_of(received + noise, amplitude, row, float(noise))
        return (told - norm) / spread

    by_row = (payload.row_log_norm(row) - norm) / spread
    assert error(1e-4).abs().max() < 1e-3
    torch.testing.assert_close(error(0.08, row + payload.num_first), torch.full((12,), 0.08))
    assert error(0.08)[:9].abs().max() < 0.04
    assert by_row[9:].abs().min() > 0.12
    assert error(0.08)[9:].abs().max() < 0.1
    torch.testing.assert_close(error(1e4)[:11], by_row[:11])


class Unknown(Client):
    """Sends something after steps that nobody knows."""

    protocol = "fedavg"
    local_update = FedAvg.local_update


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"client": FedAvg(1e6, 2)}, "learning_rate of 1e.06 the rows or the target explode"),
        ({"client": FedAvg(1e-31, 2)}, "learning_rate of 1e-31 the rows or the target explode"),
        ({"client": FedAvgAdamW(1e6)}, "learning_rate of 1e.06 the rows or the target explode"),
        ({"payload_class": "C"}, "payload_class must be A or B, not 'C'"),
        ({"logit_scale": 2.0}, "logit_scale must lie between 0 and 1, not 2"),
        ({"client": FedAvg(10.0, 2, weight_decay=0.1)}, "lower one until their product is below 1"),
        ({"client": Unknown()}, "cannot read what Unknown sends after several steps"),
        ({"client": SHUFFLED, "num_bins": 63}, "at least 64 rows, not 63"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(public, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        _ = make_attack(public, **settings).federation.payload
    assert "\n" not in str(caught.value)


class TestSecureSum:
    """One client of several whose updates are clipped each, summed, and noised once."""

    @staticmethod
    def attack(public, num_clients, std=STD, **kwargs):
        client = Aggregate(kwargs.pop("client", SHUFFLED), num_clients, update_clip_norm=CLIP)
        noise = [GaussianNoise(std / num_clients)]  # std on the sum
        return make_attack(
            public, client=client, defenses=noise, batch_size=8, num_bins=1024, **kwargs
        )

    @pytest.mark.parametrize("client", [SHUFFLED, FedSGD()], ids=["steps", "gradient"])
    def test_the_others_hide_nothing_of_one_whose_rows_alone_are_open(self, public, batch, client):
        place = 2
        own = slice(2 * place, 2 * place + 2)
        attack = self.attack(public, 4, client=client, place=place)
        images, evidence = found_by(attack, batch)
        assert len(images) == 2
        alone = make_attack(
            public,
            client=client,
            batch_size=2,
            num_bins=1024,
            defenses=[ClipL2(CLIP), GaussianNoise(STD)],
        )
        few = PrivateBatch(*(field[own] for field in batch))
        expected = mean_psnr(found_by(alone, few)[0], few.images)
        assert mean_psnr(images, few.images) == pytest.approx(expected, abs=0.5)
        assert evidence.noise_std == pytest.approx(STD / 4, rel=0.03)

    def test_all_rows_open_show_all(self, public, batch):
        attack = self.attack(public, 4)
        images, _ = found_by(attack, batch)
        assert len(images) == 8
        assert attack.channel.noise_std == pytest.approx(STD)

    def test_a_clip_that_moves_with_the_noise_changes_nothing(self, public, batch):
        # adaptive clipping: the norm follows what clients send, and the noise the norm
        found = []
        for factor in (1.0, 1.105):
            client = Aggregate(SHUFFLED, 4, update_clip_norm=factor * CLIP)
            attack = make_attack(
                public, client=client, defenses=[GaussianNoise(factor * STD / 4)], num_bins=1024
            )
            found.append(mean_psnr(found_by(attack, batch)[0], batch.images))
        assert found[0] == pytest.approx(found[1], abs=0.02)

    def test_privacy_is_that_of_one_of_several(self, public):
        attack = self.attack(public, 4)
        stated = privacy_statement(attack.federation.defenses, attack.client, 8)
        expected = gaussian_epsilon(2 * CLIP, STD, 1e-5)
        assert stated["actual"]["epsilon"] == pytest.approx(expected)

    def test_bad_input_is_one_line(self, public):
        with pytest.raises(InputError, match="place must be from 0 to 3"):
            self.attack(public, 4, place=4)
        with pytest.raises(InputError, match="update_clip_norm must be a number above 0"):
            Aggregate(SHUFFLED, 2, update_clip_norm=0.0)
