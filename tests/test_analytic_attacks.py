"""Closed forms, against the images themselves, formulas, and what must not happen."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attack_helpers import bind
from data_helpers import real_data
from scipy import stats

from lightning_recon.attacks import (
    APRIL,
    RGAP,
    CuriousAbandonHonesty,
    LinearLayerInversion,
    RobbingTheFed,
)
from lightning_recon.attacks.linear_layer import grid_misfit, join_rows
from lightning_recon.audit.matching import match
from lightning_recon.clients import FedAvg
from lightning_recon.defenses import ClipL2, GaussianNoise
from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.targets import (
    MLP,
    ConvNet,
    LeNet,
    ModuleTarget,
    PlainConvNet,
    TinyViT,
    TorchvisionClassifier,
)
from lightning_recon.updates import PrivateBatch

EXACT = 60.0  # dB
SIZE = 16


def plain(**kwargs):
    return PlainConvNet(num_classes=20, image_size=SIZE, **kwargs)


def vit(**kwargs):
    return TinyViT(num_classes=20, image_size=SIZE, **kwargs)


# an attack that reads the images of each, its batch size, and a target that it reads
READS = {
    "linear": lambda **kwargs: LinearLayerInversion(MLP(20, SIZE, (200, 50)), **kwargs),
    "r_gap": lambda **kwargs: RGAP(plain(), **kwargs),
    "april": lambda **kwargs: APRIL(vit(), **kwargs),
    "april embedding": lambda **kwargs: APRIL(vit(is_plain=False), equation="embedding", **kwargs),
    "robbing": lambda **kwargs: RobbingTheFed(LeNet(20, SIZE), num_bins=256, **kwargs),
    "robbing sparse": lambda **kwargs: RobbingTheFed(
        LeNet(20, SIZE), num_bins=256, sparse=True, gain=100.0, **kwargs
    ),
    "trap weights": lambda **kwargs: CuriousAbandonHonesty(
        LeNet(20, SIZE), num_rows=200, num_samples=4, **kwargs
    ),
}
SINGLE = {"r_gap", "april", "april embedding"}
every_attack = pytest.mark.parametrize("name", READS)


@pytest.fixture(scope="module")
def small(sample_data):
    """Eight photographs of 16x16 with 8 bits, as a client has them."""
    batch = sample_data.client(0)
    images = F.avg_pool2d(batch.images, 2)
    images = (255 * images).round() / 255
    return batch._replace(images=images, masks=torch.ones(8, 1, SIZE, SIZE, dtype=torch.bool))


@pytest.fixture(scope="module")
def public(sample_data):
    return F.avg_pool2d(sample_data.public_images(), 2)


def take(batch, number):
    return PrivateBatch(*(field[:number].clone() for field in batch))


def ready(name, public, **kwargs):
    attack = READS[name](**kwargs)
    bind(attack, public)
    return attack


def batch_for(name, small):
    return take(small, 1 if name in SINGLE else 4)


def scores(reconstruction, images):
    """PSNR of the images that were matched."""
    row = match(reconstruction.images.float(), images.float()).row
    return psnr(reconstruction.images[row[row >= 0]].float(), images[row >= 0].float())


class TestExact:
    @every_attack
    def test_without_noise_the_images_come_back(self, name, public, small):
        attack, batch = ready(name, public), batch_for(name, small)
        reconstruction = attack.reconstruct(attack.federation.play(batch, 0))
        found = scores(reconstruction, batch.images)
        assert len(found) == len(reconstruction.images) >= {"trap weights": 2}.get(name, 1)
        assert (found > EXACT).all()

    @pytest.mark.parametrize("name", ["linear", "r_gap"])
    def test_a_model_that_normalises_the_image_first(self, name, public, small):
        inner = (MLP(20, SIZE, (200, 50)) if name == "linear" else plain()).requires_grad_(True)
        target = ModuleTarget(inner, 20, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.25])
        attack = LinearLayerInversion(target) if name == "linear" else RGAP(target)
        bind(attack, public)
        batch = batch_for(name, small)
        reconstruction = attack.reconstruct(attack.federation.play(batch, 0))
        found = scores(reconstruction, batch.images)
        assert len(found) >= 1
        assert (found > EXACT).all()

    @every_attack
    def test_one_local_step_with_an_unknown_learning_rate(self, name, public, small):
        attack = ready(name, public, client=FedAvg(0.1))
        batch = batch_for(name, small)
        found = scores(attack.reconstruct(attack.federation.play(batch, 0)), batch.images)
        # w_1 - w_0 is rounded to the digits of w_0
        least = 25 if name == "robbing" else 35
        assert found.max() > least + 10
        assert found.median() > least

    def test_r_gap_through_strides_biases_and_every_activation(self, public, small):
        targets = [plain(activation=kind) for kind in ("leaky_relu", "tanh", "sigmoid")]
        for target in (*targets, LeNet(20, SIZE), MLP(20, SIZE, (64, 32), "tanh")):
            attack = RGAP(target)
            bind(attack, public)
            reconstruction = attack.reconstruct(attack.federation.play(take(small, 1), 0))
            assert reconstruction.notes["rank_deficit"] == 0
            assert reconstruction.labels.tolist() == small.labels[:1].tolist()
            assert scores(reconstruction, small.images[:1]).item() > EXACT

    def test_the_label_of_r_gap_under_federated_averaging(self, public, small):
        attack = ready("r_gap", public, client=FedAvg(0.1))
        for place in range(3):
            one = PrivateBatch(*(field[place : place + 1] for field in small))
            assert (
                attack.reconstruct(attack.federation.play(one, 0)).labels.tolist()
                == one.labels.tolist()
            )

    def test_april_on_a_transformer_of_torchvision(self, small):
        """Class token, layer norms and shortcuts; reduced in depth and width."""
        target = TorchvisionClassifier("vit_b_16", num_classes=20, normalize=True)
        target.model = type(target.model)(
            image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=64,
            num_classes=20,
        )  # fmt: skip
        with torch.no_grad():
            target.model.heads.head.weight.normal_()  # zero in a fresh one: no gradient
        image = F.interpolate(small.images[:1], scale_factor=2)
        attack = APRIL(target.double(), equation="embedding")
        bind(attack, image)
        one = take(small, 1)._replace(images=image)
        assert scores(attack.reconstruct(attack.federation.play(one, 0)), image).item() > EXACT

    def test_several_samples_of_an_honest_linear_layer(self, public, small):
        """What is returned is exact, and is each image that has a row to itself."""
        attack = ready("linear", public)
        reconstruction = attack.reconstruct(attack.federation.play(small, 0))
        layer = attack.target.layers[1]
        fires = layer(small.images.flatten(1)) > 0
        alone = fires[:, fires.sum(0) == 1].any(1)
        assert len(reconstruction.images) == alone.sum() >= 2
        assert (scores(reconstruction, small.images) > EXACT).all()


class TestRank:
    def test_a_narrow_network_leaves_dimensions_open(self, public, small):
        attack = RGAP(plain(channels=(4, 8), strides=(2, 2)))
        bind(attack, public)
        notes = attack.reconstruct(attack.federation.play(take(small, 1), 0)).notes
        # 3 x 16 x 16 unknowns; 4 x 9 x 9 numbers come out, and each channel has 4 x 4 x 4 gradients
        assert notes["rank_deficit"] == 768 - (4 * 81 + 3 * 64) + _common_rank(attack, small)

    def test_join_rows_is_least_squares(self):
        torch.manual_seed(0)
        bias, image = torch.randn(50), torch.rand(12)
        weight = torch.outer(bias, image) + 0.01 * torch.randn(50, 12)
        joined, energy = join_rows(weight, bias)
        expected = np.linalg.lstsq(bias[:, None].numpy(), weight.numpy(), rcond=None)[0]
        assert np.allclose((joined / energy).numpy(), expected, atol=1e-5)
        nothing, _ = join_rows(torch.randn(50, 12), torch.randn(50))
        assert len(nothing) == 0

    def test_grey_levels_tell_one_image_from_a_mixture(self, small):
        images = small.images.flatten(1)
        assert grid_misfit(images).max() < 1e-3
        mixture = 0.37 * images[:4] + 0.63 * images[4:]
        assert grid_misfit(mixture).min() > 0.2
        assert grid_misfit(torch.tensor([[0.0, 1.0] * 50])).item() == 0.25  # tells nothing


def _common_rank(attack, small):
    """Equations of the narrow network that say the same twice, by the SVD of all of them."""
    from lightning_recon.attacks.r_gap import chain

    step = chain(attack.target, (3, SIZE, SIZE))[0]
    weight = step.layer.weight.detach().double()
    update = attack.federation.play(take(small, 1), 0).update
    # dL/dz of the first layer, by autograd
    z = F.conv2d(small.images[:1].double(), weight, None, 2, 2).requires_grad_()
    target = attack.target.double()
    logits = target.classifier(target.features[1:](z).flatten(1))
    (slope,) = torch.autograd.grad(F.cross_entropy(logits, small.labels[:1]), z)
    basis = torch.eye(768, dtype=torch.float64).view(-1, 3, SIZE, SIZE)
    outputs = F.conv2d(basis, weight, None, 2, 2).flatten(1)
    gradients = torch.stack(
        [
            torch.nn.grad.conv2d_weight(image[None], weight.shape, slope, 2, 2).flatten()
            for image in basis
        ]
    )
    assert torch.allclose(
        small.images[:1].double().flatten() @ gradients,
        update["features.0.weight"].double().flatten(),
        atol=1e-5,
    )
    gradients = gradients * outputs.norm() / gradients.norm()
    rank = torch.linalg.matrix_rank(torch.cat([outputs, gradients], dim=1), rtol=1e-6)
    target.float()
    return 4 * 81 + 3 * 64 - int(rank)


@cache
def _thumbnails(number):
    """Small pictures whose mean brightness is normal: location .5, scale .1."""
    generator = torch.Generator().manual_seed(0)
    pictures = 0.2 * (torch.rand(number, 3, 8, 8, generator=generator) - 0.5)
    brightness = 0.5 + 0.1 * torch.randn(number, generator=generator)
    shift = brightness - pictures.mean((1, 2, 3))
    return (pictures + shift[:, None, None, None]).clamp(0, 1)


def as_batch(images):
    number = len(images)
    masks = torch.ones(number, 1, *images.shape[2:], dtype=torch.bool)
    return PrivateBatch(images, torch.arange(number) % 10, masks, torch.arange(number))


class TestRobbingTheFed:
    @pytest.mark.parametrize("sparse", [False, True])
    @pytest.mark.parametrize(("num_samples", "num_bins"), [(16, 64), (64, 512)])
    def test_recovers_as_many_as_there_are_singletons(self, num_samples, num_bins, sparse):
        attack = RobbingTheFed(
            LeNet(image_size=8), num_bins=num_bins, location=0.5, scale=0.1, sparse=sparse
        )
        bind(attack, torch.zeros(0, 3, 8, 8))
        images, counts = _thumbnails(30 * num_samples), []
        for client, mine in enumerate(images.split(num_samples)):
            reconstruction = attack.reconstruct(attack.federation.play(as_batch(mine), client))
            counts.append(int((scores(reconstruction, mine) > EXACT).sum()))
        expected = num_samples * (1 - 1 / num_bins) ** (num_samples - 1)
        error = np.std(counts, ddof=1) / len(counts) ** 0.5
        assert abs(np.mean(counts) - expected) < 2.5 * error

    @pytest.mark.parametrize("sparse", [False, True])
    def test_one_shot_takes_one_image_out_of_many_once_in_e_times(self, sparse):
        attack = RobbingTheFed(
            LeNet(image_size=8), location=0.5, scale=0.1, one_shot=True, num_samples=50,
            sparse=sparse,
        )  # fmt: skip
        bind(attack, torch.zeros(0, 3, 8, 8))
        assert len(attack.federation.payload.rows.weight) == 2 - sparse
        batches = _thumbnails(60 * 50).split(50)
        found = 0
        for client, mine in enumerate(batches):
            reconstruction = attack.reconstruct(attack.federation.play(as_batch(mine), client))
            found += bool((scores(reconstruction, mine) > EXACT).any())
        low, high = stats.binom.ppf([0.005, 0.995], len(batches), (1 - 1 / 50) ** 49)
        assert low <= found <= high

    @pytest.mark.parametrize("bins", ["normal", "laplace", "empirical", "linear"])
    def test_edges_are_quantiles(self, bins, public):
        attack = RobbingTheFed(LeNet(20, SIZE), bins=bins, num_bins=10)
        bind(attack, public)
        at = np.arange(1, 10) / 10
        values = public.mean((1, 2, 3)).double().numpy()
        spread = np.abs(values - np.median(values)).mean()
        expected = {
            "normal": stats.norm.ppf(at, values.mean(), values.std()),
            "laplace": stats.laplace.ppf(at, np.median(values), spread),
            "empirical": np.quantile(values, at),
            "linear": at,
        }[bins]
        assert np.allclose(attack.edges[1:-1].numpy(), expected, atol=1e-6)
        assert attack.edges[0] < 0
        assert attack.edges[-1] > 1

    def test_sparse_rows_get_one_sample_each(self, public, small):
        attack = ready("robbing sparse", public)
        bias = attack.federation.play(small, 0).update["rows.bias"]
        brightness = small.images.double().mean((1, 2, 3))
        bins = torch.searchsorted(attack.edges, brightness) - 1
        assert bias.nonzero()[:, 0].tolist() == sorted(set(bins.tolist()))

    def test_several_local_steps_move_sparse_rows_little(self, public, small):
        client = FedAvg(0.01, epochs=3, minibatch_size=4)
        attack = ready("robbing sparse", public, client=client)
        found = scores(attack.reconstruct(attack.federation.play(small, 0)), small.images)
        assert len(found) >= 6
        assert found.median() > 40

    def test_too_few_public_images(self):
        with pytest.raises(InputError, match="set location and scale, or bins to linear"):
            bind(RobbingTheFed(LeNet()), torch.zeros(1, 3, 32, 32))


class TestTrapWeights:
    def attack_cifar(self, seed, **kwargs):
        with np.load(real_data("cifar10-sample.npz")) as arrays:
            public = torch.from_numpy(arrays["x_train"][:64]).permute(0, 3, 1, 2) / 255
            images = torch.from_numpy(arrays["x_test"][100 * seed : 100 * seed + 100])
        images = images.permute(0, 3, 1, 2) / 255
        attack = CuriousAbandonHonesty(LeNet(), num_samples=100, seed=seed, **kwargs)
        bind(attack, public)
        reconstruction = attack.reconstruct(attack.federation.play(as_batch(images), seed))
        return attack, images, scores(reconstruction, images), len(reconstruction.images)

    def test_recall_on_cifar10_is_about_that_of_the_paper(self):
        recalls = []
        for seed in range(4):
            attack, images, found, number = self.attack_cifar(seed)
            # all that a row holds alone, and nothing else: found without looking
            fires = images.flatten(1) @ attack.federation.payload.rows.weight.T > 0
            alone = fires[:, fires.sum(0) == 1].any(1)
            assert number == alone.sum() == (found > EXACT).sum()
            recalls.append(number / 100)
        assert 0.42 < np.mean(recalls) < 0.62  # .54 in the paper

    def test_peeling_finds_more(self):
        _, _, plain_found, _ = self.attack_cifar(0)
        _, _, found, number = self.attack_cifar(0, peel=True)
        assert number >= len(plain_found) + 15
        assert (found > EXACT).all()

    def test_positive_weights_are_the_negative_ones_scaled(self, public):
        attack = ready("trap weights", public, scaling=0.9)
        for row in attack.federation.payload.rows.weight[:5].detach():
            positive, negative = row[row > 0], -row[row < 0]
            assert torch.allclose(positive.sort().values, 0.9 * negative.sort().values, atol=1e-7)


class TestNoise:
    @every_attack
    def test_a_noise_only_update_gives_nothing(self, name, public):
        labels = torch.zeros(1 if name in SINGLE else 4, dtype=torch.int64)
        for defenses in ([], [GaussianNoise(0.01)]):
            attack = ready(name, public, defenses=defenses)
            for client in range(3):
                found = attack.reconstruct(attack.federation.play_noise(labels, client))
                assert len(found.images) == len(found.score) == 0

    def test_noise_on_the_rows_is_noise_on_the_image(self, public, small):
        attack = ready("robbing sparse", public)
        gain = attack.federation.play(small, 0).update["rows.bias"].abs().max().item()
        noisy = ready("robbing sparse", public, defenses=[GaussianNoise(0.02 * gain)])
        reconstruction = noisy.reconstruct(noisy.federation.play(small, 0))
        best = scores(reconstruction, small.images).max().item()
        assert best == pytest.approx(-20 * np.log10(0.02), abs=2.5)

    def test_clipping_changes_nothing(self, public, small):
        plain_attack = ready("robbing", public)
        clipped = ready("robbing", public, defenses=[ClipL2(1e-3)])
        for attack in (plain_attack, clipped):
            found = scores(attack.reconstruct(attack.federation.play(small, 0)), small.images)
            assert (found > EXACT).sum() >= 6


class TestHonesty:
    @every_attack
    def test_never_more_images_than_samples(self, name, public, small):
        attack = ready(name, public, defenses=[GaussianNoise(1e-5)])
        batch = batch_for(name, small)
        assert len(attack.reconstruct(attack.federation.play(batch, 0)).images) <= len(batch.images)


class TestBadInput:
    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: LinearLayerInversion(LeNet()), "no linear layer with a bias reads the image"),
            (lambda: RGAP(ConvNet(width=4)), r"BatchNorm2d\) cannot be inverted"),
            (lambda: RGAP(PlainConvNet(activation="relu")), r"ReLU\) cannot be inverted"),
            (lambda: RGAP(TorchvisionClassifier("resnet18")), "BatchNorm2d"),
            (lambda: APRIL(LeNet()), "set the target to TinyViT"),
            (lambda: APRIL(TinyViT(is_plain=False)), "set equation to embedding"),
            (lambda: APRIL(TinyViT(width=32)), "do not determine 64 of them"),
        ],
    )
    def test_a_target_that_cannot_be_read(self, make, words):
        attack = make()
        bind(attack, torch.zeros(0, 3, 32, 32), 2)
        with pytest.raises(InputError, match=words) as error:
            _ = attack.federation.payload
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", sorted(SINGLE))
    def test_several_samples(self, name, public, small):
        attack = ready(name, public)
        with pytest.raises(InputError, match="take batches of a single image"):
            attack.reconstruct(attack.federation.play(small, 0))

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: RobbingTheFed(LeNet(), num_bins=1), "num_bins must be at least 2"),
            (lambda: RobbingTheFed(LeNet(), num_samples=0), "num_samples must be at least 1"),
            (lambda: CuriousAbandonHonesty(LeNet(), scaling=1.5), "scaling in"),
            (lambda: MLP(hidden=()), "at least one width"),
            (lambda: PlainConvNet(channels=(3,), strides=(1, 1)), "lists of one length"),
            (lambda: TinyViT(patch_size=5), "must divide image_size"),
        ],
    )
    def test_settings_out_of_range(self, make, words):
        with pytest.raises(InputError, match=words):
            make()

    def test_no_public_images_and_no_scaling(self):
        with pytest.raises(InputError, match="set scaling, or take data with public images"):
            bind(CuriousAbandonHonesty(LeNet(), num_samples=4), torch.zeros(0, 3, 32, 32))
