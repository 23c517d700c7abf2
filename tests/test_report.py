import base64
import io
import json
import os
import re

import numpy as np
import pytest
import torch
from browser import needs_chromium, open_browser
from PIL import Image
from run_folders import EVIL, Page, make_results, make_rows, truth_of, write_rows, write_run

from lightning_recon.audit.results import view
from lightning_recon.errors import InputError
from lightning_recon.report import verdict, write_report
from lightning_recon.report.pictures import DIFFERENCE_GAIN, save_pictures
from lightning_recon.report.terminal import print_summary

browser = pytest.fixture(open_browser, scope="module")


def _page(folder):
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path)


def test_the_page_tells_the_whole_audit(tmp_path):
    rows = make_rows(5)
    results = make_results(rows)
    page = _page(write_run(tmp_path, rows, results))
    low, high = results["recall_ci_low"], results["recall_ci_high"]
    psnr = results["metrics"]["psnr"]
    for text in (
        verdict(view(results)),
        f"50 %; interval {100 * low:.0f} % to {100 * high:.0f} %",
        f"interval {psnr['ci_low']:.1f} to {psnr['ci_high']:.1f} dB",
        "chance 0.1 %, among 1,000",
        "The server sees the update after its defenses.",
        "labels",
        "GaussianNoise",
        "sam, 31 % of the image on average, 2 implausible and replaced",
        "ε = 10 (record_mean)",
        "ε = 48,200 at δ = 1e-5",
        "The actual ε is 4,800 times the claimed one",
        "LDPAttack; You et al., 2025",
        "python cli.py fit --config configs/ldp_imagenet.yaml",
        "torch 2.15.0",
        "312.4 s",
        "3.00 GiB",
        "No reconstruction was matched: scored with the mean image",
        "at 30 dB",
        "seed: 7",
        "The attacker's own objective on 2 clients",
        "noise-only update 9.9",
    ):
        assert text in page.text, text
    assert "Read this first" not in page.text


def test_the_page_is_self_contained_and_accessible(tmp_path):
    page = _page(write_run(tmp_path, make_rows(5)))
    page.must_be_self_contained_and_accessible()
    assert "prefers-color-scheme: dark" in page.source
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert viewport in page.of("meta")


def _figure(page, title):
    """The source of the figure with that title."""
    return next(part for part in page.source.split("<figure")[1:] if f"<h3>{title}</h3>" in part)


@pytest.mark.parametrize(("num_clients", "batch"), [(1, 1), (2, 4), (4, 16), (20, 16)])
def test_a_small_run_shows_its_images_and_no_bars_or_bands(tmp_path, num_clients, batch):
    rows = make_rows(num_clients, batch)
    page = _page(write_run(tmp_path, rows))
    images, measured = (
        _figure(page, title)
        for title in ("Images by PSNR", "Measured leakage beside what leaks nothing")
    )
    is_small = len(rows) <= 64
    assert images.count('class="point') == 2 + (len(rows) if is_small else 0)  # 2: the legend
    assert ("<rect" in images) != is_small
    assert ("A point for every image." in images) == is_small
    assert ("Share of images at or above a PSNR" in page.text) != is_small
    for name in ("mean image", "nearest public image", "noise-only update"):
        assert re.search(rf">{name} \d", images), name
    assert ('class="whisker' in measured) == (num_clients >= 4)
    assert ("No interval is drawn of fewer than 4 clients." in measured) == (num_clients < 4)


def test_everything_on_the_page_of_a_run_has_one_look(tmp_path):
    """Recovered, not recovered, the attack and the controls are never drawn alike."""
    rows = make_rows(20, 16)
    page = _page(write_run(tmp_path, rows))
    pattern = r'<path class="[a-z]+ (s\d(?: d\d)?)"[^>]*/></svg>([^<]+)</li>'
    looks = {name: look for look, name in re.findall(pattern, page.source)}
    names = {"recovered", "not recovered", "this attack", "client 0", "client 1"}
    assert names <= set(looks)
    controls = [name for name in looks if name.startswith("control: ")]
    assert len(controls) == 2
    assert all(looks[name].startswith("s7 ") for name in controls)
    assert len(set(looks.values())) == len(looks)
    measured = _figure(page, "Measured leakage beside what leaks nothing")
    (attack,) = re.findall(r'class="point (s\d)"[^>]*><title>This attack', measured)
    assert attack == looks["this attack"]
    assert set(re.findall(r'class="point (s\d)"[^>]*><title>Control', measured)) == {"s7"}


def test_pictures_show_truth_reconstruction_and_difference(tmp_path):
    rows = make_rows(1, batch=1)
    page = _page(write_run(tmp_path, rows))
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))).astype(int)
        for image in page.of("img")
    ]
    truth = truth_of(rows[0]).permute(1, 2, 0).numpy() * 255
    assert np.abs(shown[0] - truth).max() <= 0.51
    assert np.abs(shown[1] - truth / 2).max() <= 0.51
    assert (shown[2] == np.minimum(255, DIFFERENCE_GAIN * np.abs(shown[0] - shown[1]))).all()


def test_the_worst_leak_comes_first(tmp_path):
    rows = make_rows(1, batch=5)
    for row, psnr in zip(rows, (20.0, 40.0, 31.0, 13.0, 25.0), strict=True):
        row["psnr"] = psnr  # 0, 2 and 4 are recovered
    page = _page(write_run(tmp_path, rows))
    assert [image for _, image in page.cards] == ["2", "4", "0", "1", "3"]


def test_failed_and_unrecovered_clients_are_named_at_the_top(tmp_path):
    rows = make_rows(5, is_recovered=lambda client, image: client not in (1, 3))
    results = make_results(
        rows,
        failures=[{"client": 1, "reason": "the update holds NaN"}],
        clients_unrecovered=[3],
    )
    page = _page(write_run(tmp_path, rows, results))
    top = page.text[: page.text.index("Images recovered")]
    assert "The attack failed on 1 of 5 clients (client 1: the update holds NaN)" in top
    assert "No image was recovered of client 3." in top
    assert {"class": "warnings", "aria-label": "Warnings"} in page.of("aside")
    items = re.findall(r'<li class="(\w+)"><strong>(\w+)</strong> <span>(.{9})', page.source)
    assert items == [("alarm", "Alarm", "The attac"), ("note", "Note", "No image ")]


def test_many_failed_clients_are_counted(tmp_path):
    rows = make_rows(40, is_recovered=lambda client, image: False)
    failures = [{"client": client, "reason": "x" * 9000} for client in range(20)]
    results = make_results(rows, failures=failures, clients_unrecovered=list(range(20, 40)))
    page = _page(write_run(tmp_path, rows, results))
    assert "failed on 20 of 40 clients (client 0: xxx" in page.text
    assert "clients 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31 and 8 more" in page.text
    assert page.text.count("client 11: x") == 1
    assert "client 12: x" not in page.text
    assert "x" * 201 not in page.source


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"data": {"name": "imagenet", "fallback": "samples"}}, "imagenet was not found"),
        ({"masks": {"method": "grabcut"}}, "GrabCut fallback"),
        ({"null": {"noise_only": {"recovered": 3}}}, "recovers 3 images from noise alone"),
        ({"null": {"other_client": {"psnr": 99.0}}}, "other client's update (99.0 dB)"),
        ({"unsimulated": ["TopK"]}, "does not simulate TopK (adaptive: false)"),
    ],
)
def test_what_weakens_the_figures_is_said_at_the_top(tmp_path, more, message):
    rows = make_rows(2)
    page = _page(write_run(tmp_path, rows, make_results(rows, **more)))
    assert message in page.text[: page.text.index("Images recovered")]


def test_figures_of_the_subject_are_left_out_where_nothing_is_masked(tmp_path, capsys):
    rows = make_rows(2)
    for method, is_shown in (("none", False), ("sam", True)):
        results = make_results(rows, masks={"method": method, "mean_area": None})
        page = _page(write_run(tmp_path / method, rows, results))
        assert ("Subject" in page.text.replace("Subject masks", "")) is is_shown
        assert ("PSNR, subject" in page.text) is is_shown
        print_summary(view(results), tmp_path)
        assert ("psnr_subject" in capsys.readouterr().out) is is_shown
        assert "psnr_subject" in (tmp_path / method / "clients.csv").read_text()


def test_an_older_run_is_completed_from_its_rows(tmp_path):
    rows = make_rows(6, is_recovered=lambda client, image: client != 2)
    results = make_results(rows)
    whole = _page(write_run(tmp_path / "whole", rows, results))
    for key in ("recall_ci_low", "recall_ci_high", "thresholds", "identification"):
        del results[key]
    del results["clients_unrecovered"], results["failures"], results["curves"]
    for metric in results["metrics"].values():
        del metric["ci_low"], metric["ci_high"]
    results["null"] = {"mean_image": {"psnr": results["null"]["mean_image"]["psnr"]}}
    older = _page(write_run(tmp_path / "older", rows, results))
    assert "No image was recovered of client 2." in older.text
    for text in re.findall(r"interval [\d.]+ (?:% )?to [\d.]+(?: %)?", whole.text):
        assert text in older.text
    assert "nearest public image 14" in older.text


@pytest.mark.parametrize("missing", ["everything", *sorted(make_results(make_rows(2))), "nested"])
def test_missing_keys_leave_gaps_and_not_errors(tmp_path, missing):
    rows = make_rows(2)
    results = make_results(rows)
    if missing == "everything":
        results = {"experiment": None}
    elif missing == "nested":
        nested = ("data", "masks", "privacy", "null", "metrics", "versions", "thresholds", "curves")
        results |= dict.fromkeys(nested) | {"oracles": None, "defenses": None, "failures": None}
    else:
        del results[missing]
    page = _page(write_run(tmp_path / "with_rows", rows, results))
    assert len(page.cards) == 8
    page = _page(write_run(tmp_path / "without", [], results, config=""))
    assert "No pictures were kept." in page.text


def test_empty_cells_and_further_metrics(tmp_path):
    rows = make_rows(2)
    for i, row in enumerate(rows):
        row["lpips"] = 0.123 if i else float("nan")
    rows[3]["psnr"] = float("nan")
    page = _page(write_run(tmp_path, rows, {"experiment": "x", "num_images": 8, "recovered": 4}))
    assert "LPIPS" in page.text
    assert "0.123" in page.text
    assert "nan" not in page.text


def test_all_text_is_escaped(tmp_path):
    rows = make_rows(2)
    results = make_results(
        rows,
        **dict.fromkeys(
            ("experiment", "attack", "citation", "threat_model", "target", "command"), EVIL
        ),
        **dict.fromkeys(("device", "trainer_precision"), EVIL),
        oracles=[EVIL],
        defenses=[EVIL],
        data={"name": EVIL, "fallback": EVIL, "description": EVIL},
        masks={"method": EVIL, "mean_area": 0.1, "replaced": 1},
        privacy={"statement": EVIL, "claimed": {"epsilon": 1.0, "rule": EVIL}},
        versions={EVIL: EVIL},
        unavailable_metrics={EVIL: EVIL},
        failures=[{"client": 1, "reason": EVIL}],
    )
    page = _page(write_run(tmp_path, rows, results, config=EVIL))
    assert page.must_not_run(EVIL) >= 22


@pytest.mark.slow
def test_a_page_of_many_clients_stays_small_and_says_what_is_missing(tmp_path):
    rows = make_rows(400, batch=16)
    rows[-1] |= {"psnr": 50.0, "recovered": 1, "matched": 1}
    results = make_results(rows)
    steps = list(range(4000))
    results["curves"] = [
        {"client": c, "iteration": steps, "objective": [1.0 / (s + 1) for s in steps]}
        for c in range(24)
    ]
    folder = write_run(tmp_path, rows, results, pictured_clients=0, config="key: value\n" * 200_000)
    noise = torch.rand(64, 3, 300, 300, generator=torch.Generator().manual_seed(0))
    for row in rows[:64]:  # noise: the hardest pictures to pack
        place = row["client"], row["image"]
        image = noise[row["client"] * 16 + row["image"]]
        save_pictures(folder / "reconstructions", *place, image, image.flip(0))
    page = _page(folder)
    assert os.path.getsize(folder / "report.html") < 5_000_000
    assert len(page.cards) == 48
    assert (
        "Of the 64 images with pictures, the 36 worst leaks and the 12 least are shown" in page.text
    )
    assert "Of 6,336 of 6,400 images no picture was kept." in page.text
    assert "The worst leak of all is among them: client 399, image 15, 50.0 dB." in page.text
    assert "The 1,500 worst leaks of 6,400 images; clients.csv holds all." in page.text
    assert "more characters in the file" in page.text
    assert page.source.count("<tr>") < 1600


def test_the_picture_budget_shrinks_the_pictures(tmp_path, monkeypatch):
    folder = write_run(tmp_path, make_rows(2), size=48)
    before = [len(image["src"]) for image in _page(folder).of("img")]
    monkeypatch.setattr("lightning_recon.report.cards.MAX_BYTES", sum(before) // 3)
    monkeypatch.setattr("lightning_recon.report.cards._SIDES", (256, 24, 16))
    after = [len(image["src"]) for image in _page(folder).of("img")]
    assert len(after) == len(before)
    assert sum(after) <= sum(before) // 3


def test_verdict():
    rows = make_rows(5)
    results = make_results(rows)
    low, high = (f"{100 * results[f'recall_ci_{end}']:.0f} %" for end in ("low", "high"))
    psnr, null = results["metrics"]["psnr"]["mean"], results["null"]["mean_image"]["psnr"]
    assert verdict(view(results)) == (
        f"10 of 20 images of 5 clients recovered (50 %; 95 % interval {low} to {high}); PSNR "
        f"{psnr:.1f} dB on average, where guessing the mean image gives {null:.1f} dB."
    )
    assert verdict(view({})) == "No image was audited."
    alone = make_rows(1, batch=1, is_recovered=lambda client, image: False)
    assert verdict(view(make_results(alone))).startswith(
        "None of 1 image of 1 client recovered (a single client gives no interval); PSNR "
    )
    none = make_rows(20, is_recovered=lambda client, image: False)
    assert "None of 80 images of 20 clients recovered (95 % interval 0 % to 17 %)" in verdict(
        view(make_results(none))
    )
    almost = make_rows(20, batch=50, is_recovered=lambda client, image: client + image > 0)
    assert "999 of 1,000 images of 20 clients recovered (99.9 %;" in verdict(
        view(make_results(almost))
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", None, r"holds no results\.json; name the folder of a finished run"),
        ("results.json", "{", r"results\.json, line 1 is truncated or no JSON"),
        ("results.json", "[1]", r"results\.json, line 1 holds no object"),
        ("clients.csv", "client,psnr\n0,12\n0,high\n", r"clients\.csv, line 3 is no row"),
        ("clients.csv", "client,psnr\n0,12,13\n", r"clients\.csv, line 2 is no row"),
    ],
)
def test_bad_input_is_one_line(tmp_path, name, content, message):
    write_run(tmp_path, make_rows(2))
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    folder = write_run(tmp_path, make_rows(1))
    before = write_report(folder).read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    (folder / "results.json").write_text(json.dumps({"experiment": "other"}))
    with pytest.raises(OSError, match="disk full"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before


# in a browser


@pytest.fixture(scope="module")
def shown(tmp_path_factory, browser):
    """A page of 12 clients, one of them failed, and the browser that shows it."""
    rows = make_rows(12, is_recovered=lambda client, image: image % 2 == 0 and client != 5)
    failures = [{"client": 5, "reason": "the update holds NaN"}]
    more = {"threat_model": "word" * 60, "command": "x" * 300, "clients_unrecovered": [5]}
    results = make_results(rows, failures=failures, **more)
    path = write_report(write_run(tmp_path_factory.mktemp("run"), rows, results))
    browser.open(path)
    return path


@needs_chromium
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_no_error_no_network_and_no_sideways_scroll(browser, shown, width, dark):
    browser.open(shown, width=width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [shown.as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("[...document.images].every((one) => one.naturalWidth > 0)")
    page = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", page))) < 200) == dark


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_page(browser, shown, dark):
    browser.open(shown, dark=dark)
    colours = browser.run(
        """Object.fromEntries(["--ink", "--soft", "--leak", "--calm", "--card", "--page", "--s0",
        "--s1", "--s2", "--s3", "--s4", "--s5", "--s6", "--s7"].map((name) => {
          const probe = document.createElement("i");
          probe.style.color = `var(${name})`;
          document.body.append(probe);
          return [name, getComputedStyle(probe).color.match(/\\d+/g).map(Number)];
        }))"""
    )

    def luminance(colour):
        parts = np.array(colour) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722] + 0.05

    def contrast(one, other):
        pair = sorted((luminance(one), luminance(other)))
        return pair[1] / pair[0]

    for name, colour in colours.items():
        for ground in ("--card", "--page"):
            if name not in ("--card", "--page"):
                least = 3 if name.startswith("--s") and name != "--soft" else 4.5  # WCAG 2.2
                assert contrast(colour, colours[ground]) >= least, (name, ground)
    words = browser.run(
        """[...document.querySelectorAll(".warnings strong, .warnings span")].map((one) => {
          const parts = (text) => text.match(/[\\d.]+/g).map(Number);
          let ground = one;
          const see = (place) => parts(getComputedStyle(place).backgroundColor);
          while (see(ground)[3] === 0) ground = ground.parentElement;
          return [one.textContent, parts(getComputedStyle(one).color), see(ground)];
        })"""
    )
    assert [text for text, _, _ in words][::2] == ["Alarm", "Note"]
    for text, colour, ground in words:
        assert contrast(colour[:3], ground[:3]) >= 4.5, text
    alarm, note = words[0], words[2]
    assert alarm[2] != note[2]


def _column(browser, head):
    """The visible cells below a heading of the table of images."""
    return browser.run(
        f"""(() => {{
          const table = document.getElementById("images-table");
          const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
          return [...table.tBodies[0].rows].filter((row) => !row.hidden)
            .map((row) => row.cells[heads.indexOf({head!r})].textContent);
        }})()"""
    )


@needs_chromium
def test_the_table_sorts_from_the_keyboard(browser, shown):
    browser.open(shown)
    heads = "[...document.querySelectorAll('#images-table th')]"
    head = f"{heads}.find((one) => one.textContent === 'PSNR')"
    browser.run(f"{head}.querySelector('button').focus()")
    browser.press("Enter", 13)
    assert browser.run(f"{head}.getAttribute('aria-sort')") == "descending"
    values = [float(text) for text in _column(browser, "PSNR")]
    assert values == sorted(values, reverse=True)
    browser.press("Enter", 13)
    assert browser.run(f"{head}.getAttribute('aria-sort')") == "ascending"
    assert [float(text) for text in _column(browser, "PSNR")] == values[::-1]
    assert browser.run("document.querySelectorAll('[aria-sort]').length") == 1
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert browser.run(outline) == "solid"


@needs_chromium
def test_the_table_filters(browser, shown):
    browser.open(shown)
    assert browser.run("document.querySelector('.filters output').textContent") == "48 of 48 shown"
    choose = """(label, value) => {
      const field = [...document.querySelectorAll('.filters label')]
        .find((one) => one.firstChild.textContent === label).querySelector('select, input');
      field.value = value;
      field.dispatchEvent(new Event('input', {bubbles: true}));
    }"""
    browser.run(f"({choose})('Recovered', 'yes')")
    assert set(_column(browser, "Recovered")) == {"yes"}
    browser.run(f"({choose})('Client', '3')")
    assert _column(browser, "Client") == ["3", "3"]
    assert browser.run("document.querySelector('.filters output').textContent") == "2 of 48 shown"
    browser.run(f"({choose})('Search', 'nothing like this')")
    assert _column(browser, "Client") == []


@needs_chromium
def test_pictures_enlarge_and_text_is_copied(browser, shown):
    browser.open(shown)
    width = "document.querySelector('.card img').getBoundingClientRect().width"
    before = browser.run(width)
    browser.run("document.querySelector('[data-enlarge]').focus()")
    browser.press("Enter", 13)
    assert browser.run(width) > 2 * before
    assert browser.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    browser.run("document.querySelector('[data-copy=command]').click()")
    label = "document.querySelector('[data-copy=command]').textContent"
    browser.run("new Promise((done) => setTimeout(done, 200))")
    copied = browser.run(label) == "Copied"
    assert copied or browser.run("getSelection().toString()").startswith("xxx")


@needs_chromium
def test_an_injected_script_does_not_run(browser, shown, tmp_path):
    path = tmp_path / "report.html"
    text = shown.read_text().replace("<main", "<script>window.injected = 1</script><main", 1)
    path.write_text(text)
    browser.open(path)
    assert browser.run("window.injected === undefined")
    assert any("Content Security Policy" in error for error in browser.errors)


def test_rows_without_results_of_their_own(tmp_path):
    write_run(tmp_path, make_rows(1), {"experiment": "x"})
    write_rows(tmp_path / "clients.csv", [{"client": 0, "image": 0, "psnr": 12.0}])
    page = _page(tmp_path)
    assert "No image was audited." in page.text
    assert "One line for every true image" in page.text
