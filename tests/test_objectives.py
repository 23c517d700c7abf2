"""Every gradient matching objective against its formula in float64, written out here once more."""

import copy

import pytest
import torch
import torch.nn.functional as F
from attack_helpers import bind_to
from contract_rows import ATTACKS, SINGLE, SIZE

from lightning_recon import data
from lightning_recon.attacks import GradientMatching
from lightning_recon.targets import LeNet

MATCHING = sorted(name for name, make in ATTACKS.items() if isinstance(make(), GradientMatching))


def distance(kind, gradient, update):
    """Of two vectors, by the papers: squared, over the update's length, one minus the cosine."""
    difference = (gradient - update).square().sum()
    if kind == "squared":
        return difference
    if kind == "relative":
        return difference / update.square().sum()
    if kind == "absolute":
        return (gradient - update).abs().mean()
    return 1 - gradient @ update / (gradient.norm() * update.norm())


def flat(update, names):
    return torch.cat([update[name].double().flatten() for name in names])


def test_every_attack_that_matches_gradients_is_here():
    assert MATCHING == ["DLG", "GradInversion", "IDLG", "InvertingGradients",
                        "ModernInvertingGradients", "MultiScale", "ROGAttack"]  # fmt: skip


@pytest.mark.parametrize("name", MATCHING)
@pytest.mark.parametrize("kind", ["squared", "relative", "cosine", "absolute"])
def test_matching_is_the_formula_in_float64(name, kind):
    size = 1 if name in SINGLE else 2
    source = data.SampleImagesDataModule(
        batch_size=size, num_clients=1, image_size=SIZE, num_public=4
    )
    attack = bind_to(ATTACKS[name](), source)
    attack.matcher.distance = kind
    observation = attack.play(0)
    dummy, evidence = attack.initialize(observation)
    parts, gradient = attack.differentiate(dummy, evidence)
    exact = copy.deepcopy(attack.target).double().requires_grad_(True)
    assert isinstance(exact, LeNet)
    dummies = dummy.detach().double().requires_grad_()
    attack.double()
    images = attack.decode(dummies).chunk(attack.num_restarts)
    labels = attack.labels_of(dummies, evidence).chunk(attack.num_restarts)
    names = [name for name, _ in exact.named_parameters()]
    update = flat(observation.update, names)
    for restart in range(attack.num_restarts):
        marks = labels[restart]
        marks = marks if marks.dtype == torch.int64 else marks.double()
        loss = F.cross_entropy(exact(images[restart]), marks)
        found = torch.autograd.grad(loss, list(exact.parameters()), create_graph=True)
        expected = distance(kind, torch.cat([part.flatten() for part in found]), update)
        torch.testing.assert_close(
            parts["matching"][restart].double(), expected.detach(), rtol=2e-4, atol=1e-7
        )
    if set(parts) == {"matching"} and attack.num_restarts == 1:
        (slope,) = torch.autograd.grad(expected, dummies)
        scale = slope.abs().max()
        torch.testing.assert_close(gradient.double() / scale, slope / scale, rtol=0, atol=2e-3)
