"""What Lightning adds to an iteration: Trainer.fit against the same iterations in a bare loop.

The Trainer logs every 50 steps, as the command line does; a fit's seconds are those between the
end of an early step and of the last one, so that nothing that a run does once is counted.
"""

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from benchmarks.records import Records, Row, cifar, environment, run_alone
from benchmarks.speed import prepare
from lightning_recon.attacks import InvertingGradients
from lightning_recon.targets import LeNet, Target, TorchvisionClassifier

WARM_UP = 5
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # its tips


class Case(NamedTuple):
    """One comparison."""

    name: str
    make_target: Callable[[], Target]
    image_size: int
    iterations: int
    asked: float
    unit: str
    """``%`` of an iteration, or ``ms``."""
    is_quick: bool


def _resnet18() -> Target:
    return TorchvisionClassifier("resnet18", num_classes=10)


CASES = [
    Case("LeNet 32x32", LeNet, 32, 500, 0.5, "ms", True),
    Case("ResNet-18 224x224", _resnet18, 224, 50, 3.0, "%", False),
]


class _Clock(pl.Callback):
    """The seconds from the end of the first steps to that of the last."""

    started = ended = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Tensor, place: int
    ) -> None:
        self.ended = time.perf_counter()
        if place == WARM_UP - 1:
            self.started = self.ended


def fitted(case: Case, target: Target, options: argparse.Namespace) -> float:
    """Return the seconds of an iteration within Trainer.fit."""
    data = cifar(options, batch_size=1, indices=[0], image_size=case.image_size)
    attack = InvertingGradients(target, iterations=case.iterations + WARM_UP)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=TensorBoardLogger(folder),
            log_every_n_steps=50,
            callbacks=[clock],
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(attack, datamodule=data)
    return (clock.ended - clock.started) / case.iterations


def share(case: Case, options: argparse.Namespace) -> dict[str, float]:
    """Return ms of an iteration: bare, in fit, and what the median pair differs by."""
    target = case.make_target()
    data = cifar(options, batch_size=1, indices=[0], image_size=case.image_size)
    bare = prepare(InvertingGradients(target, iterations=case.iterations), data)
    pairs = [
        (1e3 * bare() / case.iterations, 1e3 * fitted(case, target, options))
        for _ in range(options.pairs)
    ]
    return {
        "bare": median(plain for plain, _ in pairs),
        "fit": median(fit for _, fit in pairs),
        "added": median(fit - plain for plain, fit in pairs),
        "percent": median(100 * (fit - plain) / plain for plain, fit in pairs),
    }


def run(options: argparse.Namespace, records: Records) -> Iterator[Row]:
    """Give a row for every case."""
    for case in CASES:
        if options.quick and not case.is_quick:
            continue
        key = f"share {case.name}, {options.pairs} pairs, {environment()}"
        found = records.get(key, lambda case=case: share(case, options))
        value = found["percent" if case.unit == "%" else "added"]
        note = f"fit {found['fit']:.3g} ms, bare {found['bare']:.3g} ms"
        name = f"lightning: added to an iteration, {case.name}"
        yield Row(name, value, unit=case.unit, asked=case.asked, is_most=True, note=note)


if __name__ == "__main__":
    run_alone(__doc__, run)
