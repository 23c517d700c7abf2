"""Tables: encoding, what counts as right, and the attacks that know of columns."""

import json
import math
from pathlib import Path

import pytest
import torch

from lightning_recon.attacks import ExactInversion, TabLeak
from lightning_recon.attacks.exact.categories import rows_of_categories
from lightning_recon.attacks.tab_leak import in_order_of, pooled
from lightning_recon.commands.lightning import main
from lightning_recon.data import TabularDataModule
from lightning_recon.errors import InputError
from lightning_recon.functional.tables import features_right
from lightning_recon.observation import HALF_LEVEL, Mark
from lightning_recon.targets import MLP
from lightning_recon.updates import Columns, DataSpec

CONFIG = Path(__file__).parents[1] / "configs/tabular.yaml"
KINDS = {"age": "number", "job": "category", "rich": "label"}
LINES = ["job, age, rich, note", "baker, 20, no, x", "nurse, 40, yes, y", "baker, 30, no, z"]


def table_file(folder, lines=LINES):
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return TabularDataModule("csv", KINDS, root=str(path), batch_size=1, num_public=0)


def net(seed=0):
    return MLP(2, 11, (100, 100), in_channels=1, seed=seed)


# --- data --------------------------------------------------------------------------------------


def test_a_file_becomes_scaled_numbers_and_one_hot_categories(tmp_path):
    data = table_file(tmp_path)
    assert data.opened.rows.tolist() == [[0, 1, 0], [1, 0, 1], [0.5, 1, 0]]
    assert data.opened.columns.sizes == (1, 2)
    assert data.opened.columns.tolerances == pytest.approx((0.319 * (1 / 6) ** 0.5, 0))
    assert [data.source.label(place) for place in range(3)] == [0, 1, 0]
    assert data.classes == ["no", "yes"]
    (place,) = data.places(0)
    row = data.client(0).images.flatten()  # behind the features there are zeros
    assert row.tolist() == [*data.opened.rows[place].tolist(), *[0.0] * 46]
    assert data.spec == DataSpec((1, 7, 7), 2, 1, data.opened.columns)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([LINES[0], "baker, old, no, x"], "line 2: the column age holds 'old', no number"),
        ([LINES[0], "baker, inf, no, x"], "line 2: the column age holds 'inf', no number"),
        ([*LINES, "nurse,,yes,w"], "line 5: the column age is empty"),
        ([*LINES, "nurse"], "line 5: the column age is empty"),
        (["job, rich", "baker, no"], "has no column age; its head line has job, rich"),
        (LINES[:1], "holds no rows below its head line"),
        (["job, age, rich", '"baker, 1, no'], "cannot be read as a table"),
    ],
)
def test_a_file_that_does_not_fit_is_told_by_its_line(tmp_path, lines, said):
    with pytest.raises(InputError, match=said) as told:
        table_file(tmp_path, lines).setup()
    assert "\n" not in str(told.value)


def test_a_table_is_described_once():
    with pytest.raises(InputError, match="needs columns"):
        TabularDataModule("csv", root="table.csv")
    with pytest.raises(InputError, match="reads no root"):
        TabularDataModule("wine", root="table.csv")
    with pytest.raises(InputError, match="expected a CSV file"):
        TabularDataModule("csv", KINDS, root="nowhere.csv").setup()


@pytest.mark.parametrize(
    ("table", "numbers", "classes"), [("wine", 13, 3), ("breast_cancer", 30, 2)]
)
def test_real_tables_come_with_scikit_learn(table, numbers, classes):
    data = TabularDataModule(table, batch_size=2)
    assert data.opened.columns.sizes == (1,) * numbers
    assert data.num_classes == classes


def test_a_number_within_its_tolerance_and_the_one_likeliest_value_are_right():
    columns = Columns((1, 2), (0.1, 0.0))
    truth = torch.tensor([[0.5, 0.0, 1.0, 0.0]]).view(1, 1, 2, 2)
    guesses = torch.tensor([[0.59, 0.4, 0.6, 9], [0.61, 0.6, 0.4, 9], [0.5, 0.5, 0.5, 9]])
    right = features_right(guesses.view(3, 1, 2, 2), truth.expand(3, -1, -1, -1), columns)
    assert right.tolist() == [[True, True], [False, False], [True, False]]


# --- exact -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [8, 32])
def test_every_row_is_certified_below_the_width(batch_size):
    data = TabularDataModule(batch_size=batch_size, num_clients=1, seed=3)
    attack = ExactInversion(net())
    attack.bind(data.spec, data.public_images())
    found = attack.reconstruct(data.play(attack.federation, 0))
    assert found.marks == (Mark.CERTIFIED,) * batch_size
    truth = data.client(0)
    apart = torch.cdist(found.images.flatten(1).double(), truth.images.flatten(1).double())
    assert apart.amin(1).max() < 1e-4
    assert torch.equal(found.labels, truth.labels[apart.argmin(1)])


@pytest.mark.parametrize(("batch_size", "client"), [(8, 5), (16, 16)])
def test_a_row_with_a_little_of_another_is_not_certified(batch_size, client):
    data = TabularDataModule(batch_size=batch_size, num_clients=50, seed=0)
    attack = ExactInversion(net(client))
    attack.bind(data.spec, data.public_images())
    found = attack.reconstruct(data.play(attack.federation, client))
    truth = data.client(client).images.flatten(1).double()
    off = (found.images.flatten(1).double()[:, None] - truth).abs().amax(2).amin(1)
    certified = torch.tensor([mark == Mark.CERTIFIED for mark in found.marks])
    assert certified.sum() >= 8
    assert off[certified].max() <= HALF_LEVEL


def test_mixtures_are_no_rows_of_a_table():
    columns = Columns((1, 3, 2), (0.1, 0.0, 0.0))
    samples = torch.tensor(
        [[0.3, 1, 0, 0, 1, 0], [0.8, 0, 1, 0, 0, 1], [0.1, 0, 0, 1, 0, 1]], dtype=torch.float64
    )
    with_one = torch.cat([samples, torch.ones(3, 1)], 1)
    found = rows_of_categories(torch.linalg.qr(with_one.T).Q.T, columns)
    assert torch.cdist(samples, found).amin(1).max() < 1e-9
    assert len(found) == 3
    alike = with_one.clone()
    alike[1] = torch.tensor([0.8, 1, 0, 0, 1, 0, 1])  # as the first, but for its number
    assert not len(rows_of_categories(torch.linalg.qr(alike.T).Q.T, columns))


# --- TabLeak -----------------------------------------------------------------------------------


def test_dummies_stand_for_distributions():
    data = TabularDataModule(batch_size=2, num_clients=1)
    attack = TabLeak(net(), num_restarts=2, iterations=1)
    attack.bind(data.spec, data.public_images())
    dummy = attack.start(2, torch.Generator().manual_seed(0))
    rows = attack.decode(dummy).flatten(1)
    sizes = data.spec.columns.sizes
    for part in rows[:, : sum(sizes)].split(sizes, 1):
        if part.shape[1] > 1:
            torch.testing.assert_close(part.sum(1), torch.ones(2))
    assert not rows[:, sum(sizes) :].any()
    truth = data.client(0).images  # the start of a number is anywhere in its range
    torch.testing.assert_close(attack.decode(attack.encode(truth)), truth, atol=0.05, rtol=0)
    dummy.fill_(1e6)
    attack.project(dummy)
    assert attack.decode(dummy).max() == 1


def test_an_ensemble_gives_medians_and_the_likeliest_values_and_says_how_unsure_it_is():
    columns = Columns((1, 2), (0.1, 0.0))
    members = torch.tensor([[0.25, 1, 0, 0], [0.3, 1, 0, 0], [0.9, 0, 1, 0]]).view(3, 1, 1, 2, 2)
    images, unsure = pooled(members, columns)
    torch.testing.assert_close(images.flatten(), torch.tensor([0.3, 1, 0, 0]))
    entropy = math.log2(3) - 2 / 3  # of two to one; and one number of three is far from the median
    torch.testing.assert_close(unsure, torch.tensor([(entropy + 1 / 3) / 2]))
    assert pooled(members[:1].expand(3, -1, -1, -1, -1), columns)[1] == 0


def test_members_come_in_one_order_label_to_label():
    rows = torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1, 1)
    labels = torch.tensor([0, 1, 1])
    order = torch.tensor([2, 0, 1])
    near = rows + 0.01
    torch.testing.assert_close(in_order_of(rows, labels, near[order], labels[order]), near)
    other = torch.tensor([1, 0, 1])  # the nearest has another label
    torch.testing.assert_close(in_order_of(rows, labels, near, other)[0], near[1])


# --- the command -------------------------------------------------------------------------------


def test_a_run_counts_features_beside_the_most_frequent_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed = ["--data.init_args.num_clients", "2", "--model", "ExactInversion"]
    main(["test", "--config", str(CONFIG), *changed])
    (path,) = Path("lightning_logs").glob("*/results.json")
    metrics = json.loads(path.read_text())["metrics"]
    assert metrics["features"]["mean"] == 1
    assert 0.2 < metrics["features_mean_image"]["mean"] < 0.8
    assert metrics["features_noise_only"]["mean"] < 0.8
    assert "Features right, mean row" in path.with_name("report.html").read_text()
