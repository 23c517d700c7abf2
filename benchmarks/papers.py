"""Writes docs/papers.md: what papers claim, beside what this project reached.

    python -m benchmarks.papers

Nothing is attacked: the figures are those of lightning_recon/commands/claims.py, and every page
that they are from has the command that made them.
"""

from pathlib import Path

from lightning_recon.commands.claims import page
from lightning_recon.files import write_atomically


def main() -> None:
    """Write the page."""
    path = Path(__file__).parent.parent / "docs/papers.md"
    write_atomically(path, page())
    print(path)


if __name__ == "__main__":
    main()
