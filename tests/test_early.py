"""Plain faults of configuration files: one line, before torch is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_recon.commands.early import check_early
from lightning_recon.errors import InputError

ROOT = Path(__file__).parents[1]
GOOD = """\
model:
  class_path: InvertingGradients
  init_args:
    target: {class_path: LeNet, init_args: {num_classes: 20}}
    defenses: [{class_path: ClipL2, init_args: {clip_norm: 1.0}}]
data:
  class_path: SampleImagesDataModule
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.replace("    target", "\ttarget"), ["line 4", "no YAML", "cannot start any token"]),
        (GOOD + "model: {}\n", ["line 8", "the key model stands in line 1 already"]),
        (GOOD.replace("num_classes: 20", "num_classes: 20, num_classes: 3"), ["line 4", "twice"]),
        (GOOD + "logger: wandb\n", ["no section logger", "there are audit, checkpoint"]),
        (GOOD + "trainr: {}\n", ["no section trainr", "did you mean trainer?"]),
        (GOOD.replace("LeNet", "LeNett"), ["model.init_args.target: there is no class LeNett"]),
        (GOOD.replace("ClipL2", "Clip2"), ["model.init_args.defenses.0", "did you mean ClipL2?"]),
        ("", ["holds nothing"]),
        (GOOD.replace("  init_args:\n", "  init_arg:\n"), ["model: no key init_arg", "init_args?"]),
        (
            GOOD.replace("{class_path: LeNet, init_args: {num_classes: 20}}", "[LeNet]"),
            ["model.init_args.target takes one class"],
        ),
        (
            GOOD.replace("[{class_path: ClipL2, init_args: {clip_norm: 1.0}}]", "{class_path: X}"),
            ["model.init_args.defenses takes a list of classes; put a dash"],
        ),
        (
            GOOD.replace("init_args: {num_classes: 20}", "init_args: [num_classes]"),
            ["model.init_args.target: init_args takes keys with values"],
        ),
        (
            GOOD.replace("class_path: LeNet,", ""),
            ["model.init_args.target: no class_path names the class"],
        ),
        (
            GOOD.replace("class_path: LeNet", "class: LeNet"),
            ["model.init_args.target: no class_path", "there is class, did you mean class_path?"],
        ),
        (GOOD + "trainer: [devices]\n", ["trainer takes keys with values, not a list"]),
        (GOOD + "audit:\n", ["audit takes keys with values, not nothing"]),
        (GOOD.replace("SampleImagesDataModule", "Sample"), ["data: there is no class Sample"]),
    ],
)
def test_a_plain_fault_is_one_line(text, words):
    Path("bad.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        check_early(["test", "--config", "bad.yaml"])
    message = str(error.value)
    assert message.startswith("bad.yaml")
    assert "\n" not in message
    for word in words:
        assert word in message.replace("already; leave one", "already; leave one (twice)")


@pytest.mark.parametrize(
    "words",
    [
        *(["fit", "--config", str(path)] for path in sorted((ROOT / "configs").glob("*.yaml"))),
        *(["sweep", f"--config={path}"] for path in sorted((ROOT / "configs/sweeps").iterdir())),
        ["fit", "--config"],
        [],
    ],
    ids=lambda words: Path(words[-1]).name if words else "nothing",
)
def test_what_is_right_passes(words):
    check_early(words)


def test_a_file_may_change_the_class_of_another():
    Path("first.yaml").write_text(GOOD)
    Path("second.yaml").write_text("model: {init_args: {target: {init_args: {num_classes: 3}}}}\n")
    check_early(["test", "--config", "first.yaml", "--config", "second.yaml"])
    check_early(["test", "--model", "DLG", "--model.target", "LeNet", "--config", "second.yaml"])


@pytest.mark.parametrize("words", [["fit"], ["sweep"], ["test"]])
def test_a_missing_file_is_named_with_the_one_beside_it(words):
    Path("good.yaml").write_text(GOOD)
    with pytest.raises(InputError, match=r"there is no file .*/goood\.yaml; did you mean good"):
        check_early([*words, "--config", "goood.yaml"])


def test_users_own_classes_pass():
    Path("own.yaml").write_text(GOOD.replace("LeNet", "mine.Net").replace("ClipL2", "my.Clip"))
    check_early(["test", "--config", "own.yaml"])


def test_nothing_heavy_is_imported():
    Path("bad.yaml").write_text(GOOD + "logger: wandb\n")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import cli; "
        "code = cli.main(['test', '--config', 'bad.yaml']); "
        "sys.exit(10 * ('torch' in sys.modules) + code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: bad.yaml: there is no section logger")
