"""What was changed in a run's folder is noticed on resume and on report; see docs/trust.md."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import lightning_recon
from lightning_recon.audit.records import (
    ClientRecord,
    Origin,
    append_record,
    configuration_hash,
    read_records,
    records_file,
)
from lightning_recon.commands.lightning import main
from lightning_recon.errors import InputError
from lightning_recon.report import write_report

ROOT = Path(lightning_recon.__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.hostile.inputs import flipped  # noqa: E402

TINY = str(ROOT / "tests/conf/ldp_tiny.yaml")
RECORDS = "records/process0000.jsonl"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["--data.init_args.num_clients", "2", "--model.init_args.iterations", "2"]
        assert main(["test", "--config", TINY, *words]) == 0
    return folder / "lightning_logs/version_0"


@pytest.fixture
def run(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(whole, tmp_path / "lightning_logs/version_0"))


def replaced(path, pattern, by):
    text = path.read_text()
    changed = re.sub(pattern, by, text, count=1)
    assert changed != text
    path.write_text(changed)


def record_of(line):
    """A line without its checksum: what an earlier version would have written."""
    content = json.loads(line)
    for name in ("sha256", "configuration", "data"):
        del content[name]
    return content


CHANGES = {  # by name: file, pattern, by what, what is said
    "a score": (RECORDS, r'"psnr": (\d)', r'"psnr": 9\1', "line 1 was changed"),
    "a client": (RECORDS, r'"client": 0', r'"client": 999', "line 1 was changed"),
    "an image": (RECORDS, r'"index": (\d)', r'"index": 1\1', "line 1 was changed"),
    "a checksum": (RECORDS, r'"sha256": "..', '"sha256": "zz', "no key sha256"),
    "no checksum": (RECORDS, r', "sha256": "\w+"\}\n$', "}\n", "line 2 has no checksum"),
    "iterations": ("config.yaml", r"iterations: 2", "iterations: 200", "configuration"),
    "a seed": ("config.yaml", r"seed_everything: 0", "seed_everything: 1", "configuration"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_is_refused_on_resume_and_on_report(name, run, capfd):
    file, pattern, by, said = CHANGES[name]
    replaced(run / file, pattern, by)
    with pytest.raises(InputError, match=said):
        write_report(run)
    before = (run / RECORDS).read_bytes()
    assert main(["test", "--resume", str(run)]) == 2
    lines = [one for one in capfd.readouterr().err.splitlines() if one.startswith("error: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert (run / RECORDS).read_bytes() == before


@pytest.mark.parametrize(
    ("file", "pattern", "by", "said"),
    [
        ("results.json", r'"recovered": (\d+)', r'"recovered": 9\1', "results.json was changed"),
        ("results.json", r'"claim_holds": \w+', '"claim_holds": true', "results.json was changed"),
        ("results.json", r'"integrity": \{', '"integrity": {"data": 3,', "stands twice"),
        ("results.json", r'"schema_version": 4', '"schema_version": "4"', "no version"),
        ("results.json", r'"seed": 0', '"seed": "0"', "was changed"),
        ("clients.csv", r"\n0,0,(\d+),", r"\n0,0,9\1,", "clients.csv was changed"),
    ],
)
def test_is_refused_on_report(file, pattern, by, said, run):
    write_report(run)  # else the test shows nothing
    replaced(run / file, pattern, by)
    with pytest.raises(InputError, match=said):
        write_report(run)


def test_a_flipped_bit_is_noticed(run):
    path = run / RECORDS
    content = path.read_bytes()
    origin = Origin(configuration_hash((run / "config.yaml").read_text()))
    assert len(read_records(run, origin, 2)) == 2
    for damaged in flipped(content, seed=1, count=200):
        path.write_bytes(damaged)
        if damaged.endswith(b"\n"):
            with pytest.raises(InputError, match=r"process0000.jsonl, line \d"):
                read_records(run, origin, 2)
        else:  # a line that breaks off was being written
            assert len(read_records(run, origin, 2)) == 1


def test_records_of_another_run_are_refused(run):
    origin = Origin("0123456789abcdef", "")
    with pytest.raises(InputError, match="line 1 was made with another configuration than"):
        read_records(run, origin)
    with pytest.raises(InputError, match="line 1 was made with another list of files"):
        read_records(run, Origin("", "0123456789abcdef"))
    with pytest.raises(InputError, match="line 2 is of client 1, but the run has 1; remove"):
        read_records(run, num_clients=1)


def test_old_records_are_read_and_their_numbers_checked(run, tmp_path):
    """Without checksums, as earlier versions wrote them."""
    lines = (run / RECORDS).read_text().splitlines()
    old = [json.dumps(record_of(line)) for line in lines]
    (run / RECORDS).write_text("\n".join([*old, ""]))
    assert [record.client for record in read_records(run, Origin("x" * 16), 2)] == [0, 1]
    append_record(run, 0, ClientRecord(3, [], 0, {}, {}, [], 0.0, None))
    assert [record.client for record in read_records(run)] == [0, 1, 3]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("client", -1, "client is -1"),
        ("client", "0", "client is '0', no whole number"),
        ("client", 2**70, "client is a number of more than 64 bits"),
        ("rows", {}, r"rows is '\{\}', no list"),
        ("rows", [{"psnr": "high"}], r"rows\[0\].psnr is 'high', no number"),
        ("rows", [{"label": -3}], r"rows\[0\].label is -3"),
        ("rows", [{"index": 0.5}], r"rows\[0\].index is 0.5"),
        ("curve", [[0]], r"curve\[0\] has 1 items, not 2"),
        ("failure", 3, "failure is '3', no text"),
        ("seconds", None, "seconds is 'None', no number"),
        ("more", 1, "there is no key more"),
    ],
)
def test_an_old_record_of_another_schema_is_one_line(key, value, said, run):
    content = record_of((run / RECORDS).read_text().splitlines()[0])
    (run / RECORDS).write_text(json.dumps(content | {key: value}) + "\n")
    with pytest.raises(InputError, match=f"line 1 is no record of a client .*{said}") as error:
        read_records(run)
    assert "\n" not in str(error.value)


def test_what_is_no_text_names_its_line(run):
    path = records_file(run, 0)
    path.write_bytes(path.read_bytes() + b'{"client": "\xff"}\n')
    with pytest.raises(InputError, match="line 3 has no checksum"):
        read_records(run)
    path.write_bytes(b'{"client": "\xff"}\n')
    with pytest.raises(InputError, match="line 1: no UTF-8: a byte 0xFF"):
        read_records(run)
    (run / "clients.csv").write_bytes(b"client\n0\n\xff\n")
    with pytest.raises(InputError, match=r"clients\.csv, line 3: no UTF-8"):
        write_report(run)
