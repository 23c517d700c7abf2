"""Opacus' DP-SGD as a client of the federation, beside our own."""

import pytest
import torch
from torch import nn

pytest.importorskip("opacus", reason="Opacus has an environment of its own, see .ci/run")

from opacus.accountants import PRVAccountant

from lightning_recon.attacks import LinearLayerInversion
from lightning_recon.audit.privacy_statement import privacy_statement
from lightning_recon.clients import DPSGD, OpacusDPSGD
from lightning_recon.defenses import DPSGDNoise
from lightning_recon.errors import InputError
from lightning_recon.privacy.accounting import pld_epsilon
from lightning_recon.targets import MLP, ConvNet, LeNet, ModuleTarget
from lightning_recon.updates import DataSpec

IMAGES = (3, 32, 32)


@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 1e6])
def test_it_sends_what_our_client_of_dpsgd_sends(batch, clip_norm):
    model = LeNet(20)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ours, theirs = (made(clip_norm)(model, batch, seed=0) for made in (DPSGD, OpacusDPSGD))
    assert list(theirs) == list(ours)
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-6 * clip_norm)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(hasattr(parameter, "grad_sample") for parameter in model.parameters())


def test_a_parameter_without_part_has_a_gradient_of_zeros(batch):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3072, 20), nn.Linear(3, 2)

        def forward(self, images):
            return self.used(images.flatten(1))

    update = OpacusDPSGD(1.0)(ModuleTarget(Net(), num_classes=20), batch, seed=0)
    assert [name for name, tensor in update.items() if not tensor.any()] == [
        name for name in update if "unused" in name
    ]


def test_a_model_that_opacus_refuses_is_refused_in_a_line(batch):
    with pytest.raises(InputError, match=r"OpacusDPSGD: BatchNorm .* group norm") as error:
        OpacusDPSGD(1.0)(ConvNet(20), batch, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("noise_multiplier", [0.7, 1.0, 4.0])
def test_its_accountant_says_the_record_level_epsilon_that_a_run_states(noise_multiplier):
    noise = DPSGDNoise(1.0, 8, noise_multiplier=noise_multiplier)
    stated = privacy_statement([noise], OpacusDPSGD(1.0), num_samples=8, num_rounds=3)
    accountant = PRVAccountant()
    for _ in range(3):
        # a run states it for the replacement of a record, which moves twice as far as its presence
        accountant.step(noise_multiplier=noise_multiplier / 2, sample_rate=1.0)
    assert stated["record_level"]["epsilon"] == pytest.approx(
        accountant.get_epsilon(1e-5), rel=0.02
    )


def test_its_accountant_agrees_with_ours_on_samples_that_are_drawn():
    accountant = PRVAccountant()
    for _ in range(50):
        accountant.step(noise_multiplier=1.1, sample_rate=0.02)
    ours = pld_epsilon(1.1, 1e-5, num_rounds=50, sampling_rate=0.02)
    assert accountant.get_epsilon(1e-5) == pytest.approx(ours, rel=0.02)


def test_it_is_attacked_as_any_other_client(sample_data):
    def attack(*defenses):
        made = LinearLayerInversion(
            MLP(20, image_size=32, hidden=(64,)), client=OpacusDPSGD(1.0), defenses=defenses
        )
        made.bind(DataSpec(IMAGES, 20, 8), torch.empty(0, *IMAGES))
        assert made.oracles == ("num_samples",)
        return made

    batch = sample_data.client(0)
    errors = {}
    for name, defenses in (("clipped", ()), ("noised", (DPSGDNoise(1.0, 8, 1.0),))):
        made = attack(*defenses)
        with made.computing():
            found = made.reconstruct(made.federation.play(batch, 0)).images
        errors[name] = (found[:, None] - batch.images).square().mean((2, 3, 4))
    assert (errors["clipped"] < 1e-4).sum() >= 3  # clipping alone hides nothing
    assert not (errors["noised"] < 0.02).any()
