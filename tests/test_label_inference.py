from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data_helpers import real_data
from torch import nn

from lightning_recon.clients import FedAvg, FedSGD
from lightning_recon.errors import InputError
from lightning_recon.functional.labels.agreement import label_matches
from lightning_recon.functional.labels.counts import nearest_counts
from lightning_recon.functional.labels.inference import (
    LabelMethod,
    analytic,
    bias_corrected,
    exhaustive,
    idlg,
    infer_labels,
    residual_counts,
    wainakh_simple,
    wainakh_whitebox,
    yin,
)
from lightning_recon.functional.labels.last_layer import (
    DummyForward,
    class_gradient,
    dummy_forward,
    last_linear_layer,
)
from lightning_recon.targets import ConvNet, LeNet, TorchvisionClassifier
from lightning_recon.updates import PrivateBatch

COUNTING = ["analytic", "bias_corrected", "wainakh_simple", "wainakh_whitebox", "residual_counts"]


class BiasFree(nn.Module):
    """ReLU features and a last layer without bias, registered before the hidden one."""

    def __init__(self, num_classes=100):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.head = nn.Linear(256, num_classes, bias=False)
            self.hidden = nn.Linear(3 * 8 * 8, 256, bias=False)

    def forward(self, images):
        return self.head(F.relu(self.hidden(F.adaptive_avg_pool2d(images, 8).flatten(1))))


def private(labels, seed=0, size=32):
    labels = torch.as_tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(len(labels), 3, size, size, generator=generator)
    # of one brightness each, as photographs are
    images = images * torch.rand(len(labels), 1, 1, 1, generator=generator).mul(0.4).add(0.6)
    masks = torch.ones(len(labels), 1, size, size, dtype=torch.bool)
    return PrivateBatch(images, labels, masks, torch.arange(len(labels)))


def public(num=32, size=32):
    return private(torch.zeros(num, dtype=torch.int64), seed=99, size=size).images


def head_gradients(model, client, batch):
    """The last layer's gradient as an attacker brings it to the gradient's sign and size."""
    update = client(model, batch, seed=0)
    names = last_linear_layer(model, torch.zeros_like(batch.images[:1]))
    scale = client.gradient_scale / client.num_gradients(len(batch.labels))
    weight, bias = (None if name is None else update[name] * scale for name in names)
    return weight, bias, update


def dummies_of(model, client, weight_delta=None):
    with client.working(model):
        return dummy_forward(model, public(), weight_delta)


def manual(labels, probabilities, features):
    """The gradient of the layer by its definition, sample for sample."""
    weight = torch.zeros(probabilities.shape[1], features.shape[1], dtype=torch.float64)
    bias = torch.zeros(probabilities.shape[1], dtype=torch.float64)
    for label, probability, feature in zip(labels, probabilities, features, strict=True):
        for c in range(len(bias)):
            residual = probability[c] - float(c == label)
            weight[c] += residual * feature / len(labels)
            bias[c] += residual / len(labels)
    return weight, bias


# --- the layer ---------------------------------------------------------------------------------


def test_the_layer_that_runs_last_is_found_whatever_was_registered_last():
    assert last_linear_layer(BiasFree(), torch.zeros(1, 3, 32, 32)) == ("head.weight", None)
    found = last_linear_layer(TorchvisionClassifier("resnet18"), torch.zeros(1, 3, 32, 32))
    assert found == ("model.fc.weight", "model.fc.bias")


def test_running_the_payload_leaves_its_modes_buffers_and_hooks_alone():
    model = ConvNet()
    model.features[0].eval()
    modes = [module.training for module in model.modules()]
    buffers = [buffer.clone() for buffer in model.buffers()]
    last_linear_layer(model, torch.zeros(1, 3, 32, 32))
    dummy_forward(model, public())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), buffers, strict=True))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_that_ends_in_a_convolution_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"no nn\.Linear") as error:
        last_linear_layer(TorchvisionClassifier("squeezenet1_1"), torch.zeros(1, 3, 64, 64))
    assert "\n" not in str(error.value)


def test_dummies_are_what_enters_and_leaves_the_layer():
    model = LeNet()
    dummies = dummy_forward(model, public())
    features = model.features(public()).flatten(1)
    torch.testing.assert_close(dummies.features, features)
    torch.testing.assert_close(dummies.probabilities, model(public()).softmax(dim=1))


def test_dummies_on_the_way_of_a_client_end_before_its_weights():
    model = LeNet()
    delta = {name: torch.randn_like(tensor) * 0.1 for name, tensor in model.named_parameters()}
    dummies = dummy_forward(model, public(4), delta, num_points=2)
    halfway = LeNet()
    with torch.no_grad():
        for name, parameter in halfway.named_parameters():
            parameter += delta[name] / 2
    torch.testing.assert_close(dummies.probabilities[:4], model(public(4)).softmax(dim=1))
    torch.testing.assert_close(dummies.probabilities[4:], halfway(public(4)).softmax(dim=1))


# --- one sample: exact in theory, always ---------------------------------------------------------


@pytest.mark.parametrize("make", [LeNet, ConvNet, BiasFree])
@pytest.mark.parametrize(
    "client", [FedSGD(mode="eval"), FedAvg(0.05, epochs=3, mode="eval")], ids=["sgd", "avg"]
)
def test_idlg_is_exact_for_one_sample(make, client):
    model = make()
    for label in (0, 3, 9):
        weight, bias, _ = head_gradients(model, client, private([label], seed=label))
        assert idlg(weight, bias).tolist() == [label]
        assert idlg(weight).tolist() == [label]


@pytest.mark.parametrize("num_classes", [3, 17])
def test_idlg_without_bias_is_exact_for_features_of_any_sign(num_classes):
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        probabilities = torch.randn(1, num_classes, generator=generator).mul(3).softmax(dim=1)
        features = torch.randn(1, 6, generator=generator) - 0.5
        label = torch.randint(num_classes, (1,), generator=generator)
        weight, _ = manual(label, probabilities.double(), features.double())
        assert torch.equal(idlg(weight), label)


def test_a_weight_delta_must_be_brought_to_the_gradients_sign():
    model = LeNet()
    client = FedAvg(0.01, epochs=2)
    update = client(model, private([4]), seed=0)["classifier.bias"]
    weight = torch.ones(10, 768)
    assert infer_labels("idlg", weight, client.gradient_scale * update).tolist() == [4]
    assert infer_labels("idlg", weight, -update).tolist() == [4]  # lr unknown
    assert infer_labels("idlg", weight, update).tolist() != [4]  # the published fault


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[7, 7, 7, 7], [0, 3, 3, 9], [1, 2] * 8, [5] * 20 + [6] * 12])
def test_residual_counts_are_exact_on_an_untrained_network(labels):
    client = FedSGD()
    for model, scales in ((LeNet(), (1.0,)), (ConvNet(), (1.0, None))):
        weight, bias, _ = head_gradients(model, client, private(labels))
        dummies = dummies_of(model, client)
        for scale in scales:
            found = residual_counts(weight, bias, len(labels), dummies=dummies, scale=scale)
            assert found.tolist() == sorted(labels)


@pytest.mark.parametrize("method", COUNTING)
def test_counts_survive_a_layer_without_bias(method):
    model, client = BiasFree(), FedSGD()
    labels = torch.tensor([3, 3, 3, 14, 15, 92, 92, 65])
    weight, bias, _ = head_gradients(model, client, private(labels))
    assert bias is None
    found = infer_labels(method, weight, None, 8, dummies=dummies_of(model, client))
    assert torch.equal(found, labels.sort().values)


def test_the_size_of_the_update_does_not_matter_where_the_scale_is_unknown():
    model, client = LeNet(), FedSGD()
    weight, bias, _ = head_gradients(model, client, private([0, 3, 3, 9]))
    dummies = dummies_of(model, client)
    for method in ("analytic", "bias_corrected", "wainakh_simple", "residual_counts", "exhaustive"):
        full = infer_labels(method, weight, bias, 4, dummies=dummies)
        clipped = infer_labels(method, 1e-4 * weight, 1e-4 * bias, 4, dummies=dummies)
        assert torch.equal(full, clipped)


def test_fedavg_steps_move_the_softmax_and_dummies_on_the_way_follow_it():
    model, client = LeNet(), FedAvg(0.003, epochs=5)
    still = moved = total = 0
    for seed in range(4):
        labels = torch.randint(10, (16,), generator=torch.Generator().manual_seed(seed))
        weight, bias, update = head_gradients(model, client, private(labels, seed))
        still += label_matches(
            residual_counts(weight, bias, 16, dummies=dummies_of(model, client)), labels
        )
        dummies = dummies_of(model, client, update)
        moved += label_matches(
            residual_counts(weight, bias, 16, dummies=dummies, scale=1.0), labels
        )
        total += 16
    assert moved >= 0.85 * total
    assert moved > still


def test_yin_names_distinct_labels():
    model, client = BiasFree(), FedSGD()
    labels = [2, 30, 71, 99]
    weight, _, _ = head_gradients(model, client, private(labels))
    assert yin(weight, 4).tolist() == labels


def test_a_coarse_bias_is_left_for_the_rows():
    model, client = LeNet(), FedSGD()
    labels = torch.tensor([0, 3, 3, 9])
    weight, bias, _ = head_gradients(model, client, private(labels))
    dummies = dummies_of(model, client)
    kept = torch.zeros_like(bias)
    kept[0] = bias[0]  # top-k kept one entry of ten
    assert torch.equal(residual_counts(weight, kept, 4, dummies=dummies, scale=1.0), labels)
    assert torch.equal(exhaustive(weight, kept, 4, dummies, scale=1.0), labels)


def sign(tensor):
    """As a quantiser of one bit has it: what is 0 becomes positive."""
    return torch.where(tensor < 0, -1.0, 1.0)


@pytest.mark.parametrize("client", [FedSGD(), FedAvg(0.01, epochs=2)], ids=["sgd", "avg"])
def test_distinct_labels_show_through_signs_and_few_entries(client):
    model, labels = BiasFree(), [2, 30, 71, 99]
    update = client(model, private(labels), seed=0)["head.weight"]
    few = torch.zeros_like(update).flatten()
    kept = update.abs().flatten().topk(len(few) // 50).indices
    few[kept] = update.flatten()[kept]
    for sent in (sign(update), few.view_as(update)):
        weight = client.gradient_scale * sent
        assert (
            residual_counts(weight, None, 4, dummies=dummies_of(model, client)).tolist() == labels
        )


# --- against definitions, by hand and by brute force ---------------------------------------------


def random_layer(num_samples, num_classes, seed, spread=0.3):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(num_classes, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_samples, num_classes, generator=generator, dtype=torch.float64)
    probabilities = (mean + spread * noise).softmax(dim=1)
    features = torch.rand(num_samples, 7, generator=generator, dtype=torch.float64) + 0.5
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    return labels, probabilities, features


def test_a_negative_class_gradient_proves_presence_for_every_method():
    for seed in range(30):
        labels, probabilities, features = random_layer(6, 8, seed, spread=2.0)
        weight, bias = manual(labels, probabilities, features)
        certain = {c for c in range(8) if bias[c] < 0}
        assert certain <= set(labels.tolist())
        dummies = DummyForward(features, probabilities)
        for method in COUNTING:
            found = infer_labels(method, weight, bias, 6, dummies=dummies)
            assert certain <= set(found.tolist())
            assert len(found) == 6
            assert found.dtype == torch.int64
            assert found.tolist() == sorted(found.tolist())


def test_known_probabilities_give_exact_counts():
    for seed in range(30):
        labels, probabilities, features = random_layer(9, 6, seed, spread=1.0)
        weight, bias = manual(labels, probabilities, features)
        dummies = DummyForward(features, probabilities)
        found = residual_counts(weight, bias, 9, dummies=dummies, scale=1.0)
        assert torch.equal(found, labels.sort().values)


@pytest.mark.parametrize("scale", [None, 1.0])
def test_exhaustive_is_the_optimum_and_residual_counts_find_it(scale):
    agreed = 0
    for seed in range(20):
        labels, probabilities, features = random_layer(4, 5, seed)
        weight, bias = manual(labels, probabilities, features)
        dummies = DummyForward(features + 0.1, probabilities.roll(1, dims=0)[:3])
        mean = dummies.probabilities.mean(dim=0)

        def distance(multiset, bias=bias, mean=mean):
            counts = torch.bincount(torch.tensor(multiset), minlength=5)
            expected = mean - counts / 4
            if scale is None:
                return -float(bias @ expected / expected.norm())
            return float((bias - scale * expected).norm())

        best = min(combinations_with_replacement(range(5), 4), key=distance)
        found = exhaustive(weight, bias, 4, dummies, scale=scale)
        assert found.tolist() == list(best)
        agreed += torch.equal(residual_counts(weight, bias, 4, dummies=dummies, scale=scale), found)
    assert agreed >= 18


def test_nearest_counts_are_nearest_of_all():
    generator = torch.Generator().manual_seed(0)
    demands = torch.randn(40, 4, generator=generator) * 3 + 1
    found = nearest_counts(demands, 5, None)
    every = [
        [multiset.count(c) for c in range(4)]
        for multiset in combinations_with_replacement(range(4), 5)
    ]
    for demand, counts in zip(demands, found, strict=True):
        least = min(float((torch.tensor(c) - demand).square().sum()) for c in every)
        assert counts.sum() == 5
        assert float((counts - demand).square().sum()) == pytest.approx(least, rel=1e-5)


def test_bias_corrected_is_exact_for_a_uniform_softmax_and_wainakh_is_not():
    counts = torch.tensor([6.0, 1, 1, 0, 0, 0])  # wainakh's impact is 7/6 of 1/8 times 4/8 or less
    gradient = 1 / 6 - counts / 8
    labels = [0] * 6 + [1, 2]
    assert bias_corrected(torch.ones(6, 1), 0.3 * gradient, 8).tolist() != labels  # 1/8 < 1/6
    counts = torch.tensor([4.0, 2, 2, 0, 0, 0])
    gradient = 1 / 6 - counts / 8
    assert bias_corrected(torch.ones(6, 1), 0.3 * gradient, 8).tolist() == [0] * 4 + [1, 1, 2, 2]


def test_wainakh_whitebox_equals_its_definition_by_dummy_batches():
    """Impact and offset by backward passes over dummy batches, and the greedy loop as printed."""
    model, client, num_classes = BiasFree(12), FedSGD(), 12
    images = public(16)
    offsets = torch.zeros(num_classes, num_classes)
    for label in range(num_classes):
        loss = F.cross_entropy(model(images), torch.full((16,), label))
        (gradient,) = torch.autograd.grad(loss, model.head.weight)
        offsets[label] = gradient.sum(dim=1)
    labels = torch.tensor([0, 0, 0, 4, 4, 7, 10])
    weight, _, _ = head_gradients(model, client, private(labels))
    left = weight.sum(dim=1)
    impact = offsets.diagonal().mean() * (1 + 1 / num_classes) / 7
    found = [c for c in range(num_classes) if left[c] < 0]
    left[found] -= impact
    left -= (offsets.sum(dim=0) - offsets.diagonal()) / (num_classes - 1)
    while len(found) < 7:
        found.append(int(left.argmin()))
        left[found[-1]] -= impact
    with client.working(model):
        dummies = dummy_forward(model, images)
    assert wainakh_whitebox(weight, None, 7, dummies).tolist() == sorted(found)


def test_wainakh_simple_equals_its_definition():
    for seed in range(20):
        labels, probabilities, features = random_layer(8, 6, seed)
        weight, _ = manual(labels, probabilities, features)
        left = weight.sum(dim=1)
        found = [c for c in range(6) if left[c] < 0]
        impact = left[found].sum() / 8 * (1 + 1 / 6)
        left[found] -= impact
        while len(found) < 8:
            found.append(int(left.argmin()))
            left[found[-1]] -= impact
        assert wainakh_simple(weight, None, 8).tolist() == sorted(found)


def test_more_negative_classes_than_samples_leave_the_most_negative_ones():
    gradient = torch.tensor([-0.1, 0.9, -0.5, -0.3])  # as after noise
    assert analytic(torch.ones(4, 1), gradient, 2).tolist() == [2, 3]
    assert wainakh_simple(torch.ones(4, 1), gradient, 2).tolist() == [2, 3]


def test_an_update_of_zeros_still_gives_a_batch_of_labels():
    dummies = DummyForward(torch.ones(2, 3), torch.full((2, 5), 0.2))
    for method in [*COUNTING, "exhaustive"]:
        found = infer_labels(method, torch.zeros(5, 3), torch.zeros(5), 3, dummies=dummies)
        assert len(found) == 3
        assert 0 <= int(found.min()) <= int(found.max()) < 5


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "num_samples", "message"),
    [
        ("idlg", 4, "one sample"),
        ("yin", 11, "distinct"),
        ("residual_counts", 0, "at least 1"),
        ("wainakh_whitebox", 4, "needs dummies"),
        ("exhaustive", 4, "needs dummies"),
        ("guess", 1, "no label method"),
    ],
)
def test_bad_input_is_one_clear_line(method: LabelMethod, num_samples, message):
    with pytest.raises(InputError, match=message) as error:
        infer_labels(method, torch.ones(10, 3), torch.ones(10), num_samples)
    assert "\n" not in str(error.value)


def test_layers_that_do_not_fit_are_refused():
    dummies = DummyForward(torch.ones(2, 3), torch.full((2, 5), 0.2))
    with pytest.raises(InputError, match="does not fit"):
        class_gradient(torch.ones(4, 3), torch.ones(5))
    with pytest.raises(InputError, match="classes x features"):
        class_gradient(torch.ones(4), None)
    with pytest.raises(InputError, match="fit a weight gradient"):
        residual_counts(torch.ones(4, 3), None, 2, dummies=dummies)
    with pytest.raises(InputError, match="scale"):
        residual_counts(torch.ones(5, 3), None, 2, scale=-1.0)
    with pytest.raises(InputError, match="would try"):
        exhaustive(torch.ones(5, 3), None, 300, dummies)
    with pytest.raises(InputError, match="num_points"):
        dummy_forward(LeNet(), public(1), {}, num_points=0)


# --- real images ---------------------------------------------------------------------------------


def test_counts_of_real_images():
    file = real_data("cifar10-sample.npz")
    with np.load(file) as sample:
        images = torch.from_numpy(sample["x_train"][:64]).permute(0, 3, 1, 2) / 255
        labels = torch.from_numpy(sample["y_train"][:32]).long()
        others = torch.from_numpy(sample["x_test"][:64]).permute(0, 3, 1, 2) / 255
    batch = private(labels)._replace(images=images[:32])
    for model in (LeNet(), ConvNet()):
        client = FedSGD()
        weight, bias, _ = head_gradients(model, client, batch)
        with client.working(model):
            dummies = dummy_forward(model, others)
        found = residual_counts(weight, bias, 32, dummies=dummies, scale=1.0)
        assert torch.equal(found, labels.sort().values)
