"""A run of ``test`` that was stopped goes on where it stood."""

import json
from pathlib import Path

import pytest
import yaml
from command_line import run_processes

from lightning_recon.commands.lightning import main
from lightning_recon.federation import Federation

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests/conf/ldp_tiny.yaml")
THREE = ["--data.init_args.num_clients", "3"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def latest(parent: Path) -> Path:
    return max(parent.absolute().glob("lightning_logs/version_*"))


def one_error(capfd) -> str:
    """The one line on what is wrong."""
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "error: " in line)
    return line


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The outputs of an uninterrupted test of three clients."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("whole")
        patch.chdir(folder)
        assert main(["test", "--config", TINY, *THREE]) == 0
    return latest(folder)


@pytest.fixture
def stopped(monkeypatch):
    """The outputs of the same test, stopped at its second client."""
    with monkeypatch.context() as patch:
        play = Federation.play

        def stop(federation, batch, client):
            if client == 1:
                raise RuntimeError("stopped")
            return play(federation, batch, client)

        patch.setattr(Federation, "play", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            main(["test", "--config", TINY, *THREE])
    return latest(Path())


def test_equals_the_uninterrupted_run_and_does_only_what_is_missing(whole, stopped, monkeypatch):
    config = (stopped / "config.yaml").read_text()
    assert not (stopped / "results.json").exists()
    attacked = []
    play = Federation.play
    monkeypatch.setattr(
        Federation,
        "play",
        lambda self, batch, client: (attacked.append(client), play(self, batch, client))[1],
    )
    assert main(["test", "--resume", str(stopped)]) == 0
    assert attacked == [1, 2]
    assert list(Path("lightning_logs").iterdir()) == [Path("lightning_logs", stopped.name)]
    assert (stopped / "clients.csv").read_text() == (whole / "clients.csv").read_text()
    assert (stopped / "config.yaml").read_text() == config
    results = [json.loads((run / "results.json").read_text()) for run in (whole, stopped)]
    for key in ("experiment", "num_clients", "metrics", "null", "recovered", "notes"):
        assert results[0][key] == results[1][key]
    assert (stopped / "report.html").is_file()


def test_the_same_command_and_other_trainer_flags_are_fine(whole, stopped):
    config = (stopped / "config.yaml").read_text()
    flags = ["--trainer.enable_progress_bar", "true", "--trainer.log_every_n_steps", "3"]
    assert main(["test", "--config", TINY, *THREE, f"--resume={stopped}", *flags]) == 0
    assert (stopped / "config.yaml").read_text() == config
    assert (stopped / "clients.csv").read_text() == (whole / "clients.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.init_args.num_clients", "4"], "num_clients is 4, but the run has 3"),
        (["--config", TINY], "data.init_args.num_clients is 2, but the run has 3"),
        (["--seed_everything", "7"], "seed_everything is 7, but the run has 0"),
        (["--model.init_args.iterations", "7"], "iterations is 7, but the run has 20"),
        (
            ["--model.init_args.defenses.init_args.noise_std", "1"],
            "model.init_args.defenses.1.init_args.noise_std is 1.0, but the run has 0.005",
        ),
        (["--audit.recovered_psnr", "20"], "recovered_psnr is 20.0, but the run has 19.0"),
        (["--trainer.precision", "64-true"], 'precision is "64-true", but the run has null'),
        (["--data", "ImageFolderDataModule"], "ImageFolderDataModule"),
    ],
)  # fmt: skip
def test_another_experiment_is_refused(whole, arguments, words, capfd):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert main(["test", "--resume", str(whole), *arguments]) == 2
    assert words in one_error(capfd)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    assert not Path("lightning_logs").exists()


def test_only_runs_of_test(whole, capfd):
    assert main(["test", "--resume", "nowhere"]) == 2
    assert "no folder" in one_error(capfd)
    Path("empty").mkdir()
    assert main(["test", "--resume", "empty"]) == 2
    assert "no config.yaml in" in one_error(capfd)
    config = (whole / "config.yaml").read_text()
    Path("empty/config.yaml").write_text(config.replace("cli.py test", "cli.py fit"))
    assert main(["test", "--resume", "empty"]) == 2
    assert "was written by fit" in one_error(capfd)
    Path("empty/config.yaml").write_text("data: [no experiment]")
    assert main(["test", "--resume", "empty"]) == 2
    assert "was written by an unknown command" in one_error(capfd)
    assert main(["fit", "--resume", str(whole)]) == 2
    assert "--resume is for test" in one_error(capfd)


def test_the_configuration_of_a_test_says_nothing_of_resuming(whole):
    text = (whole / "config.yaml").read_text()
    assert text.startswith("# lightning_recon==")
    assert "# written by: python cli.py test\n" in text
    assert "resume" not in yaml.safe_load(text)


@pytest.mark.slow
@pytest.mark.alone
def test_two_processes_go_on_with_what_one_began(whole, stopped):
    run_processes(2, "test", "--resume", str(stopped))
    assert json.loads((stopped / "results.json").read_text())["num_processes"] == 2
    assert len(list((stopped / "records").iterdir())) == 2
    assert (stopped / "clients.csv").read_text() == (whole / "clients.csv").read_text()
    assert list(Path("lightning_logs").iterdir()) == [Path("lightning_logs", stopped.name)]


def test_other_images_than_the_run_began_with(stopped, capfd):
    (path,) = (stopped / "records").iterdir()
    record = json.loads(path.read_text())
    record["rows"][0]["index"] += 1
    del record["sha256"]  # as a version without checksums wrote it
    path.write_text(json.dumps(record) + "\n")
    assert main(["test", "--resume", str(stopped)]) == 2
    assert "client 0 holds other images than when" in one_error(capfd)
    assert len(path.read_text().splitlines()) == 1
