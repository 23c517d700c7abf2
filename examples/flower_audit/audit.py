"""What an attacker makes of the captures, until the audit command does it."""

from pathlib import Path


def report(name: str, output: Path) -> None:
    print(name, output)
