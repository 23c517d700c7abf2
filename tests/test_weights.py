"""Files of weights as trainers write them are loaded; what does not fit is told in one line."""

import pickle

import pytest
import torch

from lightning_recon.errors import InputError
from lightning_recon.targets import ConvNet, LeNet
from lightning_recon.targets.base import load_weights
from lightning_recon.targets.names import misfit, under_wanted_names, weights_in

TRAINED = ConvNet(width=2, seed=7).state_dict()


def renamed(change):
    return {change(name): tensor for name, tensor in TRAINED.items()}


def prefixed(prefix):
    return renamed(lambda name: prefix + name)


FORMS = {
    "state_dict": {"state_dict": TRAINED, "epoch": 3},
    "model": {"model": TRAINED, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3},
    "model_state_dict": {"model_state_dict": TRAINED, "optimizer_state_dict": {}},
    "net": {"net": TRAINED, "acc": 93.1},
    "two keys": {"model": {"state_dict": TRAINED}},
    "DataParallel": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "Opacus": prefixed("_module."),
    "FSDP": prefixed("_fsdp_wrapped_module."),
    "compiled and parallel": prefixed("module._orig_mod."),
    "parallel and compiled": prefixed("_orig_mod.module."),
    "a compiled part": renamed(lambda name: name.replace("features.", "features._orig_mod.")),
    "Lightning": {"state_dict": prefixed("model."), "epoch": 3, "pytorch-lightning_version": "2"},
    "Lightning and compiled": {"state_dict": prefixed("model._orig_mod.")},
    "under another name": {"state_dict": prefixed("my.classifier.")},
    "half": {
        name: part.half() if part.is_floating_point() else part for name, part in TRAINED.items()
    },
    "old": {name: part for name, part in TRAINED.items() if "num_batches" not in name},
    "old Lightning": {f"model.{n}": part for n, part in TRAINED.items() if "num_batches" not in n},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_loaded(tmp_path, form):
    torch.save(FORMS[form], tmp_path / "weights.pt")
    model = ConvNet(width=2)
    load_weights(model, str(tmp_path / "weights.pt"))
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, TRAINED[name], atol=1e-3), name


WITHOUT_ONE = {name: part for name, part in TRAINED.items() if name != "classifier.bias"}
WRONG = {
    "extra": ({**TRAINED, "ema.decay": torch.tensor(0.9)}, "nothing takes ema.decay"),
    "missing": (WITHOUT_ONE, "1 of 20 names are missing, such as classifier.bias"),
    "renamed": (
        {**WITHOUT_ONE, "head.bias": TRAINED["classifier.bias"]},
        "such as classifier.bias, and the nearest found is head.bias",
    ),
    "shape": (ConvNet(7, width=2).state_dict(), "classifier.weight is 7x8, not 10x8"),
    "other model": (LeNet().state_dict(), "features.1.weight, and the nearest found is features."),
    "optimizer": ({"optimizer": {}, "epoch": 3}, "holds no weights by name"),
    "two of a name": (
        {**prefixed("module."), **TRAINED}, "nothing takes module.features.0.weight",
    ),
    "text": ({**TRAINED, "note": "best"}, "nothing takes note"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_told(tmp_path, case):
    content, words = WRONG[case]
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(InputError) as error:
        load_weights(ConvNet(width=2), str(tmp_path / "weights.pt"))
    text = str(error.value)
    assert words in text
    assert text.isprintable()
    assert len(text) < 500 + len(str(tmp_path))


def test_a_pickled_model_is_not_loaded_and_no_way_is_shown(tmp_path):
    torch.save(ConvNet(width=2), tmp_path / "model.pt")
    with pytest.raises(InputError, match="is not unpickled; save the state_dict") as error:
        load_weights(ConvNet(width=2), str(tmp_path / "model.pt"))
    assert "weights_only" not in str(error.value)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(ConvNet(width=2)))
    with pytest.raises(InputError, match="no readable weights file"):
        load_weights(ConvNet(width=2), str(tmp_path / "plain.pkl"))


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        (["a.b"], ["a.b"], ["a.b"]),
        (["module.a.b"], ["a.b"], ["a.b"]),
        (["module.a.b"], ["module.a.b"], ["module.a.b"]),
        (["a.b", "c.d"], ["model.a.b", "model.c.d"], ["model.a.b", "model.c.d"]),
        (["module.a.b"], ["model.a.b"], ["model.a.b"]),
        (["net.a.b", "loss.w"], ["a.b"], ["a.b", "loss.w"]),
        (["x.w", "y.w"], ["w"], ["w", "y.w"]),
        (["p", "q"], ["r"], ["p", "q"]),
        ([], ["r"], []),
    ],
)
def test_names(found, wanted, expected):
    assert list(under_wanted_names(dict.fromkeys(found), wanted)) == expected


def test_what_holds_weights():
    tensors = {"a": torch.zeros(1)}
    assert weights_in(tensors) is tensors
    assert weights_in({}) == {}
    for content in (None, 3, [tensors], {0: torch.zeros(1)}, {"a": 3}, {"state_dict": 3}):
        assert weights_in(content) is None


def test_fits():
    assert misfit(TRAINED, TRAINED) is None
