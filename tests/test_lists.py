"""A list that is given later replaces the first one whole, whatever its length."""

from pathlib import Path

import pytest
import yaml

from lightning_recon.commands.lightning import main
from lightning_recon.commands.lists import replacing_lists

ROOT = Path(__file__).parents[1]
SPECTRAL = str(ROOT / "configs/ldp_spectral.yaml")
KEY = "--model.init_args.defenses"
TWO = "[{class_path: ClipL2, init_args: {clip_norm: 1.0}}, " + (
    "{class_path: GaussianNoise, init_args: {noise_std: 0.02}}]"
)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def defenses(capsys, *words):
    with pytest.raises(SystemExit) as done:
        main(["test", *words, "--print_config"])
    assert done.value.code == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    return [
        (d["class_path"].rpartition(".")[2], d["init_args"]) for d in model["init_args"]["defenses"]
    ]


@pytest.mark.parametrize("is_joined", [False, True])
def test_on_the_command_line(capsys, is_joined):
    words = [f"{KEY}={TWO}"] if is_joined else [KEY, TWO]
    (_, clip), (name, noise) = defenses(capsys, "--config", SPECTRAL, *words)
    assert clip["clip_norm"] == 1.0
    assert name == "GaussianNoise"
    assert (noise["noise_std"], noise["epsilon"], noise["num_records"]) == (0.02, None, None)


def test_in_a_later_file(capsys):
    Path("later.yaml").write_text(f"model:\n  init_args:\n    defenses: {TWO}\n")
    found = defenses(capsys, "--config", SPECTRAL, "--config", "later.yaml")
    assert found[1][1]["noise_std"] == 0.02
    assert found[1][1]["epsilon"] is None


def test_another_length_and_the_last_one_counts(capsys):
    one = "[{class_path: SignSGD}]"
    assert [name for name, _ in defenses(capsys, "--config", SPECTRAL, KEY, TWO, KEY, one)] == [
        "SignSGD"
    ]


def test_appending_and_editing_stay(capsys):
    found = defenses(capsys, "--config", SPECTRAL, f"{KEY}+", "{class_path: SignSGD}")
    assert [name for name, _ in found] == ["ClipL2", "GaussianNoise", "SignSGD"]
    found = defenses(capsys, "--config", SPECTRAL, f"{KEY}.init_args.epsilon", "5")
    assert found[1][1]["epsilon"] == 5.0
    assert found[1][1]["num_records"] == 1000


@pytest.mark.parametrize(
    "words",
    [
        ["test", "--config", "missing.yaml", KEY, TWO],
        ["test", "--a", "[1, 2]", "--a", "[3, 4]"],
        ["test", "--flag", "--other"],
        ["test", "--a", "[{b: 1}", "--a", "{b: [unclosed"],
        [],
    ],
)
def test_other_words_stay_as_they_are(words):
    assert replacing_lists(words) == words
