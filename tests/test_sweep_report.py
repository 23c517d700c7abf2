import csv
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
import yaml
from browser import needs_chromium, open_browser
from run_folders import EVIL, Page

from lightning_recon.errors import InputError
from lightning_recon.report import write_again, write_sweep_report

browser = pytest.fixture(open_browser, scope="module")


def _cell(epsilon, clip, attack, **more):
    psnr = 20 + epsilon / 2 - clip / 10 + 5 * (attack == "spectral")
    return {
        **{"epsilon": epsilon, "clip": clip, "attack": attack},
        **{"psnr": psnr, "psnr_ci_low": psnr - 0.5, "psnr_ci_high": psnr + 1},
        **{"psnr_worst": psnr + 6, "ssim": 0.5, "recovered": 10, "recall": 0.625},
        **{"null_mean_image": 13.7, "null_noise_only": 13.6, "noise_std": 2 * clip / epsilon},
        **{"epsilon_actual": 1000 * epsilon, "num_images": 16, "num_failed": 0, "seconds": 3.2},
        **more,
    }


def _cells():
    axes = (2.5, 5.0, 20.0), (10, 20, 30), ("faithful", "spectral")
    return [_cell(*setting) for setting in itertools.product(*axes)]


def _write(folder, cells, planned=None):
    folder.mkdir(exist_ok=True)
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(cells[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(cells)
    if planned is not None:
        plan = {"cells": [{"labels": labels, "config": {"model": 1}} for labels in planned]}
        (folder / "sweep.yaml").write_text(yaml.safe_dump(plan))
    return folder


def _page(folder):
    path = write_sweep_report(folder)
    assert path == folder / "report.html"
    return Page(path)


def _charts(page):
    """By title the words under the pointer of every point of a chart."""
    charts = {}
    for svg in re.findall(r"<svg[^>]* role=.*?</svg>", page.source, flags=re.DOTALL):
        tree = ElementTree.fromstring(svg)
        points = [e for e in tree.iter() if (e.get("class") or "").startswith("point")]
        charts[tree.get("aria-label")] = [e.find("{*}title").text for e in points]
    return charts


def _looks(page):
    """By what is drawn, such as "attack spectral", the looks that it has: colour and shape."""
    looks = {}
    for svg in re.findall(r"<svg[^>]* role=.*?</svg>", page.source, flags=re.DOTALL):
        for point in ElementTree.fromstring(svg).iter():
            if (point.get("class") or "").startswith("point"):
                name = point.find("{*}title").text.split(":")[0]
                shape = re.sub(r"^M\S+ [\d.]+?(?=m)", "", point.get("d"))
                looks.setdefault(name, set()).add((point.get("class"), shape))
    return looks


def _legends(page):
    """The names in every legend."""
    lists = re.findall(r'<ul class="legend">(.*?)</ul>', page.source, flags=re.DOTALL)
    return [re.findall(r"</svg>([^<]+)</li>", one) for one in lists]


def test_the_page_of_a_full_sweep(tmp_path):
    cells = _cells()
    labels = [{name: cell[name] for name in ("epsilon", "clip", "attack")} for cell in cells]
    folder = _write(tmp_path / "ldp", cells, labels)
    run = {"command": "python cli.py sweep --config x.yaml", "versions": {"torch": "2.15.0"}}
    (folder / "run.json").write_text(json.dumps(run))
    page = _page(folder)
    for text in (
        "3 epsilon × 3 clip × 2 attack",  # noqa: RUF001
        "Images leak in 18 of 18 cells",
        "PSNR from 18.2 dB (95 % interval 17.8 to 19.2) at epsilon 2.5, clip 30, attack faithful "
        "to 34.0 dB (95 % interval 33.5 to 35.0) at epsilon 20.0, clip 10, attack spectral, where "
        "guessing the mean image gives 13.7 dB.",
        *("python cli.py sweep --config x.yaml", "torch 2.15.0", "One line for every cell"),
        *("mean image 13.7", "noise-only update 13.6"),
    ):
        assert text in page.text, text
    assert "Read this first" not in page.text
    page.must_be_self_contained_and_accessible()
    text = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert write_again(folder).read_text() == text


def test_lines_run_along_the_numeric_axes(tmp_path):
    page = _page(_write(tmp_path, _cells()))
    first = ElementTree.fromstring(re.search(r"<svg viewBox.*?</svg>", page.source)[0])
    line = next(e for e in first.iter() if e.get("class") == "line s0")
    x = [float(pair.split(",")[0]) for pair in line.get("points").split()]
    assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(1 / 3, abs=0.01)  # 2.5, 5, 20: logarithms
    charts = _charts(page)
    assert charts["PSNR against epsilon, clip 10"] == [
        *(f"attack faithful: {v}" for v in ("20.2 at 2.5", "21.5 at 5", "29 at 20")),
        *(f"attack spectral: {v}" for v in ("25.2 at 2.5", "26.5 at 5", "34 at 20")),
    ]
    assert [title for title in charts if ", " in title and "worst" not in title] == [
        *(f"PSNR against epsilon, clip {clip}" for clip in (10, 20, 30)),
        *(f"PSNR against clip, epsilon {epsilon}" for epsilon in (2.5, 5.0, 20.0)),
    ]
    assert len(charts["PSNR against the actual ε of one update"]) == 18
    assert charts["Cells, worst leak first"][0] == (
        "20.0, 10, spectral: 34.0 (33.5 to 35.0), worst 40.0"
    )


def _unordered():
    """Cells whose axes are in no order but that of their file, with the first ones missing."""
    axes = (20.0, 2.5, 5.0), ("zeta", "alpha", "mu"), (1, 16, 4)
    cells = []
    for i, (epsilon, attack, batch) in enumerate(itertools.product(*axes)):
        psnr = 20 + i % 7 + (5 if attack == "mu" else 0)
        cells.append({"epsilon": epsilon, "attack": attack, "batch": batch, "psnr": psnr})
        cells[-1] |= {"psnr_worst": psnr + 1, "epsilon_actual": 1000 * epsilon}
    return [{k: cell[k] for k in ("epsilon", "attack", "batch")} for cell in cells], cells[4:]


def test_a_value_has_one_look_and_one_place_on_the_whole_page(tmp_path):
    planned, cells = _unordered()
    page = _page(_write(tmp_path, cells, planned))
    looks = {name: look for name, look in _looks(page).items() if name.startswith("attack ")}
    assert set(looks) == {"attack zeta", "attack alpha", "attack mu"}
    assert all(len(look) == 1 for look in looks.values())
    for name, (look,) in looks.items():
        cells_of_it = [k for k in _looks(page) if name.split()[1] in k.split(", ")]
        assert cells_of_it
        assert all(_looks(page)[k] == {look} for k in cells_of_it), name
    assert len(set.union(*looks.values())) == 3
    legends = _legends(page)
    assert len(legends) == 3
    assert all(one == ["attack zeta", "attack alpha", "attack mu"] for one in legends)
    panels = re.findall(r"<div><p>((?:epsilon|batch) .*?)</p>", page.source)
    in_order = [f"batch {n}" for n in (1, 16, 4)], [f"epsilon {e}" for e in (20.0, 2.5, 5.0)]
    assert panels == [*in_order[0], *in_order[1]]
    facets = [json.loads(head["data-facet"]) for head in page.of("th") if "data-facet" in head]
    assert facets == [["20.0", "2.5", "5.0"], ["zeta", "alpha", "mu"], ["1", "16", "4"]]


def test_no_two_values_of_two_axes_look_alike(tmp_path):
    cells = [
        {"a": a, "b": b, "psnr": 20 + a + b}
        for a, b in itertools.product((1.0, 2.0, 3.0), (0.5, 0.25))
    ]
    looks = {
        name: look
        for name, look in _looks(_page(_write(tmp_path, cells))).items()
        if re.match("[ab] ", name)
    }
    assert len(looks) == 5
    assert all(len(look) == 1 for look in looks.values())
    assert len(set.union(*looks.values())) == 5


def test_nine_bands_become_panels(tmp_path):
    names = [f"attack {n}" for n in "ihgfedcba"]
    cells = [
        _cell(epsilon, 10, name, num_clients=8) for epsilon in (2.5, 5.0, 20.0) for name in names
    ]
    page = _page(_write(tmp_path, cells))
    (figure,) = (part for part in page.source.split("<figure")[1:] if 'class="panels"' in part)
    assert re.findall(r"<div><p>attack (.*?)</p>", figure) == names
    bands = [svg.count('class="band') for svg in figure.split("<svg viewBox")[1:] if "role" in svg]
    assert bands == [1] * 9


@pytest.mark.parametrize("num_clients", ["", 1, 2, 3, 4, 8])
def test_the_interval_of_few_clients_is_in_the_table_alone(tmp_path, num_clients):
    """That of two clients spans all of the chart: 0 to 25 dB and more."""
    cells = [
        {"n": n, "psnr": 12.0 + n, "psnr_ci_low": 0.4, "psnr_ci_high": 61.3, "psnr_worst": 17.0}
        | {"num_clients": num_clients}
        for n in (1, 2, 3)
    ]
    page = _page(_write(tmp_path, cells))
    is_drawn = num_clients in ("", 4, 8)
    charts = page.source[: page.source.index('<section aria-labelledby="cells"')]
    assert bool(re.search(r'class="band s\d" points="\d', charts)) == is_drawn
    assert ('class="whisker' in charts) == is_drawn
    assert ("No interval is drawn of fewer than 4 clients." in charts) != is_drawn
    assert ("Band: 95 % interval" in charts) == is_drawn
    highest = max(float(tick) for tick in re.findall(r'class="end"[^>]*>([\d.]+)<', charts))
    assert (highest > 60) == is_drawn  # else the axis is that of the points
    assert page.text.count("61.3") >= 3


def test_seeds_are_one_line(tmp_path):
    cells = [
        {
            "bins": bins,
            "seed": seed,
            "psnr": psnr,
            "psnr_ci_low": psnr - 1,
            "psnr_ci_high": psnr + 2,
        }
        for bins, seed, psnr in ((64, 0, 20.0), (64, 1, 22.0), (1024, 0, 30.0), (1024, 1, 31.0))
    ]
    page = _page(_write(tmp_path, cells))
    charts = _charts(page)
    title = "PSNR against bins"
    assert charts[title] == [f"mean over all images: {v}" for v in ("21 at 64", "30.5 at 1024")]
    assert not any("seed" in title for title in charts)
    svg = page.source[page.source.index("<svg") : page.source.index("</svg>") + 6]
    tree = ElementTree.fromstring(svg)
    (line,) = (e for e in tree.iter() if e.get("class") == "line s0")
    (band,) = (e for e in tree.iter() if e.get("class") == "band s0")
    (_, y64), (_, y1024) = (map(float, pair.split(",")) for pair in line.get("points").split())
    ends = [float(pair.split(",")[1]) for pair in band.get("points").split()]
    step = (y64 - y1024) / 9.5
    expected = [y64 - step * (end - 21) for end in (24, 33, 29, 19)]  # lowest and highest end
    assert ends == pytest.approx(expected, abs=0.3)


def test_words_alone_are_ranked(tmp_path):
    cells = [{"attack": name, "psnr": psnr} for name, psnr in (("a", 20), ("b", ""), ("c", 30))]
    page = _page(_write(tmp_path, cells))
    assert "Leakage along the axes" not in page.text, "no empty card"
    assert "All cells" in page.text
    assert _charts(page) == {"Cells, worst leak first": ["c: 30.0", "a: 20.0"]}


def test_cells_of_other_models_or_data_are_told(tmp_path):
    def told(name, *configs):
        cells = [{"attack": str(n), "psnr": 20 + n} for n in range(len(configs))]
        folder = _write(tmp_path / name, cells)
        plan = [
            {"labels": {"attack": str(n)}, "config": config} for n, config in enumerate(configs)
        ]
        (folder / "sweep.yaml").write_text(yaml.safe_dump({"cells": plan}))
        return _page(folder).text

    def config(target="LeNet", iterations=3, batch_size=2):
        target = {"class_path": target}
        model = {"class_path": "DLG", "init_args": {"target": target, "iterations": iterations}}
        return {"model": model, "data": {"init_args": {"batch_size": batch_size}}}

    assert "The cells differ" not in told("same", config(), config(iterations=4))
    text = told("model", config(), config(target="ConvNet"))
    assert "The cells differ in the model under attack: one is no measure" in text
    text = told("both", config(batch_size=4), config(target="ConvNet"))
    assert "The cells differ in the model under attack and in their data" in text


def test_failed_unrecovered_and_missing_cells_are_named_at_the_top(tmp_path):
    cells = _cells()[:-1]
    labels = [{name: cell[name] for name in ("epsilon", "clip", "attack")} for cell in _cells()]
    cells[0] |= {"num_failed": 3}
    cells[1] |= {"recovered": 0}
    for cell in cells:
        cell["noise_only_recovered"] = 4 if cell is cells[2] else 0
    page = _page(_write(tmp_path, cells, labels))
    top = page.text[: page.text.index("Band: 95 %")]
    assert "failed on 3 clients in 1 cell (epsilon 2.5, clip 10, attack faithful)" in top
    assert "No image was recovered in 1 cell (epsilon 2.5, clip 10, attack spectral)." in top
    noise = "recovers 4 images from noise alone, with no client behind it, in 1 cell (epsilon 2.5, "
    assert f"{noise}clip 20, attack faithful)" in top
    assert "Without results: 1 of 18 cells (epsilon 20.0, clip 30, attack spectral)." in top
    assert "Images leak in 16 of 17 cells" in top


def test_a_large_sweep_stays_small_and_says_what_is_missing(tmp_path):
    axes = range(12), range(12), range(14)
    cells = [
        {**dict(zip("abc", map(float, at), strict=True)), "psnr": sum(at), "recovered": 0}
        for at in itertools.product(*axes)
    ]
    page = _page(_write(tmp_path, cells, [{"a": 0.0, "b": 0.0, "c": 0.0}] * 3000))
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    assert "The first 24 of " in page.text
    assert "The first 1,500 of 2,016 cells; results.csv holds all." in page.text
    assert "The 24 worst of 2016 are shown." in page.text
    assert "and 2,004 more" in page.text


def test_all_text_is_escaped(tmp_path):
    cells = [{EVIL: EVIL, "n": n, "psnr": 20 + n, "num_failed": 1} for n in (1, 2)]
    folder = _write(tmp_path, cells, [{EVIL: "other", "n": 1}])
    run = {"command": EVIL, "versions": {EVIL: EVIL}}
    (folder / "run.json").write_text(json.dumps(run))
    assert _page(folder).must_not_run(EVIL) >= 8


@pytest.mark.parametrize("plan", ["- 1", "cells: 3", "cells: [1, {labels: 2}]", "{", ""])
@pytest.mark.parametrize("run", ["", "[]", "{", '{"versions": null}'])
def test_a_broken_record_leaves_gaps(tmp_path, plan, run):
    folder = _write(tmp_path, _cells())
    (folder / "sweep.yaml").write_text(plan)
    (folder / "run.json").write_text(run)
    assert "not recorded" in _page(folder).text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"holds no results\.csv; name the folder of a sweep"),
        ("", r"has no rows with a column psnr"),
        ("epsilon,psnr\n", r"has no rows with a column psnr"),
        ("epsilon,ssim\n1,2\n", r"has no rows with a column psnr"),
    ],
)
def test_bad_input_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "results.csv").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        write_sweep_report(tmp_path)
    assert "\n" not in str(error.value)


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_in_a_browser(tmp_path, browser, width, dark):
    path = write_sweep_report(_write(tmp_path, _cells()))
    browser.open(path, width=width, dark=dark)
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [path.as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= width
    labels = browser.run(
        "[...document.querySelectorAll('.filters label')].map((one) => one.firstChild.textContent)"
    )
    assert labels == ["Search", "epsilon", "clip", "attack"]
    browser.run(
        """(() => {
          const field = document.querySelectorAll(".filters select")[2];
          field.value = "spectral";
          field.dispatchEvent(new Event("input"));
        })()"""
    )
    assert browser.run("document.querySelector('.filters output').textContent") == "9 of 18 shown"
