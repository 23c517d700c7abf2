"""Every configuration that ships says at its head what it takes and gives, in one form."""

import json
import re
from pathlib import Path

import pytest

from lightning_recon.commands import configs
from lightning_recon.commands.configs import KEYS, heads, markdown, read_head
from lightning_recon.commands.plain import main
from lightning_recon.errors import InputError

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "configs").rglob("*.yaml"))
HEAD = """\
# python cli.py fit --config configs/mine.yaml
# Time: 5 seconds
# Memory: not measured
# Expected: 20 dB over
#   ten images
# Paper: none
# Table: docs/classic.md, Optimisation
model: {}
"""


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_head_is_whole_and_its_table_is_there(path):
    head = read_head(path, str(path.relative_to(ROOT / "configs").with_suffix("")))
    assert (
        head.command == f"python cli.py {head.command.split()[2]} --config configs/{head.name}.yaml"
    )
    if head.table != "none":
        file, heading = head.table.split(", ", 1)
        assert re.search(rf"^#+ {re.escape(heading)}$", (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize("key", KEYS)
def test_a_head_without_a_key_is_refused(tmp_path, key):
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD)
    assert read_head(path, "mine").expected == "20 dB over ten images"
    path.write_text(re.sub(rf"# {key}: .*\n(#   .*\n)?", "", HEAD))
    with pytest.raises(InputError, match=f"the head lacks {key}"):
        read_head(path, "mine")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("mine.yaml", "other.yaml", "the first line is not the command"),
        ("# Paper", "# Papers", "line 6: no key of a head"),
        ("# Memory", "# Time", "line 3: no key of a head"),
        ("#   ten", "# ten", "line 5: no key of a head"),
    ],
)
def test_other_words_are_refused(tmp_path, old, new, said):
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD.replace(old, new))
    with pytest.raises(InputError, match=said):
        read_head(path, "mine")


def test_they_are_listed(capsys):
    assert main(["configs"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^\S+$", text, re.MULTILINE) == [head.name for head in heads()]
    assert len(heads()) == len(PATHS)
    assert main(["configs", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["ldp_imagenet"]["time"] == "1 minute on 2 cores"
    assert entries["ldp_imagenet"]["expected"].startswith("32.9 dB over all images, 14 of 16")


def test_the_gallery_has_the_list():
    assert markdown(heads()) in (ROOT / "docs/gallery.md").read_text()


def test_a_link_leads_to_the_heading():
    assert configs._link("docs/results.md, The paper's defaults on ImageNet") == (
        "[The paper's defaults on ImageNet](results.md#the-papers-defaults-on-imagenet)"
    )
