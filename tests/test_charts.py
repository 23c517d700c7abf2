import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from browser import needs_chromium, open_browser

from lightning_recon.report.charts import (
    MAX_DOTS,
    MAX_SERIES,
    Chart,
    Dot,
    Group,
    Panel,
    along,
    ladder,
    spread,
)
from lightning_recon.report.drawing import Mark, Series
from lightning_recon.report.page import write_page

browser = pytest.fixture(open_browser, scope="module")

EVIL = '"><script>alert(1)</script>'


def lines(title, series, x_label, y_label, *, marks=(), **more):
    """The drawing of one panel."""
    (drawing,) = along(title, [Panel("", series, marks)], x_label, y_label, **more).drawings
    return drawing[1]


def _tree(svg):
    return ElementTree.fromstring(str(svg))


def _of_class(svg, name):
    return [e for e in _tree(svg).iter() if name in e.get("class", "").split()]


def _points(line):
    return np.array([[float(v) for v in pair.split(",")] for pair in line.get("points").split()])


def _labels(svg, kind):
    """Places and values of the labels of an axis: ``middle`` to the right, ``end`` upwards."""
    return np.array(
        [
            [float(element.get("x")), float(element.get("y")), float(element.text)]
            for element in _of_class(svg, kind)
            if element.get("class") == kind and element.get("x")
        ]
    )


def _spread(groups, marks=()):
    (drawing,) = spread("title", groups, "PSNR", marks).drawings
    return drawing[1]


def test_many_values_are_counted_in_bars():
    random = np.random.default_rng(0)
    groups = [
        Group("recovered", random.normal(30, 2, 90)),
        Group("not recovered", random.normal(12, 1, 40), 1),
    ]
    svg = _spread(groups, [Mark("mean image", 12.0)])
    counts = {group.label: 0 for group in groups}
    for bar in _tree(svg).iter("rect"):
        low, high, count, name = re.fullmatch(
            r"(\S+) to (\S+): (\d+) (.*)", bar.find("title").text
        ).groups()
        counts[name] += int(count)
        (values,) = (group.values for group in groups if group.label == name)
        inside = ((values >= float(low) - 0.06) & (values <= float(high) + 0.06)).sum()
        assert int(count) <= inside
    assert counts == {"recovered": 90, "not recovered": 40}
    assert _of_class(svg, "point") == []


def test_bars_stack_and_are_as_high_as_their_counts():
    svg = _spread([Group("a", [1.0] * 60, 0), Group("b", [1.0] * 30 + [9.0] * 20, 1)])
    bars = [
        (e.get("class"), float(e.get("height")), float(e.get("y"))) for e in _tree(svg).iter("rect")
    ]
    heights = {}
    for name, height, _ in bars:
        heights.setdefault(name, []).append(height)
    assert heights["s0"][0] == pytest.approx(2 * heights["s1"][0], abs=0.2)
    assert heights["s1"][0] == pytest.approx(1.5 * heights["s1"][1], abs=0.2)
    (_, _, top), (_, short, above) = bars[0], bars[1]
    assert above + short == pytest.approx(top, abs=0.2)


@pytest.mark.parametrize("values", [[25.0], [30.0, 31.0, 39.0], [20.0] * MAX_DOTS])
def test_few_values_are_points_of_their_own(values):
    """No bars; every value is where the axis has it, and no point lies on another."""
    marks = [Mark("mean image", 13.7)]
    svg = _spread([Group("recovered", values[:2]), Group("not recovered", values[2:], 1)], marks)
    assert not list(_tree(svg).iter("rect"))
    points = _of_class(svg, "point")
    places = np.array([re.findall(r"[\d.]+", e.get("d"))[:2] for e in points], dtype=float)
    labels = _labels(svg, "middle")
    slope, start = np.polyfit(labels[:, 2], labels[:, 0], 1)
    assert places[:, 0] == pytest.approx(start + slope * np.sort(values), abs=0.3)
    assert len(np.unique(places, axis=0)) == len(values)
    _, _, _, height = (float(v) for v in _tree(svg).get("viewBox").split())
    assert 0 < places[:, 1].min() <= places[:, 1].max() < height
    assert labels[:, 2].min() > 0  # the axis is that of the data and the control
    colours = [e.get("class") for e in points]
    assert colours.count("point s0") == len(values[:2])


@pytest.mark.parametrize("is_log", [False, True])
def test_lines_run_through_their_values(is_log):
    x, y = np.array([1.0, 4.0, 30.0, 100.0]), np.array([0.02, 0.5, 3.0, 7.0])
    svg = lines("title", [Series("one", x, y)], "x", "y", is_x_log=is_log, is_y_log=is_log)
    places = _points(_of_class(svg, "line")[0])
    change = np.log10 if is_log else np.asarray
    for axis, values, kind in ((0, x, "middle"), (1, y, "end")):
        labels = _labels(svg, kind)
        positions = labels[:, axis] - (0 if axis == 0 else 4)
        slope, start = np.polyfit(change(labels[:, 2]), positions, 1)
        assert places[:, axis] == pytest.approx(start + slope * change(values), abs=0.6)
    assert (slope < 0) == (axis == 1)


def test_bands_and_whiskers_reach_their_ends():
    one = Series("one", [1.0, 2.0], [5.0, 6.0], [4.0, 5.0], [6.0, 9.0])
    joined = lines("title", [one], "x", "y", has_points=True)
    line, band = _points(_of_class(joined, "line")[0]), _points(_of_class(joined, "band")[0])
    step = (line[0, 1] - line[1, 1]) / (6 - 5)
    assert band[:, 1] == pytest.approx(line[0, 1] + step * (5 - np.array([6, 9, 5, 4])), abs=0.3)
    assert len(_of_class(joined, "point")) == 2
    alone = lines("title", [one], "x", "y", has_points=True, is_joined=False)
    assert not _of_class(alone, "line")
    assert not _of_class(alone, "band")
    whiskers = [re.findall(r"[\d.]+", e.get("d")) for e in _of_class(alone, "whisker")]
    assert [[float(v) for v in ends] for ends in whiskers] == [
        pytest.approx([*band[3][[0]], *band[3][[1]], *band[0][[1]]], abs=0.2),
        pytest.approx([*band[2][[0]], *band[2][[1]], *band[1][[1]]], abs=0.2),
    ]


def test_swept_values_are_the_ticks_and_labels_do_not_overlap():
    x = [64.0, 128.0, 256.0, 512.0, 1024.0]
    svg = lines("t", [Series("a", x, x)], "bins", "y", has_points=True, is_x_log=True)
    assert _labels(svg, "middle")[:, 2].tolist() == [64, 128, 256, 512, 1024]
    crowded = [100.0, 101.0, 102.0, 500.0]
    labels = _labels(
        lines("t", [Series("a", crowded, crowded)], "x", "y", has_points=True), "middle"
    )
    assert np.diff(labels[:, 0]).min() > 20


MARKS = {
    "equal": [13.7, 13.7, 13.7, 13.7, 13.7],
    "close": [13.7, 13.8, 13.9, 14.6, 12.4],
    "far": [5.0, 60.0, 30.0, 15.0, 45.0],
}
NAMES = ("mean image", "class mean", "nearest public image", "noise-only update", "other client's")


@needs_chromium
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("values", MARKS.values(), ids=MARKS)
def test_labels_of_controls_never_lie_on_each_other(tmp_path, browser, values, width):
    marks = [Mark(*one) for one in zip(NAMES, values, range(-1, -6, -1), strict=True)]
    series = [Series("a", [1, 2], [10, 60])]
    charts = [
        spread("few", [Group("images", [20.0, 33.0])], "PSNR", marks),
        spread("many", [Group("images", range(MAX_DOTS + 1))], "PSNR", marks),
        Chart("ladder", [("", ladder("ladder", [Dot("a", 30.0)], "PSNR", marks))]),
        along("along", [Panel("", series, marks)], "x", "y"),
    ]
    path = write_page(tmp_path / "page.html", "sweep.html", _page_of(charts))
    browser.open(path, width=width)
    for number in range(len(charts)):
        boxes = browser.run(
            f"""(() => {{
              const figure = document.querySelectorAll("figure")[{number}];
              return [...figure.querySelectorAll("svg text, .legend li")].map((one) => {{
                const box = one.getBoundingClientRect();
                return [one.textContent, box.left, box.top, box.right, box.bottom];
              }});
            }})()"""
        )
        for name, value in zip(NAMES, values, strict=True):
            assert sum(box[0] == f"{name} {value:g}" for box in boxes) == 1, (name, boxes)
        for i, (name, left, top, right, bottom) in enumerate(boxes):
            assert left >= 0, name
            assert right <= width, name
            for other, *box in boxes[:i]:
                apart = left >= box[2] or box[0] >= right or top >= box[3] or box[1] >= bottom
                assert apart, (charts[number].title, name, other)


@pytest.mark.parametrize("values", [[5.0, 6.0, 9.0, 40.0], [5.0, 36.0, 38.0, 40.0]])
def test_no_mark_runs_through_a_label_on_its_side(values):
    marks = [Mark("nearest public image", value) for value in values]
    svg = _spread([Group("images", [20.0])], marks)
    places = [[float(v) for v in re.findall(r"[\d.]+", e.get("d"))] for e in _of_class(svg, "mark")]
    texts = _of_class(svg, "halo")
    assert len(places) == len(texts) == 4
    for (place, _, _), text in zip(places, texts, strict=True):
        is_right = "end" in text.get("class")
        for other, top, _ in places:
            begins_below = top > float(text.get("y"))
            is_beside = other >= place if is_right else other <= place
            is_far = (other > 231) != is_right  # on the other side of the chart
            assert begins_below or is_beside or is_far


def test_no_value_at_all_leaves_the_marks():
    svg = _spread([Group("images", [])], [Mark("no difference", 0.0)])
    assert len(_of_class(svg, "mark")) == 1
    assert _of_class(svg, "point") == []


def _page_of(charts):
    texts = ("title", "kind", "heading", "about", "status", "verdict", "caveat", "source")
    nothing = {"caption": "", "heads": [], "rows": [], "facets": {}, "is_sortable": False}
    return {
        **dict.fromkeys((*texts, "charts_note", "command", "versions", "config"), ""),
        **{"is_leak": False, "warnings": [], "sections": {}, "cells": nothing},
        **{"charts": charts, "leakage": []},
    }


def test_nine_series_become_panels_that_share_their_axes():
    names = [f"attack {letter}" for letter in "ihgfedcba"]
    series = [
        Series(name, [1.0, 8.0], [10.0 + i, 20.0 + i], [9.0, 18.0], [12.0, 30.0 + i], i)
        for i, name in enumerate(names)
    ]
    marks = [Mark("mean image", 5.0)]
    chart = along("title", [Panel("", series, marks)], "x", "y", has_points=True)
    assert [name for name, _ in chart.drawings] == names
    axes = [(_labels(svg, "middle").tolist(), _labels(svg, "end").tolist()) for _, svg in chart[1]]
    assert all(one == axes[0] for one in axes)
    assert min(value for _, _, value in axes[0][1]) <= 5.0
    for i, (_, svg) in enumerate(chart.drawings):
        assert len(_of_class(svg, "band")) == len(_of_class(svg, "line")) == 1
        assert f"s{i % 7}" in _of_class(svg, "line")[0].get("class").split()
        assert len(_of_class(svg, "mark")) == 1
    assert [label for _, label in chart.legend] == ["mean image"]
    few = along("title", [Panel("", series[:MAX_SERIES])], "x", "y", has_points=True)
    assert len(few.drawings) == 1
    assert [label for _, label in few.legend] == names[:MAX_SERIES]


def test_a_number_decides_the_look_wherever_it_is_drawn():
    """Colour and shape of a number are the same in every kind of chart, and no other's."""
    looks = {}
    for number in range(28):
        of_line = along(
            "t",
            [Panel("", [Series("a", [1, 2], [1, 2], number=number)])],
            "x",
            "y",
            has_points=True,
        )
        drawn = [
            _spread([Group("a", [1.0], number)]),
            ladder("t", [Dot("a", 1.0, number=number)], "x"),
            of_line.drawings[0][1],
            of_line.legend[0][0],
        ]
        found = {
            (point.get("class"), re.sub(r"^M\S+ [\d.]+?(?=m)", "", point.get("d")))
            for svg in drawn
            for point in _of_class(svg, "point")
        }
        assert len(found) == 1, number
        looks[number] = found.pop()
    assert len(set(looks.values())) == 28
    assert not any("s7" in colour for colour, _ in looks.values())  # of the controls


def test_controls_are_grey_and_differ_in_their_dashes():
    series = [Series(str(n), [1, 2], [n, n], number=n) for n in range(-1, -6, -1)]
    classes = [_of_class(lines("t", [one], "x", "y"), "line")[0].get("class") for one in series]
    assert all("s7" in one.split() for one in classes)
    assert len(set(classes)) == 5


def test_ladder_shows_interval_worst_case_and_control():
    svg = ladder("t", [Dot("attack", 30.0, 28.0, 31.0, 40.0), Dot("null", 12.0, number=-4)], "PSNR")
    titles = [e.find("{*}title").text for e in _of_class(svg, "point")]
    assert titles == ["attack: 30.0 (28.0 to 31.0), worst 40.0", "null: 12.0"]
    assert [e.get("class") for e in _of_class(svg, "point")] == ["point s0", "point s7"]
    assert len(_of_class(svg, "whisker")) == len(_of_class(svg, "tail")) == 1


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 1e9, 25.0])
def test_a_single_value_has_an_axis(value):
    for svg in (
        _spread([Group("a", [value])]),
        _spread([Group("a", [value] * (MAX_DOTS + 1))]),
        ladder("t", [Dot("a", value)], "x"),
        lines("t", [Series("a", [value], [value])], "x", "y", has_points=True),
    ):
        assert "nan" not in str(svg)
        _, _, width, height = (float(v) for v in _tree(svg).get("viewBox").split())
        for element in _tree(svg).iter():
            if element.get("x"):
                assert 0 <= float(element.get("x")) <= width
                assert 0 <= float(element.get("y")) <= height


def test_text_is_escaped():
    chart = spread(EVIL, [Group(EVIL, [1.0])], EVIL, [Mark(EVIL, 1.0)])
    many = spread(EVIL, [Group(EVIL, [1.0] * 99)], EVIL, [Mark(EVIL, 1.0)])
    series = [Series(EVIL, [1], [1])]
    for svg in (
        chart.drawings[0][1],
        many.drawings[0][1],
        lines(EVIL, series, EVIL, EVIL, marks=[Mark(EVIL, 1)], has_points=True),
        ladder(EVIL, [Dot(EVIL, 1.0)], EVIL, [Mark(EVIL, 1.0)]),
    ):
        assert not list(_tree(svg).iter("script"))
        assert _tree(svg).get("aria-label") == EVIL


def test_a_path_among_points():
    points = [Series(str(x), [x], [2.0 * x], number=x) for x in range(8)]
    path = Series("front", [1.0, 3.0], [2.0, 6.0], number=-1, is_path=True)
    chart = along("t", [Panel("", [*points, path])], "x", "y", has_points=True, is_joined=False)
    ((_, svg),) = chart.drawings  # points need no panels of their own
    assert len(_of_class(svg, "point")) == 8
    (line,) = [e for e in _tree(svg).iter() if e.tag.endswith("polyline")]
    assert len(_points(line)) == 2
    shown = {label: ("point" in sample, "line" in sample) for sample, label in chart.legend}
    assert shown == {**dict.fromkeys(map(str, range(8)), (True, False)), "front": (False, True)}
