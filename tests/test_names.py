"""Names of folders, classes and experiments are read as UTF-8 and printed as they are."""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

import lightning_recon

ROOT = Path(lightning_recon.__file__).parents[1]
NAMES = ("[red]", "[foo]", "<b>", "größe", "日本")


def test_names_are_printed_as_they_are_in_a_c_locale(tmp_path):
    word = "[red]größe[foo]<b>"
    for number, label in enumerate(NAMES):
        path = tmp_path / word / label / "a.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (16, 16), (50 * number, 90, 120)).save(path)
    text = (ROOT / "tests/conf/matching_tiny.yaml").read_text()
    head = text.partition("\ndata:")[0].replace("num_classes: 20", "num_classes: 5, image_size: 16")
    data = "{batch_size: 1, num_clients: 1, image_size: 16, num_public: 1, root: "
    config = f"{head}\ndata:\n  class_path: ImageFolderDataModule\n  init_args: {data}'{word}'}}\n"
    quiet = "trainer: {accelerator: cpu, enable_progress_bar: false}\n"
    path = tmp_path / f"{word.replace('/', '')}.yaml"
    path.write_text(config + quiet, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "test", "--config", path.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    out = done.stdout.decode("utf-8")
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-2000:]
    assert path.stem in out
    assert f"{tmp_path}/{word}" in out.replace("\n", "")
    page = (tmp_path / "lightning_logs/version_0/report.html").read_text(encoding="utf-8")
    assert "[red]größe[foo]&lt;b&gt;" in page
