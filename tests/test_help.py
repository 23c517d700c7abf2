"""Help that helps: every option is explained where it is asked for, in words for a terminal."""

import importlib
import re

import pytest

from lightning_recon import training
from lightning_recon.attacks import DLG
from lightning_recon.commands.lightning import main
from lightning_recon.commands.names import LIGHTNING, LISTS, TRAINED
from lightning_recon.commands.parsers import light_parser
from lightning_recon.commands.sources import offered_classes
from lightning_recon.priors import FFDNet
from lightning_recon.runs.callback import Audit
from lightning_recon.runs.making import RunParser
from lightning_recon.targets import ModuleTarget

MORE = {  # what is named in configurations beside the lists
    "data": ("MaskSource",),
    "metrics": ("PerImageMetric",),
}
CLASSES = [
    *(
        getattr(importlib.import_module(f"lightning_recon.{room}"), found.name)
        for room, bases in [*LISTS.items(), *MORE.items()]
        for found in offered_classes(room, bases)
    ),
    *(getattr(training, name) for name in training.__all__),
    Audit,
    FFDNet,
]
ROLE = re.compile(r":[a-z]+:`")
ELSEWHERE = re.compile(r"\bsee (there|above|below|:\w+:|the parent)|\bas (in the parent|above)\b")


def help_of(owner):
    parser = RunParser()
    parser.add_class_arguments(owner, "x", fail_untyped=False)
    return parser


def test_the_lists_are_walked():
    assert len(CLASSES) > 70


@pytest.mark.parametrize("owner", CLASSES, ids=lambda owner: owner.__name__)
def test_every_option_is_explained(owner):
    parser = help_of(owner)
    options = [
        action
        for action in parser._actions
        if action.dest.startswith("x.") and not action.option_strings[0].endswith(".help")
    ]
    for option in options:
        words = (option.help or "").split()
        assert len(words) >= 3, f"{option.dest}: {option.help}"
        assert not ELSEWHERE.search(" ".join(words)), f"{option.dest}: {option.help}"
    assert not ROLE.search(" ".join(parser.format_help().split()))


def test_no_list_that_nobody_reads():
    """Of the modules of torch there are hundreds; of what is ours all are named."""
    said = " ".join(help_of(ModuleTarget).format_help().split())
    assert "type: Callable[[], Module])" in said
    assert "torch.nn.Linear" not in said
    said = " ".join(help_of(DLG).format_help().split())
    assert "known subclasses: lightning_recon.clients" in said


def asked(capsys, *words):
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "--help"], "--audit.recovered_psnr"),
        (["predict", "--help"], "--audit.recovered_psnr"),
        (["sweep", "--help"], "list the cells and their time"),
        (["recommend", "--help"], "list the cells and their time"),
        (["test", "--model.help", "DLG"], "what a client does to its update before it sends it"),
        (["fit", "--model.help", "DLG", "--model.client.help", "FedSGD"], "of the cross-entropy"),
        (["test", "--data.help", "CIFAR10DataModule"], "``train`` or ``test``"),
        (["test", "--trainer.logger.help", "CSVLogger"], "--trainer.logger.save_dir"),
        (["test", "--trainer.callbacks.help", "EarlyStopping"], "--trainer.callbacks.monitor"),
    ],
)
def test_what_is_shown(words, said, capsys):
    shown = asked(capsys, *words)
    assert said in shown
    assert not ROLE.search(shown)
    assert "see there" not in shown


def test_the_other_commands():
    commands = light_parser()._subcommands_action.choices
    for name in set(commands) - {*LIGHTNING, *TRAINED}:
        for option in commands[name]._actions:
            assert len((option.help or "").split()) >= 2, f"{name} {option.dest}"
