"""Exact inversion: what is certified is the client's, and what is not the client's is not."""

import csv
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_recon.attacks import (
    CocktailParty,
    ExactInversion,
    LinearLayerInversion,
    SolitonBiases,
)
from lightning_recon.attacks.exact.certificate import examine_all, how_often, read_spans
from lightning_recon.attacks.exact.features import are_certified
from lightning_recon.attacks.exact.gates import gated_directions, is_gated
from lightning_recon.attacks.exact.independence import independent_images
from lightning_recon.attacks.exact.recovery import as_gradient
from lightning_recon.attacks.exact.slopes import SlopeModel
from lightning_recon.attacks.exact.sparsity import shown_images, sparse_directions
from lightning_recon.attacks.linear_layer import first_linear
from lightning_recon.attacks.soliton_biases import robust_soliton
from lightning_recon.audit.results import Results
from lightning_recon.audit.scores import add_marks, exact_pairs
from lightning_recon.clients import FedAvg, FedSGD
from lightning_recon.defenses import QSGD, ClipL2, GaussianNoise, TopK
from lightning_recon.errors import InputError
from lightning_recon.observation import Mark, Reconstruction
from lightning_recon.report.findings import findings
from lightning_recon.report.predicted import read_marks
from lightning_recon.report.terminal import print_summary
from lightning_recon.runs.results import marks_of
from lightning_recon.targets import MLP, ConvNet, LeNet, ModuleTarget
from lightning_recon.updates import DataSpec, PrivateBatch

SIZE, CLASSES, ROWS = 8, 10, 200
SHAPE = (3, SIZE, SIZE)


def batch_of(num_samples, seed=0, contrast=1.0):
    """Images of 8 bits, of all brightnesses or of one alone."""
    generator = torch.Generator().manual_seed(seed)
    light = 0.5 + contrast * (torch.rand(num_samples, 1, 1, 1, generator=generator) - 0.5)
    images = (light + 0.3 * torch.randn(num_samples, *SHAPE, generator=generator)).clamp(0, 1)
    labels = torch.randint(CLASSES, (num_samples,), generator=generator)
    places = torch.arange(num_samples)
    return PrivateBatch((255 * images).round() / 255, labels, torch.ones(num_samples), places)


def net(**settings):
    return MLP(CLASSES, SIZE, (ROWS,), first_std=0.5, **settings)


def observe(attack, batch, public=None):
    public = torch.empty(0, *SHAPE) if public is None else public
    attack.bind(DataSpec(SHAPE, CLASSES, len(batch.images)), public)
    return attack.federation.play(batch, 0)


def attacked(attack, batch, public=None):
    return attack.reconstruct(observe(attack, batch, public))


def num_certified(found):
    return found.marks.count(Mark.CERTIFIED)


def test_of_two_classes_both_labels_are_told_apart_by_the_sign():
    """Their slopes lie along one line: (p - 1, 1 - p) and (p, -p)."""
    batch = batch_of(8)
    batch = batch._replace(labels=batch.labels % 2)
    for client in (FedSGD(), FedAvg(0.1)):
        attack = ExactInversion(MLP(2, SIZE, (ROWS,), first_std=0.5), client)
        attack.bind(DataSpec(SHAPE, 2, 8), torch.empty(0, *SHAPE))
        found = attack.reconstruct(attack.federation.play(batch, 0))
        pairs = exact_pairs(found.images, batch.images)
        assert num_certified(found) == 8
        assert pairs.any(1).all()
        assert torch.equal(found.labels, batch.labels[pairs.float().argmax(1)])


def num_wrong(found, batch):
    return add_marks([], found, batch.images.double())["certified_wrong"]


def tried_on(batch, candidates, target=None):
    """What the tests say of candidates for a batch's gradient."""
    attack = ExactInversion(target or net())
    seen = observe(attack, batch)
    first = first_linear(seen.payload, SHAPE)
    generator = torch.Generator().manual_seed(0)
    spans = read_spans(as_gradient(first, seen), len(batch.images), generator)
    return examine_all(
        spans, SlopeModel(seen.payload, first, SHAPE), candidates.double().flatten(1)
    )


def test_a_batch_is_certified_to_the_pixel_with_its_labels():
    batch = batch_of(16)
    found = attacked(ExactInversion(net()), batch)
    alone = attacked(LinearLayerInversion(net()), batch)
    assert num_certified(found) == 16
    assert num_wrong(found, batch) == 0
    assert float(found.p_values.max()) <= 1e-4
    pairs = exact_pairs(found.images, batch.images.double())
    assert pairs.any(0).all()
    assert found.labels.tolist() == batch.labels[pairs.int().argmax(1)].tolist()
    assert exact_pairs(alone.images, batch.images).any(0).sum() < 16  # single rows do not do


def test_what_is_not_in_the_batch_fails_a_test():
    batch = batch_of(8)
    off = batch.images.clone()
    off[:, 0, 3, 3] += torch.where(off[:, 0, 3, 3] > 0.5, -1, 1) / 255
    mixed = 0.5 * (batch.images + batch.images.roll(1, 0))
    true, off, mixed = (tried_on(batch, images) for images in (batch.images, off, mixed))
    assert (true.fits_noise & true.fits_pixels).all()
    assert not off.fits_pixels.any()
    assert mixed.fits_pixels.all()  # a mixture lies in the span of the rows
    assert not mixed.fits_noise.any()
    assert mixed.statistic.min() > 1e4 * true.statistic.max()


def test_a_sample_that_comes_twice_counts_twice():
    batch = batch_of(6)
    both = PrivateBatch(*(torch.cat([part, part[:1]]) for part in batch))
    tested = tried_on(both, batch.images)
    assert how_often(tested, float(tested.scale[1])).tolist() == [2, 1, 1, 1, 1, 1]
    assert num_certified(attacked(ExactInversion(net()), both)) == 6


@pytest.mark.parametrize(
    ("defense", "client"),
    [(lambda: [ClipL2(1e-3)], FedSGD), (list, lambda: FedAvg(0.1))],
    ids=["clipped", "one local step"],
)
def test_an_unknown_scale_is_read(defense, client):
    batch = batch_of(8)
    found = attacked(ExactInversion(net(), client(), defense()), batch)
    assert num_certified(found) >= 6
    assert num_wrong(found, batch) == 0


@pytest.mark.parametrize(
    "defense", [lambda: GaussianNoise(1e-3), QSGD, lambda: TopK(0.5)], ids=["noise", "qsgd", "top"]
)
def test_nothing_is_certified_where_the_levels_are_hidden(defense):
    found = attacked(ExactInversion(net(), defenses=[defense()]), batch_of(8))
    assert num_certified(found) == 0


def test_noise_alone_and_a_zero_update_certify_nothing():
    attack = ExactInversion(net())
    seen = observe(attack, batch_of(8))
    generator = torch.Generator().manual_seed(0)
    noise = {
        name: torch.randn(part.shape, generator=generator) for name, part in seen.update.items()
    }
    nothing = {name: 0 * part for name, part in seen.update.items()}
    assert num_certified(attack.reconstruct(seen._replace(update=noise))) == 0
    assert len(attack.reconstruct(seen._replace(update=nothing)).images) == 0


def test_pixels_without_levels_are_certified_too():
    batch = batch_of(6)
    batch = batch._replace(images=batch.images**1.1)
    found = attacked(ExactInversion(net()), batch)
    assert num_certified(found) >= 4
    assert num_wrong(found, batch) == 0


def plain(*between, shift=None, **settings):
    first = nn.Linear(192, ROWS, **settings)
    layers = [nn.Flatten(), first, *between, nn.ReLU(), nn.Linear(ROWS, CLASSES)]
    return ModuleTarget(nn.Sequential(*layers), CLASSES, mean=shift, std=1.0)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (lambda: LeNet(CLASSES, SIZE), "no linear layer with a bias reads the image in LeNet;"),
        (lambda: plain(bias=False, shift=0.5), "has none; choose a target"),
        (lambda: ConvNet(CLASSES, 2), "no linear layer with a bias reads the image"),
        (lambda: plain(nn.BatchNorm1d(ROWS)), "batch norm in train mode mixes the samples"),
        (lambda: plain(nn.Dropout(0.1)), "what dropout drops is not known"),
    ],
    ids=["convolutions", "no bias", "pools", "batch norm", "dropout"],
)
@pytest.mark.parametrize("kind", [ExactInversion, SolitonBiases])
def test_networks_that_prove_nothing_are_refused(kind, target, said):
    with pytest.raises(InputError, match=said):
        observe(kind(target()), batch_of(4))


def test_a_batch_beyond_the_rank_is_refused():
    attack = ExactInversion(MLP(CLASSES, SIZE, (8,)))
    with pytest.raises(InputError, match=r"8 samples are too many .* of 8 x 193"):
        attacked(attack, batch_of(8))


def test_soliton_biases_open_what_an_honest_network_hides():
    batch = batch_of(48, seed=1, contrast=0.1)
    honest, attack = ExactInversion(net()), SolitonBiases(net(), uses_public=True)
    before = num_certified(attacked(honest, batch))
    found = attacked(attack, batch, batch_of(200, seed=2, contrast=0.1).images)
    assert num_certified(found) > before + 8
    assert num_wrong(found, batch) == 0
    sent = attack.federation.payload.state_dict()
    changed = [
        name for name, part in attack.target.state_dict().items() if (part != sent[name]).any()
    ]
    assert changed == ["layers.1.bias"]


def test_data_free_biases_hit_their_degrees():
    attack = SolitonBiases(MLP(CLASSES, SIZE, (2000,), first_std=0.5))
    observe(attack, batch_of(32))
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(500, 192, generator=generator)
    rows = attack.federation.payload.layers[1]
    share = float((rows(uniform) > 0).float().mean())
    odds = robust_soliton(32, 0.05, 0.1)
    assert share == pytest.approx(float((odds * torch.arange(1, 33)).sum()) / 32, rel=0.1)


def test_the_robust_soliton_is_lubys():
    size, spike, failure = 100, 0.1, 0.5
    ripple = spike * torch.tensor(size / failure).log() * size**0.5
    last = round(size / float(ripple))
    weights = [1 / size + ripple / size]
    for degree in range(2, size + 1):
        extra = ripple / (degree * size) if degree < last else 0
        extra = ripple * (ripple / failure).log() / size if degree == last else extra
        weights.append(1 / (degree * (degree - 1)) + extra)
    expected = torch.tensor(weights).double()
    torch.testing.assert_close(robust_soliton(size, spike, failure), expected / expected.sum())


@pytest.mark.parametrize("wrong", [{"num_samples": 1}, {"spike": 0.0}, {"failure": 1.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="must be"):
        SolitonBiases(net(), **wrong)


def reconstruction(images, marks):
    values = torch.tensor([10.0**-place for place in range(len(images))])
    return Reconstruction(images, None, values, {}, marks=marks, p_values=values)


def test_rows_tell_marks_and_what_is_wrong_of_them():
    truth = batch_of(2).images
    images = torch.stack([truth[1], (truth[0] + 2 / 255).clamp(0, 1)])
    rows = [{"matched": 1.0}, {"matched": 0.0}, {"matched": -1.0}]
    found = reconstruction(images, (Mark.CERTIFIED, Mark.CERTIFIED))
    assert add_marks(rows[:2], found, truth) == {"certified_wrong": 1}
    assert [(row["certified"], row["exact"]) for row in rows[:2]] == [(1, 0), (1, 1)]
    assert rows[1]["p_value"] == 1.0
    assert add_marks(rows[2:], found._replace(marks=None), truth) == {}


def test_marks_without_truth_are_read_back(tmp_path):
    found = reconstruction(batch_of(2).images, (Mark.CERTIFIED, Mark.GUESS))
    path = tmp_path / "marks.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["reconstruction", "label", "mark", "p_value"])
        writer.writeheader()
        writer.writerows(marks_of(found))
    assert read_marks(path) == {0: ("certified", 1.0), 1: ("guess", pytest.approx(0.1))}
    assert read_marks(tmp_path / "none.csv") == {}


def test_null_p_values_are_seldom_small():
    """Of clients that sent mixtures alone, no candidate is certified."""
    batch = batch_of(8)
    attack = ExactInversion(net())
    seen = observe(attack, batch)
    weight, bias = seen.update["layers.1.weight"], seen.update["layers.1.bias"]
    mixed = {**seen.update}
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(ROWS, ROWS, generator=generator)).Q  # no row holds one
    mixed["layers.1.weight"], mixed["layers.1.bias"] = turn @ weight, turn @ bias
    assert num_certified(attack.reconstruct(seen._replace(update=mixed))) == 0


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ({"certified": 0.0, "certified_wrong": 0.0}, "No image is certified"),
        ({"certified": 3.0, "certified_wrong": 1.0}, "1 image of 3 that the attack certified"),
        ({"rows_on_grid": 1.0}, None),
    ],
)
def test_pages_warn_of_certificates(notes, said):
    found = [finding.text for finding in findings(Results(notes=[{"client": 0, **notes}]))]
    assert [text for text in found if "certified" in text] == [
        text for text in found if said and text.startswith(said)
    ]
    assert bool(said) == any("certified" in text for text in found)


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ({"certified": 3.0, "certified_wrong": 1.0}, "3 images; by the truth 1 of them are wrong"),
        ({"certified": 1.0}, "1 image"),
        ({"certified": 0.0}, None),
    ],
)
def test_the_terminal_tells_what_is_proven(notes, said, tmp_path, capsys):
    print_summary(Results(notes=[{"client": 0, **notes}]), tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("proven")]
    assert lines == ([] if said is None else [f"proven   {said}"])


def test_without_a_bias_the_levels_tell_the_scale():
    batch = batch_of(12)
    target = plain(bias=False)
    found = attacked(ExactInversion(target), batch)
    assert num_certified(found) == 12
    assert num_wrong(found, batch) == 0
    with pytest.raises(InputError, match="has none; choose a target"):
        observe(SolitonBiases(target), batch)


# --- low rank and sparsity ----------------------------------------------------------------------


def slopes_of(num_samples, seed=0):
    """Slopes behind ReLUs of which half are shut, 300 x num_samples, and a basis of their span."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(300, num_samples, generator=generator, dtype=torch.float64)
    is_open = torch.rand(300, num_samples, generator=generator) < 0.5
    return dense * is_open, torch.linalg.qr(dense * is_open).Q


def test_sparse_slopes_are_found_in_their_span():
    slopes, basis = slopes_of(11)
    found = sparse_directions(basis, torch.Generator().manual_seed(0))
    wanted = nn.functional.normalize(slopes.T @ basis)
    assert len(found) == 11
    torch.testing.assert_close((found @ wanted.T).abs().amax(1), torch.ones(11).double())
    assert (found @ wanted.T).abs().argmax(1).sort().values.tolist() == list(range(11))


def test_dense_slopes_show_none():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(300, 8, generator=generator, dtype=torch.float64)).Q
    assert len(sparse_directions(basis, generator)) == 0


# --- gates, and independent components ----------------------------------------------------------


def centred(*hidden, rows=300):
    """Behind pixels around 0, as most networks read them, rows let half of the samples through."""

    def layers():
        widths = (192, rows, *hidden)
        made = [nn.Flatten()]
        for width, length in itertools.pairwise(widths):
            made += [nn.Linear(width, length), nn.ReLU()]
        return nn.Sequential(*made, nn.Linear(widths[-1], CLASSES))

    return ModuleTarget(layers, CLASSES, mean=0.5, std=0.25)


def slope_model(target):
    seen = observe(ExactInversion(target), batch_of(2))
    return SlopeModel(seen.payload, first_linear(seen.payload, SHAPE), SHAPE)


def test_what_lies_behind_open_gates_is_read_of_one_row_of_relus_alone():
    target = centred()
    jacobian = slope_model(target).open_jacobian(torch.Generator().manual_seed(0))
    torch.testing.assert_close(jacobian, list(target.parameters())[2].double())
    for other in (centred(50), MLP(CLASSES, SIZE, (ROWS,), "sigmoid")):
        assert slope_model(other).open_jacobian(torch.Generator().manual_seed(0)) is None


def test_gates_are_found_where_there_are_more_samples_than_sparsity_bears():
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(CLASSES, 300, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (45,), generator=generator)
    chances = torch.randn(45, CLASSES, generator=generator, dtype=torch.float64).softmax(1)
    residuals = chances - nn.functional.one_hot(labels, CLASSES)
    slopes = residuals @ jacobian * (torch.rand(45, 300, generator=generator) < 0.5)
    basis = torch.linalg.qr(slopes.T).Q
    found = gated_directions(basis, jacobian, generator)
    wanted = nn.functional.normalize(slopes @ basis)
    assert len(found) == 45
    torch.testing.assert_close((found @ wanted.T).abs().amax(0), torch.ones(45).double())


def test_the_difference_of_two_samples_of_one_label_is_no_sample():
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(CLASSES, 300, generator=generator, dtype=torch.float64)
    residual = torch.full((CLASSES,), 0.1, dtype=torch.float64)
    residual[3] = -0.9
    is_open = torch.rand(1, 300, generator=generator) < 0.5
    slopes = residual @ jacobian * (is_open ^ (torch.rand(4, 300, generator=generator) < 0.1))
    basis = torch.linalg.qr(slopes.T).Q
    assert all(is_gated(basis, jacobian, slope @ basis) for slope in slopes)
    difference = slopes[0] - slopes[1]
    assert (difference == 0).double().mean() > (slopes[0] == 0).double().mean()
    assert not is_gated(basis, jacobian, difference @ basis)


def test_one_missing_direction_is_shown_by_the_others():
    generator = torch.Generator().manual_seed(0)
    samples = torch.rand(5, 20, generator=generator, dtype=torch.float64)
    samples[:, -1] = 1
    slopes, _ = slopes_of(5)
    columns, strengths, rows = torch.linalg.svd(slopes @ samples, full_matrices=False)
    columns, strengths, rows = columns[:, :5], strengths[:5], rows[:5]
    directions = nn.functional.normalize(slopes.T @ columns)
    torch.testing.assert_close(shown_images(directions, strengths, rows), samples[:, :-1])
    torch.testing.assert_close(shown_images(directions[1:], strengths, rows), samples[:1, :-1])
    assert len(shown_images(directions[2:], strengths, rows)) == 0


@pytest.mark.parametrize("hidden", [(), (50,)], ids=["gates", "sparsity"])
def test_what_no_row_shows_is_certified(hidden):
    batch = batch_of(14)
    target = centred(*hidden)
    found = attacked(ExactInversion(target), batch)
    assert num_certified(found) == 14
    assert num_wrong(found, batch) == 0
    assert num_certified(attacked(ExactInversion(target, sparsity=False), batch)) == 0


def edges(num_samples, size=24):
    """Images of a few flat rectangles each, whose derivatives are sparse."""
    generator = torch.Generator().manual_seed(3)
    images = torch.full((num_samples, 3, size, size), 0.5)
    for image in images:
        for _ in range(6):
            top, left = torch.randint(size - 4, (2,), generator=generator).tolist()
            height, width = torch.randint(3, 12, (2,), generator=generator).tolist()
            colour = torch.rand(3, 1, 1, generator=generator)
            image[:, top : top + height, left : left + width] = colour
    return images


def test_independent_components_are_the_images():
    images = edges(6).double()
    seen = torch.cat([images.flatten(1), torch.ones(6, 1)], 1)
    rows = torch.linalg.svd(seen, full_matrices=False).Vh
    found = independent_images(rows, (3, 24, 24), torch.Generator().manual_seed(0))
    wrong = torch.cdist(found, images.flatten(1)).square() / 1728
    assert wrong.amin(0).max() < 1e-3
    assert wrong.argmin(0).unique().numel() == 6


@pytest.mark.parametrize("kind", [nn.GELU, nn.Sigmoid])
def test_guesses_of_a_smooth_network_are_moved_until_they_are_exact(kind):
    """Behind pixels around 0 and small weights no row shows a sample, and no slope is 0."""
    images = (255 * edges(5, 16)).round() / 255
    labels = torch.tensor([3, 1, 4, 1, 5])
    batch = PrivateBatch(images, labels, torch.ones(5), torch.arange(5))

    def layers():
        return nn.Sequential(nn.Flatten(), nn.Linear(768, 200), kind(), nn.Linear(200, CLASSES))

    for independence, expected in ((True, 5), (False, 0)):
        attack = ExactInversion(
            ModuleTarget(layers, CLASSES, mean=0.5, std=0.25), independence=independence
        )
        attack.bind(DataSpec((3, 16, 16), CLASSES, 5), images[:0])
        found = attack.reconstruct(attack.federation.play(batch, 0))
        assert num_certified(found) == expected
        assert num_wrong(found, batch) == 0


def certified_features(classes=10, share=0.0, first_only=False, is_noise=False):
    """Certificates of eight samples' features, a share of the next sample mixed into them."""
    tail = nn.Sequential(nn.Linear(150, 60), nn.ReLU(), nn.Linear(60, classes))
    generator = torch.Generator().manual_seed(0)
    for part in tail.parameters():
        part.data = 0.08 * torch.randn(part.shape, generator=generator)
    features = torch.randn(8, 150, generator=generator).relu()
    labels = torch.randint(classes, (8,), generator=generator)
    sent = torch.autograd.grad(
        F.cross_entropy(tail(features), labels), [tail[0].weight, tail[0].bias]
    )
    if is_noise:
        sent = [part.std() * torch.randn(part.shape, generator=generator) for part in sent]
    mixed = features + share * (features.roll(1, 0) - features)
    mixed[1:] = features[1:] if first_only else mixed[1:]
    return are_certified(*sent, tail, mixed, torch.Generator().manual_seed(1)).tolist()


def test_features_behind_convolutions_are_certified_and_their_mixtures_are_not():
    assert certified_features() == [True] * 8
    assert certified_features(share=0.01) == [False] * 8
    assert certified_features(share=0.3) == [False] * 8
    assert certified_features(share=0.01, first_only=True)[0] is False
    assert certified_features(is_noise=True) == [False] * 8
    assert certified_features(classes=2) == [False] * 8


def test_more_samples_than_rows_are_refused():
    with pytest.raises(InputError, match="9 samples are more than the first layer's gradient"):
        attacked(CocktailParty(MLP(CLASSES, SIZE, (8,))), batch_of(9))
