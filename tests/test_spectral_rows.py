"""Rows that several samples reached, against constructed ones; and clients that clip per sample."""

import pytest
import torch
from test_spectral import CLIP, make_attack, mean_psnr

from lightning_recon.attacks.spectral.rows import unmix
from lightning_recon.clients import DPSGD
from lightning_recon.defenses import DPSGDNoise


@pytest.fixture
def public(sample_data):
    return sample_data.public_images()


def rows_of(samples, table, noise_std, seed):
    """The rows that samples, M N, reach in two tables: M 2, numbers without gaps."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.zeros(int(table.max()) + 1, samples.shape[1], dtype=torch.float64)
    for sample, (first, second) in zip(samples, table.tolist(), strict=True):
        rows[first] += sample
        rows[second] += sample
    noise = torch.randn(rows.shape, generator=random, dtype=torch.float64)
    return rows + noise_std * noise, torch.arange(len(rows)) < int(table[:, 0].max()) + 1


def unit_samples(number, columns=400, seed=0):
    random = torch.Generator().manual_seed(seed)
    samples = torch.randn(number, columns, generator=random, dtype=torch.float64)
    return samples / samples.norm(dim=1, keepdim=True)


class TestUnmix:
    ALONE = torch.tensor([[0, 3], [1, 4], [2, 5]])
    CHAIN = torch.tensor([[0, 3], [0, 4], [1, 4], [2, 5]])  # 0 and 1 share a row, 1 and 2 another
    SQUARE = torch.tensor([[0, 2], [0, 3], [1, 2], [1, 3]])  # four rows of which one tells nothing

    @pytest.mark.parametrize("table", [ALONE, CHAIN])
    def test_without_noise_the_samples_come_back(self, table):
        samples = unit_samples(len(table))
        rows, is_first = rows_of(samples, table, 0.0, 0)
        found = unmix(rows, is_first, 0.0, 1e-6)
        assert found.first.tolist() == table[:, 0].tolist()
        cosine = (found.received * samples).sum(1) / found.received.norm(dim=1)
        assert torch.allclose(cosine, torch.ones_like(cosine))
        # two copies of a sample that is alone are worth one of twice the energy
        alone = ~found.is_mixed
        assert torch.allclose(found.received[alone], 2**0.5 * samples[alone])
        assert alone.tolist() == [table.tolist() == self.ALONE.tolist()] * (len(table) - 1) + [True]

    def test_noise_is_that_of_a_row(self):
        samples, std = unit_samples(4), 0.01
        errors = []
        for seed in range(40):
            rows, is_first = rows_of(samples, self.CHAIN, std, seed)
            found = unmix(rows, is_first, std**2, 1e-6)
            scale = (found.received * samples).sum(1, keepdim=True)
            errors.append(found.received - scale * samples)
        measured = torch.stack(errors).square().mean((0, 2)).sqrt()
        assert torch.allclose(measured, torch.full_like(measured, std), rtol=0.03)

    def test_scale_is_that_of_the_normal_equations(self):
        samples = unit_samples(4)
        rows, is_first = rows_of(samples, self.CHAIN, 0.0, 0)
        holds = torch.zeros(6, 4, dtype=torch.float64)
        for number, pair in enumerate(self.CHAIN.tolist()):
            holds[pair, number] = 1
        variance = torch.linalg.inv(holds.T @ holds).diagonal()
        found = unmix(rows, is_first, 0.0, 1e-6).received.norm(dim=1)
        assert torch.allclose(found, variance.rsqrt())

    def test_what_the_rows_do_not_determine_is_not_returned(self):
        rows, is_first = rows_of(unit_samples(4), self.SQUARE, 0.001, 0)
        found = unmix(rows, is_first, 0.001**2, 1e-6)
        assert len(found.received) == 0
        assert found.num_shared == 4

    def test_a_row_that_was_missed_spoils_its_neighbours_only(self):
        rows, is_first = rows_of(unit_samples(4), self.CHAIN, 0.001, 0)
        found = unmix(rows[1:], is_first[1:], 0.001**2, 1e-6)
        # sample 0 has one row left, and the row of 1 and 2 is explained by neither alone
        assert found.first.tolist() == [1]
        assert found.num_shared == 3

    def test_samples_that_are_alike_are_not_taken_for_one(self):
        samples = unit_samples(3)
        samples[1] = 0.8 * samples[0] + 0.6 * samples[1]
        rows, is_first = rows_of(samples, self.ALONE, 0.001, 0)
        found = unmix(rows, is_first, 0.001**2, 1e-6)
        assert found.first.tolist() == [0, 1, 2]
        assert not found.is_mixed.any()

    def test_no_rows(self):
        found = unmix(torch.zeros(0, 5), torch.zeros(0, dtype=torch.bool), 1.0, 1e-6)
        assert found.received.shape == (0, 5)


class TestPerSampleClients:
    """DP-SGD: the payload sees one sample at a time."""

    def attack(self, public, **kwargs):
        noise = DPSGDNoise(CLIP, num_samples=8, noise_multiplier=1e-3)
        return make_attack(public, client=DPSGD(CLIP), defenses=[noise], **kwargs)

    def test_a_sample_is_sent_twice_with_what_it_may_use(self, public, batch):
        attack = self.attack(public)
        for image, label in zip(batch.images, batch.labels, strict=True):
            alone = batch._replace(images=image[None], labels=label[None])
            update = attack.client(attack.federation.payload, alone, seed=0)
            whole = torch.cat([update["head"], update["rows"].to_dense()], dim=1) / 8  # the mean
            first, second = (whole.abs().sum(1) > 0).nonzero().flatten().tolist()
            assert first < 64 <= second
            assert torch.equal(whole[first], whole[second])
            assert float(whole.square().sum()) == pytest.approx((CLIP / 8) ** 2, rel=1e-3)
        assert attack.budget.energy == pytest.approx((CLIP / 8) ** 2)

    def test_second_rows_are_chosen_alike_often(self, public):
        payload = self.attack(public).federation.payload
        random = torch.Generator().manual_seed(0)
        code = torch.randn(6400, payload.code.num_columns, generator=random)
        row = payload.choose_second_rows(code / code.norm(dim=1, keepdim=True))
        count = torch.bincount(row, minlength=128)
        assert not count[:64].any()
        assert ((count[64:] - 100).square() / 100).sum() < 110  # chi-squared, 63 degrees: 1 in 4000

    def test_samples_that_share_a_row_are_unmixed(self, public, batch):
        attack = self.attack(public)
        apart = attack.reconstruct(attack.federation.play(batch, 0))
        rows = iter([3, 9, 9, 20, 31, 45, 50, 60])
        attack.federation.payload.choose_rows = lambda log_norm: torch.tensor([next(rows)])
        observation = attack.federation.play(batch, 0)
        _, log_norm = attack.code.encode(batch.images)
        # what a row tells of the norm is not what is tested here
        middle = float(log_norm.mean())
        attack.federation.payload.row_log_norm = lambda row: torch.full((len(row),), middle)
        together = attack.reconstruct(observation)
        assert len(apart.images) == len(together.images) == 8
        assert together.notes["rows_colliding"] >= 1
        assert together.notes["samples_unmixed"] >= 2
        assert mean_psnr(together.images, batch.images) > 20

    def test_every_sample_is_found_in_few_rows(self, public, sample_data):
        """In 64 rows, 7.2 of 8 samples are alone on average."""
        for client in range(2):
            batch = sample_data.client(client)
            attack = self.attack(public, num_bins=64)
            images, _ = attack.initialize(attack.federation.play(batch, client))
            assert len(images) == 8
            assert mean_psnr(images, batch.images) > 30

    def test_noise_alone_gives_nothing(self, public):
        attack = self.attack(public)
        labels = torch.zeros(8, dtype=torch.int64)
        reconstruction = attack.reconstruct(attack.federation.play_noise(labels, 0))
        assert len(reconstruction.images) == 0
        assert reconstruction.notes["rows_hit"] == 0
