"""Attacks in closed form: of a gradient that plain numpy computes, the images come back."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attack_helpers import bound
from contract_rows import ATTACKS, CLASSES, SIZE
from scipy.stats import norm

from lightning_recon import attacks, targets
from lightning_recon.observation import Mark

STEP = 1e-5
"""Of central differences."""


def softmax_error(logits, label):
    odds = np.exp(logits - logits.max())
    odds /= odds.sum()
    odds[label] -= 1
    return odds


def mlp_gradient(net, batch):
    """The gradient of the first layer of an MLP with one hidden layer, by the chain rule."""
    first, _, last = (part.detach().numpy() for part in list(net.parameters())[:3])
    bias, end = (list(net.parameters())[place].detach().numpy() for place in (1, 3))
    weight, offset = np.zeros_like(first), np.zeros_like(bias)
    for image, label in zip(batch.images.flatten(1).numpy(), batch.labels.tolist(), strict=True):
        hidden = first @ image + bias
        back = softmax_error(last @ np.maximum(hidden, 0) + end, label) @ last * (hidden > 0)
        weight += np.outer(back, image) / len(batch.labels)
        offset += back / len(batch.labels)
    return weight, offset


def assert_gradient(update, expected, names):
    for name, wanted in zip(names, expected, strict=True):
        torch.testing.assert_close(update[name].double(), torch.from_numpy(wanted),
                                   rtol=1e-9, atol=1e-12)  # fmt: skip


def assert_found(images, batch, within=1e-6, number=None):
    """The images are the batch's, of which so many come back; by default all."""
    left = (images.double()[:, None] - batch.images[None]).abs().amax((2, 3, 4))
    assert len(images) == (len(batch.images) if number is None else number)
    assert float(left.amin(1).max()) < within
    assert len(set(left.argmin(1).tolist())) == len(images)


def linear_layer(name):
    attack, batch = bound(ATTACKS[name](), 1)
    observation = attack.play(0)
    weight, bias = mlp_gradient(attack.target, batch)
    assert_gradient(observation.update, (weight, bias), ("layers.1.weight", "layers.1.bias"))
    assert_found(attack.reconstruct(observation).images, batch, 1e-12)


def exact(name):
    attack, batch = bound(ATTACKS[name]())
    observation = attack.play(0)
    payload = getattr(observation.payload, "model", observation.payload)  # one client's version
    expected = mlp_gradient(payload, batch)
    names = [name for name in observation.update if "layers.1." in name]
    assert_gradient(observation.update, expected, names)
    found = attack.reconstruct(observation)
    assert_found(found.images, batch, 1e-7)  # 8 bits in float32
    assert found.marks == (Mark.CERTIFIED,) * 2
    assert sorted(found.labels.tolist()) == sorted(batch.labels.tolist())
    # the score: what of an image's own slopes lies outside the span of the gradient's columns
    columns = np.linalg.svd(np.column_stack(expected))[0][:, :2]
    for image, label, score in zip(found.images, found.labels, found.score, strict=True):
        alone = batch._replace(images=image[None].double(), labels=label[None])
        slope = mlp_gradient(payload, alone)[1]
        outside = slope - columns @ (columns.T @ slope)
        assert float(score) == pytest.approx((outside**2).sum() / (slope**2).sum(), abs=1e-20)


def cocktail(name):
    """Of the span of the rows: mixtures that hold 1 at the bias, of nearly independent edges."""
    attack, batch = bound(ATTACKS[name]())
    observation = attack.play(0)
    weight, bias = mlp_gradient(attack.target, batch)
    assert_gradient(observation.update, (weight, bias), ("layers.1.weight", "layers.1.bias"))
    images = attack.reconstruct(observation).images.flatten(1).numpy()
    rows = np.linalg.svd(np.column_stack([weight, bias]))[2][:2]
    free = (images > 0) & (images < 1)  # what is not clamped
    for image, place in zip(images, free, strict=True):
        known = np.append(image[place], 1)
        basis = rows[:, np.append(place, True)].T
        inside = basis @ np.linalg.lstsq(basis, known, rcond=None)[0]
        np.testing.assert_allclose(inside, known, atol=1e-9)
    true = batch.images.flatten(1).numpy()
    wrong = np.square(images[:, None] - true[None]).mean(2)
    assert wrong.min(0).max() < np.square(true - true.mean(0)).mean() / 10


def soliton(name):
    """Biases at minus the quantiles of a normal distribution; then as the exact inversion."""
    attack, _ = bound(ATTACKS[name]())
    layer = attack.play(0).payload.layers[1]
    weight = layer.weight.detach().numpy()
    middle, spread = weight.sum(1) / 2, np.sqrt((weight**2).sum(1) / 12)
    # of two samples a row is to hold one, or both: that is a quarter of a sample beyond the least
    levels = [-(middle + norm.ppf(share) * spread) for share in (0.5, 0.25)]
    left = np.abs(layer.bias.detach().numpy() - levels)
    assert left.min(0).max() < 1e-9
    assert 0 < (left[0] < left[1]).sum() < len(left[0])
    exact(name)


def imprinted(name, fires):
    """A row's gradient is the sum of the images that pass it, each times its own slope."""
    attack, batch = bound(ATTACKS[name]())
    observation = attack.play(0)
    payload, flat_images = observation.payload, batch.images.flatten(1).numpy()
    rows, bias = (part.detach().numpy() for part in (payload.rows.weight, payload.rows.bias))
    sums = flat_images @ rows.T + bias
    images = batch.images + torch.from_numpy(
        payload.gain * np.maximum(sums, 0).mean(1)[:, None, None, None]
    )
    images.requires_grad_()
    loss = F.cross_entropy(payload.model(images), batch.labels)
    slopes = torch.autograd.grad(loss, images)[0].sum((1, 2, 3)).numpy()
    passed = (sums > 0) * slopes[:, None] * payload.gain / len(rows)
    expected = passed.T @ flat_images, passed.sum(0)
    assert_gradient(observation.update, expected, ("rows.weight", "rows.bias"))
    alone = fires(attack, sums > 0, flat_images.mean(1))
    assert alone.any()
    found = attack.reconstruct(observation).images
    there = batch._replace(images=batch.images[torch.from_numpy(alone)])
    assert_found(found, there, 1e-6)


def robbing(name):
    """A bin's image is the difference of its rows: those come back that are alone in theirs."""

    def alone(attack, passed, brightness):
        places = np.searchsorted(attack.edges.numpy(), brightness)
        return np.array([(places == place).sum() == 1 for place in places])

    imprinted(name, alone)


def curious(name):
    """Those come back that some row lets through alone."""
    imprinted(name, lambda attack, passed, brightness: passed[:, passed.sum(0) == 1].any(1))


def loki(name):
    """A row's gradient is the sum of the images in its bin: those come back that are alone."""
    attack, batch = bound(ATTACKS[name]())
    observation = attack.play(0)
    payload, flat_images = observation.payload, batch.images.flatten(1).numpy()
    edges = attack.edges[0].double().numpy()
    above, width = flat_images.mean(1)[:, None] - edges[:-1], np.diff(edges)
    fired = np.clip(above, 0, width).mean(1)
    images = batch.images + attack.gain * torch.from_numpy(fired)[:, None, None, None]
    images.requires_grad_()
    loss = F.cross_entropy(payload.model(images), batch.labels)
    slopes = torch.autograd.grad(loss, images)[0].sum((1, 2, 3)).numpy()
    inside = (above > 0) & (above < width)
    passed = inside * slopes[:, None] * attack.gain / len(width)
    constant = np.full((len(flat_images), SIZE * SIZE), 0.05)
    grey = batch.images.mean(1).flatten(1).numpy()
    seen = np.concatenate([flat_images, constant, grey], 1)
    expected = passed.T @ (attack.scaling * seen), passed.sum(0)
    assert_gradient(observation.update, expected, ("rows.weight", "rows.bias"))
    alone = inside[:, inside.sum(0) == 1].any(1)
    assert alone.any()
    there = batch._replace(images=batch.images[torch.from_numpy(alone)])
    assert_found(attack.reconstruct(observation).images, there, 1e-6)


def scale_mia(name):
    """A row's gradient is the sum of the features that pass it: neighbours differ by one bin's."""
    attack, batch = bound(ATTACKS[name]())
    observation = attack.play(0)
    payload = observation.payload
    with torch.no_grad():
        maps = payload.pool(F.relu(payload.conv1((batch.images - 0.5) / 0.5)))
        seen = payload.pool(F.relu(payload.conv2(maps))).flatten(1).numpy()
    layers = [(layer.weight, layer.bias) for layer in (payload.fc2, payload.fc3)]
    (second, second_bias), (last, end) = [
        [part.detach().numpy() for part in layer] for layer in layers
    ]
    edges = attack._edges[0].double().numpy()
    above = seen.mean(1)[:, None] - edges
    slopes = np.zeros_like(above)
    for place, (row, label) in enumerate(zip(above, batch.labels.tolist(), strict=True)):
        hidden = second @ np.maximum(row, 0) + second_bias
        back = softmax_error(last @ np.maximum(hidden, 0) + end, label) @ last * (hidden > 0)
        slopes[place] = back @ second * (row > 0) / len(above)
    expected = slopes.T @ seen, slopes.sum(0)
    assert_gradient(observation.update, expected, ("fc1.weight", "fc1.bias"))
    bins = (above > 0).sum(1)
    alone = [(bins == place).sum() == 1 for place in bins]
    found, score = attack.read_latent(observation)
    left = np.abs(found.double().numpy()[:, None] - seen[None][:, alone]).max(2)
    assert len(found) == sum(alone) > 0
    assert left.min(1).max() < 1e-6
    assert not score.any()
    torch.testing.assert_close(attack.reconstruct(observation).images, attack.decode(found))


def seer(name):
    """A direction of the rows keeps a sum of features, each times what the head makes of it."""
    attack, batch = bound(ATTACKS[name]())
    observation = attack.play(0)
    payload, rows = observation.payload, attack._secret[0].rows.double().numpy()
    with torch.no_grad():
        maps = payload.pool(F.relu(payload.conv1((batch.images - 0.5) / 0.5)))
        seen = payload.pool(F.relu(payload.conv2(maps))).flatten(1).numpy()
    layers = [(layer.weight, layer.bias) for layer in (payload.fc1, payload.fc2, payload.fc3)]
    (first, offset), (second, second_bias), (last, end) = [
        [part.detach().numpy() for part in layer] for layer in layers
    ]
    slopes = np.zeros((len(seen), len(rows)))
    for place, (latent, label) in enumerate(zip(seen, batch.labels.tolist(), strict=True)):
        below = first @ latent + offset
        hidden = second @ np.maximum(below, 0) + second_bias
        back = softmax_error(last @ np.maximum(hidden, 0) + end, label) @ last * (hidden > 0)
        slopes[place] = back @ second * (below > 0) / len(seen)
    assert_gradient(
        observation.update, (slopes.T @ seen, slopes.sum(0)), ("fc1.weight", "fc1.bias")
    )
    left = slopes @ rows
    found = attack.read_latent(observation).double()
    torch.testing.assert_close(
        found, torch.from_numpy(left @ seen / left.sum())[None], rtol=1e-5, atol=1e-6
    )


def windows(image, kernel, stride, padding):
    """Every place of a convolution's output, and the slice of the padded image that it sees."""
    side = (image.shape[1] + 2 * padding - kernel) // stride + 1
    for y, x in np.ndindex(side, side):
        yield y, x, np.s_[:, y * stride : y * stride + kernel, x * stride : x * stride + kernel]


def convolve(image, weight, stride, padding):
    kernel = weight.shape[2]
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    places = list(windows(image, kernel, stride, padding))
    output = np.zeros((len(weight), places[-1][0] + 1, places[-1][1] + 1))
    for y, x, seen in places:
        output[:, y, x] = np.tensordot(weight, padded[seen], 3)
    return output


def convolve_back(image, weight, stride, padding, slope):
    """The gradients of a convolution's weight and input, of that of its output."""
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    of_weight, of_input = np.zeros_like(weight), np.zeros_like(padded)
    for y, x, seen in windows(image, weight.shape[2], stride, padding):
        of_weight += np.multiply.outer(slope[:, y, x], padded[seen])
        of_input[seen] += np.tensordot(slope[:, y, x], weight, 1)
    inner = slice(padding, padding + image.shape[1])
    return of_weight, of_input[:, inner, inner]


def r_gap(name):
    """A chain of two convolutions and a linear layer, by the chain rule."""
    attack, batch = bound(attacks.RGAP(targets.PlainConvNet(CLASSES, SIZE, (12, 24), (2, 1))), 1)
    observation = attack.play(0)
    first, second, last, offset = (part.detach().numpy() for part in attack.target.parameters())
    image = batch.images[0].numpy()
    below = convolve(image, first, 2, 2)
    hidden = np.where(below > 0, below, 0.2 * below)
    above = convolve(hidden, second, 1, 1)
    seen = np.where(above > 0, above, 0.2 * above)
    slope = softmax_error(last @ seen.ravel() + offset, int(batch.labels[0]))
    back = (slope @ last).reshape(above.shape) * np.where(above > 0, 1, 0.2)
    of_second, back = convolve_back(hidden, second, 1, 1, back)
    of_first, _ = convolve_back(image, first, 2, 2, back * np.where(below > 0, 1, 0.2))
    expected = of_first, of_second, np.outer(slope, seen.ravel()), slope
    assert_gradient(observation.update, expected, list(observation.update))
    found = attack.reconstruct(observation)
    assert found.notes["rank_deficit"] == 0
    assert_found(found.images, batch, 1e-6)
    assert found.labels.tolist() == batch.labels.tolist()


def april(name):
    """The gradient of the positions, by central differences; what the patches do, by a product."""
    for equation in ("attention", "embedding"):
        attack, batch = bound(ATTACKS[name](equation=equation), 1)
        observation = attack.play(0)
        slope = observation.update["position_embedding"]
        side = attack.target.patch_embedding.kernel_size[0]
        image = batch.images[0].numpy()
        places = range(0, SIZE, side)
        patches = np.stack([image[:, y : y + side, x : x + side] for y in places for x in places])
        product = np.einsum("nd,nchw->dchw", slope.numpy(), patches)
        assert_gradient(observation.update, [product], ["patch_embedding.weight"])
        assert_found(attack.reconstruct(observation).images, batch, 1e-6)
    net = copy.deepcopy(attack.target)
    with torch.no_grad():
        for place in ((0, 0), (3, 7), (15, 95)):
            at = net.position_embedding[place]
            losses = []
            for step in (STEP, -2 * STEP):
                at += step
                losses.append(float(F.cross_entropy(net(batch.images), batch.labels)))
            at += STEP
            expected = (losses[0] - losses[1]) / (2 * STEP)
            assert float(slope[place]) == pytest.approx(expected, rel=1e-6)


def coded(name):
    """A sample's row holds its symbols, all of one size; what is off them is its score."""
    attack, batch = bound(ATTACKS[name]())
    observation = attack.play(0)
    assert attack.is_digital
    payload = observation.payload
    sign = np.where(np.arange(CLASSES) % 2, -1, 1)
    logits = attack.linear.logit_scale * payload.model(batch.images).detach().numpy()
    slopes = [
        payload.gain * softmax_error(one, label) @ sign / len(logits)
        for one, label in zip(logits, batch.labels.tolist(), strict=True)
    ]
    rows = observation.update["head"].double().numpy()
    hit = rows[np.abs(rows).sum(1) > 0]
    size = payload.scale / math.sqrt(attack.digital.num_columns)
    expected = sorted([abs(slope) * part for part in (payload.sign_size, size)] for slope in slopes)
    found = sorted(np.abs(hit[:, :2]).tolist())
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(np.abs(hit[:, 1:]), np.abs(hit[:, 1:2]).repeat(len(hit[0]) - 1, 1))
    noisy = np.random.default_rng(0).normal(0, 0.05, (1, attack.digital.num_columns))
    symbols, _ = attack.digital.encode(batch.images[:1])
    received = -3 * (symbols.numpy() + noisy / math.sqrt(attack.digital.num_columns))
    amplitude = torch.tensor([-3.0], dtype=torch.float64)
    images, score = attack.digital.decode(torch.from_numpy(received), amplitude, 1e-3)
    assert float(score[0]) == pytest.approx((noisy**2).mean(), rel=1e-6)
    assert_found(images[0][None], batch, 0.5 / 255 + 1e-6, 1)
    assert_found(attack.reconstruct(observation).images, batch, 0.5 / 255 + 1e-6)
