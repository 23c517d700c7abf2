"""What a stranger's files may do: nothing but be refused in one line.  See docs/trust.md."""

import ast
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

import lightning_recon
from lightning_recon.captures.loading import load_torch
from lightning_recon.commands import plain
from lightning_recon.commands.early import check_early
from lightning_recon.commands.lightning import main
from lightning_recon.data import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    ImageFolderDataModule,
    TorchvisionDataModule,
    geometry,
)
from lightning_recon.data.geometry import bring_to_size
from lightning_recon.documents import MAX_ALIASED, MAX_DEPTH, parse_json, parse_yaml
from lightning_recon.errors import InputError
from lightning_recon.pictures import MAX_PIXELS, MAX_SIDE, opened, without_ghostscript
from lightning_recon.report.pictures import load_picture

ROOT = Path(lightning_recon.__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.hostile import inputs, numbers  # noqa: E402

AXES = "axes: {a: {key: seed_everything, values: [1]}}"
TINY = str(ROOT / "tests/conf/ldp_tiny.yaml")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- pictures ----------------------------------------------------------------------------------


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A Ghostscript that leaves a mark; Pillow finds it on the path."""
    from PIL import EpsImagePlugin

    program = tmp_path / "bin/gs"
    program.parent.mkdir()
    mark = f"touch {tmp_path}/{inputs.MARK}; exit 1"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] || {{ {mark}; }}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return tmp_path / inputs.MARK


def test_an_eps_of_another_name_starts_no_ghostscript(ghostscript):
    path = Path("x.png")
    path.write_bytes(inputs.EPS)
    with pytest.raises(subprocess.CalledProcessError), Image.open(path) as picture:
        picture.load()
    assert ghostscript.exists(), "else this test shows nothing"
    ghostscript.unlink()
    for read in (load_picture, opened):
        with pytest.raises((InputError, OSError), match="none of JPEG, PNG"):
            read(path)
    with (
        pytest.raises(OSError, match="Ghostscript"),
        without_ghostscript(),
        Image.open(path) as one,
    ):
        one.load()
    assert not ghostscript.exists()


@pytest.mark.parametrize(("name", "content"), inputs.pictures(), ids=lambda one: str(one)[:20])
def test_a_picture_of_a_stranger(name, content):
    inputs.save_picture(Path("in/a.png"), content)
    data = ImageFolderDataModule(
        root="in", batch_size=5, num_clients=1, image_size=16, num_public=0, resize="crop"
    )
    with numbers.limited():
        outcome = numbers.attempt_call(lambda: data.client(0).images.isfinite().all())
    assert outcome.kind != "fault", outcome.text
    assert outcome.kind == "ran" or "cannot read the image" in outcome.text
    assert not Path(inputs.MARK).exists()


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (MAX_SIDE, 4097)])
def test_both_sides_and_their_product_are_bounded(size):
    assert MAX_SIDE * 4096 == MAX_PIXELS
    Path("a.png").write_bytes(inputs.png(*size, rows=1))
    with pytest.raises(ValueError, match=f"{size[0]:,} x {size[1]:,} pixels"):
        opened(Path("a.png"))


@pytest.mark.parametrize("size", [(9, 200), (200, 9), (5, 41)])
def test_a_narrow_picture_is_cropped_as_any_other(size, monkeypatch):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    made = []
    for bound in (8, 10**9):
        monkeypatch.setattr(geometry, "_MAX_COVERING", bound)
        cropped = bring_to_size(picture, (16, 24), "crop", Image.Resampling.BILINEAR)
        made.append(np.array(cropped).astype(int))
    assert made[0].shape == (16, 24, 3)
    assert abs(made[0] - made[1]).max() <= 1


# --- YAML and JSON -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text"), inputs.yamls(), ids=lambda one: str(one)[:20])
def test_a_configuration_of_a_stranger(name, text):
    path = Path("given.yaml")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with numbers.limited():
        outcome = numbers.attempt_call(lambda: check_early(["test", "--config", str(path)]))
    assert outcome.kind != "fault", outcome.text
    assert outcome.kind == "ran" or str(path) in outcome.text
    refused_later = {"a date"}
    assert outcome.kind == "refused" or name in refused_later, name
    assert not Path(inputs.MARK).exists()


BOUNDS = [
    ("anchors of anchors", "anchors stand for more than"),
    ("3000 lists", "nested more than 64 deep"),
    ("100 lists", "nested more than 64 deep"),
    ("section twice", "stands in line 1 already"),
]


@pytest.mark.parametrize("place", ["file", "option", "base"])
@pytest.mark.parametrize(("name", "said"), BOUNDS)
def test_bounds_hold_wherever_yaml_is_read(place, name, said, capfd):
    text = dict(inputs.yamls())[name]
    Path("model.yaml").write_text(text)
    Path("sweep.yaml").write_text(
        "base: model.yaml\naxes: {a: {key: seed_everything, values: [1]}}"
    )
    words = {
        "file": ["test", "--config", TINY, "--model", "model.yaml"],
        "option": ["test", "--config", TINY, "--model.init_args.target", text],
        "base": ["sweep", "--config", "sweep.yaml"],
    }[place]
    assert main(words) == 2
    lines = [one for one in capfd.readouterr().err.splitlines() if one.startswith("error: ")]
    assert len(lines) == 1
    assert said in lines[0]


def test_what_is_within_the_bounds_is_read():
    deep = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert parse_yaml(f"a: {deep}", "x")
    many = f"a: &a [{', '.join(['1'] * 999)}]\nb: [{', '.join(['*a'] * (MAX_ALIASED // 1000))}]"
    assert len(parse_yaml(many, "x")["b"]) == MAX_ALIASED // 1000
    with pytest.raises(InputError, match="line 2: anchors stand for"):
        parse_yaml(many.replace("b: [", "b: [*a, "), "x")
    assert parse_json('{"a": 1, "b": [NaN, 1.5]}') == {"a": 1, "b": [None, 1.5]}


def test_all_text_is_read_within_the_bounds_and_as_utf_8():
    """Of the package: nothing parses by itself, and no locale decides what a file says."""
    own = {
        "documents.py": "json.loads yaml.load",
        "confidence.py": "json.loads",
        "resume.py": "yaml.safe_load",
    }  # fmt: skip  (of the package's own file; of its own dump)
    parsers = {"json.load", "json.loads", "yaml.load", "yaml.safe_load"}
    found = []
    for path in Path(lightning_recon.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name, keywords = ast.unparse(node.func), {one.arg for one in node.keywords}
            method = name.rpartition(".")[2]
            if name in parsers and name not in own.get(path.name, ""):
                found.append(f"{path.name}: {name}")
            if method in ("read_text", "write_text") and "." in name and "encoding" not in keywords:
                found.append(f"{path.name}: {ast.unparse(node)}")
    assert found == []


def test_a_file_for_lint_is_read_within_the_bounds(capfd):
    Path("x.yaml").write_text("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    assert plain.main(["lint", "x.yaml"]) == 2
    assert "nested more than" in capfd.readouterr().err
    Path("y.py").write_text("x = " + "(" * 5000 + ")" * 5000)
    assert plain.main(["lint", "--mechanism", "LocalDpMod(1.0, 1.0, epsilon=10, delta=1e-5)",
                    "--source", "y.py"]) == 2  # fmt: skip
    assert "y.py is no Python" in capfd.readouterr().err


# --- pickles -----------------------------------------------------------------------------------


def test_no_pickle_runs(tmp_path):
    written = list(inputs.pickles(tmp_path))
    assert len(written) == 11
    for _, path in written:
        with pytest.raises(InputError, match=r"not unpickled|is no readable|breaks off"):
            load_torch(path)
    assert not Path(inputs.MARK).exists()


@pytest.mark.parametrize("kind", [CIFAR10DataModule, CIFAR100DataModule])
def test_no_pickle_of_a_data_set_runs(kind, tmp_path):
    """Torchvision unpickles CIFAR: only files that have the published checksums."""
    published = getattr(datasets, kind.__name__.removesuffix("DataModule"))
    folder = tmp_path / published.base_folder
    folder.mkdir()
    for name in [file for file, _ in (*published.train_list, *published.test_list)]:
        (folder / name).write_bytes(pickle.dumps(inputs.Evil()))
    (folder / published.meta["filename"]).write_bytes(pickle.dumps(inputs.Evil()))
    with pytest.raises(InputError, match="incomplete or damaged"):
        kind(root=str(tmp_path)).setup()
    assert not Path(inputs.MARK).exists()


def test_a_data_set_that_unpickles_whatever_it_finds_is_refused(tmp_path):
    with pytest.raises(InputError, match="LSUN unpickles a file that it finds"):
        TorchvisionDataModule("LSUN", root=str(tmp_path))


def test_a_data_set_is_not_downloaded_by_an_option(tmp_path):
    with pytest.raises(InputError, match="download is no option here: nothing is downloaded"):
        TorchvisionDataModule("KMNIST", root=str(tmp_path), options={"download": True})


def test_torchvision_unpickles_nothing_else():
    """A later release that does is met here."""
    found = {
        path.stem
        for path in Path(datasets.__file__).parent.glob("*.py")
        if "pickle.load" in (text := path.read_text()) or "weights_only=False" in text
    }
    assert found <= {"cifar", "lsun"}


def test_a_checkpoint_with_other_records_is_refused(capfd):
    import torch

    from lightning_recon.runs.callback import Audit

    audit = Audit()
    record = {"client": "0", "rows": [], "num_reconstructions": 0, "notes": {}, "controls": {},
              "curve": [], "seconds": 0.0, "failure": None}  # fmt: skip
    with pytest.raises(InputError, match="client is '0', no whole number"):
        audit.load_state_dict({"records": [record], "seconds": 0.0})
    torch.save({"state_dict": {}, "client_index": 0, "x": inputs.Evil()}, "x.ckpt")
    assert main(["fit", "--config", TINY, "--ckpt_path", "x.ckpt"]) == 2
    assert "is no readable checkpoint" in capfd.readouterr().err
    assert not Path(inputs.MARK).exists()


# --- numbers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    numbers.prepare(folder)
    chosen = random.Random(0).sample(list(numbers.cases(folder)), 200)
    return {case.name: numbers.attempt(case.config, plays=False) for case in chosen}


def test_every_number_runs_or_is_refused_in_a_line(outcomes):
    assert [name for name, outcome in outcomes.items() if outcome.kind == "fault"] == []
    assert {outcome.kind for outcome in outcomes.values()} == {"ran", "refused"}
    assert len(outcomes) == 200


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("trainer.devices", "4000", "trainer.devices: 4000 processes, but"),
        ("data.init_args.image_size", str(2**63), "64 bits"),
        ("data.init_args.image_size", str(2**31), "at most 16,384"),
        ("seed_everything", "-1", "seed_everything must lie between"),
        ("seed_everything", str(2**32), "seed_everything must lie between"),
        ("audit.recovered_psnr", ".nan", "audit.recovered_psnr is not a number"),
        ("audit.recovered_psnr", ".inf", "audit.recovered_psnr must be a number of decibels"),
        ("audit.recovered_psnr", "-1", "audit.recovered_psnr must be a number of decibels"),
        ("ckpt_path", "last", "--ckpt_path last: a run begins in a new folder"),
        ("model.init_args.num_bins", "null", "num_bins takes no null"),
        ("model.init_args.tv_weight", ".nan", "tv_weight is not a number"),
    ],
)
def test_settings_that_nobody_means(key, value, said, capfd):
    assert main(["fit", "--config", TINY, f"--{key}", value]) == 2
    lines = [one for one in capfd.readouterr().err.splitlines() if one.startswith("error: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert not Path("lightning_logs").exists()


def test_a_patch_of_the_transformer_fits_or_is_refused(tmp_path):
    config = numbers.base(tmp_path)
    config["model"] = numbers.spec("APRIL", target=numbers.spec(
        "TinyViT", num_classes=20, image_size=16, patch_size=2, depth=1))  # fmt: skip
    assert numbers.attempt(config).kind in {"ran", "refused"}
    config["model"]["init_args"]["target"]["init_args"]["patch_size"] = 0
    assert "integer modulo by zero" in numbers.attempt(config).text


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        *[("audit", value, "audit takes keys with values, not") for value in (1e-9, 3, [], None)],
        ("model.init_args.target", {"init_args": {"num_classes": 20}}, "Target is what the"),
        ("model.init_args.target", numbers.spec("lightning_recon.targets.Target", num_classes=20),
         "Target is what the"),
        ("model.init_args.lr_scheduler",
         numbers.spec("torch.optim.lr_scheduler.LRScheduler"), "LRScheduler is what the"),
        ("data.init_args.image_size", [6, 16], "images of 6x16 are too small to be compared"),
    ],
)  # fmt: skip
def test_of_a_cell_what_no_command_looked_at_before(key, value, said, tmp_path):
    config = numbers.base(tmp_path)
    config["model"]["init_args"]["target"]["init_args"]["image_size"] = [6, 16]
    *parents, last = key.split(".")
    place = config
    for name in parents:
        place = place[name]
    place[last] = value
    outcome = numbers.attempt(config, plays=False)
    assert outcome.kind == "refused"
    assert said in outcome.text


# --- settings that are ignored -----------------------------------------------------------------


def test_a_sweep_takes_no_root_and_no_other_trainer(capfd):
    shutil.copy(TINY, "tiny.yaml")
    text = Path("tiny.yaml").read_text()
    Path("tiny.yaml").write_text(text.replace("{accelerator: cpu", "{precision: 64-true"))
    Path("sweep.yaml").write_text(f"base: tiny.yaml\n{AXES}")
    assert main(["sweep", "--config", "sweep.yaml", "--dry-run"]) == 2
    assert "trainer.precision: a configuration of the sweep has 64-true" in capfd.readouterr().err
    assert main(["sweep", "--config", "sweep.yaml", "--trainer.default_root_dir", "x"]) == 2
    assert "trainer.default_root_dir: a sweep writes below" in capfd.readouterr().err
