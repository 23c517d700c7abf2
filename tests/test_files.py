import os
import stat
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from lightning_recon.data.sam import load_sam
from lightning_recon.errors import InputError
from lightning_recon.files import spoiled, write_atomically
from lightning_recon.targets import LeNet
from lightning_recon.targets.base import load_weights


@pytest.fixture
def umask():
    """Set the process's umask; it is put back after the test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("content", "written"),
    [
        ("a line\n", b"a line\n"),
        ("Größe\r\n", "Größe\r\n".encode()),
        (b"\x00\xff\r\n", b"\x00\xff\r\n"),
        ("", b""),
    ],
)
def test_content_is_written_as_it_is(tmp_path, content, written):
    write_atomically(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == written
    assert names(tmp_path) == ["file"]


def test_folders_are_made(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "file", "text")
    assert (tmp_path / "a" / "b" / "file").read_text() == "text"


def test_shorter_content_replaces_the_whole_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old " * 10_000)
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_everything_is_on_disk_beside_the_file_before_it_is_renamed(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    seen, synced = [], []

    def replace(source, target):
        assert synced == [300_000], "a power cut would leave the name without the content"
        seen.append((Path(source).parent, Path(source).read_text(), path.read_text()))
        os.rename(source, target)

    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(path, "new" * 100_000)
    assert seen == [(tmp_path, "new" * 100_000, "old")]


def test_reader_never_meets_half_a_file(tmp_path):
    path = tmp_path / "file"
    contents = [letter * 300_000 for letter in "abc"]
    write_atomically(path, contents[0])

    def write():
        for i in range(60):
            write_atomically(path, contents[i % 3])

    writer = threading.Thread(target=write)
    writer.start()
    read = [path.read_text()]
    while writer.is_alive():
        read.append(path.read_text())
    writer.join()
    assert set(read) <= set(contents)
    assert names(tmp_path) == ["file"]


class RefusalError(OSError):
    """No other code raises this."""


def refuse(*args, **kwargs):
    raise RefusalError("no")


@pytest.mark.parametrize(
    ("module", "name"),
    [(os, "replace"), (os, "fsync"), (tempfile, "mkstemp"), (Path, "chmod")],
    ids=["rename", "sync", "create", "mode"],
)
@pytest.mark.parametrize("content", ["new", b"new"])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, module, name, content):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(module, name, refuse)
    with pytest.raises(RefusalError):
        write_atomically(path, content)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", "new")
    assert names(tmp_path) == []


def test_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \udcff")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_file_in_the_folders_place(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="file"):
        write_atomically(tmp_path / "file" / "below", "new")
    assert (tmp_path / "file").read_text() == "old"


def test_folder_in_the_files_place(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", "new")
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == []


def test_folder_that_cannot_be_written(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("old")
    folder.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(PermissionError):
            write_atomically(folder / "file", "new")
        assert names(folder) == ["file"]
        assert (folder / "file").read_text() == "old"
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize(
    ("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o000, 0o666)]
)
def test_mode_follows_the_umask(tmp_path, umask, mask, mode):
    umask(mask)
    write_atomically(tmp_path / "file", "text")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert umask(0o022) == mask, "the process's umask must be as it was"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a pointer of Git LFS"),
        (None, "breaks off after 400 bytes"),
    ],
)
@pytest.mark.parametrize("load", [load_sam, lambda path: load_weights(LeNet(), str(path))])
def test_what_a_spoiled_file_of_tensors_is(tmp_path, load, content, said):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(200)}, path)
    path.write_bytes(path.read_bytes()[:400] if content is None else content)
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path} {said}")
    assert "\n" not in str(caught.value)


def test_a_whole_file_is_not_spoiled(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pth")
    assert spoiled(tmp_path / "weights.pth") is None
