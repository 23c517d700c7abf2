"""What an audit finds beside images: one line, with the evidence in it."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One finding."""

    kind: Literal["contradiction", "warning", "note"]
    """A contradiction: what is declared and what the numbers show exclude each other."""
    text: str
    """One sentence, the evidence in it."""
