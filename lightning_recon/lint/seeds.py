"""Whether a client's code seeds the generator that its noise comes from."""

import ast
from pathlib import Path

from lightning_recon.errors import InputError, missing_file
from lightning_recon.lint.facts import Finding

_SEEDS = {
    "numpy": ("random.seed", "seed_everything", "set_seed"),
    "torch": ("manual_seed", "manual_seed_all", "seed_everything", "set_seed"),
}
"""By library: the calls that seed its global generator, some those of all libraries."""
_OWN = {"random.seed"}  # Python's own, where no numpy stands before it


def seed_finding(source: Path | None, library: str) -> Finding:
    """Return what is known of the seed of a library's global generator.

    Args:
        source: file or folder of the client's code; null: not given.
        library: ``numpy`` or ``torch``.

    Raises:
        InputError: if there is no such file, or it is no Python.
    """
    generator = f"{library}'s global generator"
    if source is None:
        text = (
            f"the noise is from {generator}: a client that seeds it gives the noise away (--source)"
        )
        return Finding("note", "global-generator", text)
    places = [place for path in _files(source) for place in _seeded(path, library)]
    if not places:
        return Finding("note", "global-generator", f"no call in {source} seeds {generator}")
    left = f" and {len(places) - 1} more" if len(places) > 1 else ""
    text = (
        f"{places[0]}{left} seeds {generator}, from which the noise is drawn: who knows the seed "
        "subtracts the noise"
    )
    return Finding("error", "seeded-noise", text)


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(source.rglob("*.py"))
    if not source.is_file():
        raise InputError(missing_file(source))
    return [source]


def _seeded(path: Path, library: str) -> list[str]:
    """Return the places that seed a library's global generator with a value."""
    try:
        tree = ast.parse(path.read_bytes())  # which may say in what it is encoded
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path} is no Python: {' '.join(str(error).split())}") from error
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not (node.args or node.keywords):
            continue
        value = node.args[0] if node.args else node.keywords[0].value
        name = ast.unparse(node.func)
        is_none = isinstance(value, ast.Constant) and value.value is None
        ends = any(name == end or name.endswith(f".{end}") for end in _SEEDS[library])
        # a generator of one's own, torch.Generator().manual_seed(0), seeds nothing else
        if ends and name not in _OWN and not is_none and "Generator(" not in name:
            found.append(f"{path.name}, line {node.lineno}: {name}({ast.unparse(value)})")
    return found
