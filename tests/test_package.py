"""What ``pip install .`` gives, and what runs without the packages that few runs need."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution
from pathlib import Path
from sysconfig import get_path

import numpy as np
import pytest
import yaml
from command_line import CLI

from lightning_recon.commands.shipped import shipped, with_configs

ROOT = Path(__file__).parents[1]
FEW = ("segment_anything", "cv2", "opencv", "skimage", "scikit_image", "matplotlib", "tensorboard")


def test_requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert lines == ["-r requirements/run.txt", "-r requirements/dev.txt"]
    run = (ROOT / "requirements/run.txt").read_text()
    assert "torch>=" in run
    assert not any(name in run for name in ("pytest", "ruff", "mypy", "import-linter"))


def test_names_of_configurations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dlg, small = shipped("configs") / "dlg.yaml", shipped("configs") / "sweeps/ldp_small.yaml"
    assert with_configs(["fit", "--config", "dlg", "--x", "dlg"]) == [
        *("fit", "--config", str(dlg), "--x", "dlg")
    ]
    assert with_configs(["--config=configs/dlg.yaml"]) == [f"--config={dlg}"]
    assert with_configs(["-c", "sweeps/ldp_small"]) == ["-c", str(small)]
    assert with_configs(["--config", "nothing"]) == ["--config", "nothing"]
    Path("dlg").touch()
    assert with_configs(["--config", "dlg"]) == ["--config", "dlg"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """What a wheel holds, unpacked."""
    pytest.importorskip("setuptools", minversion="70.1")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("lightning_recon", "configs", "requirements"):
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=skipped)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*pip, "-w", str(folder), str(source)], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_the_configurations(wheel):
    inside = wheel / "lightning_recon/configs"
    names = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert {path.relative_to(inside) for path in inside.rglob("*.yaml")} == names
    assert not (wheel / "tests").exists()


def test_the_wheel_declares_what_it_needs_and_the_command(wheel):
    (info,) = wheel.glob("*.dist-info")
    found = Distribution.at(info)
    needed = [line for line in found.requires or [] if "extra ==" not in line]
    assert any(line.startswith("torch") for line in needed)
    assert not any(line.startswith(("pytest", "ruff", "mypy")) for line in needed)
    (entry,) = found.entry_points
    assert (entry.name, entry.value) == ("lightning-recon", "lightning_recon.__main__:command")
    versions = {line.rpartition(" ")[2] for line in found.metadata.get_all("Classifier") or []}
    assert {"3.10", "3.11", "3.12", "3.13"} <= versions


def test_the_wheel_works_outside_of_the_clone(wheel, tmp_path):
    code = (
        "import sys; sys.argv = ['lightning-recon', 'sweep', '--config', 'ldp_imagenet']\n"
        "from lightning_recon import __main__ as line\n"
        "line.main = lambda words: print(words[-1])\n"
        "line.command()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(wheel)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(wheel / "lightning_recon/configs/ldp_imagenet.yaml")


@pytest.mark.slow
def test_without_the_packages_that_few_runs_need(tmp_path):
    random = np.random.default_rng(0)
    arrays = {"x_test": random.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)}
    np.savez(tmp_path / "pictures.npz", **arrays, y_test=np.arange(6))
    target = {"class_path": "LeNet", "init_args": {"num_classes": 6, "image_size": 16}}
    attack = {"class_path": "InvertingGradients", "init_args": {"iterations": 2, "target": target}}
    options = {"root": "pictures.npz", "batch_size": 1, "num_clients": 1}
    data = {"class_path": "ArrayDataModule", "init_args": options}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"model": attack, "data": data}))
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(get_path("purelib")).iterdir():
        if not path.name.startswith(FEW):
            (packages / path.name).symlink_to(path)
    done = subprocess.run(
        [sys.executable, "-S", str(CLI), "test", "--config", "tiny.yaml"],
        env={"PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "lightning_logs/version_0"
    assert (run / "results.json").is_file()
    assert (run / "metrics.csv").is_file()  # in the place of TensorBoard's events
