"""Progress: the time left of a client and of all, measured on what the run did itself."""

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from pytorch_lightning.callbacks import RichProgressBar

from lightning_recon.commands.lightning import main
from lightning_recon.runs import progress
from lightning_recon.runs.progress import ClientBar, Lines, Pace, duration, with_progress

MATCHING = str(Path(__file__).parent / "conf/matching_tiny.yaml")
LINE = re.compile(
    r"client (\d) of (\d): (?:pass 2, )?iteration (\d) of 3(?:, \d+ s left)?"
    r"(?:; about \d+ s left in all)?"
)


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class TestPace:
    def test_first_client_with_its_control(self, clock):
        pace = Pace()
        pace.begin(total=3, passes=2)
        assert pace.left() is None
        for iteration in range(1, 5):
            clock.seconds += 2
            pace.at(iteration, 10)
        assert pace.left_of_pass() == 12
        assert pace.left() == 12 + 20 + 2 * 2 * 20
        assert pace.within_client() == "iteration 4 of 10, 12 s left"
        for iteration in range(5, 11):
            clock.seconds += 2
            pace.at(iteration, 10)
        pace.at(1, 10)
        assert pace.left_of_pass() is None
        clock.seconds += 2
        pace.at(2, 10)
        assert pace.within_client().startswith("pass 2, iteration 2 of 10")
        assert pace.left_of_pass() == 16

    def test_what_precedes_the_first_iteration_is_none(self, clock):
        pace = Pace()
        pace.begin(total=2, passes=1)
        clock.seconds = 100  # the payload is made, the client trains
        pace.at(1, 10)
        assert (pace.left_of_pass(), pace.left()) == (None, None)
        clock.seconds = 101
        pace.at(2, 10)
        assert pace.left_of_pass() == 8
        assert pace.left() == 8 + 100 + 9

    def test_later_clients_by_those_before(self, clock):
        pace = Pace()
        pace.begin(total=4, passes=2)
        clock.seconds = 30
        pace.end_client()
        clock.seconds = 40
        assert pace.left() == 3 * 30 - 10
        clock.seconds = 1000  # a slow one
        assert pace.left() == 2 * 30
        pace.at(1, 10)
        clock.seconds = 1100
        pace.at(2, 10)
        assert pace.left() == 800 + 2 * 30

    def test_what_was_done_before_a_resumed_run_does_not_count(self, clock):
        pace = Pace()
        pace.begin(total=1, passes=1)
        pace.begin_client(iteration=60)
        pace.at(61, 100)
        clock.seconds = 8
        pace.at(64, 100)
        assert pace.left_of_pass() == pytest.approx(36 * 8 / 3)

    def test_no_iterations(self, clock):
        pace = Pace()
        pace.begin(total=2, passes=1)
        assert (pace.left(), pace.within_client()) == (None, "")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (99, "99 s"), (240, "4 min"), (7200, "2.0 h")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_who_shows_it(monkeypatch):
    assert isinstance(with_progress({})[0], Lines)
    assert isinstance(with_progress({"enable_progress_bar": True})[0], ClientBar)
    assert with_progress({"enable_progress_bar": False}) == []
    own = RichProgressBar()
    assert with_progress({"callbacks": own}) == [own]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert isinstance(with_progress({})[0], ClientBar)


def plain(path):
    """The configuration without its own word on the progress bar."""
    content = yaml.safe_load(Path(path).read_text())
    del content["trainer"]["enable_progress_bar"]
    Path("plain.yaml").write_text(yaml.safe_dump(content))
    return "plain.yaml"


@pytest.mark.parametrize("command", ["fit", "test"])
def test_lines_where_there_is_no_terminal(command, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    assert main([command, "--config", plain(MATCHING)]) == 0
    lines = [found.groups() for found in map(LINE.fullmatch, capsys.readouterr().out.splitlines())
             if found]  # fmt: skip
    told = {tuple(map(int, numbers)) for numbers in lines}
    assert told == {(client, 5, step) for client in range(1, 6) for step in range(1, 4)}


def test_lines_are_seldom(capsys):
    assert main(["test", "--config", plain(MATCHING)]) == 0
    assert "iteration" not in capsys.readouterr().out


def test_a_resumed_run_counts_its_own_clients(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    config = plain(MATCHING)
    assert main(["test", "--config", config]) == 0
    records = Path("lightning_logs/version_0/records/process0000.jsonl")
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:3]))
    capsys.readouterr()
    assert main(["test", "--resume", "lightning_logs/version_0"]) == 0
    found = set(re.findall(r"client (\d) of (\d): ", capsys.readouterr().out))
    assert found == {("1", "2"), ("2", "2")}


def test_lines_of_a_sweep(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    axes = {"seed": {"key": "seed_everything", "values": [0, 1]}}
    changes = {"data.init_args.num_clients": 2, "audit.null_controls": False}
    sweep = {"base": MATCHING, "axes": axes, "set": changes}
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert main(["sweep", "--config", "sweep.yaml", "--trainer.accelerator", "cpu"]) == 0
    printed = capsys.readouterr().out
    for cell in (1, 2):
        for client in (1, 2):
            assert f"cell {cell} of 2, client {client} of 2: iteration 3 of 3" in printed
    assert re.search(r"cell 2 of 2, .* left in all", printed)


@pytest.mark.parametrize("command", ["fit", "test"])
def test_the_bar_tells_client_and_all(command, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(progress, "_BAR_EVERY", 0.0)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main([command, "--config", plain(MATCHING)]) == 0
    printed = terminal.getvalue()
    if command == "test":
        assert re.search(r"Testing .*5/5 \[\d\d:\d\d<\d\d:\d\d", printed)
        assert "iteration 3 of 3" in printed
    else:
        assert re.search(r"Epoch 4: .*3/3 \[\d\d:\d\d<\d\d:\d\d.*all_clients=\d+ s left", printed)
        assert "v_num" not in printed
