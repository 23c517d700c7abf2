"""The first tutorial's commands and the notebook run as they stand, and come out as they say."""

import json
import re
import shlex
from pathlib import Path

import matplotlib as mpl
import pytest

from lightning_recon.commands import lightning, plain
from lightning_recon.commands.shipped import with_configs

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/tutorials/first_attack.md").read_text()
NOTEBOOK = json.loads((ROOT / "examples/first_attack.ipynb").read_text())
QUICK = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def commands(page):
    """The words behind "python cli.py" of every command, in the page's order."""
    blocks = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    return [shlex.split(block)[2:] for block in blocks if block.startswith("python cli.py")]


def test_the_first_tutorial(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    attack, defended, page, table = commands(PAGE)
    for words in (attack, defended):
        assert lightning.main([*with_configs(words), *QUICK]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for line in re.findall(r"^ +(linear_layer: .*?\.)\n", PAGE, flags=re.DOTALL | re.MULTILINE):
        assert " ".join(line.split()) in said
    assert plain.main(page) == 0
    assert Path("comparison.html").is_file()
    capsys.readouterr()
    assert plain.main(table) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines[:4]) == 4
    assert set(lines[:4]) <= set(PAGE.splitlines())


def test_the_notebook_runs_to_its_figure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    with mpl.rc_context({"backend": "Agg"}):
        for cell in NOTEBOOK["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
    assert [row["psnr"] for row in names["bare"][1]] == pytest.approx([100] * 4)
    _, rows = names["noised"][1e-2]
    assert all(row["psnr"] == row["psnr_mean_image"] for row in rows)
    assert [len(plot.images) for plot in names["figure"].axes] == [1] * 12 + [0] * 4


def test_the_notebook_shows_the_figure_that_it_made():
    (output,) = NOTEBOOK["cells"][-1]["outputs"]
    assert output["data"]["image/png"].startswith("iVBOR")
    assert all(cell.get("execution_count") for cell in NOTEBOOK["cells"] if "outputs" in cell)


def test_every_page_is_in_the_site_and_every_link_of_a_page_leads_somewhere():
    listed = re.findall(r"^ +- (\S+\.md)$", (ROOT / "docs/mkdocs.yml").read_text(), re.MULTILINE)
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= set(listed)
    for page in listed:
        text = (ROOT / page).read_text()
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
            assert ((ROOT / page).parent / target).exists(), (page, target)
