"""The picture of a sweep shows what ``results.csv`` says."""

import pytest
from matplotlib.figure import Figure
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
        for attack in ([1, 2], {"a": 1}, None)
        for epsilon in (1.0, 5.0)
    ]
    assert write_sweep_figure(tmp_path / "f.png", rows, ["clamp", "attack", "epsilon"])
    (plot,) = drawn[0].axes
    assert plot.get_xlabel() == "epsilon"
    labels = [line.get_label() for line in plot.lines]
    assert len(labels) == 7
    assert "True, [1, 2]" in labels
    assert write_sweep_figure(tmp_path / "g.png", rows, ["clamp", "attack"]) is None
