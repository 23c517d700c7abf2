"""Paths as people write them: ``~`` and variables, where the shell has not replaced them."""

import pytest
import torch
import yaml
from command_line import TINY_RUN
from jsonargparse import Namespace

from lightning_recon.commands.lightning import main
from lightning_recon.commands.plain import main as plain
from lightning_recon.errors import InputError
from lightning_recon.priors.denoiser import FFDNet
from lightning_recon.runs.places import expand_places
from lightning_recon.targets import LeNet


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()


def test_weights_of_targets_and_priors(tmp_path):
    net = LeNet(num_classes=10, image_size=16, seed=3)
    torch.save(net.state_dict(), tmp_path / "home" / "net.pt")
    for path in ("~/net.pt", "$HOME/net.pt"):
        read = LeNet(num_classes=10, image_size=16, weights=path)
        assert all(
            torch.equal(value, net.state_dict()[name]) for name, value in read.state_dict().items()
        )
    prior = FFDNet(num_layers=3, num_features=8)
    torch.save(prior.state_dict(), tmp_path / "home" / "prior.pt")
    assert len(FFDNet("~/prior.pt").state_dict()) == len(
        prior.state_dict()
    )  # the size in the file, not the published one
    with pytest.raises(InputError, match=rf"{tmp_path}/home/none.pt"):
        FFDNet("~/none.pt")


@pytest.mark.parametrize("words", [["report", "~/run"], ["compare", "~/run", "~/run"]])
def test_commands_without_a_trainer(tmp_path, words, capsys):
    assert plain(words) == 2
    assert f" {tmp_path}/home/run" in capsys.readouterr().err.replace("\n", "")


def test_places_of_a_run(tmp_path):
    logger = Namespace(class_path="CSVLogger", init_args=Namespace(save_dir="$HOME/logs"))
    trainer = Namespace(default_root_dir="~/runs", logger=[logger, True])
    expand_places(trainer)
    assert trainer.default_root_dir == str(tmp_path / "home" / "runs")
    assert logger.init_args.save_dir == str(tmp_path / "home" / "logs")
    relative = Namespace(default_root_dir="runs", logger=None)
    expand_places(relative)
    assert relative.default_root_dir == "runs"


def test_a_run_below_home_and_its_resume(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(TINY_RUN | {"trainer": {"default_root_dir": "~/runs"}})
    )
    assert main(["test", "--config", "run.yaml", "--data.init_args.num_clients=1"]) == 0
    folder = tmp_path / "home/runs/lightning_logs/version_0"
    assert (folder / "results.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"home", "run.yaml"}
    assert main(["test", "--resume", "~/runs/lightning_logs/version_0"]) == 0
    assert plain(["report", "~/runs/lightning_logs/version_0"]) == 0
    assert str(folder / "report.html") in capsys.readouterr().out.replace("\n", "")
