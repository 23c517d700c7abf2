"""What an evaluation over many clients leaves behind, failures included."""

import csv
import json
import math
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conforming import problems
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_recon.attacks import LDPAttack
from lightning_recon.audit.records import read_records
from lightning_recon.audit.results import view
from lightning_recon.audit.schema import ResultsJson
from lightning_recon.commands.lightning import main
from lightning_recon.errors import InputError
from lightning_recon.files import write_json
from lightning_recon.observation import Reconstruction
from lightning_recon.report.terminal import print_summary

TINY = str(Path(__file__).parent / "conf/ldp_tiny.yaml")
RUN = Path("lightning_logs/version_0")
ARGS = ["test", "--config", TINY, "--data.init_args.num_clients", "3"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def breaking(monkeypatch):
    """Make the attack fail on some clients, and find nothing on others."""

    def set_up(failing, empty=()):
        whole = LDPAttack.attack_client

        def attack_client(attack, client):
            if client in failing:
                raise InputError(f"the update of client {client} holds NaN")
            found = whole(attack, client)
            if client in empty:
                return Reconstruction(found.images[:0], None, found.score[:0], {})
            return found

        monkeypatch.setattr(LDPAttack, "attack_client", attack_client)

    return set_up


def results(run=RUN):
    return json.loads((run / "results.json").read_text())


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The outputs of a test of three clients, with pictures of the first."""
    folder = tmp_path_factory.mktemp("audited")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*ARGS, "--audit.num_pictured_clients", "1"]) == 0
    return folder / RUN


def test_failed_and_unrecovered_clients_stand_at_the_top(breaking, capsys):
    breaking(failing=[1], empty=[2])
    assert main([*ARGS, "--audit.on_failure", "record"]) == 0
    found = results()
    assert found["failures"] == [{"client": 1, "reason": "the update of client 1 holds NaN"}]
    assert found["clients_unrecovered"] == [2]
    assert found["num_images"] == 12
    assert found["recovered"] == 4
    with (RUN / "clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows[4:]:
        assert row["psnr"] == row["psnr_mean_image"]
        assert row["score"] == ""
    page = (RUN / "report.html").read_text()
    top = page[: page.index("<img")]
    assert "the update of client 1 holds NaN" in top
    assert "client 2" in top.lower()
    printed = " ".join(capsys.readouterr().out.split())
    for text in ("The attack failed on 1 of 3 clients", "No image was recovered of client 2."):
        assert text in top
        assert text in printed


def test_a_failure_ends_the_run_unless_it_is_to_be_recorded(breaking, capsys):
    breaking(failing=[1])
    assert main(ARGS) == 2
    assert "error: the update of client 1 holds NaN" in capsys.readouterr().err


def test_nothing_but_failures_is_an_error(breaking, capsys):
    breaking(failing=[0, 1, 2])
    assert main([*ARGS, "--audit.on_failure", "record"]) == 2
    assert "the attack failed on all 3 clients" in capsys.readouterr().err
    assert len(results()["failures"]) == 3


def test_controls_and_curves(audited):
    found = results(audited)
    assert set(found["null"]) == {
        *("mean_image", "class_mean", "nearest_public", "noise_only", "other_client"),
    }
    for control in found["null"].values():
        assert control["psnr"] < found["metrics"]["psnr"]["mean"] - 10
    assert found["null"]["noise_only"]["recovered"] == 0
    assert found["identification"]["rate"] == 1
    assert found["identification"]["num_candidates"] == 42
    assert [curve["client"] for curve in found["curves"]] == [0, 1, 2]
    for curve in found["curves"]:
        assert curve["iteration"][-1] == 19
        assert curve["objective"][-1] < curve["objective"][0]


def test_tensorboard_shows_what_compares_runs(audited):
    board = EventAccumulator(str(audited))
    board.Reload()
    tags = board.Tags()
    assert "hp/psnr" in tags["scalars"]
    assert board.Scalars("hp/psnr")[-1].value == pytest.approx(
        results(audited)["metrics"]["psnr"]["mean"], abs=1e-3
    )
    assert tags["histograms"] == []  # the report shows how figures spread
    psnr = [(event.step, event.value) for event in board.Scalars("client/psnr")]
    assert [step for step, _ in psnr] == [0, 1, 2]
    assert "recovery_by_score" in tags["tensors"]
    assert "threat_model/text_summary" in tags["tensors"]
    (text,) = board.Tensors("threat_model/text_summary")
    assert b"malicious server" in text.tensor_proto.string_val[0]
    assert any("hparams" in tag for tag in board.summary_metadata)


def test_pictures_of_the_first_clients_only(audited):
    names = {path.name[:11] for path in (audited / "reconstructions").iterdir()}
    assert names == {"client00000"}
    assert len(list((audited / "reconstructions").glob("*_truth.png"))) == 4


def test_numbers_that_json_does_not_know(tmp_path):
    """An objective that diverged must not cost the results of the whole run."""
    write_json(tmp_path / "a.json", {"curve": [(0, 1.5), (1, math.nan)], "b": {"c": -math.inf}})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"curve": [[0, 1.5], [1, None]], "b": {"c": None}}


def test_a_diverging_objective(monkeypatch):
    differentiate = LDPAttack.differentiate

    def lost(*args):
        parts, gradient = differentiate(*args)
        return {name: part * math.nan for name, part in parts.items()}, gradient * math.nan

    monkeypatch.setattr(LDPAttack, "differentiate", lost)
    assert main([*ARGS, "--audit.on_failure", "record"]) == 0
    found = results()
    assert set(found["curves"][0]["objective"]) == {None}
    assert problems(ResultsJson, found) == []
    assert found["recovered"] == 0
    assert (RUN / "report.html").is_file()


def test_brackets_of_paths_and_reasons_are_printed(audited, capsys):
    found = results(audited)
    found["failures"] = [{"client": 1, "reason": "expected [batch, channels] [/b]"}]
    print_summary(view(found), Path("[old]/version_0"))
    text = " ".join(capsys.readouterr().out.split())
    assert "expected [batch, channels] [/b]" in text
    assert "[old]/version_0" in text


def test_records_of_another_run_do_not_count(capsys):
    logger = "{class_path: CSVLogger, init_args: {save_dir: ., name: a, version: b}}"
    given = [*ARGS, "--trainer.logger", logger]
    assert main(given) == 0
    folder = Path("a/b")
    before = (folder / "results.json").read_text()
    assert main([*given, "--seed_everything", "1"]) == 2
    assert "holds the records of another run" in capsys.readouterr().err
    assert (folder / "results.json").read_text() == before
    assert len(read_records(folder)) == 3


def test_a_resumed_fit_may_meet_its_own_records():
    bare = ["fit", "--config", TINY, "--trainer.logger", "false", "--checkpoint.dirpath", "c"]
    assert main([*bare, "--checkpoint.every_n_train_steps", "30"]) == 0
    assert main([*bare, "--ckpt_path", "c/last.ckpt"]) == 0
    for version in range(2):  # each has a folder of its own
        assert results(Path(f"lightning_logs/version_{version}"))["num_clients"] == 2


@contextmanager
def own_clock():
    """The audit's clock: an iteration takes a second, learning from public images 1000."""
    now = [0.0]
    iterate, learn = LDPAttack.iterate, LDPAttack.learn_public

    def slow_iterate(*args):
        now[0] += 1
        return iterate(*args)

    def slow_learn(*args):
        now[0] += 1000
        return learn(*args)

    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(monotonic=lambda: now[0])
        for module in ("callback", "ledger"):
            patch.setattr(f"lightning_recon.runs.{module}.time", clock)
        patch.setattr(LDPAttack, "iterate", slow_iterate)
        patch.setattr(LDPAttack, "learn_public", slow_learn)
        yield


@pytest.fixture
def _clock():
    with own_clock():
        yield


FIT = ["fit", "--config", TINY, "--audit.null_controls", "false"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The outputs of a fit by that clock, with checkpoints on its way."""
    folder = tmp_path_factory.mktemp("fitted")
    every = ["--checkpoint.every_n_train_steps", "5", "--checkpoint.save_top_k=-1"]
    with pytest.MonkeyPatch.context() as patch, own_clock():
        patch.chdir(folder)
        assert main([*FIT, *every]) == 0
    return folder / RUN


def must_have_taken(run, seconds):
    assert [record.seconds for record in read_records(run)] == [20.0, 20.0]
    assert results(run)["wall_seconds"] == seconds


def test_seconds_of_a_fit_are_the_clients(fitted):
    must_have_taken(fitted, 1040)


@pytest.mark.usefixtures("_clock")
@pytest.mark.parametrize("command", ["test", "predict"])
def test_seconds_are_the_clients(command):
    assert main([command, *FIT[1:]]) == 0
    must_have_taken(RUN, 1040)


@pytest.mark.usefixtures("_clock")
@pytest.mark.parametrize("step", [10, 20, 25])  # within a client, between both, within the second
def test_seconds_of_a_resumed_fit(fitted, step):
    shutil.copytree(fitted, RUN)
    (checkpoint,) = RUN.glob(f"checkpoints/*step={step}.ckpt")
    assert main([*FIT, "--ckpt_path", str(checkpoint)]) == 0
    must_have_taken(RUN, 2040)  # public images are learned from twice


@pytest.mark.usefixtures("_clock")
def test_validate_takes_its_own_time(fitted):
    checkpoint = str(fitted / "checkpoints/last.ckpt")
    assert main(["validate", "--config", TINY, "--ckpt_path", checkpoint]) == 0
    assert results()["wall_seconds"] < 1040  # and not that of the fit as well


def test_what_several_processes_fitted_is_not_resumed_by_one(fitted, capsys):
    """Their checkpoint holds the first one's clients only."""
    checkpoint = torch.load(fitted / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["num_processes"] == 1
    torch.save(checkpoint | {"num_processes": 2}, "two.ckpt")
    assert main([*FIT, "--ckpt_path", "two.ckpt"]) == 2
    assert "several wrote this checkpoint" in capsys.readouterr().err
    assert list(Path().glob("lightning_logs/*")) == []
    assert main(["validate", "--config", TINY, "--ckpt_path", "two.ckpt"]) == 0
