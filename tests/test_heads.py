"""benchmarks.heads: a head's figure is found in its words, and a run that gives another is told."""

import pytest

import benchmarks.heads as heads_module
from benchmarks.heads import Figure, agree, told
from lightning_recon.commands.configs import Head


@pytest.mark.parametrize(
    ("expected", "figure"),
    [
        (
            "32.8 dB over all images, 14 of 16 recovered (sample photographs); 30.0 dB over more",
            Figure(32.8, 14, 16),
        ),
        (
            "22.2 dB over CIFAR-10, mean 12.5; 18.7 dB, 3 of 4 recovered (sample photographs)",
            Figure(18.7, 3, 4),
        ),
        ("85.1 dB (sample photographs); 84.3 dB over CIFAR-10", Figure(85.1, None, None)),
        ("19.4 dB, 9 of 16 recovered (sample photographs, of one label)", Figure(19.4, 9, 16)),
        ("26.2 dB on the first ten test images of CIFAR-10", None),
    ],
)
def test_a_figure_is_that_of_the_sample_photographs(expected, figure):
    assert told(expected) == figure


@pytest.mark.parametrize(
    ("told_figure", "found", "is_same"),
    [
        (Figure(32.8, 14, 16), Figure(32.84, 14, 16), True),
        (Figure(32.8, 14, 16), Figure(32.84, 13, 16), False),
        (Figure(32.8, 14, 16), Figure(32.95, 14, 16), False),
        (Figure(85.1, None, None), Figure(85.1, 1, 1), True),
    ],
)
def test_figures_agree_within_a_tenth_of_a_decibel(told_figure, found, is_same):
    assert agree(told_figure, found) is is_same


def head_of(name, expected):
    command = f"python cli.py fit --config configs/{name}.yaml"
    return Head(name, command, "5 seconds", "1 GB", expected, "a paper", "none")


def test_a_head_that_no_longer_holds_is_told(tmp_path, monkeypatch, capsys):
    found = {"seconds": 7.0, "memory": 1.1e9, "psnr": 85.12, "recovered": 1, "num_images": 1}

    def run(head, limit):
        if head.name == "loki":
            raise heads_module.Failed("error: no data")
        return found

    told_by = {
        "april": "85.1 dB (sample photographs)",
        "dlg": "75.1 dB, 1 of 1 recovered (sample photographs)",
        "idlg": "26.2 dB on CIFAR-10",
        "loki": "about 75 %; not on the sample photographs",
    }
    listed = [head_of(name, expected) for name, expected in told_by.items()]
    monkeypatch.setattr(heads_module, "heads", lambda: listed)
    monkeypatch.setattr(heads_module, "run", run)
    monkeypatch.setattr(heads_module, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["heads"])
    assert heads_module.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:6] == [
        "| april | 85.1 dB | 85.1 dB, 1 of 1 recovered | 7 s (5 seconds) | 1.1 GB (1 GB) |",
        "| dlg | 75.1 dB, 1 of 1 recovered | 85.1 dB, 1 of 1 recovered **(differs)** "
        "| 7 s (5 seconds) | 1.1 GB (1 GB) |",
        "| idlg | none | 85.1 dB, 1 of 1 recovered **(differs)** "
        "| 7 s (5 seconds) | 1.1 GB (1 GB) |",
        "| loki | | error: no data | | |",
    ]
    assert lines[-1] == "2 of 4 as their heads tell"
    kept = (tmp_path / "heads.jsonl").read_text().splitlines()
    assert len(kept) == 3, "a run that failed is tried again"


def test_what_a_command_says_last_is_why_it_failed():
    head = head_of("april", "")
    head = head._replace(command=f"{head.command} --model.init_args.no_such_option 1")
    with pytest.raises(heads_module.Failed, match="no_such_option"):
        heads_module.run(head, 60)
