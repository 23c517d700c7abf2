"""Lightning's everyday switches: outputs in one folder, whoever logs; a partial run says so."""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from command_line import TINY_RUN
from pytorch_lightning.loggers import Logger, MLFlowLogger

from lightning_recon.attacks import InvertingGradients
from lightning_recon.audit.records import read_records
from lightning_recon.commands.lightning import main
from lightning_recon.report import board

ROOT = Path(__file__).parents[1]
RUN = Path("lightning_logs/version_0")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY_RUN))


def run(command, *options):
    return main([command, "--config", "tiny.yaml", *options])


def results(folder=RUN):
    return json.loads((folder / "results.json").read_text())


def here():
    return {path.name for path in Path().iterdir()} - {"tiny.yaml"}


class Recorder(Logger):
    """A logger that keeps no folder, and shows pictures as wandb's does."""

    kept: list["Recorder"] = []  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.metrics, self.pictures, self.parameters = [], [], {}
        self.kept.append(self)

    name, version = "recorder", "a1b2c3"
    experiment = None

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        self.parameters |= params

    def log_image(self, key, images, step=None):
        self.pictures.append((key, images[0].size, step))


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(Recorder, "kept", [])
    return f"{__name__}.Recorder"


LOGGERS = {
    "none": ("false", set()),
    "csv": ("CSVLogger", {"metrics.csv"}),
    "tensorboard": ("true", {"events"}),
    "folderless": (f"{__name__}.Recorder", set()),
    "folderless first": (
        f"[{{class_path: {__name__}.Recorder}}, "
        "{class_path: CSVLogger, init_args: {save_dir: .}}, "
        "{class_path: TensorBoardLogger, init_args: {save_dir: .}}]",
        {"metrics.csv", "events"},
    ),
}


@pytest.mark.parametrize(("logger", "logs"), LOGGERS.values(), ids=LOGGERS)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_one_folder_whoever_logs(command, logger, logs):
    assert run(command, "--trainer.logger", logger) == 0
    assert here() == {"lightning_logs"}
    written = {path.name.partition(".out.")[0] for path in RUN.iterdir()} - {"hparams.yaml"}
    outputs = {"config.yaml", "results.json", "report.html", "clients.csv", "records"}
    outputs |= {"reconstructions"} | ({"checkpoints"} if command == "fit" else set())
    assert written == outputs | logs
    assert run(command, "--trainer.logger", logger) == 0  # again: beside it
    assert {path.name for path in Path("lightning_logs").iterdir()} == {"version_0", "version_1"}
    assert len(read_records(RUN)) == 3


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_trial_run_is_short_and_leaves_no_checkpoint(command, capsys, monkeypatch):
    calls = []
    iterate = InvertingGradients.iterate
    monkeypatch.setattr(
        InvertingGradients, "iterate", lambda *args: (calls.append(1), iterate(*args))[1]
    )
    options = ["--trainer.fast_dev_run", "2", "--audit.null_controls", "true"]
    assert run(command, *options) == 0
    assert here() == {"lightning_logs"}
    assert not list(Path().rglob("*.ckpt"))
    clients = 1 if command == "fit" else 2
    assert len(calls) == 2 * 2 * clients  # with the control
    found = results()
    assert (found["num_clients"], found["num_clients_planned"]) == (clients, 3)
    assert (found["iterations"], found["iterations_planned"]) == (2, 4)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Partial run: {clients} of 3 clients" in printed
    assert "Partial run: 2 of 4 iterations a client" in printed


@pytest.mark.parametrize(
    ("command", "options", "clients", "iterations"),
    [
        ("test", ["--trainer.limit_test_batches", "2"], 2, 4),
        ("test", ["--trainer.limit_test_batches", ".5"], 1, 4),
        ("fit", ["--trainer.max_epochs", "2"], 2, 4),
        ("fit", ["--trainer.max_epochs", "7"], 3, 4),
        ("fit", ["--trainer.limit_train_batches", "3"], 3, 3),
        ("fit", ["--trainer.limit_train_batches", ".5"], 3, 2),
        ("fit", ["--trainer.max_steps", "6"], 1, 4),
        ("test", [], 3, 4),
    ],
)
def test_a_partial_run_says_so(command, options, clients, iterations, capsys):
    assert run(command, *options) == 0
    found = results()
    assert (found["num_clients"], found["num_clients_planned"]) == (clients, 3)
    assert (found["iterations"], found["iterations_planned"]) == (iterations, 4)
    pages = [" ".join(capsys.readouterr().out.split()), (RUN / "report.html").read_text()]
    for page in pages:
        assert (f"Partial run: {clients} of 3 clients" in page) == (clients < 3)
        assert (f"Partial run: {iterations} of 4 iterations" in page) == (iterations < 4)


def test_no_client_finished(capsys):
    assert run("fit", "--trainer.max_steps", "3") == 0
    assert "no client was finished" in capsys.readouterr().out
    assert not (RUN / "results.json").exists()


def test_more_epochs_than_clients_are_told(capsys):
    assert run("fit", "--trainer.max_epochs", "7") == 0
    assert "max_epochs is 7, but an epoch is a client and there are 3" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["fit", "test"])
def test_csv_holds_loss_and_scores(command):
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "."]
    assert run(command, *logger) == 0
    with (RUN / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    scores = [(row["step"], float(row["client/psnr"])) for row in table if row["client/psnr"]]
    with (RUN / "clients.csv").open() as file:
        truth = [float(row["psnr"]) for row in csv.DictReader(file)]
    assert [step for step, _ in scores] == ["0", "1", "2"]
    assert [score for _, score in scores] == pytest.approx(truth, abs=1e-4)
    if command == "fit":  # 4 iterations a client are fewer than log_every_n_steps
        losses = {int(row["step"]): float(row["objective"]) for row in table if row["objective"]}
        assert list(losses) == [3, 7, 11]
        curves = {curve["client"]: curve["objective"][-1] for curve in results()["curves"]}
        assert list(losses.values()) == pytest.approx(list(curves.values()), rel=1e-5)


@pytest.mark.parametrize("command", ["fit", "test"])
def test_pictures_and_figures_reach_other_loggers(command, recorder):
    assert run(command, "--trainer.logger", recorder) == 0
    (logger,) = Recorder.kept
    names = {key for key, _, _ in logger.pictures}
    assert names == {f"pictures/client_{n}_truth_above_reconstruction" for n in range(3)}
    assert {size for _, size, _ in logger.pictures} == {(16, 32)}
    assert [step for step, found in logger.metrics if "client/psnr" in found] == [0, 1, 2]
    assert logger.parameters["attack"] == "InvertingGradients"
    assert logger.metrics[-1][1]["hp/psnr"] == pytest.approx(results()["metrics"]["psnr"]["mean"])


def test_mlflow_gets_pictures_by_its_client(monkeypatch):
    calls = []

    class Client:
        def log_image(self, run_id, image, *, key, step):
            calls.append((run_id, image.size, key, step))

    monkeypatch.setattr(MLFlowLogger, "__init__", lambda self: None)
    monkeypatch.setattr(MLFlowLogger, "experiment", Client())
    monkeypatch.setattr(MLFlowLogger, "run_id", "r1")
    images = torch.rand(2, 3, 8, 8)
    board.add_images([MLFlowLogger()], 5, images, images, 40)
    assert calls == [("r1", (16, 16), "pictures/client_5_truth_above_reconstruction", 40)]


LOGGERS = [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")]


@pytest.mark.parametrize(("name", "package"), LOGGERS)
def test_a_logger_that_is_missing_leaves_nothing(name, package):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    assert run("test", "--trainer.logger", name) == 2
    assert here() == set()


@pytest.mark.parametrize(("name", "package"), LOGGERS)
def test_the_loggers_that_are_installed(name, package, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run("test", "--trainer.logger", name) == 0
    assert here() == {"lightning_logs"}
    assert results()["num_clients"] == 3
    assert list(Path("lightning_logs").rglob("*.png"))


@pytest.mark.parametrize("logger", ["false", "{class_path: CSVLogger, init_args: {save_dir: .}}"])
def test_a_stopped_run_has_results_and_goes_on_in_its_folder(logger, monkeypatch, capsys):
    reconstruct = InvertingGradients.reconstruct
    stopping = ["Ctrl-C"]

    def stop(self, observation):
        if stopping and len(read_records(RUN)) == 2:
            stopping.clear()
            raise KeyboardInterrupt
        return reconstruct(self, observation)

    monkeypatch.setattr(InvertingGradients, "reconstruct", stop)
    monkeypatch.setattr(sys, "argv", ["cli.py", "test", "--config", "tiny.yaml"])
    with pytest.raises(SystemExit):
        run("test", "--trainer.logger", logger)
    printed = " ".join(capsys.readouterr().out.split())
    assert "Partial run: 2 of 3 clients" in printed
    assert "go on with: python cli.py test --resume" in printed
    assert results()["num_clients"] == 2
    assert main(["test", "--resume", str(RUN)]) == 0
    assert here() == {"lightning_logs"}
    assert list(Path("lightning_logs").iterdir()) == [RUN]
    assert results()["num_clients"] == 3
    if logger != "false":
        with (RUN / "metrics.csv").open() as file:
            steps = [row["step"] for row in csv.DictReader(file) if row["client/psnr"]]
        assert steps == ["0", "1", "2"]


@pytest.mark.parametrize("monitor", ["psnr", "client/ssim"])
def test_the_truth_stops_and_chooses_nothing(monitor, capsys):
    callback = f"{{class_path: EarlyStopping, init_args: {{monitor: {monitor}}}}}"
    for options in (["--trainer.callbacks", callback], ["--checkpoint.monitor", monitor]):
        assert run("fit", *options) == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert f"{monitor} is measured against the truth" in line
    assert not list(Path().rglob("lightning_logs/*/*"))


def test_early_stopping_is_the_attacks_patience(capsys):
    callback = "{class_path: EarlyStopping, init_args: {monitor: objective}}"
    assert run("fit", "--trainer.callbacks", callback) == 2
    assert "set model.init_args.patience" in capsys.readouterr().err
    assert not list(Path().rglob("lightning_logs/*/*"))
