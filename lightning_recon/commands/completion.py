"""The script by which a shell completes the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, get_args

import torch
from jsonargparse import _completions, capture_parser
from jsonargparse.typing import register_type
from pytorch_lightning.strategies import StrategyRegistry
from torch import nn

from lightning_recon.commands.lightning import command_line
from lightning_recon.commands.names import LIGHTNING
from lightning_recon.commands.parsers import add_commands
from lightning_recon.errors import InputError

_BASH_PYTHON = """
# "python cli.py" is completed as "cli.py" is
_lightning_recon_python() {
  [[ $COMP_CWORD -gt 1 && "/${COMP_WORDS[1]}" == */cli.py ]] || return
  COMP_WORDS=("${COMP_WORDS[@]:1}")
  COMP_CWORD=$((COMP_CWORD - 1))
  _shtab_cli_py
}
complete -o bashdefault -o default -F _lightning_recon_python python python3
"""


@contextmanager
def _one_level_of_wrappers() -> Iterator[None]:
    """Within this context options of wrapped targets and clients are offered to one depth.

    jsonargparse follows a target in a target in a target to the end of Python's stack: 200 MB; and
    where any network may be named, all that torch has, which takes minutes.
    """
    original = _completions.get_typehint_choices

    def bounded(typehint: Any, prefix: str | None, *arguments: Any) -> Any:
        if nn.Module in get_args(typehint):
            return [], False
        words = (prefix or "").split(".")
        is_repeated = len(words) > 1 and words[-1] == words[-2]
        return original(typehint, None if is_repeated else prefix, *arguments)

    _completions.get_typehint_choices = bounded  # type: ignore[assignment]
    try:
        yield
    finally:
        _completions.get_typehint_choices = original


def completion_script(shell: str) -> str:
    """Return the script that completes the command line at the Tab key.

    Args:
        shell: bash, zsh or tcsh.

    Raises:
        InputError: if the package shtab is not installed.
    """
    if find_spec("shtab") is None:
        raise InputError("completion needs the package shtab: pip install shtab")
    # else an option that may be a tensor, such as lr, offers what tensors are made from: 80 MB
    register_type(torch.Tensor, fail_already_registered=False)
    parser = capture_parser(command_line)
    commands = parser._subcommands_action
    assert commands is not None
    for name in LIGHTNING:
        # by name: the classes' arguments, and theirs in turn, are thousands
        strategy = commands.choices[name]._option_string_actions["--trainer.strategy"]
        strategy.choices = ["auto", *StrategyRegistry.available_strategies()]
    add_commands(commands)
    with _one_level_of_wrappers():
        script: str = parser.get_completion_script(f"shtab-{shell}")
    return script + _BASH_PYTHON if shell == "bash" else script
