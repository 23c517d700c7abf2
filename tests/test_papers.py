"""Figures and tables for papers: what they show, how they are set, what they say of the setting."""

import re
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure
from run_folders import make_results, make_rows, write_run

from lightning_recon.commands.plain import main
from lightning_recon.report.captions import escaped
from lightning_recon.report.papers import write_figures

COMMAND = "python cli.py test --config configs/ldp_imagenet.yaml --trainer.max_epochs 1"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, one for each file."""
    figures, save = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.fixture
def runs(tmp_path):
    folders = []
    for name, gain in (("faithful", 0.0), ("spectral_code", 3.0)):
        rows = make_rows(4)
        for row in rows:
            row["psnr"] += gain
        results = make_results(rows, experiment=name, command=COMMAND)
        folders.append(write_run(Path(name), rows, results))
    return folders


@pytest.fixture
def sweep():
    """Three noises, two batches, two attacks, as a sweep leaves them."""
    lines, cells = [], []
    for std in ("0.1", "0.2", "0.4"):
        for batch in ("1", "4"):
            for attack in ("faithful", "spectral"):
                psnr = 30 - 50 * float(std) + 5 * (attack == "spectral")
                figures = f"{psnr},{psnr - 1},{psnr + 1},12.5,4,{4 * int(batch)},"
                lines.append(f"{std},{batch},{attack},{figures}")
                labels = {"std": float(std), "batch": int(batch), "attack": attack}
                config = {"seed_everything": 3, "data": {"class_path": "CIFAR10DataModule"}}
                cells.append({"labels": labels, "config": config})
    names = "std,batch,attack,psnr,psnr_ci_low,psnr_ci_high,null_mean_image,num_clients,num_images"
    folder = Path("sweep_x/version_0")
    folder.mkdir(parents=True)
    (folder / "results.csv").write_text("\n".join([f"{names},epsilon_actual", *lines, ""]))
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"cells": cells}))
    (folder / "run.json").write_text('{"command": "python cli.py sweep --config x_1.yaml"}')
    return folder


def test_a_run_has_its_shares_and_the_first_images(runs, drawn):
    said = write_figures([runs[0]])
    names = {path.name for path in runs[0].glob("figure*")}
    kinds = ("pdf", "svg", "tex")
    assert names == {f"figure{part}.{kind}" for part in ("", "_images") for kind in kinds}
    shares, _, grid, _ = drawn
    (plot,) = shares.axes
    assert [line.get_label() for line in plot.lines] == [
        *("found", "mean image", "nearest public image"),
    ]
    assert len(grid.axes) == 16  # eight images, truth above
    assert [plot.get_xlabel() for plot in grid.axes[8:10]] != ["", ""]
    for words in ("LDPAttack", "4 clients, 16 images; seed 7", COMMAND, "whole clients", "labels"):
        assert words in said


def test_letters_are_embedded_as_truetype_in_the_width_of_a_column(runs, drawn):
    for width, inches in (("column", 3.5), ("page", 7.16)):
        write_figures([runs[0]], Path("out"), width)
        assert {figure.get_size_inches()[0] for figure in drawn} == {inches}
        drawn.clear()
    pdf = Path("out.pdf").read_bytes()
    assert b"/Subtype /CIDFontType2" in pdf  # type 42
    assert b"/Type3" not in pdf
    assert re.search(rb"/BaseFont /\w+\+STIXGeneral", pdf)
    assert r"\begin{figure*}" in Path("out.tex").read_text()
    before = [path.read_bytes() for path in sorted(Path().glob("out*"))]
    write_figures([runs[0]], Path("out"), "page")
    assert [path.read_bytes() for path in sorted(Path().glob("out*"))] == before


def test_several_runs_with_chosen_images(runs, drawn):
    write_figures(runs, images=["1:2", "0:3"])
    shares, _, grid, _ = drawn
    labels = [line.get_label() for line in shares.axes[0].lines]
    assert labels[:2] == ["A faithful", "B spectral_code"]
    assert len(grid.axes) == 6
    text = Path("figure_images.tex").read_text()
    assert "1:2, 0:3 (client:image, chosen)" in text
    assert r"A faithful, B spectral\_code." in text
    assert r"\texttt{python cli.py test -{}-config configs/ldp\_imagenet.yaml" in text


def test_a_sweep_with_a_panel_for_each_value(sweep, drawn):
    assert main(["figure", str(sweep), "--panels", "batch"]) == 0
    plots = drawn[0].axes
    assert [plot.get_title() for plot in plots] == ["batch 1", "batch 4"]
    for plot in plots:
        lines = {line.get_label(): list(line.get_ydata()) for line in plot.lines}
        assert lines["spectral"] == [30.0, 25.0, 15.0]
        assert {line.get_color() for line in plot.lines if line.get_label() == "spectral"} == {"C1"}
    assert len(drawn[0].legends[0].get_texts()) == 3  # each name once
    text = (sweep / "figure.tex").read_text()
    for words in ("seed 3.", "4 clients and 4 to 16 images a cell", "CIFAR10DataModule", r"x\_1"):
        assert words in text
    drawn.clear()
    assert main(["figure", str(sweep), "--along", "batch", "--panels", "std"]) == 0
    assert len(drawn[0].axes) == 3
    assert drawn[0].get_supxlabel() == "batch"


def test_latex_and_markdown_tables_of_runs(runs, capsys):
    assert main(["compare", *map(str, runs), "--latex"]) == 0
    text = capsys.readouterr().out
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(rf"\{rule}") == 2
    first = text[text.index("toprule") : text.index("bottomrule")].splitlines()[1:]
    heads, *body = [line.strip().removesuffix(r" \\").split(" & ") for line in first if "&" in line]
    assert len({len(line) for line in (heads, *body)}) == 1
    assert [line[0] for line in body] == ["A faithful", r"B spectral\_code"]
    columns = re.search(r"tabular\}\{(\w+)\}", text)[1]
    assert columns[heads.index("PSNR, dB")] == "r"
    assert columns[0] == "l"
    assert float(body[1][heads.index("PSNR, dB")]) - float(body[0][heads.index("PSNR, dB")]) == (
        pytest.approx(3, abs=0.11)
    )
    assert r"95 \% interval" in heads  # that of the PSNR, not of the share
    assert " to " in body[0][heads.index(r"95 \% interval")]
    assert "%" not in body[0][heads.index(r"95 \% interval")].replace(r"\%", "%")
    assert "B minus A & PSNR, dB & 3.00" in text
    assert not Path("comparison.html").exists()
    assert main(["compare", *map(str, runs), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| Run | Attack |")
    assert lines[2].count("|") == lines[0].count("|")


def test_a_sweep_is_a_table_in_one_command(sweep, capsys):
    assert main(["compare", str(sweep), "--latex"]) == 0
    text = capsys.readouterr().out
    assert r"\label{tab:sweep-x}" in text
    assert len(re.findall(r"^    0\.[124] & ", text, flags=re.MULTILINE)) == 12
    assert r"0.4 & 4 & spectral & 15.0 & 14.0 & 16.0 & 12.5 \\" in text
    assert "varepsilon" not in text  # a column without figures


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["figure", "nowhere"], "nowhere holds no results.json"),
        (["figure", "faithful", "--images", "0"], "CLIENT:IMAGE"),
        (["figure", "faithful", "--images", "3:0"], "has no picture of client 3, image 0"),
        (["figure", "faithful", "--along", "std"], "--along names an axis of a sweep"),
        (["figure", "sweep_x/version_0", "faithful"], "is a sweep, which is drawn alone"),
        (["figure", "sweep_x/version_0", "--panels", "bath"], "did you mean batch?"),
        (["figure", "sweep_x/version_0", "--along", "attack"], "axis attack is no number"),
        (["figure", "sweep_x/version_0", "--images", "0:1"], "without pictures"),
        (["figure", "stopped", "--panels", "batch"], "stopped holds no results.csv"),
        (["compare", "stopped", "--latex"], "one that was stopped writes it when it is resumed"),
        (["compare", "sweep_x/version_0", "faithful", "--latex"], "name it alone"),
        (["compare", "sweep_x/version_0", "--latex", "--markdown"], "--latex or --markdown"),
        (["compare", "faithful", "--latex"], "compare takes 2 to 26 runs"),
    ],
)
def test_bad_input_is_one_line(runs, sweep, words, said, capsys):
    Path("stopped").mkdir()
    Path("stopped/sweep.yaml").touch()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(Path().rglob("figure*"))


def test_text_is_escaped_for_latex():
    assert escaped("50 % of a_b & `--c_d` at ε = #1^2") == (
        r"50 \% of a\_b \& \texttt{-{}-c\_d} at $\varepsilon$ = \#1\textasciicircum{}2"
    )
