"""``detect``: honest models pass, and every malicious payload of this project is found."""

import json
import math
import random
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lightning_recon import attacks, targets
from lightning_recon.attacks.robbing_the_fed import ImprintPayload
from lightning_recon.clients import Aggregate, FedSGD
from lightning_recon.commands.plain import main
from lightning_recon.defenses import ClipL2, GaussianNoise
from lightning_recon.detect import detect, detect_sent
from lightning_recon.detect.scoring import FLOORS, MARGIN, chosen, score_of, strength
from lightning_recon.errors import InputError
from lightning_recon.updates import DataSpec

ROOT = Path(__file__).parents[1]
SIZE, BATCH = 16, 8
PROTECTED = {"defenses": (ClipL2(1.0), GaussianNoise(0.001)), "num_samples": BATCH}
HONEST = {
    "ConvNet": lambda: targets.ConvNet(10, width=16),
    "LeNet": lambda: targets.LeNet(10, SIZE),
    "MLP": lambda: targets.MLP(10, SIZE, (128, 64)),
    "TinyViT": lambda: targets.TinyViT(10, SIZE),
    "VGG7": lambda: targets.VGG7(10, SIZE, width=8),
    "shufflenet": lambda: targets.TorchvisionClassifier("shufflenet_v2_x0_5", num_classes=10),
}
MALICIOUS = {
    "RobbingTheFed": (
        lambda: attacks.RobbingTheFed(targets.ConvNet(10), num_bins=64, gain=1e-3),
        {"repeated-rows", "one-direction", "ordered-biases", "leaning-rows", "even-rows"},
    ),
    "CuriousAbandonHonesty": (
        lambda: attacks.CuriousAbandonHonesty(targets.ConvNet(10), num_rows=64, gain=1e-3),
        {"trap-weights", "even-rows"},
    ),
    "SolitonBiases": (
        lambda: attacks.SolitonBiases(targets.MLP(10, SIZE, (128,))),
        {"centring-biases"},
    ),
    "LDPAttack": (
        lambda: attacks.LDPAttack(targets.ConvNet(10), num_bins=64, **PROTECTED),
        {"repeated-rows", "gain-out-of-range", "large-numbers"},
    ),
    "SpectralLDPAttack": (
        lambda: attacks.SpectralLDPAttack(
            targets.ConvNet(10), num_bins=64, gain=1.0, shrinkage_steps=0, **PROTECTED
        ),
        {"dead-rows"},
    ),
    "CodedLDPAttack": (
        lambda: attacks.CodedLDPAttack(
            targets.ConvNet(10), num_bins=64, gain=1.0, shrinkage_steps=0, **PROTECTED
        ),
        {"dead-rows"},
    ),
    "Fishing": (
        lambda: attacks.Fishing(targets.ConvNet(10)),
        {"confident-head", "lone-class"},
    ),
    "Fishing for a feature": (
        lambda: attacks.Fishing(targets.ConvNet(10), fish="feature"),
        {"lone-class"},
    ),
    "ScaleMIA": (
        lambda: attacks.ScaleMIA(targets.TutorialCNN(10, SIZE), kernel_size=1, decoder_steps=0),
        {"repeated-rows", "one-direction"},
    ),
    "Loki": (
        lambda: attacks.Loki(targets.ConvNet(10), num_bins=64),
        {"repeated-rows", "one-direction", "leaning-rows"},
    ),
}
"""By attack: what makes it, and findings that must be among its own."""


def pictures(number=40, seed=0):
    """Images of different brightness, smooth as photographs are."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 3, 4, 4, generator=generator)
    shade = torch.rand(number, 1, 1, 1, generator=generator)
    return nn.functional.interpolate(shade * coarse, SIZE, mode="bilinear")


def payload(attack):
    attack.bind(DataSpec((3, SIZE, SIZE), 10, BATCH), pictures())
    return attack.federation.payload


def sample(number=BATCH):
    return pictures(number, seed=1), torch.arange(number) % 10


def codes(found):
    return {one.code for one in found.findings if one.strength >= 1}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_model_passes_by_itself_and_by_its_canary(name):
    model = HONEST[name]()
    for found in (detect(model), detect(model.state_dict()), detect(model, model, sample())):
        assert (found.verdict, codes(found)) == ("honest", set())
        assert 0 <= found.score < 0.5


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.9),
        lambda layer: prune.ln_structured(layer, "weight", 0.5, n=2, dim=0),
        lambda layer: layer.weight.copy_((layer.weight * 7 / layer.weight.abs().max()).round()),
    ],
    ids=["90 % pruned", "half of the rows pruned", "4 bits"],
)
def test_pruned_and_quantised_models_pass(change):
    model = HONEST["MLP"]()
    with torch.no_grad():
        for layer in list(model.layers)[1:4:2]:
            scale = layer.weight.abs().max() / 7
            change(layer)
            if not hasattr(layer, "weight_mask"):
                layer.weight.mul_(scale)
            else:
                prune.remove(layer, "weight")
    assert detect(model).verdict == "honest"


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_payload_is_found(name):
    make, wanted = MALICIOUS[name]
    model = payload(make())
    found = detect(model)
    assert found.verdict == "suspicious"
    assert found.score >= 0.5
    assert wanted <= codes(found)
    assert detect(model.state_dict()).verdict == "suspicious"


@pytest.mark.parametrize("name", MALICIOUS)
def test_names_change_nothing(name):
    state = payload(MALICIOUS[name][0]()).state_dict()
    places = random.Random(0).sample(range(10**6), len(state))
    renamed = {f"x{place}": part for place, part in zip(places, state.values(), strict=True)}
    first, second = detect(state), detect(renamed)
    assert first.statistics == second.statistics
    assert first.score == second.score


def test_a_canary_owns_rows_of_what_is_zero():
    """The same zeros in a layer of torch.nn are nothing by themselves, but for their gradient."""

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.Linear(3 * SIZE**2, 64, bias=False)
            nn.init.zeros_(self.rows.weight)
            self.model = HONEST["LeNet"]()

        def forward(self, images):
            row = torch.arange(len(images)) * 7 % 64
            shift = self.rows(images.flatten(1)).gather(1, row[:, None])
            return self.model(images) + shift * torch.tensor([1.0, -1.0] * 5)

    model = Hidden().eval().requires_grad_(False)
    assert detect(model).verdict == "honest"
    found = detect(model, sample=sample())
    assert "owned-rows" in codes(found)
    assert not any(part.requires_grad for part in model.parameters())


def test_rows_that_go_on_with_the_same_weight_whatever_they_measure():
    """Rows as an honest layer draws them say nothing; what stands behind them does."""
    rows = nn.Linear(3 * SIZE**2, 128)
    model = ImprintPayload(HONEST["LeNet"](), rows.weight.detach(), rows.bias.detach(), 1.0)
    assert detect(model).verdict == "honest"
    assert codes(detect(model, sample=sample())) == {"equal-gradients"}


def test_nested_rows_come_apart_by_their_differences():
    model = payload(MALICIOUS["RobbingTheFed"][0]())
    assert detect(model, sample=sample()).statistics["owned-rows"] > 0.9


def test_a_head_alone_tells_a_canary_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 10))
    assert "owned-rows" not in detect(model, sample=sample()).statistics


def test_a_canary_leaves_the_model_as_it_was():
    model = HONEST["ConvNet"]().train()
    before = {name: part.clone() for name, part in model.state_dict().items()}
    detect(model, sample=sample())
    assert model.training
    assert all(part.grad is None and part.requires_grad for part in model.parameters())
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())


class TestReference:
    def test_layers_that_were_not_declared(self):
        host = targets.ConvNet(10)
        found = detect(payload(attacks.RobbingTheFed(host, num_bins=64)), host)
        (told,) = (one for one in found.findings if one.code == "undeclared-layers")
        assert told.where == "rows.weight"

    def test_training_explains_little_and_biases_that_are_set_much_more(self):
        host = targets.MLP(10, SIZE, (128,))
        trained = targets.MLP(10, SIZE, (128,))
        images, labels = sample(32)
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(trained(images), labels).backward()
            optimizer.step()
        assert detect(trained, host).verdict == "honest"
        attack = attacks.SolitonBiases(host)
        assert "beyond-training-biases" in codes(detect(payload(attack), host))

    def test_other_weights(self):
        model, other = (targets.LeNet(10, SIZE, seed=seed) for seed in (0, 1))
        assert detect(model, other).statistics["beyond-training"] == pytest.approx(2**0.5, rel=0.1)
        with torch.no_grad():
            model.features[0].weight.mul_(10)
        assert "beyond-training" in codes(detect(model, other))


@pytest.mark.parametrize("nats", [30.0, -30.0])
def test_a_head_that_is_sure_of_one_class_or_never_says_it(nats):
    model = HONEST["ConvNet"]()
    with torch.no_grad():
        model.classifier.bias[3] = nats
    assert codes(detect(model)) == {"confident-head"}


def test_a_head_in_which_one_class_alone_has_weights():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 2))  # of two classes, too
    assert detect(model).verdict == "honest"
    with torch.no_grad():
        model[1].weight[0] *= 0.05
    assert codes(detect(model)) == {"lone-class"}
    with torch.no_grad():
        model[1].weight.zero_()
    assert detect(model).verdict == "honest", "a head may start at zero"


def test_a_client_that_is_to_be_silent_is_sent_dead_biases():
    together = {"client": Aggregate(FedSGD(), num_clients=2)}
    made = payload(attacks.ModelInconsistency(targets.MLP(10, SIZE, (128,)), **together))
    assert detect(made.for_client(0)).verdict == "honest"  # the one that is attacked
    assert codes(detect(made.for_client(1))) >= {"large-biases"}


def test_a_norm_behind_a_weight_is_no_bias_of_it():
    """Pruning leaves biases in front of their weights."""
    state = {
        "first": torch.randn(64, 96) / 96,
        "scale": torch.ones(64),
        "shift": torch.zeros(64),
        "next.bias": torch.zeros(64),
        "next": torch.randn(64, 64) / 8,
    }
    assert "large-biases" not in detect(state).statistics
    state["scale"] = torch.randn(64)  # a bias, and a norm without a scale of its own
    assert "large-biases" in detect(state).statistics


def test_kernels_that_copy():
    model = HONEST["VGG7"]()
    with torch.no_grad():
        nn.init.dirac_(model.features[0].weight)
    assert codes(detect(model)) == set()  # few channels
    with torch.no_grad():
        nn.init.dirac_(model.features[2].weight)
    assert "copying-kernels" in codes(detect(model))


def test_numbers_that_are_none():
    model = HONEST["MLP"]()
    with torch.no_grad():
        model.layers[1].weight[0, 0] = math.nan
    assert "not-finite" in codes(detect(model))


def test_thresholds_come_from_honest_models_and_never_fall_below_the_floors():
    thresholds = chosen([{"large-biases": 0.9, "leaning-rows": 1.0}, {"large-biases": 0.5}])
    assert thresholds["large-biases"] == pytest.approx(MARGIN * 0.9)
    assert thresholds["leaning-rows"] == FLOORS["leaning-rows"]
    assert strength({"large-biases": 0.9 * MARGIN}, thresholds) == pytest.approx(1.0)
    assert score_of(1.0) == 0.5
    assert score_of(-3.0) == 0.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (lambda: (HONEST["MLP"]().state_dict(), None, sample()), "the module that computes"),
        (lambda: ({"bias": torch.zeros(3)},), "holds no weights"),
        (lambda: (HONEST["MLP"](), None, sample(2)), "at least 4 images"),
        (
            lambda: (HONEST["MLP"](), None, (torch.rand(4, 3, 5, 5), sample(4)[1])),
            "take the sample",
        ),
    ],
)
def test_bad_input_is_told(arguments, said):
    with pytest.raises(InputError, match=said):
        detect(*arguments())


def test_tensors_that_lack_some_of_the_declared_model():
    state = HONEST["MLP"]().state_dict()
    state.pop("layers.1.weight")
    with pytest.raises(InputError, match="does not fit the model"):
        detect_sent(state, HONEST["MLP"]())


class TestCommand:
    MODEL = ("--model", "lightning_recon.targets:ConvNet")

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        torch.save(targets.ConvNet().state_dict(), "honest.pt")
        model = payload(attacks.RobbingTheFed(targets.ConvNet(), num_bins=64))
        torch.save(model.state_dict(), "malicious.pt")
        torch.save(dict(zip(("images", "labels"), sample(), strict=True)), "sample.pt")

    def test_an_honest_file(self, capsys):
        assert main(["detect", "honest.pt", *self.MODEL, "--reference", "honest.pt"]) == 0
        assert capsys.readouterr().out.startswith("honest.pt: HONEST (score ")

    @pytest.mark.parametrize("model", [(), MODEL])
    def test_a_malicious_file(self, capsys, model):
        assert main(["detect", "malicious.pt", *model, "--json"]) == 1
        said = json.loads(capsys.readouterr().out)
        assert said["verdict"] == "suspicious"
        found = {one["code"] for one in said["findings"]}
        assert "repeated-rows" in found
        assert ("undeclared-layers" in found) == bool(model)

    def test_the_model_that_an_app_ships_and_a_sample(self, capsys):
        assert main(["detect", *self.MODEL, "--sample", "sample.pt", "--json"]) == 0
        assert "owned-rows" in json.loads(capsys.readouterr().out)["statistics"]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "give a FILE"),
            (["missing.pt"], "no file of tensors"),
            (["honest.pt", "--sample", "sample.pt"], "the module that computes"),
            (["honest.pt", *MODEL, "--sample", "honest.pt"], "by these names"),
            (["sample.pt", *MODEL], "does not fit the model"),
        ],
    )
    def test_bad_input_is_one_line(self, words, said, capsys):
        assert main(["detect", *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_the_example_runs(capsys):
    example = ROOT / "examples/detect_payload.py"
    runpy.run_path(str(example))
    said = capsys.readouterr().out
    assert "the declared model: honest" in said
    assert "what was sent: suspicious" in said
