import base64
import io
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_recon.report import MAX_PICTURES, save_grid, verdict, write_report
from lightning_recon.scores import METRICS, aggregate

VOID = {"meta", "img", "br", "hr", "link", "input"}


class _Page(HTMLParser):
    """Collects a page's tags and text, and demands that every tag is closed in order."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.text, self._open = [], [], "", []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.attributes if name == tag]


def _audit(count, size=8, recovered=lambda i: i % 2 == 0):
    generator = torch.Generator().manual_seed(0)
    rows, images = [], []
    for i in range(count):
        row = {"image": i, "index": 100 + i, "label": i % 3, "recovered": int(recovered(i))}
        row |= {"matched": i if recovered(i) else -1, "mask_area": 0.25, "psnr_mean_image": 12.0}
        row |= {name: 20.0 + i if name.startswith("psnr") else 0.5 for name in METRICS}
        truth = torch.rand(3, size, size, generator=generator)
        shown = truth * 0.5 if recovered(i) else None
        rows.append(row)
        images.append({"truth": truth, "reconstruction": shown, "row": row})
    return rows, images


def _results(rows, **more):
    results = {
        "experiment": "ldp_imagenet",
        "attack": "LDPAttack",
        "threat_model": "The server sees the update after its defenses.",
        "oracles": ["labels"],
        "defenses": ["ClipL2(10)", "GaussianNoise(0.002)"],
        "data": {"name": "ImageNet", "fallback": None, "description": "validation set"},
        "masks": {"method": "sam", "mean_area": 0.31, "replaced": 2},
        "privacy": {
            "clip_norm": 10.0,
            "noise_std": 0.002,
            "claimed": {"epsilon": 10.0, "rule": "record_mean"},
            "actual": {"epsilon": 48213.7, "delta": 1e-5},
            "statement": "Not a theorem about what is released.",
        },
        "wall_seconds": 312.4,
        "peak_memory_bytes": 3 * 2**30,
        "import_memory_bytes": 2**29,
        "seed": 7,
        "versions": {"torch": "2.15.0"},
        "command": "python cli.py fit --config configs/ldp_imagenet.yaml",
        **aggregate(rows, len(rows)),
    }
    results["null"]["noise_only"] = {"psnr": 9.9, "recovered": 0}
    return results | more


def test_the_page_tells_the_whole_audit(tmp_path):
    rows, images = _audit(4)
    path = write_report(tmp_path / "version_0", _results(rows), rows, images)
    assert path == tmp_path / "version_0" / "report.html"
    assert os.listdir(path.parent) == ["report.html"]
    page = _Page(path)
    for text in (
        "2 of 4 images recovered, at 21.0 dB on average (mean image: 12.0 dB).",
        "The server sees the update after its defenses.",
        "labels",
        "GaussianNoise(0.002)",
        "sam, 31 % of the image on average, 2 implausible and replaced",
        "ε = 10 (record_mean)",
        "ε = 48,200 at δ = 1e-05",
        "The actual ε is 4,820 times the claimed one",
        "python cli.py fit --config configs/ldp_imagenet.yaml",
        "2.15.0",
        "312.40 s",
        "3.00 GiB",
        "Scored with the mean image.",
        "no reconstruction matched",
        "9.9",
    ):
        assert text in page.text, text
    assert "Read this first" not in page.text
    assert page.text.count("not recovered") >= 2


def test_the_page_is_self_contained_and_accessible(tmp_path):
    rows, images = _audit(4)
    path = write_report(tmp_path, _results(rows), rows, images)
    text, page = path.read_text(), _Page(path)
    assert not re.search(r"https?:|//cdn|@import|url\(|<script|<link|\son\w+=", text)
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.of("img"))
    assert all(image["alt"] for image in page.of("img"))
    assert page.of("html") == [{"lang": "en"}]
    assert page.tags.count("h1") == page.tags.count("main") == 1
    assert all(head["scope"] in ("row", "col") for head in page.of("th"))
    assert "prefers-color-scheme: dark" in text
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.of("meta")
    identifiers = [attributes["id"] for _, attributes in page.attributes if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    labels = [attributes["aria-labelledby"] for attributes in page.of("section")]
    assert set(labels) <= set(identifiers)
    scrolling = [a for a in page.of("div") if a.get("class") == "scroll"]
    assert scrolling
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in scrolling)


def test_pictures_show_truth_reconstruction_and_difference(tmp_path):
    rows, images = _audit(1)
    page = _Page(write_report(tmp_path, _results(rows), rows, images))
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))))
        for image in page.of("img")
    ]
    truth = images[0]["truth"].permute(1, 2, 0).numpy() * 255
    for picture, expected in zip(shown, (truth, truth / 2, truth / 2), strict=True):
        assert np.abs(picture - expected).max() <= 0.51


def test_the_worst_leak_comes_first(tmp_path):
    rows, images = _audit(5)
    order = re.findall(r"<h3>Image (\d)", write_report(tmp_path, {}, rows, images).read_text())
    assert order == ["4", "2", "0", "3", "1"]


def test_a_non_finite_score_does_not_break_the_page(tmp_path):
    rows, images = _audit(3)
    rows[2]["psnr"] = float("nan")
    images[0]["reconstruction"][:] = float("nan")
    write_report(tmp_path, _results(rows), rows, images)


def test_many_images_are_thinned_and_the_page_says_so(tmp_path):
    rows, images = _audit(MAX_PICTURES + 6, recovered=lambda i: True)
    path = write_report(tmp_path, _results(rows), rows, images)
    shown = [int(i) for i in re.findall(r"<h3>Image (\d+)", path.read_text())]
    assert shown == [*range(69, 37, -1), *range(31, -1, -1)]
    page = _Page(path)
    assert "Of 70 images, the 32 worst leaks and the 32 least are shown" in page.text
    assert "All 70 images as a table" in page.text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"data": {"name": "ImageNet", "fallback": "samples"}}, "ImageNet was not found"),
        ({"masks": {"method": "grabcut"}}, "GrabCut fallback"),
        ({"null": {"noise_only": {"recovered": 3}}}, "recovers 3 image(s) from noise alone"),
    ],
)
def test_what_weakens_the_figures_is_said_in_red(tmp_path, more, message):
    rows, images = _audit(2)
    page = _Page(write_report(tmp_path, _results(rows, **more), rows, images))
    assert message in page.text
    assert {"class": "warning", "aria-label": "Warning"} in page.of("aside")


def test_all_text_is_escaped(tmp_path):
    evil = '<img src=x onerror="alert(1)">&</script>${style}'
    rows, images = _audit(2)
    rows[0] |= {"label": evil, "index": evil, "image": evil, "client": evil}
    results = _results(
        rows,
        experiment=evil,
        attack=evil,
        threat_model=evil,
        oracles=[evil],
        defenses=[evil],
        data={"name": evil, "fallback": evil, "description": evil},
        masks={"method": evil, "mean_area": 0.1, "replaced": evil},
        privacy={"statement": evil, "claimed": {"epsilon": 1.0, "rule": evil}},
        versions={evil: evil},
        command=evil,
        seed=evil,
    )
    path = write_report(tmp_path, results, [], images)
    page = _Page(path)
    assert not {"script", "svg"} & set(page.tags)
    assert all("onerror" not in attributes for _, attributes in page.attributes)
    assert all(image["src"].startswith("data:") for image in page.of("img"))
    assert "<img src=x" not in path.read_text()
    assert page.text.count(evil) >= 12


@pytest.mark.parametrize(
    "missing",
    ["everything", *sorted(_results([])), "nested"],
)
def test_missing_keys_leave_gaps_and_not_errors(tmp_path, missing):
    rows, images = _audit(2)
    results = _results(rows)
    if missing == "everything":
        results = {}
    elif missing == "nested":
        nested = ("data", "masks", "privacy", "null", "metrics", "versions")
        results |= dict.fromkeys(nested) | {"oracles": None, "defenses": None}
    else:
        del results[missing]
    _Page(write_report(tmp_path, results, rows, images))
    _Page(write_report(tmp_path, results, [], []))


def test_verdict():
    rows, _ = _audit(4)
    assert verdict({}) == "No image was audited."
    assert verdict(_results(rows)).startswith("2 of 4 images recovered, at 21.5 dB")
    rows, _ = _audit(1, recovered=lambda i: False)
    assert verdict(_results(rows), rows) == (
        "None of 1 image recovered: PSNR 20.0 dB on average (mean image: 12.0 dB)."
    )


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    rows, images = _audit(1)
    path = write_report(tmp_path, _results(rows), rows, images)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, _results(rows, experiment="other"), rows, images)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["report.html"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 8, 11])
def test_grid_of_pairs(tmp_path, channels, count):
    truth = torch.rand(count, channels, 10, 12, generator=torch.Generator().manual_seed(0))
    reconstruction = 1 - truth
    reconstruction[0] = float("nan")
    path = tmp_path / "reconstructions" / "grid.png"
    save_grid(path, truth, reconstruction)
    assert os.listdir(path.parent) == ["grid.png"]
    grid = np.asarray(Image.open(path).convert("RGB")).astype(float) / 255
    found = 0
    for image in [*truth, *reconstruction[1:]]:  # every picture is somewhere on the grid
        patch = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
        windows = np.lib.stride_tricks.sliding_window_view(grid, (10, 12, 3))
        found += (np.abs(windows - patch).max(axis=(-1, -2, -3)) < 0.003).any()
    assert found == 2 * count - 1


def test_grid_of_nothing_or_of_two_shapes_is_refused(tmp_path):
    images = torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match="one shape"):
        save_grid(tmp_path / "grid.png", images, images[:1])
    with pytest.raises(ValueError, match="one shape"):
        save_grid(tmp_path / "grid.png", images[:0], images[:0])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_the_page_renders_in_a_browser(tmp_path):
    rows, images = _audit(3)
    path = write_report(tmp_path / "run", _results(rows), rows, images)
    shot = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-quic"]
    subprocess.run(
        [
            *("chromium", *flags, f"--user-data-dir={tmp_path / 'profile'}"),
            *(f"--screenshot={shot}", "--window-size=1200,1600", path.as_uri()),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
