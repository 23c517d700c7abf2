"""The picture of a sweep shows what ``results.csv`` says."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from lightning_recon.report.plot import write_sweep_figure


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def cell(epsilon, attack, psnr, actual=None):
    return {
        "epsilon": epsilon,
        "attack": attack,
        "psnr": psnr,
        "psnr_ci_low": psnr - 1,
        "psnr_ci_high": psnr + 1,
        "null_mean_image": 13.0,
        "epsilon_actual": actual,
    }


CELLS = [
    cell(epsilon, attack, psnr + 5 * (attack == "spectral"), epsilon * 1e6)
    for attack in ("faithful", "spectral")
    for epsilon, psnr in ((10.0, 30.0), (1.0, 20.0), (5.0, 26.0))
]


def test_lines_bands_and_null(tmp_path, drawn):
    path = write_sweep_figure(tmp_path / "figure.png", CELLS, ["epsilon", "attack"])
    with Image.open(path) as image:
        assert image.size == (1050, 675)
    plot = drawn[0].axes[0]
    lines = {line.get_label(): line for line in plot.lines}
    assert set(lines) == {"faithful", "spectral", "mean image"}
    assert lines["spectral"].get_xdata().tolist() == [1.0, 5.0, 10.0]  # sorted
    assert lines["spectral"].get_ydata().tolist() == [25.0, 31.0, 35.0]
    assert lines["mean image"].get_ydata().tolist() == [13.0] * 3
    assert len(plot.collections) == 2  # the bands
    low, high = (plot.collections[0].get_datalim(plot.transData).intervaly[i] for i in (0, 1))
    assert (low, high) == (19.0, 31.0)


def test_actual_epsilon_above(tmp_path, drawn):
    write_sweep_figure(tmp_path / "figure.png", CELLS, ["epsilon", "attack"])
    (upper,) = drawn[0].axes[0].child_axes
    assert [label.get_text() for label in upper.get_xticklabels()] == ["1e+06", "5e+06", "1e+07"]


def test_no_upper_scale_where_the_axis_does_not_fix_epsilon(tmp_path, drawn):
    mixed = [*CELLS[:-1], CELLS[-1] | {"epsilon_actual": 3.0}]
    write_sweep_figure(tmp_path / "figure.png", mixed, ["epsilon", "attack"])
    assert drawn[0].axes[0].child_axes == []


def test_nothing_to_draw(tmp_path):
    cells = [cell("low", "faithful", 20.0), cell("high", "faithful", 30.0)]
    assert write_sweep_figure(tmp_path / "figure.png", cells, ["epsilon", "attack"]) is None
    many = [cell(e, f"attack {n}", 20.0) for n in range(13) for e in (1.0, 2.0)]
    assert write_sweep_figure(tmp_path / "figure.png", many, ["epsilon", "attack"]) is None
    assert list(tmp_path.iterdir()) == []


def test_labels_that_are_no_words(drawn, tmp_path):
    """Lists and objects tell lines apart; a yes or no is no number to draw along."""
    rows = [
        cell(epsilon, attack, 20.0) | {"clamp": clamp}
        for clamp in (True, False)
        for attack in ([1, 2], {"a": 1})
        for epsilon in (1.0, 5.0)
    ]
    assert write_sweep_figure(tmp_path / "f.png", rows, ["clamp", "attack", "epsilon"])
    (plot,) = drawn[0].axes
    assert drawn[0].get_supxlabel() == "epsilon"
    labels = [line.get_label() for line in plot.lines]
    assert len(labels) == 5
    assert "True, [1, 2]" in labels
    assert write_sweep_figure(tmp_path / "g.png", rows, ["clamp", "attack"]) is None


def _boxes(figure):
    """Name and box in pixels of all text of a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    outside = {
        label
        for plot in figure.axes
        for label in plot.get_yticklabels()
        if not plot.get_ylim()[0] <= label.get_position()[1] <= plot.get_ylim()[1]
    }
    texts = [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text() and text not in outside
    ]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in texts]


@pytest.mark.parametrize("noise_only", [13.0, 13.1, 30.0], ids=["equal", "close", "far"])
@pytest.mark.parametrize("num_lines", [2, 9])
def test_no_text_lies_on_another(tmp_path, drawn, noise_only, num_lines):
    cells = [
        cell(epsilon, f"attack {n}", 20.0 + n) | {"null_noise_only": noise_only}
        for n in range(num_lines)
        for epsilon in (1.0, 5.0, 10.0)
    ]
    write_sweep_figure(tmp_path / "figure.png", cells, ["epsilon", "attack"])
    (figure,) = drawn
    boxes = _boxes(figure)
    for name in ("mean image", "noise-only update", "epsilon", "PSNR over all images (dB)"):
        assert sum(text == name for text, _ in boxes) == 1, name
    for i, (text, box) in enumerate(boxes):
        for other, other_box in boxes[:i]:
            assert not box.overlaps(other_box), (text, other)
    legend = figure.legends[0].get_window_extent()
    assert not any(legend.overlaps(plot.get_window_extent()) for plot in figure.axes)


def test_nine_lines_become_panels_that_share_their_axes(tmp_path, drawn):
    names = [f"attack {letter}" for letter in "ihgfedcba"]
    cells = [
        cell(epsilon, name, 20.0 + i)
        for epsilon in (10.0, 1.0, 5.0)
        for i, name in enumerate(names)
    ]
    write_sweep_figure(tmp_path / "figure.png", cells, ["epsilon", "attack"])
    plots = drawn[0].axes
    assert [plot.get_title() for plot in plots] == names
    assert {plot.get_xlim() for plot in plots} == {plots[0].get_xlim()}
    assert {plot.get_ylim() for plot in plots} == {plots[0].get_ylim()}
    for i, plot in enumerate(plots):
        assert len(plot.collections) == 1  # the band
        line, null = plot.lines
        assert line.get_ydata().tolist() == [20.0 + i] * 3
        assert null.get_label() == "mean image"
        assert line.get_color() == f"C{i}"


def test_lines_keep_the_order_of_the_rows_whatever_is_missing(tmp_path, drawn):
    """The smallest place is missing for the first line, which is the first all the same."""
    cells = [cell(5.0, "zeta", 20.0), *(cell(e, "alpha", 20.0) for e in (1.0, 5.0))]
    write_sweep_figure(tmp_path / "figure.png", cells, ["epsilon", "attack"])
    colours = {line.get_label(): line.get_color() for line in drawn[0].axes[0].lines}
    assert (colours["zeta"], colours["alpha"]) == ("C0", "C1")


@pytest.mark.parametrize("num_clients", [2, 3, 4])
def test_no_band_of_few_clients(tmp_path, drawn, num_clients):
    cells = [one | {"num_clients": num_clients} for one in CELLS]
    write_sweep_figure(tmp_path / "figure.png", cells, ["epsilon", "attack"])
    assert len(drawn[0].axes[0].collections) == (2 if num_clients >= 4 else 0)
