"""The parser of all commands: names that exist beside one that does not, and help without markup.

jsonargparse makes the parsers of nested classes from the class of the first one, so that what holds
here holds at every depth.  Nothing heavy is imported.
"""

import argparse
import re
from itertools import pairwise
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, get_loader, set_loader

from lightning_recon.documents import check_yaml
from lightning_recon.errors import instead

_CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")
_ROLE = re.compile(r":[a-z]+:`(?:[^`<]*<)?[~.!]?([^`>]*)>?`")
_UNKNOWN = re.compile(r"(?:Option|does not accept option) '([^']+)'|unrecognized arguments: (.+)")
"""How jsonargparse speaks of an option that does not exist."""
_CHOICE = re.compile(r"argument (\S+): invalid choice: '([^']*)' \(choose from (.*)\)")
_SUBCLASSES = re.compile(r", known subclasses: [\w.]+(?:, [\w.]+(?![\w.:]))*")
_MAX_SUBCLASSES = 60
"""Classes that the help of an option lists."""
NO_OPTION = "there is no option"
_load_yaml = get_loader("yaml")


def _load_bounded(text: str) -> Any:
    """Return what YAML says, of a file or of the command line, within the bounds."""
    check_yaml(text, f"the option {' '.join(text.split())[:40]!r}")
    return _load_yaml(text)


set_loader("yaml", _load_bounded, exceptions=(yaml.YAMLError,))
_INIT_ARGS = "init_args"


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of descriptions, and leaves out what only Sphinx and Python read."""

    def start_section(self, heading: str | None) -> None:
        """Begin with a heading."""
        super().start_section(heading and without_roles(heading))

    def _expand_help(self, action: argparse.Action) -> str:
        return _CLASS.sub(r"\1", without_many(without_roles(super()._expand_help(action))))


def without_roles(text: str) -> str:
    """Return a text with the names alone that Sphinx would make links of.

    Examples:
        >>> without_roles("see :class:`~torch.nn.Module` and :meth:`.step`")
        'see Module and step'
    """
    return _ROLE.sub(lambda role: role[1].rpartition(".")[2], text)


def without_many(text: str) -> str:
    """Return a help text without a list of classes that nobody reads, as of all modules of torch.

    Examples:
        >>> without_many("(type: A, known subclasses: a.B, a.C)")
        '(type: A, known subclasses: a.B, a.C)'
        >>> without_many(f"(type: A, known subclasses: {', '.join(['a.B'] * 99)}, default: null)")
        '(type: A, default: null)'
    """
    return _SUBCLASSES.sub(
        lambda listed: "" if listed[0].count(",") > _MAX_SUBCLASSES else listed[0], text
    )


class Parser(ArgumentParser):
    """Takes no shortened options, and says what an unknown one may have meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        defaults: dict[str, Any] = {
            "formatter_class": HelpFormatter,
            "allow_abbrev": False,
            "exit_on_error": False,
        }
        super().__init__(*args, **{**defaults, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong; of an option that does not exist, in one line."""
        if unknown := _UNKNOWN.search(message):
            parser = getattr(ex, "subcommand_parser", None) or self._chosen()
            message = parser._unknown(unknown[1] or unknown[2])
            if unknown[2] and not unknown[2].startswith("-"):
                message = (
                    f"nothing takes the word {unknown[2].split()[0]}; an option begins with --"
                )
        elif chosen := _CHOICE.match(message):
            known = re.findall(r"'([^']+)'", chosen[3])
            message = f"there is no {chosen[1]} {chosen[2]}{instead(chosen[2], known)}"
        if lacking := re.match(r"argument (--[\w.]+).*: expected one argument", message):
            message = f"{self._without_value(lacking[1])} needs a value behind it"
        super().error(message, ex)

    def _chosen(self) -> "Parser":
        """Return the parser of the command that is given, this one if there is none."""
        commands = self._subcommands_action
        named = getattr(self, "args", None)
        return (commands.choices.get(named[0], self) if commands and named else None) or self

    def _without_value(self, option: str) -> str:
        """Return the word that stands without a value, of an option or of one inside it."""
        words = [*getattr(self, "args", []), "--"]
        alone = (
            word
            for word, behind in pairwise(words)
            if word.startswith(option) and "=" not in word and behind.startswith("--")
        )
        return next(alone, option)

    def _unknown(self, given: str) -> str:
        """Return a line on an option that does not exist."""
        word = re.split(r"[=\s]", given)[0]
        name = word.removeprefix("--")
        is_inner = getattr(self, "_inner_parser", False)  # its words are jsonargparse's own
        dashes = "" if is_inner else word.removesuffix(name)
        known = {
            word.removeprefix("--")
            for action in self._actions
            for word in action.option_strings
            if not word.endswith(("help", "+", "-c", "-h"))
        }
        head, dot, rest = name.partition(".")
        heads = {one.partition(".")[0] for one in known}
        before, behind, is_section = dashes, "", dot and head not in heads
        if is_section:  # or the word init_args
            name, behind, known = head, f".{rest}", heads | {_INIT_ARGS}
        elif dot:
            before, name = f"{dashes}{head}.", rest
            known = {one.partition(".")[2] for one in known if one.startswith(f"{head}.")}
        meant = instead(
            name, known, is_listed=not is_section, written=lambda one: f"{before}{one}{behind}"
        )
        return f"{NO_OPTION} {dashes}{word.removeprefix('--')}{meant}"
