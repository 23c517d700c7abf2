"""Records survive a crash, and are read back whole."""

import math

import pytest

from lightning_recon.audit.records import ClientRecord, append_record, read_records, records_file
from lightning_recon.errors import InputError


def record(client, psnr=20.0, failure=None):
    rows = [{"client": client, "image": 0, "psnr": psnr, "score": math.nan}]
    return ClientRecord(client, rows, 1, {"rows_hit": 3}, {}, [(0, 2.0), (5, 1.0)], 0.5, failure)


def test_read_back_in_order_and_once_each(tmp_path):
    for rank, client in ((0, 4), (1, 2), (0, 0), (1, 4)):
        append_record(tmp_path, rank, record(client))
    found = read_records(tmp_path)
    assert [item.client for item in found] == [0, 2, 4]
    assert found[0].curve == [(0, 2.0), (5, 1.0)]
    assert math.isnan(found[0].rows[0].pop("score"))
    assert found[0].rows == [{"client": 0, "image": 0, "psnr": 20.0}]
    assert found[0].notes == {"rows_hit": 3}


def test_half_a_line_is_lost_and_nothing_else(tmp_path):
    append_record(tmp_path, 0, record(0))
    append_record(tmp_path, 0, record(1))
    path = records_file(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-20])
    assert [item.client for item in read_records(tmp_path)] == [0]
    append_record(tmp_path, 0, record(2))
    assert [item.client for item in read_records(tmp_path)] == [0, 2]


def test_only_half_a_line(tmp_path):
    path = records_file(tmp_path, 0)
    path.parent.mkdir()
    path.write_bytes(b'{"client": 0')
    append_record(tmp_path, 0, record(1))
    assert [item.client for item in read_records(tmp_path)] == [1]


def test_spoilt_line_is_named(tmp_path):
    append_record(tmp_path, 3, record(0))
    path = records_file(tmp_path, 3)
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(InputError, match=r"process0003.jsonl, line 1"):
        read_records(tmp_path)


def test_no_records(tmp_path):
    assert read_records(tmp_path) == []
