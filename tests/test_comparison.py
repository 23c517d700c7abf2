import copy
import math
import os
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from browser import needs_chromium, open_browser
from run_folders import EVIL, Page, make_results, make_rows, truth_of, write_run

from lightning_recon.audit.statistics import paired_difference
from lightning_recon.errors import InputError
from lightning_recon.report.comparison import compare_runs
from lightning_recon.report.pictures import save_pictures

browser = pytest.fixture(open_browser, scope="module")


def _changed(rows, seed, gain):
    """The same images under another attack, ``gain`` dB better give or take."""
    random = np.random.default_rng(seed)
    rows = copy.deepcopy(rows)
    for row in rows:
        row["psnr"] += gain + 0.2 * random.normal()
    return rows


@pytest.fixture
def runs(tmp_path):
    """Three runs: of 6, 6 and 8 clients, the second 2 dB above the first, the third as good."""
    most = make_rows(8)
    rows = [row for row in most if row["client"] < 6]
    folders = []
    for name, mine, noise in (
        ("faithful", rows, 0.002),
        ("spectral", _changed(rows, 1, 2.0), 0.02),
        ("other", _changed(most, 2, 2.0), 0.2),
    ):
        results = make_results(mine, experiment=name)
        results["privacy"] |= {"noise_std": noise, "actual": {"epsilon": 1 / noise, "delta": 1e-5}}
        config = f"model:\n  noise_std: {noise}\n  same: 1\nlist: [a, {name}]\n"
        folders.append(write_run(tmp_path / name, mine, results, config=config))
    return folders


def _page(folders, output):
    assert compare_runs(folders, output) == output
    return Page(output)


def test_differences_are_paired_on_the_images_that_all_share(tmp_path, runs):
    page = _page([runs[2], runs[0]], tmp_path / "page.html")
    assert "24 images of 6 clients shared" in page.text
    first = make_rows(8)[:24]
    better = _changed(make_rows(8), 2, 2.0)[:24]
    expected = paired_difference(
        [row["psnr"] for row in better],
        [row["psnr"] for row in first],
        [row["client"] for row in first],
    )
    low, high = expected.interval
    for text in (f"{expected.mean:.2f}", f"{low:.2f} to {high:.2f}"):
        assert text in page.text
    assert f"{-expected.mean:.1f} dB (95 % interval" in page.text
    assert "A other leaks most: PSNR" in page.text


def test_runs_that_differ_by_chance_are_not_told_apart(tmp_path, runs):
    page = _page([runs[1], runs[2]], tmp_path / "page.html")
    assert "cannot be told apart" in page.text
    page = _page(runs, tmp_path / "page.html")
    assert "cannot be told apart" in page.text
    page = _page(runs[:2], tmp_path / "page.html")
    assert "B spectral leaks most" in page.text


@pytest.mark.parametrize(("num_clients", "is_told"), [(2, False), (3, False), (4, True)])
def test_fewer_than_four_clients_are_never_told_apart(num_clients, is_told, tmp_path):
    rows = make_rows(num_clients)
    better = copy.deepcopy(rows)
    for row in better:
        row["psnr"] += 5.0  # all of them by as much: no interval of any width holds 0
    folders = [
        write_run(tmp_path / name, mine, make_results(mine, experiment=name))
        for name, mine in (("one", rows), ("other", better))
    ]
    page = _page(folders, tmp_path / "page.html")
    assert ("B other leaks most: PSNR" in page.text) is is_told
    said = f"cannot be told apart by {num_clients} clients, 4 are the least: PSNR"
    assert (said in page.text) is not is_told
    (told,) = {row[4] for row in _differences(page) if row[1] == "PSNR, dB"}
    assert told == ("yes" if is_told else f"no, {num_clients} clients")


def _differences(page):
    """The rows of the table of paired differences."""
    table = re.search(r'<table id="paired-differences".*?</table>', page.source, re.DOTALL)[0]
    rows = re.findall(r"<tr><th scope=.row.>(.*?)</tr>", table)
    return [re.split(r"(?:</t[hd]>)?<td>", row.removesuffix("</td>")) for row in rows]


@pytest.mark.parametrize(
    ("one", "other", "is_said"),
    [
        ("an honest server sees one update", "an honest-but-curious server that sees", False),
        ("a malicious server puts a layer in front", "a malicious server sends a model", False),
        ("a malicious server sends a model", "an honest server sees one update", True),
        ("someone listens", "someone else listens", True),
        ("an honest server; protocol fedsgd", "an honest server; protocol fedavg", True),
    ],
)
def test_threat_models_that_are_only_worded_otherwise_are_one(one, other, is_said, tmp_path):
    rows = make_rows(2)
    folders = [
        write_run(tmp_path / str(n), rows, make_results(rows, threat_model=model))
        for n, model in enumerate((one, other))
    ]
    page = _page(folders, tmp_path / "page.html")
    assert ("different threat models" in page.text) is is_said


def test_the_page_holds_figures_settings_charts_and_commands(tmp_path, runs):
    page = _page(runs, tmp_path / "new" / "page.html")
    for text in (
        *("A faithful", "B spectral", "C other", "ClipL2 + GaussianNoise"),
        *("B minus A", "C minus A", "C minus B", "Recovered, points"),
        *("model.noise_std", "list.1"),
        *("PSNR of each run", "PSNR against the actual ε", "Share of images at or above a PSNR"),
        "python cli.py fit --config configs/ldp_imagenet.yaml",
    ):
        assert text in page.text, text
    assert "model.same" not in page.text
    assert "list.0" not in page.text
    page.must_be_self_contained_and_accessible()
    assert os.listdir(tmp_path / "new") == ["page.html"]


def test_a_run_keeps_its_look_and_place_in_every_chart(tmp_path, runs):
    """The first run has no noise and so is not in every chart: the others look the same there."""
    rows = make_rows(6)
    quiet = make_results(rows, experiment="quiet")
    quiet["privacy"] |= {"noise_std": None, "actual": {"epsilon": None, "delta": None}}
    folders = [write_run(tmp_path / "quiet", rows, quiet), *runs]
    page = _page(folders, tmp_path / "page.html")
    seen = {}
    for part in page.source.split("<figure>")[1:]:
        order = []
        for svg in re.findall(r"<svg viewBox.*?</svg>", part, flags=re.DOTALL):
            for element in ElementTree.fromstring(svg).iter():
                words = getattr(element.find("{*}title"), "text", None) or ""
                name = words.split(":")[0]
                if name[:2] in ("A ", "B ", "C ", "D "):
                    look = next(one for one in element.get("class").split() if one[0] == "s")
                    seen.setdefault(name, set()).add(look)
                    order.append(name)
        assert order == sorted(order)
        legend = re.findall(r"</svg>([A-D] \w+)</li>", part)
        assert legend == sorted(legend)
    assert seen == {
        name: {f"s{i}"} for i, name in enumerate(("A quiet", "B faithful", "C spectral", "D other"))
    }


def test_the_same_images_stand_side_by_side(tmp_path, runs):
    page = _page(runs[:2], tmp_path / "page.html")
    assert len(page.cards) == 8  # pictures of two clients
    assert "16 shared images not shown" in page.text
    alternatives = [image["alt"] for image in page.of("img")]
    assert alternatives.count("Client 0, image 0, the truth") == 1
    for name in ("A faithful", "B spectral"):
        assert f"Client 0, image 0, reconstruction of {name}" in alternatives
    assert len(page.of("img")) == 8 + 2 * 4  # half of the images were not matched
    assert page.text.count("(none)") == 8


def test_runs_of_one_name_go_by_their_folders(tmp_path, runs):
    for name in ("version_0", "version_1"):
        write_run(tmp_path / name, make_rows(2))
    page = _page([tmp_path / "version_0", tmp_path / "version_1"], tmp_path / "page.html")
    assert "A version_0" in page.text
    assert "B version_1" in page.text
    assert "The configurations are the same." in page.text


def test_what_makes_a_comparison_doubtful_is_said_at_the_top(tmp_path):
    rows = make_rows(3)
    masks = {"method": "grabcut", "mean_area": 0.3, "replaced": 0}
    results = make_results(rows, experiment="first", masks=masks)
    first = write_run(tmp_path / "first", rows, results)
    failures = [{"client": 1, "reason": "diverged"}]
    results = make_results(
        rows,
        experiment="second",
        masks=masks,
        failures=failures,
        clients_unrecovered=[2],
        oracles=["num_samples"],
    )
    second = write_run(tmp_path / "second", rows, results)
    page = _page([first, second], tmp_path / "page.html")
    top = page.text[: page.text.index("Figures of each run")]
    assert "B second: The attack failed on 1 of 3 clients (client 1: diverged)" in top
    assert "B second: No image was recovered of client 2." in top
    assert "A first, B second: The subject masks come from the GrabCut fallback" in top
    assert "different oracles (A: labels; B: num_samples)" in top
    assert "The mean image, which" not in top
    assert "another truth" not in top
    words = page.source[page.source.index("<aside") : page.source.index("</aside>")]
    severities = re.findall(r'<li class="(\w+)"><strong>(\w+)</strong>', words)
    assert severities == [("alarm", "Alarm")] * 2 + [("note", "Note")] * 2
    other = copy.deepcopy(rows)
    for row in other:
        row["psnr_mean_image"] += 1
    second = write_run(tmp_path / "second", other, make_results(other), pictured_clients=0)
    page = _page([first, second], tmp_path / "page.html")
    assert "The mean image, which counts for what was not matched, is not the same" in page.text
    save_pictures(second / "reconstructions", 0, 0, 1 - truth_of(rows[0]), None)
    page = _page([first, second], tmp_path / "page.html")
    assert "1 have another truth" in page.text


def test_older_runs_and_runs_without_pictures_compare(tmp_path):
    rows = make_rows(3)
    bare = {"experiment": "bare", "num_images": 12, "recovered": 6}
    folders = [
        write_run(tmp_path / name, rows, dict(bare), pictured_clients=0, config="")
        for name in ("first", "second")
    ]
    page = _page(folders, tmp_path / "page.html")
    assert "No pictures were kept of the shared images." in page.text
    assert "There is none of A first, B second." in page.text


def test_all_text_is_escaped(tmp_path):
    rows = make_rows(2)
    folders = []
    for name in ("first", "second"):
        results = make_results(
            rows,
            experiment=f"{EVIL} {name}",
            attack=EVIL,
            defenses=[EVIL],
            command=EVIL,
            threat_model=EVIL + name,
            failures=[{"client": 1, "reason": EVIL}],
        )
        config = f"'{EVIL}': {name}\n"
        folders.append(write_run(tmp_path / name, rows, results, config=config))
    page = _page(folders, tmp_path / "page.html")
    assert page.must_not_run(EVIL) >= 10


def test_bad_input_is_one_line(tmp_path, runs):
    output = tmp_path / "page.html"
    rows = make_rows(2)
    far = copy.deepcopy(rows)
    for row in far:
        row["index"] += 10**6
    elsewhere = write_run(tmp_path / "elsewhere", far)
    cifar = make_results(rows, data={"name": "cifar10", "fallback": None})
    other_data = write_run(tmp_path / "cifar", rows, cifar)
    captured = write_run(tmp_path / "captured", [], {"experiment": "captured"})
    for folders, message in (
        (runs[:1], "compare takes 2 to 26 runs, not 1"),
        (runs[:1] * 27, "compare takes 2 to 26 runs, not 27"),
        ([runs[0], tmp_path], r"holds no results\.json"),
        ([runs[0], elsewhere], "no image is in all of .*faithful, .*elsewhere; compare runs on"),
        ([runs[0], other_data], "no image is in all of"),
        ([runs[0], captured], r"captured has no scores in clients\.csv"),
    ):
        with pytest.raises(InputError, match=message) as error:
            compare_runs(folders, output)
        assert "\n" not in str(error.value)
        assert not output.exists()


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_in_a_browser(tmp_path, runs, browser, width, dark):
    path = compare_runs(runs, tmp_path / "page.html")
    browser.open(path, width=width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [path.as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= width
    style = "getComputedStyle(document.querySelector('.scroll{}')).{}"
    assert "local" in browser.run(style.format("", "backgroundAttachment")), "a shadow: more there"
    assert browser.run(style.format(" thead th", "whiteSpace")) == "normal", "narrower tables"
    browser.run("document.querySelectorAll('#paired-differences th button')[2].click()")
    head = "document.querySelectorAll('#paired-differences th')[2].getAttribute('aria-sort')"
    assert browser.run(head) == "descending"
    values = browser.run(
        "[...document.querySelectorAll('#paired-differences tbody tr')]"
        ".map((row) => Number(row.cells[2].textContent))"
    )
    assert values == sorted(values, reverse=True)
    assert len(values) == 12


def test_runs_without_a_finite_score_in_common(tmp_path):
    folders = []
    for name in "ab":
        rows = make_rows(4)
        for row in rows:
            row["psnr"] = math.nan
        folders.append(write_run(tmp_path / name, rows, make_results(rows, experiment=name)))
    assert "The runs share no finite score." in _page(folders, tmp_path / "page.html").text
