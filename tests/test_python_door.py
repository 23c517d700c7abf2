"""From a model and an update in memory to images, by the door that the command line uses."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from attack_helpers import bind
from contract_rows import random, random_batch
from pytorch_lightning import Trainer
from torch import nn

import lightning_recon
from lightning_recon import reconstruct, score
from lightning_recon.attacks import InvertingGradients, LinearLayerInversion, RobbingTheFed
from lightning_recon.audit.auditor import Auditor
from lightning_recon.clients import FedAvg, FedSGD
from lightning_recon.data import CapturedUpdatesDataModule, SampleImagesDataModule
from lightning_recon.errors import InputError
from lightning_recon.observation import Reconstruction
from lightning_recon.targets import ConvNet, LeNet, ModuleTarget

DOCS = Path(__file__).parents[1] / "docs/python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
SHAPE = (3, 16, 16)
LABELS = torch.tensor([1, 4])


class Net(nn.Module):
    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.LazyLinear(num_classes)

    def forward(self, images):
        return self.fc(F.relu(self.norm(self.conv(images))).flatten(1))


def net_of(size=16):
    net = Net()
    net.eval()(torch.zeros(1, 3, size, size))
    return net.train()


def matching(net, **settings):
    return InvertingGradients(ModuleTarget(net, 10), iterations=2, **settings)


def gradient_of(net):
    loss = F.cross_entropy(net(random(2, *SHAPE)), LABELS)
    names = [name for name, _ in net.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, net.parameters()), strict=True))


def trained(net):
    """The state dicts before and after two steps, as a client would do them."""
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(net(random(2, *SHAPE)), LABELS).backward()
        optimizer.step()
    after = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.load_state_dict(before)
    return before, after


@pytest.mark.parametrize("place", range(len(BLOCKS)))
def test_what_the_documentation_says_runs(place, capsys):
    """At most ten lines, and what it says is there is there."""
    block = re.sub(r"iterations=\d+", "iterations=2", BLOCKS[place])
    assert len(block.strip().splitlines()) <= 10
    net = net_of(32)
    images = random(2, 3, 32, 32)
    before = net.state_dict()
    after = {name: tensor + 0.001 for name, tensor in before.items()}
    given = {"net": net, "images": images, "labels": LABELS, "before": before, "after": after}
    given |= {"Net": LeNet, "public_images": images}
    if "nothing" in block:  # goes on from the first
        exec(re.sub(r"iterations=\d+", "iterations=2", BLOCKS[0]), given)
    exec(block, given)
    if "nothing" in block:
        assert len(capsys.readouterr().out.splitlines()) == len(images)
    if "found" in given:
        assert given["found"].images.shape == images.shape
        assert 0 <= given["found"].images.min() <= given["found"].images.max() <= 1


def test_an_image_is_found():
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    image = random(1, *SHAPE)
    gradient = torch.autograd.grad(F.cross_entropy(net(image), LABELS[:1]), net.parameters())
    found = reconstruct(LinearLayerInversion(ModuleTarget(net, 10)), gradient, image_shape=SHAPE)
    assert torch.allclose(found.images, image, atol=1e-4)


@pytest.mark.parametrize("labels", [LABELS, None])
def test_the_trainer_finds_the_same_bits(tmp_path, labels):
    """``predict`` on a file, and the door on what is in memory."""
    net = net_of()
    gradient = gradient_of(net)
    captured = {"update": gradient, "num_samples": 2, "labels": labels, "image_shape": SHAPE}
    torch.save(captured, tmp_path / "one.pt")
    trainer = Trainer(
        logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu"
    )
    data = CapturedUpdatesDataModule(str(tmp_path))
    (expected,) = trainer.predict(matching(net), datamodule=data)
    found = reconstruct(matching(net), gradient, image_shape=SHAPE, num_samples=2, labels=labels)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)


def test_a_played_round_gives_the_same_bits():
    """What ``fit`` and ``test`` play, handed over from outside."""
    attack = bind(matching(net_of()), torch.empty(0, *SHAPE), batch_size=2)
    observation = attack.federation.play(random_batch(2), 3)
    with attack.computing():
        expected = attack.reconstruct(observation)
    found = reconstruct(
        attack, observation.update, image_shape=SHAPE, labels=observation.labels, client=3
    )
    assert torch.equal(found.images, expected.images)


FORMS = {
    "list": lambda update: list(update.values()),
    "numpy": lambda update: [tensor.numpy() for tensor in update.values()],
    "double": lambda update: {name: tensor.double() for name, tensor in update.items()},
    "data parallel": lambda update: {f"module.{name}": part for name, part in update.items()},
    "compiled": lambda update: {f"_orig_mod.{name}": part for name, part in update.items()},
    "of Lightning": lambda update: {f"model.{name}": part for name, part in update.items()},
    "inside": lambda update: {name.replace(".", "._orig_mod."): p for name, p in update.items()},
    "parameters": lambda update: {name: nn.Parameter(part) for name, part in update.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_gradient(form):
    net = net_of()
    gradient = gradient_of(net)
    expected = reconstruct(matching(net), gradient, image_shape=SHAPE, labels=LABELS)
    found = reconstruct(
        matching(net), FORMS[form](gradient), image_shape=SHAPE, labels=LABELS.tolist()
    )
    assert torch.equal(found.images, expected.images)


@pytest.mark.parametrize("kind", [dict, lambda state: [part.numpy() for part in state.values()]])
def test_two_state_dicts(kind):
    net = net_of()
    before, after = trained(net)
    client = FedAvg(0.1, epochs=2)
    attack = matching(net, client=client, known=["labels", "num_samples", "client", "buffers"])
    found = reconstruct(attack, kind(after), before=kind(before), image_shape=SHAPE, labels=LABELS)
    change = {name: after[name] - before[name] for name, _ in net.named_parameters()}
    expected = reconstruct(matching(net, client=client), change, image_shape=SHAPE, labels=LABELS)
    assert torch.equal(found.images, expected.images)


def test_a_parameter_that_plays_no_part():
    net = net_of()
    gradient = gradient_of(net)
    values = [None if name == "norm.bias" else part for name, part in gradient.items()]
    found = reconstruct(matching(net), values, image_shape=SHAPE, labels=LABELS)
    assert found.images.isfinite().all()


def test_the_payload_of_a_malicious_server():
    public = random(8, *SHAPE, seed=1)
    attack = RobbingTheFed(LeNet(5, 16), num_bins=16)
    payload = bind(attack, public).federation.payload
    update = FedSGD()(payload, random_batch(1), seed=0)
    found = reconstruct(attack, update, image_shape=SHAPE, public_images=public)
    assert torch.allclose(found.images, random_batch(1).images, atol=1e-3)


def without(update, name):
    return {other: part for other, part in update.items() if other != name}


WRONG = {
    "one is missing": (lambda g: without(g, "fc.bias"), {}, "such as fc.bias"),
    "another name": (
        lambda g: {**without(g, "fc.bias"), "head.bias": g["fc.bias"]},
        {},
        "such as fc.bias, and the nearest found is head.bias",
    ),
    "one too many": (lambda g: {**g, "extra": torch.zeros(1)}, {}, "nothing takes extra"),
    "another shape": (
        lambda g: {**g, "fc.bias": torch.zeros(3)}, {}, "fc.bias is 3, not 10"
    ),
    "a list too short": (lambda g: list(g.values())[1:], {}, "5 tensors"),
    "labels of other classes": (lambda g: g, {"labels": [1, 10]}, "from 0 to 9, not"),
    "labels that are shares": (lambda g: g, {"labels": torch.rand(2)}, "from 0 to 9, not"),
    "a count": (lambda g: g, {"num_samples": 3}, "2 labels, but num_samples is 3"),
    "no samples": (lambda g: g, {"num_samples": 0, "labels": None}, "at least 1, not 0"),
    "channels last": (lambda g: g, {"image_shape": (16, 16, 3)}, "images of 16x16x3"),
    "of FedSGD": (lambda g: g, {"before": {}}, "FedAvg(learning_rate=...)"),
    "NaN": (lambda g: {**g, "fc.bias": g["fc.bias"] * torch.nan}, {}, "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_told_in_one_line(case):
    change, settings, words = WRONG[case]
    net = net_of()
    arguments = {"image_shape": SHAPE, "labels": LABELS, **settings}
    with pytest.raises(InputError) as error:
        reconstruct(matching(net), change(gradient_of(net)), **arguments)
    assert words in str(error.value)
    assert str(error.value).isprintable()


class Asks(nn.Module):
    """Dropout by the mode of a part that is no layer of torch's."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(768, 10)

    def forward(self, images):
        return self.fc(F.dropout(images.flatten(1), training=self.training))


class TestMode:
    """A module is handed over in the mode in which the client computed."""

    def find(self, net, client, gradient=None, **settings):
        gradient = gradient_of(net) if gradient is None else gradient
        attack = matching(net, client=client)
        return reconstruct(attack, gradient, image_shape=SHAPE, labels=LABELS, **settings)

    @pytest.mark.parametrize("make", [net_of, Asks])
    @pytest.mark.parametrize("mode", ["train", "eval"])
    def test_another_mode_than_the_clients_is_refused_with_the_remedy(self, make, mode):
        net = make().train(mode == "train")
        other = "eval" if mode == "train" else "train"
        with pytest.raises(InputError) as error:
            self.find(net, FedSGD(mode=other))
        assert f'in {mode} mode, set client=FedSGD(mode="{mode}")' in str(error.value)
        assert f"model.{other}()" in str(error.value)
        assert str(error.value).isprintable()
        assert self.find(net, FedSGD(mode=mode)).images.shape[0] == 2
        assert net.training == (mode == "train")

    def test_a_model_that_runs_in_one_mode_only(self):
        class Auxiliary(nn.Linear):
            def forward(self, images):
                logits = super().forward(images.flatten(1))
                return (logits, logits) if self.training else logits

        net = Auxiliary(768, 10).eval()
        gradient = gradient_of(net)
        assert self.find(net, FedSGD(mode="eval"), gradient).images.isfinite().all()
        with pytest.raises(InputError, match="the model is in train mode"):
            self.find(net.train(), FedSGD(mode="eval"), gradient)

    def test_where_no_layer_asks_for_the_mode_nothing_is_said(self):
        net = nn.Sequential(nn.Flatten(), nn.Dropout(0.0), nn.Linear(768, 10)).eval()
        assert self.find(net, FedSGD()).images.isfinite().all()

    def test_frozen_batch_norm_is_in_no_clients_mode(self):
        net = net_of()
        net.norm.eval()
        with pytest.raises(InputError, match=r"in eval mode, such as norm"):
            self.find(net, FedSGD())

    def test_two_state_dicts(self):
        net = net_of()
        before, after = trained(net)
        with pytest.raises(InputError, match=r'client=FedAvg\(..., mode="eval"\)'):
            self.find(net.eval(), FedAvg(0.1, epochs=2), after, before=before)

    def test_a_class_leaves_its_mode_open(self):
        target = ModuleTarget(lambda: net_of(), 10)
        attack = InvertingGradients(target, client=FedSGD(mode="eval"), iterations=1)
        gradient = {name: part.clone() for name, part in target.named_parameters()}
        assert reconstruct(attack, gradient, image_shape=SHAPE, labels=LABELS).images.any()

    def test_a_file(self, tmp_path):
        """A Trainer changes modes by itself: what counts is how the module came."""
        net = net_of().eval()
        captured = {"update": gradient_of(net), "num_samples": 2, "labels": None}
        torch.save({**captured, "image_shape": SHAPE}, tmp_path / "one.pt")
        trainer = Trainer(
            logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu"
        )
        data = CapturedUpdatesDataModule(str(tmp_path))
        with pytest.raises(InputError, match="the model is in eval mode"):
            trainer.predict(matching(net), datamodule=data)
        assert trainer.predict(matching(net, client=FedSGD(mode="eval")), datamodule=data)


def test_batch_norm_in_training_mode_hides_contrast():
    """The bound that docs/python.md states: the gradient is the same."""
    net, images = net_of(), random(2, *SHAPE)

    def change(mode):
        net.train(mode)
        both = [
            torch.cat([part.flatten() for part in torch.autograd.grad(loss, net.parameters())])
            for loss in (F.cross_entropy(net(scale * images), LABELS) for scale in (1.0, 0.5))
        ]
        return (both[0] - both[1]).norm() / both[0].norm()

    assert change(True) < 1e-3
    assert change(False) > 0.1


@pytest.fixture(scope="module")
def data():
    data = SampleImagesDataModule(batch_size=3, num_clients=1, image_size=16, num_public=8)
    data.setup()
    return data


class TestScore:
    """The scores of the door are those of ``test``."""

    def found(self, images):
        noisy = images + 0.02 * torch.randn(
            images.shape, generator=torch.Generator().manual_seed(0)
        )
        return Reconstruction(noisy.flip(0).clamp(0, 1), None, torch.zeros(len(images)), {})

    def test_a_row_is_that_of_an_audit(self, data):
        truth = data.client(0)
        attack = bind(matching(net_of()), data.public_images(), batch_size=3)
        expected, _ = Auditor(data, null_controls=False, num_candidates=11).audit(
            attack, 0, self.found(truth.images), 0.0
        )
        rows = score(
            self.found(truth.images),
            truth.images,
            truth.labels,
            public_images=data.public_images(),
            public_labels=data.public_labels(),
        )
        for row, other in zip(rows, expected.rows, strict=True):
            assert row["matched"] == 2 - row["image"]
            assert row["recovered_convincing"] == 1
            assert row == {name: other[name] for name in row} | {"index": row["image"]}

    def test_what_the_attack_makes_of_nothing_takes_the_conviction(self, data):
        images, public = data.client(0).images, data.public_images()
        (row, *_) = score(
            self.found(images), images, public_images=public, nothing=self.found(images)
        )
        assert row["psnr_noise_only"] == row["psnr"]
        assert (row["recovered"], row["recovered_convincing"]) == (1, 0)

    def test_an_image_without_a_reconstruction_counts_with_the_mean_image(self, data):
        images, public = data.client(0).images, data.public_images()
        nothing = self.found(images)._replace(images=images[:0])
        for row in score(nothing, images, public_images=public):
            assert (row["matched"], row["identified"]) == (-1, 0)
            assert row["psnr"] == row["psnr_mean_image"]

    def test_other_shapes_are_refused(self, data):
        images = data.client(0).images
        with pytest.raises(InputError, match="public_images must be images of"):
            score(self.found(images), images, public_images=images[..., :8])
        with pytest.raises(InputError, match="labels must be 3"):
            score(self.found(images), images, [1])


def test_before_must_be_what_the_target_holds():
    net = net_of()
    before, after = trained(net)
    with pytest.raises(InputError, match=r"before is not what the target holds: conv\.weight"):
        reconstruct(
            matching(net, client=FedAvg(0.1)),
            before,
            before=after,
            image_shape=SHAPE,
            num_samples=2,
        )


def test_granted_buffers_must_be_there():
    with pytest.raises(InputError, match="no buffers"):
        reconstruct(
            InvertingGradients(ConvNet(width=2), known=["buffers"], iterations=1),
            FedSGD()(ConvNet(width=2), random_batch(2), seed=0),
            image_shape=SHAPE,
            num_samples=2,
        )


def test_the_package_alone_is_light():
    program = "import sys, lightning_recon; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    with pytest.raises(AttributeError, match="nothing"):
        _ = lightning_recon.nothing
