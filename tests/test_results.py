"""The schema of ``results.json``: what is written conforms to it, and what is read is typed."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from conforming import names_of, problems
from run_folders import make_results, make_rows

from lightning_recon.attacks import FeatureInversionAttack, GradientMatching, LDPAttack
from lightning_recon.audit.results import Results, read_results, view
from lightning_recon.audit.schema import SCHEMA_VERSION, PrivacyJson, ResultsJson
from lightning_recon.commands.lightning import main
from lightning_recon.defenses import ClipL2, GaussianNoise, SignSGD, TopK
from lightning_recon.errors import InputError
from lightning_recon.report.findings import findings
from lightning_recon.report.terminal import print_summary
from lightning_recon.runs.command import command_line
from lightning_recon.runs.results import describe_attack
from lightning_recon.runs.resume import going_on
from lightning_recon.targets import LeNet

ROOT = Path(__file__).parent.parent
TINY = str(ROOT / "tests/conf/ldp_tiny.yaml")
RUN = Path("lightning_logs/version_0")


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_run_conforms_to_the_schema(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    assert main([command, "--config", TINY]) == 0
    content = json.loads((RUN / "results.json").read_text())
    assert problems(ResultsJson, content) == []
    assert content["schema_version"] == SCHEMA_VERSION == 4
    results = read_results(RUN / "results.json")
    assert results == view(content)
    assert results.metric("psnr").mean == content["metrics"]["psnr"]["mean"]
    assert results.control("noise_only").recovered == 0
    assert results.privacy.noise_std == 0.005
    assert results.privacy.claimed.epsilon is None


@pytest.mark.parametrize(
    ("kind", "chain", "adaptive", "names"),
    [
        (GradientMatching, [TopK(0.5), GaussianNoise(0.1)], False, ["TopK"]),  # noise has no bias
        (GradientMatching, [TopK(0.5), GaussianNoise(0.1)], True, []),
        (FeatureInversionAttack, [SignSGD()], False, ["SignSGD"]),
        (LDPAttack, [ClipL2(1.0), GaussianNoise(0.1)], None, []),  # cannot simulate any
    ],
)
def test_defenses_that_an_attack_could_simulate_and_does_not_are_named(
    kind, chain, adaptive, names
):
    options = {} if adaptive is None else {"adaptive": adaptive}
    own = type("Own", (kind,), {"citation": "none"})
    described = describe_attack(own(LeNet(20, 16), defenses=chain, **options))
    assert described["unsimulated"] == names


def test_a_command_line_begins_with_the_path_of_own_classes(monkeypatch):
    monkeypatch.setattr("sys.argv", ["cli.py", "test", "--config", "a b.yaml"])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert command_line() == "python cli.py test --config 'a b.yaml'"
    monkeypatch.setenv("PYTHONPATH", "mine:/other one")
    assert command_line() == "PYTHONPATH='mine:/other one' python cli.py test --config 'a b.yaml'"
    assert command_line(["fit"]) == "PYTHONPATH='mine:/other one' python cli.py fit"


@pytest.mark.parametrize("command", ["test", "fit"])
def test_so_does_the_line_that_goes_on(command, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "mine")
    (tmp_path / "config.yaml").touch()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    assert going_on(tmp_path, [command]).startswith(f"PYTHONPATH=mine python cli.py {command} ")


def test_the_checker_finds_what_is_wrong():
    assert problems(ResultsJson, {"schema_version": True})[-1].endswith("is True, no int")
    assert "results.seed is missing" in problems(ResultsJson, {})
    assert problems(PrivacyJson, {"clip_norm": "1"})[-1] == "results.clip_norm is '1', no float"


def test_the_page_names_every_key():
    page = (ROOT / "docs/results-schema.md").read_text()
    named = set(re.findall(r"`(\w+)`", page))
    assert set(names_of(ResultsJson)) - named == set()
    assert f"`schema_version` is {SCHEMA_VERSION}" in page


def test_all_that_is_read_is_in_the_schema():
    assert set(Results._fields) <= get_type_hints(ResultsJson).keys()


def write(folder, content) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps(content))
    return path


VERSION_1: Mapping[str, Any] = {
    "experiment": "old",
    "attack": "DLG",
    "oracles": ["labels"],
    "num_images": 2,
    "recovered": 1,
    "recall_ci_low": None,
    "metrics": {"psnr": {"mean": 20.5, "worst": 25, "median": 20.5}},
    "null": {"mean_image": {"psnr": 12.0}, "noise_only": {"psnr": 9.0, "recovered": 2}},
    "privacy": {"clip_norm": None, "claimed": None, "statement": "no formal guarantee"},
    "identification": None,
    "curves": [{"client": 0, "iteration": [1, 2], "objective": [3.0, None]}],
}


def test_a_file_of_the_previous_version_is_read(tmp_path):
    results = read_results(write(tmp_path, VERSION_1))
    assert results.experiment == "old"
    assert results.metric("psnr").worst == 25
    assert results.metric("ssim").mean is None
    assert results.control("noise_only").recovered == 2
    assert results.privacy.claimed.epsilon is None
    assert results.identification.rate is None
    assert results.curves[0].objective == [3.0, None]
    assert results.seed is None
    assert list(results.failures) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1 is truncated or no JSON"),
        ([1], "holds no object"),
        ({"name": "another program's"}, "holds nothing of an audit"),
        ({**VERSION_1, "schema_version": 5}, "is of version 5, and this program reads up to 4"),
        ({**VERSION_1, "schema_version": "2"}, "schema_version is '2', no version"),
        ({**VERSION_1, "schema_version": True}, "schema_version is True, no version"),
        ({**VERSION_1, "schema_version": 2}, "lacks citation, clients_unrecovered, command"),
        ({**VERSION_1, "recovered": "one"}, "recovered is 'one', no whole number"),
        ({**VERSION_1, "recovered": True}, "recovered is 'True', no whole number"),
        ({**VERSION_1, "oracles": "labels"}, "oracles is 'labels', no list"),
        ({**VERSION_1, "metrics": {"psnr": 12}}, r"metrics\.psnr is '12', no object"),
        ({**VERSION_1, "curves": [{"client": 0.5}]}, r"curves\[0\]\.client is '0.5', no whole"),
    ],
)
def test_what_is_no_results_file_is_one_line(tmp_path, content, message):
    path = write(tmp_path, content)
    if isinstance(content, str):
        path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_results(path)
    assert "\n" not in str(error.value)
    assert "results.json" in str(error.value)


def test_numbers_that_json_does_not_know_are_gaps(tmp_path):
    """Other programs write them; charts cannot draw them."""
    path = write(tmp_path, {**VERSION_1, "wall_seconds": float("nan")})
    assert "NaN" in path.read_text()
    assert read_results(path).wall_seconds is None


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"holds no results\.json"):
        read_results(tmp_path / "results.json")


# what a reader must know


def test_a_sound_run_has_no_findings():
    assert findings(view(make_results(make_rows(2)))) == []


@pytest.mark.parametrize(
    ("more", "severity", "text"),
    [
        ({"failures": [{"client": 1, "reason": "NaN"}]}, "alarm", "failed on 1 of 2 clients"),
        ({"null": {"noise_only": {"recovered": 1}}}, "alarm", "recovers 1 image from noise alone"),
        ({"null": {"mean_image": {"psnr": 99.0}}}, "alarm", "mean image (99.0 dB)"),
        ({"data": {"name": "d", "fallback": "samples"}}, "alarm", "stand-in (sample photographs)"),
        ({"masks": {"method": "grabcut"}}, "alarm", "GrabCut"),
        ({"unavailable_metrics": {"lpips": "no weights"}}, "alarm", "lpips is unavailable: no w"),
        ({"null": {"noise_only": {"failed": 2}}}, "note", "control failed on 2 of 2 clients"),
        ({"oracles": ["labels", "buffers"]}, "note", "pass no defense"),
        ({"clients_unrecovered": [1]}, "note", "No image was recovered of client 1."),
    ],
)
def test_every_finding(more, severity, text):
    (finding,) = findings(view(make_results(make_rows(2), **more)))
    assert finding.severity == severity
    assert text in finding.text


def test_buffers_are_no_finding_where_nothing_is_defended():
    more = {"oracles": ["buffers"], "defenses": [], "privacy": {"clip_norm": None}}
    assert findings(view(make_results(make_rows(2), **more))) == []


def test_the_terminal_says_in_red_what_comes_of_noise_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    null = {"noise_only": {"psnr": 30.0, "recovered": 5}}
    more = {"null": null, "clients_unrecovered": [1]}
    print_summary(view(make_results(make_rows(2), **more)), tmp_path)
    printed = capsys.readouterr().out
    assert "\x1b[1;31malarm: The attack also recovers 5 images from noise alone" in printed
    assert "\x1b[33mnote: No image was recovered of client 1." in printed


def test_the_terminal_names_what_was_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    for name in ("reconstructions", "records"):
        (tmp_path / name).mkdir()
    for name in ("results.json", "records/process0000.jsonl"):
        (tmp_path / name).write_text("x")
    print_summary(view(make_results([], experiment="captured")), tmp_path)
    printed = capsys.readouterr().out
    assert f"outputs  {tmp_path}/ (results.json, records/)" in printed
    assert "captured: 0 reconstructions of 0 clients; no truth to score them by" in printed
