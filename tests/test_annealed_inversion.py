"""Features without labels, networks without kinks, and the images that come of both."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from attack_helpers import bind
from pytorch_lightning import Callback, Trainer
from torch import nn

from lightning_recon import reconstruct
from lightning_recon.attacks import AnnealedInversion
from lightning_recon.attacks.features.separation import separate_inputs
from lightning_recon.attacks.features.spectrum import Spectrum
from lightning_recon.attacks.matching.softened import Softened
from lightning_recon.attacks.schedules import Reheated
from lightning_recon.clients import FedAvg
from lightning_recon.data import SampleImagesDataModule
from lightning_recon.defenses import SignSGD
from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.targets import ModuleTarget, TutorialCNN
from lightning_recon.updates import PrivateBatch

SIZE = 32


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer_gradient(num_samples, num_outputs=60, num_inputs=150, seed=0):
    """Inputs and residuals behind and before ReLUs, and the layer's gradients."""
    inputs = random(num_samples, num_inputs, seed=seed).relu()
    residuals = 1e-3 * random(num_samples, num_outputs, seed=seed + 1)
    residuals *= random(num_samples, num_outputs, seed=seed + 2) > 0
    return inputs, residuals, residuals.T @ inputs, residuals.sum(0)


def in_order(found, truth):
    """The place in ``truth`` that each row of ``found`` is nearest to."""
    return torch.cdist(found, truth).argmin(1)


class TestSeparation:
    @pytest.mark.parametrize("num_samples", [1, 2, 4, 8])
    @pytest.mark.parametrize("factor", [1.0, -0.01])
    def test_every_sample_is_found_whatever_the_rate(self, num_samples, factor):
        inputs, residuals, weight, bias = layer_gradient(num_samples)
        found = separate_inputs(factor * weight, factor * bias, num_samples, seed=0)
        order = in_order(found.inputs, inputs)
        assert sorted(order.tolist()) == list(range(num_samples))
        torch.testing.assert_close(found.inputs, inputs[order], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(
            found.residuals, factor * residuals[order], atol=1e-5 * abs(factor), rtol=1e-3
        )

    def test_the_rounding_of_weights_does_not_hide_them(self):
        inputs, _, weight, bias = layer_gradient(4)
        before = [0.05 * random(*part.shape, seed=9) for part in (weight, bias)]
        pairs = zip(before, (weight, bias), strict=True)
        deltas = [(start - 0.01 * part) - start for start, part in pairs]
        found = separate_inputs(*deltas, 4, seed=0)
        order = in_order(found.inputs, inputs)
        assert sorted(order.tolist()) == [0, 1, 2, 3]
        error = (found.inputs - inputs[order]).norm(dim=1) / inputs[order].norm(dim=1)
        assert error.max() < 0.01

    def test_inputs_that_are_never_zero_are_not_believed(self):
        inputs, residuals, _, bias = layer_gradient(4)
        dense = inputs + 0.1 + random(*inputs.shape, seed=3).abs()
        assert separate_inputs(residuals.T @ dense, bias, 4, seed=0) is None

    def test_signed_inputs_are_not_believed(self):
        _, residuals, _, bias = layer_gradient(4)
        signed = random(4, 150, seed=7)
        assert separate_inputs(residuals.T @ signed, bias, 4, seed=0) is None

    def test_noise_is_not_believed(self):
        _, _, weight, bias = layer_gradient(4)
        noisy = weight + weight.std() * random(*weight.shape, seed=5)
        assert separate_inputs(noisy, bias, 4, seed=0) is None

    def test_a_gradient_that_no_such_batch_has_is_not_believed(self):
        _, _, weight, bias = layer_gradient(1)
        assert separate_inputs(weight, bias, 1, seed=0) is not None
        dropped = weight * (random(*weight.shape) > 0)
        assert separate_inputs(dropped, bias, 1, seed=0) is None
        _, _, weight, bias = layer_gradient(5)
        assert separate_inputs(weight, bias, 4, seed=0) is None

    def test_nothing_is_found_in_nothing(self):
        assert separate_inputs(torch.zeros(5, 7), torch.zeros(5), 2, seed=0) is None
        _, _, weight, bias = layer_gradient(2)
        assert separate_inputs(weight, bias, 61, seed=0) is None  # more samples than rows


class TestSoftened:
    def test_nothing_changes_without_a_temperature_or_outside(self):
        images = random(2, 3, 8, 8)
        for context in (Softened(0.0), Softened(0.5)):
            with context:
                pass
            assert torch.equal(images.relu(), images.clamp_min(0))
        with Softened(0.0):
            assert torch.equal(F.relu(images), images.clamp_min(0))
            assert torch.equal(F.max_pool2d(images, 2), nn.MaxPool2d(2)(images))

    def test_a_shut_relu_passes_a_gradient(self):
        x = torch.tensor([-1.0, 1.0], requires_grad=True)  # of standard deviation 1
        with Softened(0.5):
            nn.ReLU()(x).sum().backward()
        torch.testing.assert_close(x.grad, torch.sigmoid(torch.tensor([-2.0, 2.0])))

    @pytest.mark.parametrize(
        "pool",
        [nn.MaxPool2d(2), nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 2, padding=1), nn.MaxPool2d((2, 1))],
    )
    def test_pools_are_bounds_that_become_exact(self, pool):
        images = random(2, 3, 9, 9)
        hard = pool(images)
        softer = hard
        for temperature in (1e-3, 0.1, 0.5):
            with Softened(temperature):
                soft = pool(images)
            assert soft.shape == hard.shape
            assert (soft >= softer - 1e-5).all()
            softer = soft
        with Softened(1e-4):
            torch.testing.assert_close(pool(images), hard, atol=1e-3, rtol=0)

    def test_a_pool_is_the_logarithm_of_a_sum(self):
        images = random(1, 1, 2, 2)
        width = 0.3 * images.std(correction=0)
        with Softened(0.3):
            found = F.max_pool2d(images, 2)
        torch.testing.assert_close(
            found.flatten()[0], width * (images / width).exp().sum().log(), atol=1e-5, rtol=1e-5
        )

    def test_values_may_stay_and_slopes_be_soft(self):
        images = random(2, 3, 8, 8).requires_grad_()
        for layer in (F.relu, torch.Tensor.relu, partial(F.max_pool2d, kernel_size=2)):
            slopes = []
            for soft_values in (True, False):
                with Softened(0.5, soft_values):
                    found = layer(images)
                (slope,) = torch.autograd.grad(found.sum(), [images])
                slopes.append(slope)
            torch.testing.assert_close(found, layer(images))  # of the layer itself
            torch.testing.assert_close(*slopes)

    def test_other_pools_stay(self):
        images = random(1, 2, 7, 7)
        for pool in (
            nn.MaxPool2d(2, ceil_mode=True),
            nn.MaxPool2d(2, dilation=2),
            nn.MaxPool2d(2, return_indices=True),
        ):
            hard = pool(images)
            with Softened(0.5):
                soft = pool(images)
            for one, other in zip(hard, soft, strict=True):
                assert torch.equal(one, other)


class TestCycles:
    def test_each_falls_to_the_end_and_all_but_the_first_begin_half_way(self):
        cycles = Reheated(iterations=10, cycles=3, reheated=0.5, last_rate=0.25)
        progress = [cycles.progress(iteration) for iteration in range(11)]
        assert progress == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 0.5, 1, 0.5, 1, 1])
        assert [place for place in range(11) if cycles.begins_again(place)] == [6, 8]
        assert [cycles(place) for place in (0, 3, 6, 7)] == pytest.approx([1, 0.5, 1, 0.5])

    def test_one_is_the_whole_run_and_few_iterations_are_one(self):
        for cycles in (Reheated(5, 1, 0.5, 0.2), Reheated(5, 9, 0.5, 0.2)):
            assert cycles.progress(2) == 0.5
            assert cycles.progress(4) == 1
            assert not any(map(cycles.begins_again, range(9)))


class TestSpectrum:
    def test_latents_stand_for_images(self):
        public = torch.rand(20, 3, 8, 12, generator=torch.Generator().manual_seed(0))
        spectrum = Spectrum(public)
        torch.testing.assert_close(spectrum.decode(spectrum.encode(public)), public)
        assert torch.equal(spectrum.decode(torch.zeros(1, 3, 8, 12))[0], spectrum.mean)

    def test_images_of_noise_have_the_power_of_the_public_ones(self):
        smooth = F.interpolate(random(500, 3, 4, 4), (16, 16), mode="bilinear")
        spectrum = Spectrum(0.5 + 0.1 * smooth)
        made = spectrum.decode(random(500, 3, 16, 16, seed=1))

        def powers(images):
            steps = (images[..., 1:] - images[..., :-1]).square().mean()
            return torch.stack([(images - images.mean(0)).square().mean(), steps])

        torch.testing.assert_close(powers(made), powers(0.5 + 0.1 * smooth), rtol=0.1, atol=0)

    def test_one_image_is_enough(self):
        spectrum = Spectrum(torch.rand(1, 1, 8, 8))
        assert spectrum.decode(torch.randn(2, 1, 8, 8)).isfinite().all()


def photographs(batch_size=2, num_public=40):
    return SampleImagesDataModule(
        batch_size=batch_size, num_clients=1, image_size=SIZE, num_public=num_public
    )


def averaged(width):
    """Return two convolutions, the second of 160 channels and 8x8 places, and their mean."""
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(4)),
        *(nn.Conv2d(width, 160, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, 20)),
    )


class Keep(Callback):
    """Keeps what an attack finds."""

    def __init__(self, found):
        self.found = found

    def on_train_end(self, trainer, pl_module):
        self.found.append(pl_module.current)

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found.append(outputs)


def sent_by(model, batch, rate=0.01):
    """The state dict after a step of SGD."""
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_()
    loss = F.cross_entropy(model(batch.images), batch.labels)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    changed = zip(parameters.items(), gradients, strict=True)
    return {name: (part - rate * gradient).detach() for (name, part), gradient in changed}


class TestAttack:
    def found(self, batch, public, iterations=60, **more):
        model = TutorialCNN(10, seed=1)
        sent = sent_by(model, batch)
        attack = AnnealedInversion(
            model,
            **{"client": FedAvg(0.01), "known": ("num_samples", "client"), **more},
            iterations=iterations,
        )
        return reconstruct(
            attack,
            sent,
            before=model.state_dict(),
            image_shape=(3, SIZE, SIZE),
            num_samples=len(batch.images),
            public_images=public,
        )

    def batch(self, data, labels):
        batch = data.client(0)
        return PrivateBatch(batch.images, torch.tensor(labels), batch.masks, batch.indices)

    @pytest.mark.parametrize("labels", [[3], [7, 2], [5, 5]])
    def test_images_and_labels_come_back_without_labels(self, labels):
        data = photographs(len(labels))
        data.setup()
        batch, public = self.batch(data, labels), data.public_images()
        found = self.found(batch, public, iterations=200)
        assert found.notes["separated"] == 1
        assert found.notes["features_certified"] == len(labels)
        order = in_order(found.images.flatten(1), batch.images.flatten(1))
        assert sorted(order.tolist()) == list(range(len(labels)))
        assert torch.equal(found.labels, batch.labels[order])
        mean = psnr(public.mean(0).expand_as(batch.images), batch.images).mean()
        assert psnr(found.images, batch.images[order]).mean() > mean + 3
        worse = self.found(batch, public, iterations=1)
        assert psnr(worse.images, batch.images[order]).mean() < mean + 1

    def test_the_rate_need_not_be_known(self):
        data = photographs()
        data.setup()
        batch, public = self.batch(data, [1, 4]), data.public_images()
        first, second = (
            self.found(batch, public, iterations=5, known=known, client=FedAvg(rate))
            for known, rate in ((("num_samples", "client"), 0.01), (("num_samples",), 0.5))
        )
        torch.testing.assert_close(first.images, second.images)
        assert torch.equal(first.labels, second.labels)

    @pytest.mark.parametrize("batch_size", [1, 2])  # of one sample, signs are of rank 1 as well
    def test_obfuscated_updates_are_solved_with_labels(self, batch_size):
        data = photographs(batch_size)
        attack = AnnealedInversion(TutorialCNN(20), defenses=[SignSGD()], iterations=2)
        bind(attack, data.public_images(), batch_size)
        found = attack.reconstruct(attack.federation.play(data.client(0), 0))
        assert found.notes["separated"] == 0
        assert torch.equal(found.labels, data.client(0).labels)
        assert found.images.isfinite().all()

    def test_a_layer_without_a_bias_is_solved_with_labels(self):
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(900, 20, bias=False)
        )
        data = photographs()
        attack = AnnealedInversion(ModuleTarget(net, num_classes=20), iterations=2)
        bind(attack, data.public_images(), 2)
        found = attack.reconstruct(attack.federation.play(data.client(0), 0))
        assert found.notes["separated"] == 0

    def test_what_convolutions_saw_is_found(self, monkeypatch):
        data = photographs(1)
        data.setup()
        better = []
        for num_maps in (1, 0):
            if not num_maps:
                monkeypatch.setattr(
                    "lightning_recon.attacks.annealed_inversion.read_maps", lambda *_: []
                )
            attack = AnnealedInversion(ModuleTarget(averaged(24), num_classes=20), iterations=80)
            bind(attack, data.public_images(), 1)
            found = attack.reconstruct(attack.federation.play(data.client(0), 0))
            assert found.notes["maps"] == num_maps
            better.append(float(psnr(found.images, data.client(0).images)))
        assert better[0] > better[1] + 3

    @pytest.mark.parametrize("width", [100, 24])
    def test_where_maps_suffice_no_gradient_is_compared(self, width):
        data = photographs(1)
        attack = AnnealedInversion(ModuleTarget(averaged(width), num_classes=20), iterations=1)
        bind(attack, data.public_images(), 1)
        start, evidence = attack.initialize(attack.federation.play(data.client(0), 0))
        assert bool(evidence.body) == (width == 24)
        parts, _ = attack.differentiate(start, evidence)
        assert bool(parts["matching"]) == (width == 24)
        assert parts["maps"] > 0

    def test_maps_of_several_steps_are_not_read(self):
        net = averaged(80)
        data = photographs(1)
        client = FedAvg(0.01, epochs=3)
        attack = AnnealedInversion(ModuleTarget(net, num_classes=20), client, iterations=1)
        bind(attack, data.public_images(), 1)
        found = attack.reconstruct(attack.federation.play(data.client(0), 0))
        assert found.notes["maps"] == 0

    def test_restarts_are_computed_together_and_the_best_is_returned(self):
        data = photographs(2)
        attack = AnnealedInversion(TutorialCNN(20), num_restarts=3, iterations=4)
        bind(attack, data.public_images(), 2)
        start, evidence = attack.initialize(attack.federation.play(data.client(0), 0))
        assert not start[:2].any()
        assert start[2:].flatten(1).any(1).all()
        found, gradient = attack.differentiate(start.clone(), evidence)
        for place in (0, 2, 4):
            share = start[place : place + 2].clone()
            parts, alone = attack.differentiate(share, evidence)
            assert (gradient[place : place + 2] - alone).norm() < 1e-3 * alone.norm()
            for name, part in parts.items():
                torch.testing.assert_close(found[name][place : place + 2], part)
        score = torch.stack(list(found.values())).sum(0).view(3, 2)
        result = attack.finish(start, evidence)
        torch.testing.assert_close(result.score, score[score.sum(1).argmin()])

    def test_rows_of_larger_batches_stay_as_they_are(self):
        data = photographs(2)
        attack = AnnealedInversion(TutorialCNN(20), num_restarts=2, iterations=4)
        bind(attack, data.public_images(), 3)
        start, evidence = attack.initialize(attack.federation.play(data.client(0), 0))
        held = torch.cat([start, torch.ones(2, *start.shape[1:])])
        parts, gradient = attack.differentiate(held, evidence)
        assert len(parts["features"]) == 4
        assert gradient[:4].flatten(1).any(1).all()
        assert gradient.shape == held.shape
        assert not gradient[4:].any()

    def test_a_cycle_begins_at_the_best_restart(self):
        data = photographs(1)
        attack = AnnealedInversion(TutorialCNN(20), num_restarts=2, num_cycles=2, iterations=6)
        bind(attack, data.public_images(), 1)
        start, evidence = attack.initialize(attack.federation.play(data.client(0), 0))
        dummy = nn.Parameter(start.flip(0))  # the second is the mean image
        best, _ = attack._best(dummy.detach(), evidence)
        attack._begin_again(dummy, evidence, 4)
        assert torch.equal(dummy[:1], best)
        assert 0 < (dummy[1] - best[0]).std() < 0.2 * dummy[0].std().clamp_min(1)

    def test_the_temperature_falls_with_the_iterations(self, monkeypatch):
        seen = []
        monkeypatch.setattr(
            "lightning_recon.attacks.annealed_inversion.Softened",
            lambda temperature, *more: seen.append(temperature) or Softened(temperature, *more),
        )
        data = photographs(1)
        data.setup()
        self.found(
            self.batch(data, [3]),
            data.public_images(),
            iterations=3,
            first_temperature=0.4,
            last_temperature=0.1,
        )
        assert seen == pytest.approx([0.4, 0.2, 0.1, 0.1])  # the last is the score's

    @pytest.mark.parametrize("more", [{}, {"num_restarts": 2, "num_cycles": 2}])
    def test_fit_anneals_as_test_does(self, tmp_path, more):
        found = []
        for stage in ("fit", "test"):
            attack = AnnealedInversion(TutorialCNN(20), iterations=4, **more)
            trainer = Trainer(
                accelerator="cpu",
                logger=False,
                max_epochs=1,
                default_root_dir=tmp_path,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
                use_distributed_sampler=False,
                inference_mode=False,
                callbacks=[Keep(found)],
            )
            getattr(trainer, stage)(attack, datamodule=photographs())
        assert torch.equal(found[0].images, found[1].images)
        assert torch.equal(found[0].score, found[1].score)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"features_error": 0},
            {"update_error": -1},
            {"last_temperature": 0},
            {"num_restarts": 0},
            {"num_cycles": 0},
        ],
    )
    def test_what_is_out_of_range_is_refused(self, wrong):
        with pytest.raises(InputError, match=next(iter(wrong))):
            AnnealedInversion(TutorialCNN(10), **wrong)


def test_the_tutorials_network_is_the_tutorials():
    target = TutorialCNN(10, seed=5)
    layers = [nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)]
    layers += [nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)]
    for layer, name in zip(layers, ("conv1", "conv2", "fc1", "fc2", "fc3"), strict=True):
        layer.load_state_dict(getattr(target, name).state_dict())
    images = torch.rand(2, 3, SIZE, SIZE)
    pool = partial(F.max_pool2d, kernel_size=2)
    maps = pool(layers[0](2 * images - 1).relu())
    maps = pool(layers[1](maps).relu()).flatten(1)
    logits = layers[4](layers[3](layers[2](maps).relu()).relu())
    torch.testing.assert_close(target(images), logits)
    assert sum(parameter.numel() for parameter in target.parameters()) == 62006
