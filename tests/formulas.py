"""Objectives of attacks that optimise, in float64 against their formulas, written out here anew.

Each compares the value of an objective, and its slope with central differences of the formula.
"""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attack_helpers import bound
from contract_rows import ATTACKS, CLASSES, SINGLE, SIZE
from scipy.fft import dctn

from lightning_recon import attacks, defenses, targets
from lightning_recon.targets import LeNet

STEP = 1e-5
"""Of central differences."""


def assert_slope(attack, dummy, evidence, formula, places=6):
    """The objective is the formula, and its gradient is the formula's central differences."""
    parts, gradient = attack.differentiate(dummy.clone().requires_grad_(), evidence)
    total = sum(float(part.detach().sum()) for part in parts.values())
    assert total == pytest.approx(formula(dummy), rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    found, expected = [], []
    for place in torch.randint(dummy.numel(), (places,), generator=generator):
        moved = torch.zeros_like(dummy).flatten()
        moved[place] = STEP
        moved = moved.view_as(dummy)
        expected.append((formula(dummy + moved) - formula(dummy - moved)) / (2 * STEP))
        found.append(float(gradient.flatten()[place]))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6 * max(map(abs, expected)))


# --- gradient matching ---------------------------------------------------------------------------


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


def matching(name):
    for kind in ("squared", "relative", "cosine", "absolute"):
        attack, _ = bound(ATTACKS[name](), 1 if name in SINGLE else 2)
        attack.matcher.distance = kind
        observation = attack.play(0)
        dummy, evidence = attack.initialize(observation)
        parts, gradient = attack.differentiate(dummy, evidence)
        exact = copy.deepcopy(observation.payload).requires_grad_(True)  # a malicious one, too
        assert isinstance(exact, LeNet)
        dummies = dummy.detach().requires_grad_()
        images = attack.decode(dummies).chunk(attack.num_restarts)
        labels = attack.labels_of(dummies, evidence).chunk(attack.num_restarts)
        left_out = attack.last if isinstance(attack, attacks.Fishing) else ()
        names = [name for name, _ in exact.named_parameters() if name not in left_out]
        parts_of_it = [part for name, part in exact.named_parameters() if name in names]
        update = flat(observation.update, names)
        for restart in range(attack.num_restarts):
            loss = F.cross_entropy(exact(images[restart]), labels[restart])
            found = torch.autograd.grad(loss, parts_of_it, create_graph=True)
            expected = distance(kind, torch.cat([part.flatten() for part in found]), update)
            torch.testing.assert_close(
                parts["matching"][restart], expected.detach(), rtol=1e-9, atol=1e-12
            )
        if set(parts) == {"matching"} and attack.num_restarts == 1:
            (slope,) = torch.autograd.grad(expected, dummies)
            torch.testing.assert_close(gradient, slope, rtol=1e-8, atol=1e-9)


# --- other objectives ----------------------------------------------------------------------------


def ldp(name):
    """Squared errors over the noise's variance: rows, moments and total variations."""
    attack, batch = bound(ATTACKS[name]())
    _, evidence = attack.initialize(attack.play(0))
    assert len(evidence.rows)
    for row in evidence.rows:  # an image is its row's quotient of gradients
        assert float((batch.images - row).abs().amax((1, 2, 3)).min()) < 1e-6
    evidence = evidence._replace(row_std=0.3 * torch.ones_like(evidence.row_std))
    evidence = evidence._replace(statistics_std=torch.linspace(0.1, 0.9, 9).double())

    def formula(dummy):
        total = 0.0
        for image, row, told in zip(dummy.numpy(), evidence.rows, evidence.statistics, strict=True):
            total += np.mean(((image - row.numpy()) / 0.3) ** 2)
            told, std = told.numpy(), evidence.statistics_std.numpy()
            for channel in range(3):
                pixels = image[channel]
                seen = (
                    pixels.mean(),
                    pixels.var(),
                    np.abs(np.diff(pixels, axis=0)).mean() + np.abs(np.diff(pixels)).mean(),
                )
                for kind in range(2):
                    place = channel + 3 * kind
                    total += ((seen[kind] - told[place]) / std[place]) ** 2 / image.size
                place = channel + 6
                total += ((seen[2] - told[place]) / (max(told[place], 0) + std[place])) ** 2
        return total

    dummy = torch.rand(evidence.rows.shape, generator=torch.Generator().manual_seed(1)).double()
    assert_slope(attack, dummy, evidence, formula)


def spectral(name):
    """Minus the logarithm of the likelihood of what was received, under white noise."""
    chain = [defenses.ClipL2(1.0), defenses.GaussianNoise(0.01)]
    attack, _ = bound(attacks.SpectralLDPAttack(
        targets.LeNet(CLASSES, SIZE), defenses=chain, num_bins=64, shrinkage_steps=0
    ))  # fmt: skip
    dummy, evidence = attack.initialize(attack.play(0))
    assert len(evidence.received) == 2
    colours = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    code = attack.code

    def formula(images):
        total = 0.0
        for place, image in enumerate(images.numpy()):
            opponent = np.einsum("oc,chw->ohw", colours, image - code.mean.numpy())
            sent = dctn(opponent, axes=(1, 2), norm="ortho").ravel()[code.order.numpy()]
            scale = float(evidence.amplitude[place]) / math.exp(float(evidence.log_norm[place]))
            error = scale * sent * code.filter.numpy() - evidence.received[place].numpy()
            total += np.sum((error / evidence.noise_std) ** 2) / (2 * image.size)
        return total

    assert_slope(attack, dummy + 0.1, evidence, formula)


def features(name):
    """Squared errors of the features over their variances, and of the update over its length."""
    attack, _ = bound(ATTACKS[name](matching_weight=0.7, features_weight=0.3))
    observation = attack.play(0)
    dummy, evidence = attack.initialize(observation)
    assert evidence.is_refined
    target = copy.deepcopy(attack.target).requires_grad_(True)
    names = [name for name, _ in target.named_parameters()]
    update = flat(observation.update, names)

    def formula(images):
        seen = target.features(images).flatten(1).detach()
        error = ((seen - evidence.features) ** 2 * evidence.precision).mean()
        loss = F.cross_entropy(target(images), evidence.update.labels)
        gradient = torch.autograd.grad(loss, list(target.parameters()))
        relative = (flat(dict(zip(names, gradient, strict=True)), names) - update).square().sum()
        return float(0.3 * error + 0.7 * relative / update.square().sum())

    assert_slope(attack, dummy + 0.05, evidence, formula, places=3)


def annealed(name):
    """Minus the logarithms of three normal densities, through a network without kinks."""
    attack, _ = bound(ATTACKS[name]())
    _, evidence = attack.initialize(attack.play(0))
    attack.progress = 0.4
    left = 1 - attack.progress
    temperature = 0.04 * 15**left

    widths = []  # are no part of the slope: they stay as they are where it is taken

    def width(x, place):
        if len(widths) == place:
            widths.append(temperature * x.detach().std(correction=0))
        return widths[place]

    def soft_relu(x, place):
        size = width(x, place)
        return size * torch.log1p(torch.exp(-(x / size).abs())) + x.clamp_min(0)

    def soft_pool(x, place):
        size = width(x, place)
        corners = torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)])
        return size * torch.logsumexp(corners / size, 0)

    def formula(dummy):
        latents = dummy / attacks.inverting_gradients.NORMALISED_STD
        body = [evidence.parameters[name].clone().requires_grad_() for name in evidence.body]
        first, first_bias, second, second_bias = body
        maps = F.conv2d((attack.spectrum.decode(latents) - 0.5) / 0.5, first, first_bias)
        maps = F.conv2d(soft_pool(soft_relu(maps, 0), 1), second, second_bias)
        seen = soft_pool(soft_relu(maps, 2), 3).flatten(1)
        passed = (seen * evidence.upstream).sum()
        gradient = torch.autograd.grad(passed, body)
        wanted = list(evidence.body.values())
        size = sum(float((part**2).sum()) for part in wanted)
        misfit = sum(
            float(((one - other) ** 2).sum()) for one, other in zip(gradient, wanted, strict=True)
        )
        number = sum(part.numel() for part in wanted)
        error = float(((seen.detach() - evidence.features) ** 2).sum()) / evidence.variance
        return (
            error / (2 * (0.1 * 3**left) ** 2)
            + number * misfit / size / (2 * (0.05 * 10**left) ** 2)
            + float((latents**2).sum()) / 2
        )

    assert list(evidence.body) == ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"]
    generator = torch.Generator().manual_seed(0)
    dummy = 0.2 * torch.randn(2, 3, SIZE, SIZE, generator=generator).double()
    assert_slope(attack, dummy, evidence, formula)


def gauss_newton(name):
    """Squared errors of every layer over its norm, and the images' density."""
    attack, batch = bound(ATTACKS[name]())
    observation = attack.play(0)
    _, equations = attack.initialize(observation)
    exact = copy.deepcopy(attack.target).requires_grad_(True)
    spectrum = attack.spectrum
    # the images' covariance is that of the cosines: its Cholesky factors whiten them
    roots = spectrum.roots.double().numpy()
    images = (
        batch.images
        + 0.05
        * torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(0)).double()
    )
    loss = F.cross_entropy(exact(images), batch.labels)
    misfit = 0.0
    for found, (key, _) in zip(
        torch.autograd.grad(loss, list(exact.parameters())), exact.named_parameters(), strict=True
    ):
        wanted = observation.update[key]
        misfit += float(((found - wanted) / wanted.norm()).square().sum())
    prior = 0.0
    for image in images:
        moved = dctn((image - spectrum.mean).numpy(), axes=(1, 2), norm="ortho")
        for place in np.ndindex(SIZE, SIZE):
            prior += (np.linalg.solve(roots[place], moved[(slice(None), *place)]) ** 2).sum()
    parts = attack.objective(images, equations)
    assert float(parts["matching"]) == pytest.approx(misfit, rel=1e-8)
    assert float(parts["spectrum"]) == pytest.approx(1e-16 * prior, rel=1e-8)
