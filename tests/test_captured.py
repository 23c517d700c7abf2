"""Captured updates in whatever form they come: the same images, or one line."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from contract_rows import random
from pytorch_lightning import Trainer
from torch import nn

from lightning_recon.attacks import InvertingGradients
from lightning_recon.clients import FedAvg
from lightning_recon.data import CapturedUpdatesDataModule
from lightning_recon.errors import InputError
from lightning_recon.runs.callback import Audit
from lightning_recon.targets import ConvNet, LeNet
from lightning_recon.updates import DataSpec

SHAPE = (3, 16, 16)
LABELS = torch.tensor([1, 4])


def gradient_of(model):
    loss = F.cross_entropy(model(random(2, *SHAPE)), LABELS)
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, model.parameters()), strict=True))


def write(path, update, **changes):
    content = {"update": update, "num_samples": 2, "labels": LABELS, "image_shape": SHAPE}
    torch.save({**content, **changes}, path)


def observed(folder, target, known=("labels", "num_samples", "client"), **settings):
    """What the attack is given of the first file."""
    attack = InvertingGradients(target, iterations=1, known=list(known), **settings)
    data = CapturedUpdatesDataModule(str(folder), assumed_num_samples=3)
    attack.bind(data.spec, data.public_images())
    return data.play(attack.federation, 0)


def cast(kind):
    return lambda update: {name: part.to(kind) for name, part in update.items()}


FORMS = {
    "double": (cast(torch.float64), 0),
    "half": (cast(torch.float16), 1e-3),
    "bfloat16": (cast(torch.bfloat16), 1e-2),
    "sparse": (lambda update: {name: part.to_sparse() for name, part in update.items()}, 0),
    "numpy": (lambda update: {name: part.numpy() for name, part in update.items()}, 0),
    "numpy double": (lambda u: {name: p.double().numpy() for name, p in u.items()}, 0),
    "list": (lambda update: list(update.values()), 0),
    "tuple of arrays": (lambda update: tuple(part.numpy() for part in update.values()), 0),
    "parameters": (lambda update: {name: nn.Parameter(p) for name, p in update.items()}, 0),
    "module.": (lambda update: {f"module.{name}": part for name, part in update.items()}, 0),
    "_module.": (lambda update: {f"_module.{name}": part for name, part in update.items()}, 0),
    "model.": (lambda update: {f"model.{name}": part for name, part in update.items()}, 0),
    "other order": (lambda update: dict(reversed(update.items())), 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_update(tmp_path, form):
    change, tolerance = FORMS[form]
    target = LeNet(image_size=16)
    gradient = gradient_of(target)
    write(tmp_path / "a.pt", change(gradient))
    found = observed(tmp_path, target).update
    assert list(found) == list(gradient)
    for name, part in gradient.items():
        assert found[name].dtype == part.dtype
        assert torch.allclose(found[name], part, rtol=tolerance, atol=tolerance * 1e-2)


def test_a_whole_state_dict_is_the_update_of_its_parameters(tmp_path):
    target = ConvNet(width=2)
    change = {name: -0.1 * part for name, part in gradient_of(target).items()}
    buffers = {name: torch.ones_like(part) for name, part in target.named_buffers()}
    assert any(part.dtype == torch.int64 for part in buffers.values())
    write(tmp_path / "a.pt", {name: {**change, **buffers}[name] for name in target.state_dict()})
    observation = observed(tmp_path, target, client=FedAvg(0.1))
    assert list(observation.update) == list(change)
    assert all(torch.equal(observation.update[name], change[name]) for name in change)
    assert observation.buffers is None
    with pytest.raises(InputError, match=r"a\.pt holds no buffers, which are granted"):
        observed(tmp_path, target, client=FedAvg(0.1), known=["labels", "buffers"])


def test_buffers_in_the_forms_of_the_update(tmp_path):
    target = ConvNet(width=2)
    values = {
        f"module.{name}": part.double().numpy() + 1
        for name, part in target.named_buffers()
        if "num_batches" not in name
    }
    write(tmp_path / "a.pt", gradient_of(target), buffers=values)
    found = observed(tmp_path, target, known=["labels", "buffers"]).buffers
    assert torch.equal(found["features.1.running_var"], torch.full((2,), 2.0))


@pytest.mark.parametrize(
    ("num_samples", "labels", "expected"),
    [(2, None, 2), (None, LABELS, 2), (None, None, 3), (2, LABELS, 2)],
)
def test_how_many_samples(tmp_path, num_samples, labels, expected):
    target = LeNet(image_size=16)
    write(tmp_path / "a.pt", gradient_of(target), num_samples=num_samples, labels=labels)
    assert observed(tmp_path, target).num_samples == expected
    data = CapturedUpdatesDataModule(str(tmp_path), assumed_num_samples=3)
    assert data.spec == DataSpec(SHAPE, None, expected)
    assert ("3 samples assumed" in data.describe()) is (expected == 3)


@pytest.mark.parametrize(
    "labels", [LABELS.int(), LABELS.numpy(), LABELS.tolist(), tuple(LABELS.tolist())]
)
def test_labels_of_any_form(tmp_path, labels):
    write(tmp_path / "a.pt", gradient_of(LeNet(image_size=16)), labels=labels)
    assert torch.equal(observed(tmp_path, LeNet(image_size=16)).labels, LABELS)


WRONG = {
    "from one": ({"labels": torch.tensor([1, 10])}, "0 to 9, not 10, .* 10 classes; if they count"),
    "negative": ({"labels": torch.tensor([1, -1])}, "from 0 to 9, not -1, for the target has 10"),
    "one-hot": ({"labels": torch.eye(10)[:2]}, "not 2x10 numbers; of one-hot labels"),
    "another name": (
        {"update": lambda u: {("head.bias" if n == "classifier.bias" else n): u[n] for n in u}},
        "such as classifier.bias, and the nearest found is head.bias",
    ),
    "one too many": ({"update": lambda u: {**u, "x": u["classifier.bias"]}}, "nothing takes x"),
    "a shape": ({"update": lambda u: {**u, "classifier.bias": torch.ones(3)}}, "is 3, not 10"),
    "a list too short": ({"update": lambda u: list(u.values())[1:]}, "9 tensors"),
    "too large": (
        {"update": lambda u: {n: p.double() * 1e300 for n, p in u.items()}},
        "NaN or infinity in parameter",
    ),
    "words": ({"update": lambda u: {**u, "note": "best"}}, "not one with a str in it"),
    "a path": ({"update": lambda _: "update.pt"}, "not a str"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_names_the_file_in_one_line(tmp_path, case):
    changes, words = WRONG[case]
    target = LeNet(image_size=16)
    changes = {"update": lambda update: update, **changes}
    changes["update"] = changes["update"](gradient_of(target))
    write(tmp_path / "a.pt", **changes)
    with pytest.raises(InputError, match=words) as error:
        observed(tmp_path, target)
    assert str(tmp_path / "a.pt") in str(error.value)
    assert str(error.value).isprintable()


def test_images_that_are_no_squares(tmp_path):
    target = LeNet(image_size=[16, 24])
    images = random(2, 3, 16, 24)
    loss = F.cross_entropy(target(images), LABELS)
    write(
        tmp_path / "a.pt",
        list(torch.autograd.grad(loss, target.parameters())),
        image_shape=[3, 16, 24],
    )
    assert observed(tmp_path, target).num_samples == 2


def test_advice_names_no_option_that_captured_updates_lack(tmp_path):
    write(tmp_path / "a.pt", gradient_of(LeNet(image_size=16)))
    data = CapturedUpdatesDataModule(str(tmp_path))
    with pytest.raises(InputError) as error:
        InvertingGradients(LeNet(image_size=32)).bind(data.spec)
    assert "in the data" not in str(error.value)


@pytest.mark.parametrize("labels", [LABELS, None])
def test_labels_are_granted_where_a_file_holds_them(tmp_path, labels):
    target = LeNet(image_size=16)
    (tmp_path / "captured").mkdir()
    write(tmp_path / "captured/a.pt", gradient_of(target), labels=labels)
    audit = Audit()
    trainer = Trainer(
        logger=False, default_root_dir=tmp_path, callbacks=[audit], enable_progress_bar=False,
        enable_checkpointing=False, accelerator="cpu",
    )  # fmt: skip
    attack = InvertingGradients(target, iterations=1)
    trainer.predict(attack, datamodule=CapturedUpdatesDataModule(str(tmp_path / "captured")))
    results = SimpleNamespace(**json.loads((tmp_path / "results.json").read_text()))
    granted = ["labels"] if labels is not None else []
    assert results.oracles == [*granted, "num_samples", "client"]
    assert "captured: 1 updates in" in results.data["description"]
    assert "Given beyond that (oracles)" in (tmp_path / "report.html").read_text()
