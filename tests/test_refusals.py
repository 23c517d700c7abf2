"""What cannot be used gets one line: where it stands, what is wrong, what there is instead."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import cli
from lightning_recon.errors import instead

ROOT = Path(__file__).parents[1]
MATCHING = ROOT / "tests/conf/matching_tiny.yaml"
LENET = {"class_path": "LeNet", "init_args": {"num_classes": 20}}


def spec(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(key: str, value: Any) -> str:
    """A file that says what the small configuration says, with another value at a key."""
    content = yaml.safe_load(MATCHING.read_text())
    *parents, last = key.split(".")
    place = content
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = copy.deepcopy(value)
    Path("given.yaml").write_text(yaml.safe_dump(content))
    return "given.yaml"


def refused(capfd, *words: str) -> str:
    """The one line on a command that is refused, and writes nothing."""
    capfd.readouterr()
    before = set(Path().rglob("*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cli.py", *words])
        assert cli.main(list(words)) == 2
    assert set(Path().rglob("*")) == before
    lines = [line for line in capfd.readouterr().err.splitlines() if "Seed set" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 600
    for noise in ("Namespace(", "<class", "Union", "Given value", "Does not validate", "init_arg="):
        assert noise not in lines[0]
    return lines[0].removeprefix("error: ")


MODEL, DATA = "model.init_args.", "data.init_args."
MISSPELT = [  # key, value, where the line says it stands, what is meant
    (f"{MODEL}iteration", 3, "model (InvertingGradients)", "iterations"),
    (f"{MODEL}target.init_args.num_class", 3, f"{MODEL}target (LeNet)", "num_classes"),
    (f"{MODEL}defenses", [spec("ClipL2", clip_norn=1.0)], f"{MODEL}defenses (ClipL2)", "clip_norm"),
    (f"{MODEL}priors", [spec("SquaredNorm", weigth=1)], f"{MODEL}priors (SquaredNorm)", "weight"),
    (f"{MODEL}client", spec("FedAvg", epoch=1), f"{MODEL}client (FedAvg)", "epochs"),
    (f"{MODEL}optimizer", spec("torch.optim.Adam", lrr=1), f"{MODEL}optimizer (Adam)", "lr"),
    (
        f"{MODEL}lr_scheduler",
        spec("torch.optim.lr_scheduler.StepLR", step_sise=1),
        f"{MODEL}lr_scheduler (StepLR)",
        "step_size",
    ),
    (f"{DATA}batchsize", 3, "data (SampleImagesDataModule)", "batch_size"),
    (f"{DATA}masks", spec("MaskFolder", foldr="."), f"{DATA}masks (MaskFolder)", "folder"),
    ("audit.null_control", False, "audit.null_control", "audit.null_controls"),
    (
        "audit.extra_metrics",
        {"x": spec("LPIPS", weigths="a")},
        "audit.extra_metrics (LPIPS)",
        "weights",
    ),
    ("trainer.acelerator", "cpu", "trainer.acelerator", "trainer.accelerator"),
    ("trainer.logger", spec("CSVLogger", save_dri="."), "trainer.logger (CSVLogger)", "save_dir"),
    (
        "trainer.callbacks",
        [spec("EarlyStopping", monitr="x")],
        "trainer.callbacks (EarlyStopping)",
        "monitor",
    ),
    ("checkpoint.save_lst", True, "checkpoint.save_lst", "checkpoint.save_last"),
    ("sed_everything", 1, "sed_everything", "seed_everything"),
]
CLASSES = [
    ("model.class_path", "InvertingGradient", "model", "InvertingGradients"),
    ("model.class_path", "lightning_recon.attacks.IDLGG", "model", "IDLG"),
    ("model.class_path", "lightning_recon.atacks.IDLG", "model", "attacks"),
    (f"{MODEL}target", spec("LeNt"), f"{MODEL}target", "LeNet"),
    (f"{MODEL}target", spec("lightning_recon.targets.LeNt"), f"{MODEL}target", "LeNet"),
    (f"{MODEL}client", spec("FedAv"), f"{MODEL}client", "FedAvg"),
    (f"{MODEL}defenses", [spec("ClippL2")], f"{MODEL}defenses", "ClipL2"),
    (f"{MODEL}priors", [spec("SqaredNorm")], f"{MODEL}priors", "SquaredNorm"),
    (f"{MODEL}optimizer", "Adm", f"{MODEL}optimizer", "Adam"),
    (f"{MODEL}lr_scheduler", spec("StepLRR"), f"{MODEL}lr_scheduler", "StepLR"),
    ("data.class_path", "SampleImageDataModule", "data", "SampleImagesDataModule"),
    (f"{DATA}masks", spec("MaskFoldr"), f"{DATA}masks", "MaskFolder"),
    ("audit.extra_metrics", {"x": spec("LPIP")}, "audit.extra_metrics", "LPIPS"),
    ("trainer.logger", spec("CSVLoger"), "trainer.logger", "CSVLogger"),
    ("trainer.callbacks", [spec("EarlyStoping")], "trainer.callbacks", "EarlyStopping"),
]
VALUES = [
    (f"{MODEL}distance", "cosin", f"{MODEL}distance", "cosine"),
    (f"{MODEL}label_inference", "ying", f"{MODEL}label_inference", "yin"),
    (f"{MODEL}client", spec("FedSGD", mode="evall"), f"{MODEL}client.init_args.mode", "eval"),
    (f"{MODEL}compile", "reduce-overheads", f"{MODEL}compile", "reduce-overhead"),
    (f"{DATA}on_missing", "eror", f"{DATA}on_missing", "error"),
    ("audit.on_failure", "recrd", "audit.on_failure", "record"),
    ("trainer.precision", "16-mixd", "trainer.precision", "16-mixed"),
]


@pytest.mark.parametrize(("key", "value", "where", "meant"), [*MISSPELT, *CLASSES, *VALUES])
def test_in_a_file(key, value, where, meant, capfd):
    line = refused(capfd, "test", "--config", write(key, value))
    assert line.startswith("given.yaml: ")
    assert where in line
    guesses = line.partition("did you mean ")[2].partition("?")[0].split(" or ")
    assert guesses[0] == meant


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.init_args.iteration", "3"], "model (InvertingGradients): there is no option "),
        (["--model.iteration", "3"], "did you mean iterations"),
        (["--model.init_arg.iterations", "3"], "did you mean init_args.iterations?"),
        (["--modl.init_args.iterations", "3"], "did you mean --model.init_args.iterations?"),
        (["--model.init_args.target.init_args.num_class=3"], "did you mean num_classes?"),
        (["--data.init_args.batchsize", "3"], "did you mean batch_size?"),
        (["--audit.null_control", "false"], "did you mean --audit.null_controls?"),
        (["--trainer.device", "1"], "did you mean --trainer.devices?"),
        (["--trainr.devices", "1"], "did you mean --trainer.devices?"),
        (["--sed_everything", "1"], "did you mean --seed_everything?"),
        (["--resum", "x"], "did you mean --resume?"),
        (["--confg", "x"], "did you mean --config?"),
        (["--config", str(ROOT / "configs/ldp_imagnet.yaml")], "did you mean ldp_imagenet.yaml?"),
        (["--config", "no/such.yaml"], "no/such.yaml, and no folder "),
        (["--trainer.devices"], "--trainer.devices needs a value behind it"),
        (["--model.init_args.iterations"], "--model.init_args.iterations needs a value behind it"),
        (["stray"], "nothing takes the word stray"),
        (["--model", "InvertingGradient"], "did you mean InvertingGradients"),
        (["--model.init_args.target", "LeNt"], "did you mean LeNet"),
        (["--model.init_args.target.help", "LeNt"], "did you mean LeNet"),
        (["--model.init_args.targt.help", "LeNet"], "did you mean target.help"),
        (["--model.help", "DLGG"], "model: there is no class DLGG; did you mean DLG"),
        (["--data.help", "SampleImage"], "data: there is no class SampleImage"),
        (["--trainer.logger.help", "CSVLoger"], "did you mean CSVLogger?"),
    ],
)
def test_on_the_command_line(words, said, capfd):
    line = refused(capfd, "test", "--config", str(MATCHING), *words)
    assert said in line
    assert not line.startswith(str(MATCHING))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.help"], "put --config FILE first, before --model.help: the file names"),
        (["--data.help"], "put --config FILE first, before --data.help: the file names"),
        (["--model.init_args.iterations", "3"], "before --model.init_args.iterations: the file"),
        (["--model.init_args.iterations=3"], "before --model.init_args.iterations: the file"),
    ],
)
def test_what_stands_before_the_file_is_told_its_place(words, said, capfd):
    line = refused(capfd, "test", *words, "--config", str(MATCHING))
    assert said in line
    assert "put --config" not in refused(capfd, "test", "--config", str(MATCHING), "--model.x", "3")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tset"], "did you mean test?"),
        (["atacks"], "did you mean attacks"),
        (["sweep", "--confg", "x"], "did you mean --config?"),
        (["sweep", "--config", str(MATCHING), "--dryrun"], "did you mean --dry-run?"),
        (["attacks", "--jsn"], "did you mean --json?"),
        (["compare", "a", "--outptu", "x"], "did you mean --output?"),
        (["doctor", "--config", "x"], "did you mean --configs?"),
        (["completion", "bsh"], "did you mean bash?"),
    ],
)
def test_of_other_commands(words, said, capfd):
    assert said in refused(capfd, *words)


AXIS = {"key": "model.init_args.iterations", "values": [1, 2]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"axs": {"a": AXIS}}, "sweep.yaml: there is no key axs; did you mean axes?"),
        ({"axes": {"a": {**AXIS, "vals": [1]}}}, "axis a: there is no key vals"),
        ({"axes": {"a": {**AXIS, "key": "model.init_arg.iterations"}}}, "did you mean init_args?"),
        (
            {"axes": {"a": {**AXIS, "key": "model.init_args.iteration"}}},
            "the cell of a 1: model (InvertingGradients): there is no option iteration; did you",
        ),
        (
            {"axes": {"a": {"x": {"model.init_args.target.init_args.num_class": 2}}}},
            "the cell of a x: model.init_args.target (LeNet): there is no option num_class; did",
        ),
        (
            {"axes": {"a": {"key": "model.init_args.distance", "values": ["cosin"]}}},
            "the cell of a cosin: model.init_args.distance (InvertingGradients): takes squared, ",
        ),
        (
            {"axes": {"a": {"key": "model.init_args.num_restarts", "values": [1, 0]}}},
            "the cell of a 0: model: InvertingGradients: num_restarts must be at least 1, not 0",
        ),
        (
            {"axes": {"a": {"key": "model.init_args.seed", "values": [0, 3]}}},
            "sweep.yaml: model.init_args.seed is 3, but all random numbers of a run begin with",
        ),
        ({"axes": {"a": AXIS}, "trainer": {"device": 1}}, "did you mean devices?"),
        ({"axes": {"a": AXIS}, "base": f"{MATCHING}x"}, "did you mean matching_tiny.yaml?"),
    ],
)
def test_of_a_sweep(content, said, capfd):
    Path("sweep.yaml").write_text(yaml.safe_dump({"base": str(MATCHING), **content}))
    assert said in refused(capfd, "sweep", "--config", "sweep.yaml", "--dry-run")


OWN = """
import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from lightning_recon.attacks import InvertingGradients
from lightning_recon.clients import FedSGD
from lightning_recon.data import SampleImagesDataModule
from lightning_recon.defenses import SignSGD
from lightning_recon.metrics import MSE
from lightning_recon.priors import SquaredNorm
from lightning_recon.refiners import AverageRefiner
from lightning_recon.targets import LeNet


def check(level):
    if level == 1:
        raise ValueError(f"level must be 0, not {level}")
    if level == 2:
        raise TypeError("level is of the wrong type\\n  (in two lines)")
    if level == 3:
        raise RuntimeError("no such level")
    assert level < 4


class Plain(nn.Linear): ...


class Net: ...
"""
KINDS = {  # by name: base, the key, how the value stands there, and the key that is told
    "Attack": ("InvertingGradients", "model", None, "model"),
    "Target": ("LeNet", f"{MODEL}target", None, f"{MODEL}target"),
    "Defense": ("SignSGD", f"{MODEL}defenses", 1, f"{MODEL}defenses.1"),
    "Client": ("FedSGD", f"{MODEL}client", None, f"{MODEL}client"),
    "Prior": ("SquaredNorm", f"{MODEL}priors", 1, f"{MODEL}priors.1"),
    "Rate": ("torch.optim.Adam", f"{MODEL}optimizer", None, f"{MODEL}optimizer"),
    "Data": ("SampleImagesDataModule", "data", None, "data"),
    "Metric": ("MSE", "audit.extra_metrics", "x", "audit.extra_metrics.x"),
    "Logger": ("CSVLogger", "trainer.logger", None, "trainer.logger"),
    "Called": ("Callback", "trainer.callbacks", 0, "trainer.callbacks.0"),
}
ARGUMENTS = {
    "Attack": {"target": LENET},
    "Target": {"num_classes": 20},
    "Prior": {"weight": 1.0},
    "Logger": {"save_dir": "."},
}
BESIDE = {"Defense": spec("SignSGD"), "Prior": spec("SquaredNorm", weight=1.0)}


@pytest.fixture(scope="module", autouse=True)
def _own_module(tmp_path_factory):
    text = OWN
    for name, (base, *_) in KINDS.items():
        text += f"class {name}({base}):\n"
        first = "params, " if name == "Rate" else ""
        text += f"    def __init__(self, {first}level: int = 0, **kwargs):\n"
        text += f"        check(level)\n        super().__init__({first}**kwargs)\n"
    folder = tmp_path_factory.mktemp("modules")
    (folder / "own_refusals.py").write_text(text)
    (folder / "needy.py").write_text("import not_there_at_all\n")
    (folder / "faulty.py").write_text("def f(:\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.mark.parametrize(
    ("level", "reason"),
    [
        (1, "level must be 0, not 1"),
        (2, "level is of the wrong type (in two lines); given: level 2"),
        (3, "no such level; given: level 3"),
        (4, "AssertionError"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_constructor_says_why(kind, level, reason, capfd):
    _, key, place, where = KINDS[kind]
    value: Any = spec(f"own_refusals.{kind}", level=level, **ARGUMENTS.get(kind, {}))
    if isinstance(place, int):
        value = [*[BESIDE.get(kind)] * place, value]
    elif place:
        value = {place: value}
    line = refused(capfd, "test", "--config", write(key, value))
    assert line == f"{where} ({kind}): {reason}"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (f"{MODEL}num_restarts", 0, "model: InvertingGradients: num_restarts must be at least 1"),
        (f"{MODEL}defenses", [spec("ClipL2", clip_norm=-1)], f"{MODEL}defenses.0: ClipL2: clip_n"),
        (f"{MODEL}optimizer", spec("torch.optim.Adam", lr=-1), f"{MODEL}optimizer (Adam): Invalid"),
        ("audit.num_candidates", -1, "audit.num_candidates must be at least 0, not -1"),
        ("checkpoint.save_top_k", -5, "checkpoint (ModelCheckpoint): Invalid value for save_top_k"),
        (
            "trainer.callbacks",
            [spec("EarlyStopping", monitor="x", mode="up")],
            "trainer.callbacks.0 (EarlyStopping): `mode` can be min, max, got up",
        ),
        ("trainer.devices", "x", "should be an int > 0; given: devices x"),
        ("trainer.profiler", "simpel", "'xla']; given: profiler simpel"),
        ("trainer.max_epochs", -5, "trainer: `max_epochs` must be a non-negative integer or -1."),
        ("trainer.accelerator", "cpuu", "trainer: You selected an invalid accelerator name"),
        ("trainer.precision", "12", "trainer.precision: takes 64, 32, 16, "),
        ("trainer.limit_test_batches", 1.5, "invalid value 1.5 for limit_test_batches"),
        (
            f"{MODEL}target",
            spec("ModuleTarget", num_classes=20, module=spec("torch.nn.Linear", in_features=-1,
                 out_features=3)),
            "target.init_args.module (Linear): Trying to create tensor with negative dimension",
        ),
        (f"{MODEL}target", spec("own_refusals.Nett"), "there is no Nett in own_refusals; did you"),
        (f"{MODEL}target", spec("own_refusals.Plain"), "own_refusals.Plain is no class below Tar"),
        (f"{MODEL}target", spec("elsewhere.Net"), "there is no module elsewhere; put the folder"),
        (f"{MODEL}target", spec("needy.Net"), "needy.Net cannot be imported: it needs the module "),
        (f"{MODEL}target", spec("faulty.Net"), "the module faulty cannot be imported: invalid syn"),
        (f"{MODEL}target", 3, "Expected a class below Target, by class_path and init_args"),
    ],
)  # fmt: skip
def test_the_reason_is_the_real_one(key, value, said, capfd):
    assert said in refused(capfd, "test", "--config", write(key, value))


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("lenet", ["LeNet", "MLP"], "; did you mean LeNet? There are LeNet, MLP"),
        ("zzz", ["a", "b"], "; there are a, b"),
        ("option7", [f"option{n}0" for n in range(20)], "; did you mean option70"),
        ("zzz", [f"option{n}" for n in range(20)], ""),
        ("zzz", [], ""),
    ],
)
def test_names_instead(name, known, said):
    assert instead(name, known).startswith(said)
    assert len(instead(name, known)) < 100
