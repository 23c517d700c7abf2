"""The command ``lint``: what a configuration really guarantees."""

import json
from typing import Any

from lightning_recon.errors import InputError
from lightning_recon.files import expanded
from lightning_recon.lint.checking import check
from lightning_recon.lint.facts import Facts
from lightning_recon.lint.reading import Entry, from_call, from_file
from lightning_recon.lint.words import as_json, as_text


def lint(options: Any) -> int:
    """Print what configurations claim and what holds.

    Args:
        options: of the command, by name.

    Returns:
        The exit code: 0 if no claim fails, else 1.

    Raises:
        InputError: if something cannot be used.
    """
    if (options.file is None) == (options.mechanism is None):
        raise InputError("give a FILE or --mechanism, such as 'LocalDpMod(1.0, 1.0, 10, 1e-5)'")
    if options.file is not None:
        entries = from_file(expanded(options.file))
    else:
        name, positional, args = from_call(options.mechanism, "--mechanism")
        entries = [Entry(name, "--mechanism", name, args, positional, {})]
    facts = {name: getattr(options, name) for name in Facts._fields}
    told = {
        name: value for name, value in facts.items() if value is not None and value is not False
    }
    entries = [
        entry._replace(
            facts={**entry.facts, **told},
            model=options.model,
            model_args=options.model_args,
            source=options.source or entry.source,
        )
        for entry in entries
    ]
    reports = [check(entry) for entry in entries]
    print(json.dumps(as_json(reports), indent=2) if options.json else as_text(reports))  # noqa: T201
    return 0 if all(report.is_sound for report in reports) else 1
