"""What stands outside the package is named by class path, through the real command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
QUICK = ("--model.init_args.iterations", "2", "--trainer.accelerator", "cpu")


def command(folder, *words):
    """Run the command line in a folder, the examples on the path."""
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES), "XDG_CACHE_HOME": str(folder)}
    return subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *words],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_examples_run(tmp_path):
    done = command(tmp_path, "test", "--config", str(EXAMPLES / "audit.yaml"), *QUICK)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "lightning_logs/version_0/results.json").read_text())
    assert (results["attack"], results["target"]) == ("GreyStart", "Net")
    assert results["num_images"] == 2
    assert results["update_bits"] == 16 * 15444, "half the bits of every parameter"


@pytest.mark.parametrize("name", ["my_attack", "my_defense", "my_model"])
def test_examples_are_what_contributing_says_to_copy(name):
    assert f"examples/{name}.py" in (ROOT / "CONTRIBUTING.md").read_text()
