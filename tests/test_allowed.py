"""A configuration names classes that belong where they stand, and runs no function."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_recon.commands.lightning import main
from lightning_recon.runs.resume import header

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests/conf/ldp_tiny.yaml"
MATCHING = ROOT / "tests/conf/matching_tiny.yaml"
TRAINING = ROOT / "configs/train_denoiser.yaml"
OPTIMIZER = "model.init_args.optimizer"
SCHEDULER = "model.init_args.lr_scheduler"
LAMBDA = "torch.optim.lr_scheduler.LambdaLR"
MARKER = Path("marker")

Content = dict[str, Any]


def spec(path: str, **arguments: Any) -> Content:
    return {"class_path": path, "init_args": arguments} if arguments else {"class_path": path}


TOUCH = spec("os.system", command=f"touch {MARKER}")
FORMS: dict[str, Any] = {
    "function": TOUCH,
    "call": spec("subprocess.call", args=["touch", str(MARKER)]),
    "loose": {"class_path": "subprocess.call", "dict_kwargs": {"args": ["touch", str(MARKER)]}},
    "exec": spec("builtins.exec", source=f"open('{MARKER}', 'w')"),
    "process": spec("subprocess.Popen", args=["touch", str(MARKER)]),
    "path": spec("pathlib.Path", args=["x"]),
    "partial": spec("functools.partial", func="os.system"),
    "hub": spec("torch.hub.load", repo_or_dir=".", model="x", source="local"),
    "load": spec("torch.load", f="x.pt", weights_only=False),
    "method": spec("lightning_recon.attacks.Attack.load_from_checkpoint", checkpoint_path="x"),
    "string": "os.system",
    "class string": "subprocess.Popen",
    "nowhere": spec("os.nowhere"),
}
PLACES = [  # key, and how many lists the value stands in
    ("model", 0),
    (OPTIMIZER, 0),
    (SCHEDULER, 0),
    ("model.init_args.target", 0),
    ("model.init_args.client", 0),
    ("model.init_args.defenses", 1),
    ("data", 0),
    ("data.init_args.masks", 0),
    ("audit.extra_metrics.x", 0),
    ("trainer.callbacks", 0),
    ("trainer.callbacks", 1),
    ("trainer.logger", 1),
    ("trainer.plugins", 1),
    ("trainer.profiler", 0),
]
CASES = [
    (*place, form)
    for place in PLACES
    for form in (FORMS if place[0] in (OPTIMIZER, SCHEDULER) else ("function", "process", "string"))
]
HIDDEN = {  # code among the arguments of a class that belongs where it stands
    f"{SCHEDULER}.init_args.lr_lambda": (SCHEDULER, spec(LAMBDA, lr_lambda="os.system")),
    f"{SCHEDULER}.init_args.lr_lambda.1": (
        SCHEDULER, spec(LAMBDA, lr_lambda=["builtins.abs", "os.system"]),
    ),
    "trainer.callbacks.0.init_args.on_test_start": (
        "trainer.callbacks", [spec("LambdaCallback", on_test_start="builtins.print")],
    ),
    "trainer.callbacks.1.init_args.pruning_fn": (
        "trainer.callbacks",
        [spec("Timer"), spec("ModelPruning", pruning_fn="os.system")],
    ),
    "trainer.strategy.init_args.ddp_comm_hook": (
        "trainer.strategy",
        spec("pytorch_lightning.strategies.DDPStrategy", ddp_comm_hook="os.system"),
    ),
    "trainer.logger.dict_kwargs.x": (
        "trainer.logger",
        {**spec("CSVLogger", save_dir="."), "dict_kwargs": {"x": TOUCH}},
    ),
    "trainer.logger.dict_kwargs.x.0.y": (
        "trainer.logger",
        {**spec("CSVLogger", save_dir="."), "dict_kwargs": {"x": [{"y": TOUCH}]}},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(tmp_path)


def changed(file: Path, key: str, value: Any) -> Content:
    """What a file says, with another value at a key."""
    content: Content = yaml.safe_load(file.read_text())
    *parents, last = key.split(".")
    place = content
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = copy.deepcopy(value)
    return content


def write(content: Content, name: str = "given.yaml") -> str:
    path = Path("..", name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return str(path)


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on a command that is refused, and leaves nothing."""
    capfd.readouterr()
    assert main(words) == 2
    assert not list(Path().iterdir())
    lines = [line for line in capfd.readouterr().err.splitlines() if "Seed set" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


class TestForms:
    @pytest.mark.parametrize(("key", "depth", "form"), CASES)
    def test_in_a_file(self, key, depth, form, capfd):
        value = [FORMS[form]] * depth or FORMS[form]
        line = refused(capfd, "test", "--config", write(changed(TINY, key, value)))
        assert key.removesuffix(".x").rpartition(".")[2] in line

    @pytest.mark.parametrize("key", [OPTIMIZER, SCHEDULER])
    @pytest.mark.parametrize("form", ["function", "call", "exec", "load", "hub", "method"])
    def test_says_what_and_where_and_what_to_do(self, key, form, capfd):
        line = refused(capfd, "test", "--config", write(changed(TINY, key, FORMS[form])))
        kind = "Optimizer" if key == OPTIMIZER else "LRScheduler or ReduceLROnPlateau"
        assert line == (
            f"error: {key}: {FORMS[form]['class_path']} is a function, but an option takes only "
            f"classes below {kind}; name one of these, or leave it out"
        )

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            (
                OPTIMIZER,
                "os.system",
                "model.init_args.optimizer: os.system is no class below Optimizer;",
            ),
            (OPTIMIZER, spec("subprocess.Popen"), "subprocess.Popen is no class below Optimizer;"),
            ("trainer.callbacks", [TOUCH], "callbacks: os.system is no class below Callback;"),
            ("trainer.logger", "os.system", "logger: os.system is no class below Logger;"),
        ],
    )
    def test_says_so_where_the_parser_refuses(self, key, value, said, capfd):
        assert said in refused(capfd, "test", "--config", write(changed(TINY, key, value)))

    @pytest.mark.parametrize("key", HIDDEN)
    def test_among_the_arguments(self, key, capfd):
        place, value = HIDDEN[key]
        line = refused(capfd, "test", "--config", write(changed(TINY, place, value)))
        assert f" {key.removesuffix('.1') if 'lambda' in key else key}" in line
        assert "is a function" in line

    def test_deep_inside(self, capfd):
        wrapped = spec("Dropout", target=spec("LeNet", num_classes=20))
        content = changed(MATCHING, "model.init_args.target", spec("Dropout", target=wrapped))
        content["model"]["init_args"]["target"]["init_args"]["target"]["init_args"]["target"] = (
            TOUCH
        )
        assert "os.system" in refused(capfd, "test", "--config", write(content))

    @pytest.mark.parametrize(
        "words",
        [
            [f"--{OPTIMIZER}=os.system"],
            [f"--{OPTIMIZER}", json.dumps(TOUCH)],
            [f"--{OPTIMIZER}.class_path", "os.system"],
            [f"--{SCHEDULER}", json.dumps(TOUCH)],
            [f"--{SCHEDULER}", LAMBDA, f"--{SCHEDULER}.init_args.lr_lambda", "os.system"],
            ["--trainer.callbacks+=LambdaCallback", "--trainer.callbacks.on_test_start=os.system"],
            ["--trainer.logger", json.dumps(TOUCH)],
        ],
    )
    def test_on_the_command_line(self, words, capfd):
        refused(capfd, "test", "--config", str(TINY), *words)

    def test_in_the_arguments_that_a_checkpoint_holds(self, capfd):
        held = {"_class_path": "lightning_recon.attacks.LDPAttack", "optimizer": TOUCH}
        checkpoint = {"state_dict": {}, "client_index": 0, "hyper_parameters": held}
        torch.save(checkpoint, "../x.ckpt")
        refused(capfd, "fit", "--config", str(TINY), "--ckpt_path", "../x.ckpt")


CODE = {
    "function": (SCHEDULER, TOUCH),
    "argument": (SCHEDULER, spec(LAMBDA, lr_lambda="os.system")),
    "other class": (OPTIMIZER, FORMS["process"]),
}


@pytest.mark.parametrize("code", CODE)
class TestCommands:
    @pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
    def test_of_lightning(self, command, code, capfd):
        refused(capfd, command, "--config", write(changed(TINY, *CODE[code])))

    @pytest.mark.parametrize("command", ["fit", "validate"])
    def test_training(self, command, code, capfd):
        refused(capfd, command, "--config", write(changed(TRAINING, *CODE[code])))

    def test_resume(self, code, capfd):
        """The configuration of a run that one received."""
        file = write(changed(TINY, *CODE[code]), "received/config.yaml")
        Path(file).write_text(f"# {header('test')}\n{Path(file).read_text()}")
        refused(capfd, "test", "--resume", str(Path(file).parent))

    @pytest.mark.parametrize("more", [[], ["--dry-run"]])
    def test_base_of_a_sweep(self, more, code, capfd):
        write(changed(TINY, *CODE[code]), "base.yaml")
        axis = {"key": "model.init_args.iterations", "values": [1, 2]}
        file = write({"base": "base.yaml", "axes": {"iterations": axis}})
        refused(capfd, "sweep", "--config", file, *more)

    @pytest.mark.parametrize("more", [[], ["--dry-run"]])
    def test_cell_of_a_sweep(self, more, code, capfd):
        key, value = CODE[code]
        axes = {"code": {"without": {}, "with": {key: value}}}
        file = write({"base": str(TINY), "axes": axes})
        line = refused(capfd, "sweep", "--config", file, *more)
        assert code == "other class" or line.startswith("error: the cell of code with: model.")


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    "trainer",
    [
        {"callbacks": [TOUCH]},
        {"callbacks": [spec("LambdaCallback", on_test_start="os.system")]},
        {"callbacks": spec("LambdaCallback", setup="os.system")},
        {"logger": TOUCH},
        {"profiler": spec("pytorch_lightning.profilers.PyTorchProfiler", schedule="os.system")},
    ],
)
def test_trainer_of_a_sweep(trainer, more, capfd):
    axis = {"key": "model.init_args.iterations", "values": [1, 2]}
    content = {"base": str(TINY), "axes": {"iterations": axis}, "trainer": trainer}
    refused(capfd, "sweep", "--config", write(content), *more)


OWN = """
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger

from lightning_recon.attacks import InvertingGradients
from lightning_recon.data import SampleImagesDataModule
from lightning_recon.defenses import ClipL2
from lightning_recon.metrics import MSE
from lightning_recon.priors import TotalVariation
from lightning_recon.targets import LeNet

if TYPE_CHECKING:
    from collections.abc import Callable


def half(step: int) -> float:
    return 0.5


class Attack(InvertingGradients):
    def __init__(self, *args: Any, extra: Any = None, pace: "Callable" = half, **kwargs: Any):
        super().__init__(*args, **kwargs)


class Target(LeNet): ...
class Defense(ClipL2): ...
class Metric(MSE): ...
class Variation(TotalVariation): ...
class Data(SampleImagesDataModule): ...
class Adam(torch.optim.Adam): ...
class Steps(torch.optim.lr_scheduler.StepLR): ...
class Logger(CSVLogger): ...


def make_logger() -> CSVLogger:
    open("marker", "w").close()
    return CSVLogger(".")


def make_defense() -> ClipL2:
    open("marker", "w").close()
    return ClipL2(1.0)


def make_adam(parameters: Any) -> torch.optim.Adam:
    open("marker", "w").close()
    return torch.optim.Adam(parameters)


class Mark(Callback):
    def on_test_end(self, *_: Any) -> None:
        open("marker", "w").close()
"""


@pytest.fixture
def own() -> Content:
    """A configuration all of whose classes are one's own."""
    Path("../own_parts.py").write_text(OWN)
    return {
        "model": spec(
            "own_parts.Attack",
            target=spec("own_parts.Target", num_classes=20),
            defenses=[spec("own_parts.Defense", clip_norm=1.0)],
            priors=[spec("own_parts.Variation", weight=0.1)],
            optimizer=spec("own_parts.Adam", lr=0.1),
            lr_scheduler=spec("own_parts.Steps", step_size=1),
            iterations=2,
        ),
        "data": spec("own_parts.Data", batch_size=1, num_clients=2, image_size=32, num_public=8),
        "audit": {"extra_metrics": {"own": spec("own_parts.Metric")}},
        "trainer": {
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "callbacks": [spec("own_parts.Mark")],
            "logger": [spec("own_parts.Logger", save_dir="logs")],
        },
    }


class TestOwn:
    def test_classes_of_every_kind(self, own):
        assert main(["test", "--config", write(own)]) == 0
        assert MARKER.exists()

    def test_where_the_type_names_no_base(self, own):
        own["model"]["init_args"]["extra"] = spec("own_parts.Defense", clip_norm=1.0)
        assert main(["test", "--config", write(own)]) == 0

    @pytest.mark.parametrize("path", ["own_parts.half", "os.system", "subprocess.Popen", "x.y"])
    def test_anything_else_where_the_type_names_no_base(self, own, path, capfd):
        own["model"]["init_args"]["extra"] = spec(path)
        line = refused(capfd, "test", "--config", write(own))
        assert line.startswith(f"error: model.init_args.extra: {path} is ")
        assert "a base of lightning_recon or Lightning" in line

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("trainer.logger", spec("own_parts.make_logger")),
            ("trainer.logger", "own_parts.make_logger"),
            ("model.init_args.defenses", [spec("own_parts.make_defense")]),
            (OPTIMIZER, "own_parts.make_adam"),
            (OPTIMIZER, spec("own_parts.make_adam", parameters=[])),
        ],
    )
    def test_function_that_says_it_returns_what_belongs_there(self, key, value, own, capfd):
        content = changed(Path(write(own)), key, value)
        line = refused(capfd, "test", "--config", write(content))
        assert line.startswith(f"error: {key}")
        assert "is a function" in line

    def test_in_a_file_that_another_names(self, capfd):
        content = changed(TINY, SCHEDULER, TOUCH)
        write(content["model"], "model.yaml")
        refused(capfd, "test", "--config", write({**content, "model": "model.yaml"}))

    def test_beside_a_class_path(self, own, capfd):
        own["model"]["init_args"]["extra"] = [{**spec("own_parts.Defense"), "more": {"x": TOUCH}}]
        line = refused(capfd, "test", "--config", write(own))
        assert line.startswith("error: model.init_args.extra.0.more.x: os.system is a function")

    def test_function_of_ones_own(self, own, capfd):
        own["model"]["init_args"]["lr_scheduler"] = spec(LAMBDA, lr_lambda="own_parts.half")
        line = refused(capfd, "test", "--config", write(own))
        assert "lr_lambda: own_parts.half is a function" in line


def test_published_adam_can_be_named():
    """It is a default, and stands in the config.yaml of runs."""
    name = "lightning_recon.attacks.inverting_gradients.published_adam"
    words = ["--config", str(MATCHING), f"--{OPTIMIZER}", name, "--data.init_args.num_clients=1"]
    assert main(["test", *words]) == 0
    folder = Path("lightning_logs/version_0")
    assert (
        yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["optimizer"]
        == name
    )
    assert main(["test", "--resume", str(folder)]) == 0
