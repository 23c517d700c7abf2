"""The contrast that batch norm in training mode hides."""

import pytest
import torch
from torch import nn

from lightning_recon.attacks.features.contrast import hidden_centre, with_usual_contrast


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 64, 5),
        )

    def forward(self, images):
        return self.layers((images - 0.4) / 0.2)


def images(number=4):
    return torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_training_mode_hides_the_contrast_about_the_centre_of_a_normalisation():
    centre = hidden_centre(Normalised(), images())
    assert centre.shape == (1, 3, 1, 1)
    torch.testing.assert_close(centre, torch.full_like(centre, 0.4))


def test_the_gradient_does_not_tell_it_either():
    model = Normalised()
    found = []
    for factor in (1.0, 0.5):
        loss = nn.functional.cross_entropy(model(0.4 + factor * (images() - 0.4)), torch.arange(4))
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    for whole, half in zip(*found, strict=True):
        torch.testing.assert_close(whole, half, rtol=1e-2, atol=1e-3 * float(whole.abs().max()))


@pytest.mark.parametrize(
    "model",
    [Normalised().eval(), nn.Sequential(nn.Flatten(), nn.Linear(192, 5))],
    ids=["eval mode", "no convolution"],
)
def test_elsewhere_it_has_an_effect(model):
    assert hidden_centre(model, images()) is None


def test_images_reach_as_far_as_public_ones():
    centre = torch.full((1, 3, 1, 1), 0.4)
    truth = images(2)
    flat = centre + 0.3 * (truth - centre)
    found = with_usual_contrast(flat, centre, images(40))
    assert (found - truth).abs().max() < 0.02
    assert (flat - truth).abs().max() > 0.3
