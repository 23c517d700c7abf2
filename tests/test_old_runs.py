"""Runs of version 0.1.0: their configurations parse, their checkpoints and stopped runs go on."""

import csv
import shutil
from pathlib import Path

import pytest
import yaml

from lightning_recon.commands.lightning import main

CONF = Path(__file__).parent / "conf"
OLD = Path(__file__).parent / "old_runs"
DLG = [
    *("--config", str(CONF / "matching_tiny.yaml"), "--model", "DLG"),
    *("--model.init_args.target.class_path", "LeNet"),
    *("--model.init_args.target.init_args", "{num_classes: 20, image_size: 16}"),
    *("--model.init_args.optimizer", "torch.optim.LBFGS"),
    *("--model.init_args.optimizer.init_args.history_size", "3"),
    *("--model.init_args.iterations", "3", "--data.init_args.image_size", "16"),
    *("--data.init_args.num_clients", "2"),
]
NEW = ("psnr_noise_only", "recovered_convincing")
"""Columns of clients.csv that version 0.1.0 did not write."""
SETTLED = {"client", "image", "index", "file", "label", "matched", "recovered"}
"""Columns that no noise of this size changes."""
FITS = {
    "dlg": DLG,  # which keeps its best iterate
    "ldp_tiny": ["--config", str(CONF / "ldp_tiny.yaml")],
    "matching_tiny": ["--config", str(CONF / "matching_tiny.yaml")],
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def assert_same(found, expected, *, has_other_noise=False):
    """The same images, columns may have come; figures but for the rounding of another processor.

    A record of an early client lacks the columns that came later.  LDPAttack's noise on rows that
    nobody reads is no longer drawn, so that others have other noise than before: figures of it are
    alike, not equal.
    """
    found, expected = rows(found), rows(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name, value in other.items():
            if has_other_noise and name not in SETTLED:
                assert name != "psnr" or float(one[name]) == pytest.approx(float(value), abs=4)
            elif name == "file":
                assert one[name] == value
            elif name not in NEW or one[name]:
                assert float(one[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("name", FITS)
def test_a_fit_goes_on_in_the_middle_of_a_client(name):
    assert main(["fit", *FITS[name], "--ckpt_path", str(OLD / f"{name}.ckpt")]) == 0
    (run,) = Path("lightning_logs").iterdir()
    assert_same(run / "clients.csv", OLD / f"{name}.csv", has_other_noise=name == "ldp_tiny")


def test_a_stopped_test_goes_on():
    tiny = ["--config", str(CONF / "ldp_tiny.yaml"), "--data.init_args.num_clients", "3"]
    assert main(["test", *tiny]) == 0
    run = Path("lightning_logs/version_1")
    shutil.copytree(OLD / "stopped", run)
    assert main(["test", "--resume", str(run)]) == 0
    assert_same(
        run / "clients.csv", Path("lightning_logs/version_0/clients.csv"), has_other_noise=True
    )
    last, whole = (rows(f / "clients.csv")[-1] for f in (run, Path("lightning_logs/version_0")))
    assert last == whole, "a client that was not attacked yet is attacked as today"


@pytest.mark.parametrize("file", sorted((OLD / "configs").iterdir()), ids=lambda file: file.stem)
def test_a_configuration_parses(file, capsys):
    written = yaml.safe_load(file.read_text())
    command = "test" if "cli.py test" in file.read_text() else "fit"
    with pytest.raises(SystemExit) as done:
        main([command, "--config", str(file), "--print_config"])
    assert done.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["class_path"].rpartition(".")[2] in file.read_text()
    assert _holds(printed["model"]["init_args"], _without_seed(written))


def _holds(printed, written):
    """Whether all that was written is there, at any depth: options that are new have defaults."""
    if isinstance(written, dict):
        return all(name in printed and _holds(printed[name], written[name]) for name in written)
    if isinstance(written, list):
        return len(printed) == len(written) and all(map(_holds, printed, written))
    return printed == written


def _without_seed(written):
    """The arguments of the model that are not linked to another option."""
    return {name: value for name, value in written["model"]["init_args"].items() if name != "seed"}
