"""A sweep is the product of its axes, each cell being the run that it stands for."""

import copy
import csv
import json
from pathlib import Path

import pytest
import yaml
from pytorch_lightning import Trainer

from lightning_recon.attacks import LDPAttack
from lightning_recon.audit.records import read_records, records_file
from lightning_recon.commands import lightning as cli
from lightning_recon.errors import InputError
from lightning_recon.runs import sweep
from lightning_recon.runs.cell_command import folder_name

TINY = {
    "model": {
        "class_path": "LDPAttack",
        "init_args": {
            "target": {"class_path": "ConvNet", "init_args": {"num_classes": 20, "width": 8}},
            "defenses": [
                {"class_path": "ClipL2", "init_args": {"clip_norm": 10.0}},
                {"class_path": "GaussianNoise", "init_args": {"noise_std": 0.005}},
            ],
            "num_bins": 256,
            "iterations": 4,
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.02}},
        },
    },
    "data": {
        "class_path": "SampleImagesDataModule",
        "init_args": {"batch_size": 4, "num_clients": 2, "image_size": 32},
    },
}
ROOT = Path(__file__).parents[1]
NOISE = "model.init_args.defenses.1.init_args.noise_std"
AXES = {
    "noise_std": {"key": NOISE, "values": [0.005, 0.5]},
    "bins": {"few": {"model.init_args.num_bins": 32}, "many": {}},
}
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))

    def write(**content):
        path = tmp_path / "sweep.yaml"
        path.write_text(
            yaml.safe_dump({"base": "tiny.yaml", "axes": AXES} | content, sort_keys=False)
        )
        return path

    return write


def table(folder):
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_product_in_order(config):
    cells = sweep.read_cells(config())
    assert [tuple(cell.labels.values()) for cell in cells] == [
        (0.005, "few"),
        (0.005, "many"),
        (0.5, "few"),
        (0.5, "many"),
    ]
    arguments = [cell.config["model"]["init_args"] for cell in cells]
    assert [a["num_bins"] for a in arguments] == [32, 256, 32, 256]
    assert [a["defenses"][1]["init_args"]["noise_std"] for a in arguments] == [0.005] * 2 + [
        0.5
    ] * 2


@pytest.mark.parametrize(
    ("file", "folder"),
    [("sweep", "sweep"), ("sweep_mixed", "sweep_mixed"), ("mixed", "sweep_mixed")],
)
def test_the_folder_is_named_after_the_file_once(file, folder):
    assert folder_name("sweep", Path(f"x/{file}.yaml")) == folder


def test_what_is_said_twice(config):
    """What docs/evaluation.md says of it."""
    other = copy.deepcopy(TINY)
    other["model"]["init_args"] |= {"num_bins": 64, "iterations": 7}
    Path("other.yaml").write_text(yaml.safe_dump(other))
    bins, iterations = "model.init_args.num_bins", "model.init_args.iterations"
    axes = {
        "base": {"other": {"config": "other.yaml", bins: 1}, "plain": {}},
        "bins": {"key": bins, "values": [2]},
    }
    path = config(axes=axes, set={iterations: 5, bins: 3})
    found = [cell.config["model"]["init_args"] for cell in sweep.read_cells(path)]
    assert [one["iterations"] for one in found] == [5, 5], "set holds over config, too"
    assert [one["num_bins"] for one in found] == [2, 2], "the last axis holds"
    del axes["bins"]
    found = [
        cell.config["model"]["init_args"]
        for cell in sweep.read_cells(config(axes=axes, set={bins: 3}))
    ]
    assert [one["num_bins"] for one in found] == [1, 3], "an axis holds over set"
    assert [one["iterations"] for one in found] == [7, 4]


def test_cells_share_nothing(config):
    """What one cell changes within ``set`` must not reach the next."""
    defenses = TINY["model"]["init_args"]["defenses"]
    cells = sweep.read_cells(config(set={"model.init_args.defenses": defenses}))
    noise = [c.config["model"]["init_args"]["defenses"][1]["init_args"] for c in cells]
    assert [n["noise_std"] for n in noise] == [0.005, 0.005, 0.5, 0.5]


def test_cell_equals_the_run_it_stands_for(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert sweep.main(["--config", str(config()), *QUIET]) == 0
    outputs = "(report.html, figure.png, results.csv, records/, sweep.yaml, run.json)"
    assert outputs in capsys.readouterr().out
    folder = tmp_path / "lightning_logs/sweep/version_0"
    rows = table(folder)
    assert len(rows) == 4
    assert {row["num_images"] for row in rows} == {"8"}
    args = ["test", "--config", "tiny.yaml", *QUIET]
    args += ["--model.init_args.num_bins", "32"]
    assert cli.main(args) == 0
    results = json.loads((tmp_path / "lightning_logs/version_0/results.json").read_text())
    assert float(rows[0]["psnr"]) == pytest.approx(results["metrics"]["psnr"]["mean"], abs=1e-6)
    assert int(rows[0]["recovered"]) == results["recovered"]
    assert {row["noise_only_recovered"] for row in rows} == {"0"}
    assert float(rows[1]["psnr"]) > float(rows[3]["psnr"]) + 5  # a hundred times the noise
    assert (folder / "report.html").is_file()


def test_resumed_equals_uninterrupted(config, tmp_path):
    path = config()
    sweep.main(["--config", str(path), *QUIET])
    folder = tmp_path / "lightning_logs/sweep/version_0"
    whole = table(folder)
    records = records_file(folder, 0)
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join(lines[:3]) + lines[3][:40])
    (folder / "results.csv").unlink()
    sweep.main(["--config", str(path), "--resume", str(folder), *QUIET])
    assert [record.client for record in read_records(folder)] == list(range(8))
    assert len(records.read_text().splitlines()) == 8  # and only the missing ones were done
    for before, after in zip(whole, table(folder), strict=True):
        assert before | {"seconds": ""} == after | {"seconds": ""}


def test_dry_run_attacks_nothing(config, tmp_path, capsys):
    assert sweep.main(["--config", str(config()), "--dry-run", *QUIET]) == 0
    assert "4 cells, 8 clients" in capsys.readouterr().out
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"axes": {}}, "no axes"),
        ({"axes": {"a": 3}}, "axis a needs"),
        ({"nonsense": 1}, "there is no key nonsense"),
        ({"base": "missing.yaml"}, "there is no file .*missing.yaml"),
        ({"set": {"modle.init_args.num_bins": 8}}, "modle.init_args.num_bins would change nothing"),
        ({"axes": {"a": {"key": "trainer.precision", "values": [16]}}}, "the sweep one trainer"),
        ({"axes": {"a": {"key": NOISE, "values": 3}}}, "values of axis a must be a list"),
        ({"axes": {"a": {"key": NOISE, "values": "abc"}}}, "values of axis a must be a list"),
        ({"set": [1]}, "set must hold keys and values"),
        ({"trainer": "gpu"}, "trainer must hold keys and values"),
        ({"set": {"model.init_args.defenses.7.init_args.x": 1}}, "leads nowhere"),
    ],
)
def test_bad_sweeps(config, content, message):
    with pytest.raises(InputError, match=message):
        sweep.read_cells(config(**content))


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        (
            {"model.init_args.num_bins": 1},
            [],
            ["the cell of noise_std 0.005, bins few", "num_bins"],
        ),
        ({}, ["--trainer.devices", "0"], ["trainer: ", "devices"]),
    ],
)
def test_what_cannot_be_made_gets_one_line(config, changes, flags, words, capsys, tmp_path):
    axes = {**AXES, "bins": {"few": changes, "many": {}}}
    assert cli.main(["sweep", "--config", str(config(axes=axes)), *QUIET, *flags]) == 2
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(printed) == 1
    for word in words:
        assert word in printed[0]


def test_resume_of_another_sweep(config, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(InputError, match=r"sweep.yaml is missing"):
        sweep.main(["--config", str(config()), "--resume", "elsewhere", *QUIET])
    (tmp_path / "elsewhere/sweep.yaml").write_text("cells: []")
    with pytest.raises(InputError, match="lists other cells"):
        sweep.main(["--config", str(config()), "--resume", "elsewhere", *QUIET])


def few_cells(cells):
    """Of a large sweep, the cells that one axis at most tells from the first or the last."""
    ends = [list(cells[end].labels.items()) for end in (0, -1)]

    def is_near_an_end(cell):
        labels = cell.labels.items()
        return any(sum(x != y for x, y in zip(labels, end, strict=True)) <= 1 for end in ends)

    return cells if len(cells) <= 30 else [cell for cell in cells if is_near_an_end(cell)]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/sweeps").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_sweep_can_be_run(path):
    first = path.read_text().splitlines()[0]
    assert first == f"# python cli.py sweep --config configs/sweeps/{path.name}"
    cells = few_cells(sweep.read_cells(path))
    found = sweep.Sweep(cells, path.parent)
    assert len(found.items) >= len(cells) >= 4
    for cell, parsed in zip(cells, found.parsed, strict=True):
        for name, axis in yaml.safe_load(path.read_text())["axes"].items():
            if "key" in axis:  # the axis is where the class reads it
                value = parsed
                for step in axis["key"].split("."):
                    value = value[int(step)] if isinstance(value, list) else value[step]
                assert value == cell.labels[name]


def test_labels_of_every_kind(config, tmp_path):
    """Nothing, lists, objects and yes or no name cells, too, up to the last page."""
    axes = {
        "scheduler": {"key": "model.init_args.lr_scheduler", "values": [None]},
        "indices": {"key": "data.init_args.indices", "values": [[0, 1, 2, 3], [4, 5, 6, 7]]},
        "controls": {"key": "audit.null_controls", "values": [True, False]},
        "adam": {
            "key": "model.init_args.optimizer",
            "values": [{"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}],
        },
    }
    path = config(axes=axes, set={"data.init_args.num_clients": 1})
    assert sweep.main(["--config", str(path), *QUIET]) == 0
    folder = tmp_path / "lightning_logs/sweep/version_0"
    rows = table(folder)
    assert [row["indices"] for row in rows] == ["[0, 1, 2, 3]"] * 2 + ["[4, 5, 6, 7]"] * 2
    assert [row["controls"] for row in rows] == ["True", "False"] * 2
    assert [row["null_noise_only"] == "" for row in rows] == [False, True] * 2
    assert sweep.main(["--config", str(path), "--resume", str(folder), *QUIET]) == 0
    assert len(table(folder)) == 4


def test_numbers_as_in_a_run(config):
    """YAML 1.1 reads 1e-3 as a word; a run's configuration does not, and neither does a sweep."""
    path = config(axes={"noise_std": {"key": NOISE, "values": ["NUMBER", 0.5]}})
    path.write_text(path.read_text().replace("NUMBER", "1e-3"))
    assert [cell.labels["noise_std"] for cell in sweep.read_cells(path)] == [0.001, 0.5]


@pytest.mark.parametrize("words", [["--config", "{}"], ["--config={}"]])
def test_the_trainer_of_the_file_holds(config, monkeypatch, words):
    seen = []
    monkeypatch.setattr(sweep, "run_sweep", lambda _, trainer, *__, **___: seen.append(trainer))
    path = config(trainer={"accelerator": "cpu", "precision": "64-true"})
    assert sweep.main([word.format(path) for word in words]) == 0
    assert seen[0].precision == "64-true"
    with pytest.raises(InputError, match="nonsense"):
        sweep.main(["--config", str(config(trainer={"nonsense": 1}))])


def test_one_attack_at_a_time(config, monkeypatch, tmp_path):
    """Two payloads of gigabytes each may not fit: the last is let go before the next is made."""
    found = sweep.Sweep(sweep.read_cells(config()), tmp_path)
    found.trainer = Trainer(logger=False, accelerator="cpu")
    auditor = found.build(0).auditor
    make = found.parser.instantiate_classes
    held = []
    monkeypatch.setattr(
        found.parser, "instantiate_classes", lambda cell: (held.append(found._built), make(cell))[1]
    )
    assert found.build(1).auditor is auditor  # the same data: nothing is read again
    assert held == [None]


def test_a_partial_sweep_says_so(config, tmp_path, capsys):
    flags = [*QUIET, "--trainer.limit_test_batches", "3"]
    assert sweep.main(["--config", str(config()), *flags]) == 0
    assert "Partial sweep: 3 of 8 clients" in capsys.readouterr().out
    folder = tmp_path / "lightning_logs/sweep/version_0"
    assert "Partial sweep: 3 of 8 clients" in (folder / "report.html").read_text()
    assert sweep.main(["--config", str(config()), "--resume", str(folder), *QUIET]) == 0
    assert "Partial" not in capsys.readouterr().out


def test_a_stopped_sweep_says_how_to_go_on(config, tmp_path, capsys, monkeypatch):
    attack_client = LDPAttack.attack_client

    def stop(self, client):
        if client == 1:
            raise KeyboardInterrupt
        return attack_client(self, client)

    monkeypatch.setattr(LDPAttack, "attack_client", stop)
    path = config()
    with pytest.raises(SystemExit):
        sweep.main(["--config", str(path), *QUIET])
    folder = "lightning_logs/sweep/version_0"
    line = f"go on with: python cli.py sweep --config {path} --resume {folder}"
    assert line in capsys.readouterr().out


def test_a_trial_sweep_is_short(config, monkeypatch):
    calls = []
    iterate = LDPAttack.iterate
    monkeypatch.setattr(LDPAttack, "iterate", lambda *args: (calls.append(1), iterate(*args))[1])
    assert sweep.main(["--config", str(config()), *QUIET, "--trainer.fast_dev_run", "true"]) == 0
    assert len(calls) == 1  # on one client; noise alone leaves nothing to iterate on
