"""Tests of your own classes, where they are; what is checked: lightning_recon/contract.py.

python -m pytest -n 0 examples/test_my_classes.py
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from my_attack import LayerByLayer
from my_data import GreyArrays, LabelledFolder
from my_defense import RandomDrop
from PIL import Image

from lightning_recon.contract import (
    IMAGE_SIZE,
    NUM_CLASSES,
    check_attack,
    check_data,
    check_defense,
)
from lightning_recon.targets import LeNet


def make_attack(**settings: Any) -> LayerByLayer:
    """Return the attack, small; the contract sets its seed and defenses."""
    return LayerByLayer(LeNet(NUM_CLASSES, IMAGE_SIZE), iterations=2, smooth_every=1, **settings)


def test_my_attack() -> None:
    """It runs, on every client, and never sees the truth."""
    check_attack(make_attack)


def test_my_attack_at_several_restarts() -> None:
    """Several restarts run within torch.func.vmap."""
    check_attack(lambda **settings: make_attack(num_restarts=2, **settings))


def test_my_defense() -> None:
    """It draws from its generator alone, and can be simulated."""
    check_defense(lambda: RandomDrop(drop=0.25))


def test_my_folder(tmp_path: Path) -> None:
    """Twelve pictures with a table."""
    random = np.random.default_rng(0)
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label"])
        for number in range(12):
            picture = random.integers(256, size=(40, 30, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / f"{number}.png")
            rows.writerow([f"{number}.png", number % 10])
    check_data(lambda: LabelledFolder(root=str(tmp_path), batch_size=2, image_size=[20, 15]))


def test_my_arrays(tmp_path: Path) -> None:
    """Twelve grey pictures."""
    random = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", random.integers(256, size=(12, 28, 28), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(12) % 10)
    check_data(lambda: GreyArrays(root=str(tmp_path), batch_size=2))
