"""What an evaluation over many clients leaves behind, failures included."""

import csv
import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_recon.attacks import LDPAttack
from lightning_recon.errors import InputError
from lightning_recon.main import main
from lightning_recon.structures import Reconstruction

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


def results():
    return json.loads((RUN / "results.json").read_text())


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
    assert "THE ATTACK FAILED on 1 of 3 clients" in " ".join(capsys.readouterr().out.split())


def test_a_failure_ends_the_run_unless_it_is_to_be_recorded(breaking, capsys):
    breaking(failing=[1])
    assert main(ARGS) == 2
    assert "error: the update of client 1 holds NaN" in capsys.readouterr().err


def test_nothing_but_failures_is_an_error(breaking, capsys):
    breaking(failing=[0, 1, 2])
    assert main([*ARGS, "--audit.on_failure", "record"]) == 2
    assert "the attack failed on all 3 clients" in capsys.readouterr().err
    assert len(results()["failures"]) == 3


def test_controls_and_curves():
    assert main(ARGS) == 0
    found = results()
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


def test_tensorboard_shows_what_compares_runs():
    assert main(ARGS) == 0
    board = EventAccumulator(str(RUN))
    board.Reload()
    tags = board.Tags()
    assert "hp/psnr" in tags["scalars"]
    assert board.Scalars("hp/psnr")[-1].value == pytest.approx(
        results()["metrics"]["psnr"]["mean"], abs=1e-3
    )
    assert "distribution/psnr" in tags["histograms"]
    assert "recovery_by_score" in tags["tensors"]
    assert "threat_model/text_summary" in tags["tensors"]
    (text,) = board.Tensors("threat_model/text_summary")
    assert b"malicious server" in text.tensor_proto.string_val[0]
    assert any("hparams" in tag for tag in board.summary_metadata)


def test_pictures_of_the_first_clients_only():
    assert main([*ARGS, "--audit.num_pictured_clients", "1"]) == 0
    names = {path.name[:11] for path in (RUN / "reconstructions").iterdir()}
    assert names == {"client00000"}
    assert len(list((RUN / "reconstructions").glob("*_truth.png"))) == 4
