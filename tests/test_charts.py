import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from lightning_recon.report.charts import Dot, Mark, Series, histogram, ladder, lines

EVIL = '"><script>alert(1)</script>'


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


def test_histogram_counts_every_value():
    random = np.random.default_rng(0)
    groups = [("recovered", random.normal(30, 2, 90)), ("not recovered", random.normal(12, 1, 40))]
    svg = histogram("title", groups, "PSNR", [Mark("mean image", 12.0)])
    counts = dict.fromkeys((name for name, _ in groups), 0)
    for bar in _tree(svg).iter("rect"):
        low, high, count, name = re.fullmatch(
            r"(\S+) to (\S+): (\d+) (.*)", bar.find("title").text
        ).groups()
        counts[name] += int(count)
        values = dict(groups)[name]
        inside = ((values >= float(low) - 0.06) & (values <= float(high) + 0.06)).sum()
        assert int(count) <= inside
    assert counts == {"recovered": 90, "not recovered": 40}


def test_bars_stack_and_are_as_high_as_their_counts():
    svg = histogram("title", [("a", [1.0] * 6), ("b", [1.0] * 3 + [9.0] * 2)], "x")
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


def test_marks_of_one_level_keep_their_labels_apart():
    marks = [Mark("mean image", 13.7), Mark("noise-only update", 13.7), Mark("class mean", 13.8)]
    across = lines("t", [Series("a", [1, 2], [10, 30])], "x", "y", marks=marks)
    labels = sorted(float(e.get("y")) for e in _of_class(across, "halo"))
    assert np.diff(labels).min() >= 12.9
    upright = ladder("t", [Dot("a", 30.0)], "PSNR", marks)
    labels = [float(e.get("y")) for e in _of_class(upright, "halo") if "13." in e.text]
    assert len(labels) == 3
    assert np.diff(sorted(labels)).min() >= 12.9


def test_ladder_shows_interval_worst_case_and_control():
    svg = ladder(
        "t", [Dot("attack", 30.0, 28.0, 31.0, 40.0), Dot("null", 12.0, is_control=True)], "PSNR"
    )
    titles = [e.find("{*}title").text for e in _of_class(svg, "point")]
    assert titles == ["attack: 30.0 (28.0 to 31.0), worst 40.0", "null: 12.0"]
    assert [e.get("class") for e in _of_class(svg, "point")] == ["point s0", "point s7"]
    assert len(_of_class(svg, "whisker")) == len(_of_class(svg, "tail")) == 1


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 1e9, 25.0])
def test_a_single_value_has_an_axis(value):
    for svg in (
        histogram("t", [("a", [value])], "x"),
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
    for svg in (
        histogram(EVIL, [(EVIL, [1.0])], EVIL, [Mark(EVIL, 1.0)]),
        lines(EVIL, [Series(EVIL, [1], [1])], EVIL, EVIL, marks=[Mark(EVIL, 1)], has_points=True),
        ladder(EVIL, [Dot(EVIL, 1.0)], EVIL, [Mark(EVIL, 1.0)]),
    ):
        assert not list(_tree(svg).iter("script"))
        assert _tree(svg).get("aria-label") == EVIL
