"""What papers claim: the list, and the page that is made of it."""

import json
from pathlib import Path

from lightning_recon.commands.claims import CLAIMS, page
from lightning_recon.commands.plain import main

ROOT = Path(__file__).parent.parent


def test_the_page_is_made_of_the_claims():
    assert (ROOT / "docs/papers.md").read_text() == page()


def test_what_a_claim_names_is_there():
    for claim in CLAIMS:
        for folder, name in (("configs", f"{claim.config}.yaml"), ("docs", claim.shown_in)):
            assert name in ("", ".yaml") or (ROOT / folder / name).is_file()
        figures = claim.same + claim.blind
        assert any(sign.isdigit() for sign in figures) == bool(claim.shown_in)
        assert all(claim[:9])


def test_the_command_lists_every_claim(capsys):
    assert main(["papers"]) == 0
    said = capsys.readouterr().out
    assert all(claim.name in said and claim.published in said for claim in CLAIMS)
    assert main(["papers", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == [c.name for c in CLAIMS]
