"""The weakest defense that holds: judged as the criterion says, on records that resume."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from run_folders import Page

from lightning_recon.attacks import InvertingGradients
from lightning_recon.audit.judging import check_criterion, cost, pareto, recommended
from lightning_recon.audit.recommendation import (
    Accuracy,
    Assessed,
    Attacked,
    Criterion,
    Guaranteed,
    Leak,
    leak_of,
    wilson,
)
from lightning_recon.audit.records import ClientRecord, records_file
from lightning_recon.clients import DPSGD, Aggregate, FedAvg, FedSGD
from lightning_recon.commands.lightning import main
from lightning_recon.data import SampleImagesDataModule
from lightning_recon.errors import InputError
from lightning_recon.report import write_again
from lightning_recon.runs import recommend as command
from lightning_recon.runs.assessment import Assessment, attacked
from lightning_recon.runs.federated import FederatedTraining, Server, Setting
from lightning_recon.targets import ConvNet, LeNet

TINY = Path(__file__).parent / "conf/recommend_tiny.yaml"
HONEST = Attacked("match", "InvertingGradients", InvertingGradients.threat_model)
TRAP = Attacked("trap", "RobbingTheFed", "a malicious server puts a layer in front")


def row(client, psnr, mean_image=10.0, right=0):
    return {
        "client": client,
        "psnr": psnr,
        "psnr_mean_image": mean_image,
        "recovered_convincing": right,
    }


def record(item, rows, failure=None):
    return ClientRecord(item, rows, len(rows), {}, {}, [], 1.0, failure)


def leak(attack, gain, high=0.3, **more):
    given = {"num_clients": 10, "num_planned": 10, "num_images": 40, "right_high": high}
    return Leak(attack, **{**given, "worst_gain": gain, "worst_client": 3, **more})


def setting(name, accuracy, *leaks, **more):
    return Assessed(name, Accuracy(accuracy, num_test=1000), leaks, **more)


class TestLeak:
    def test_the_worst_image_is_the_worst_of_all_clients(self):
        records = [
            record(7, [row(0, 12.0), row(0, 9.0)]),
            record(9, [row(2, 25.0, 20.0), row(2, 18.0, 11.0, 1)]),
        ]
        found = leak_of("match", records, 3)
        assert (found.worst_gain, found.worst_client, found.worst_psnr) == (7.0, 2, 18.0)
        assert (found.num_clients, found.num_planned, found.right) == (2, 3, 1)
        assert not found.is_whole

    def test_an_image_is_held_against_its_best_control(self):
        rows = [{**row(0, 15.0), "psnr_class_mean": 13.0, "psnr_noise_only": 14.5}]
        assert leak_of("match", [record(0, rows)], 1).worst_gain == 0.5

    def test_an_attack_that_failed_everywhere_does_not_fit(self):
        found = leak_of("match", [record(0, [], "no linear layer"), record(1, [], "no")], 2)
        assert not found.fits
        assert found.reason == "no linear layer"
        assert found.worst_gain is None


class TestJudging:
    def judged(self, *leaks, criterion=None, **more):
        one = setting("x", 0.5, *leaks, **more)
        (found,), _ = recommended([one], [HONEST], criterion or Criterion(3.0, 0.35))
        return found.judged["an honest-but-curious server"]

    def test_holds(self):
        assert self.judged(leak("match", 2.9)).holds is True

    @pytest.mark.parametrize(
        ("found", "said"),
        [
            (leak("match", 3.1), "3.1 dB above the controls, client 3"),
            (leak("match", 1.0, 0.36, right=2), "2 of 40 right, up to 36%"),
        ],
    )
    def test_does_not(self, found, said):
        judged = self.judged(found)
        assert judged.holds is False
        assert said in judged.why

    @pytest.mark.parametrize(
        "found",
        [
            leak("match", 1.0, num_clients=9),
            leak("match", 1.0, num_failed=1),
            leak("match", 1.0, num_failed=10),
        ],
    )
    def test_what_was_not_measured_does_not_hold(self, found):
        assert self.judged(found).holds is None

    def test_where_no_malicious_attack_fits_nothing_is_shown_of_any_server(self):
        unfit = leak("trap", None, num_failed=10, reason="reads gradients")
        (found,), (honest, everyone) = recommended(
            [setting("averaging", 0.5, leak("match", 1.0), unfit)], [HONEST, TRAP], Criterion(3.0)
        )
        assert honest.recommended == "averaging"
        assert everyone.recommended is None
        assert found.judged[everyone.name].holds is None
        assert "a malicious server fits" in found.judged[everyone.name].why

    def test_a_leak_of_a_part_is_one(self):
        assert self.judged(leak("match", 9.0, num_clients=2)).holds is False

    def test_epsilon_that_is_asked_for(self):
        wanted = Criterion(None, None, 5.0)
        found = leak("match", 1.0)
        assert self.judged(found, criterion=wanted).why == "no epsilon"
        for epsilon, holds in ((4.0, True), (6.0, False)):
            guaranteed = Guaranteed(epsilon=100.0, record_epsilon=epsilon)
            judged = self.judged(found, criterion=wanted, guaranteed=guaranteed)
            assert judged.holds is holds


class TestRecommended:
    settings = (
        setting("none", 0.60, leak("match", 9.0), leak("trap", 80.0)),
        setting("weak", 0.58, leak("match", 2.0), leak("trap", 70.0)),
        setting("bad", 0.30, leak("match", 2.5), leak("trap", 75.0)),
        setting("strong", 0.40, leak("match", 0.5), leak("trap", 1.0)),
    )

    def test_the_most_accurate_that_holds_in_every_scope(self):
        _, (honest, everyone) = recommended(self.settings, [HONEST, TRAP], Criterion(3.0))
        assert (honest.recommended, everyone.recommended) == ("weak", "strong")
        assert honest.front == ["none", "weak", "strong"]

    def test_no_defense_holds(self):
        _, (honest,) = recommended(self.settings, [HONEST], Criterion(0.1))
        assert honest.recommended is None

    def test_without_accuracy_nothing_is_recommended(self):
        untrained = self.settings[1]._replace(accuracy=Accuracy(reason="diverged"))
        _, (honest,) = recommended([untrained], [HONEST], Criterion(3.0))
        assert honest.recommended is None
        assert honest.front == []

    def test_front_by_brute_force(self):
        generator = torch.Generator().manual_seed(0)
        points = torch.randint(0, 6, (30, 2), generator=generator).double()
        settings = [
            setting(str(place), float(a) / 10, leak("match", float(b)))
            for place, (a, b) in enumerate(points)
        ]
        is_better = (points[:, None, 0] >= points[None, :, 0]) & (
            points[:, None, 1] <= points[None, :, 1]
        )
        is_other = (points[:, None] != points[None]).any(-1)
        expected = {str(i) for i in range(30) if not (is_better & is_other)[:, i].any()}
        assert set(pareto(settings, ["match"])) == expected


def test_cost_and_intervals():
    none, weak = TestRecommended.settings[:2]
    points, low, high = cost(weak, none)
    assert points == pytest.approx(0.02)
    # two independent samples of 1,000: 1.96 sqrt(.6 .4 / 1000 + .58 .42 / 1000)
    assert high - low == pytest.approx(2 * 1.96 * (0.00024 + 0.0002436) ** 0.5, rel=1e-3)
    assert cost(none, none) == (0, 0, 0)
    assert wilson(0, 10)[0] == 0
    assert wilson(0, 10)[1] == pytest.approx(0.2775, abs=1e-3)


@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        (Criterion(), "asks for nothing"),
        (Criterion(-1.0), "worst_gain_db must be a number above 0"),
        (Criterion(None, 0.1), "ends at 0.308; take 36 clients"),
    ],
)
def test_a_criterion_that_cannot_be_met(criterion, said):
    with pytest.raises(InputError, match=said):
        check_criterion(criterion, 10)


# --- the federation ----------------------------------------------------------------------------


def dealt(num_clients=4, held=None, size=4):
    data = SampleImagesDataModule(
        batch_size=2, num_clients=num_clients, image_size=32, num_public=8
    )
    return FederatedTraining(images_per_client=size).deal(data, held)


def lenet():
    return LeNet(20)


class TestTraining:
    def test_shares_are_apart(self):
        found = dealt()
        places = [place for shard in found.shards for place in shard.indices.tolist()]
        places += found.test.indices.tolist()
        assert len(set(places)) == len(places) == 20
        assert len(found.public) == 8

    def step(self, client, batch_size=2):
        server = Server(Setting(lenet(), client, [], batch_size), dealt(), 0, 0.1, 0.9, 10)
        before = {name: value.detach().clone() for name, value in server.model.named_parameters()}
        server.play(0)
        return {
            name: (value.detach() - before[name]) for name, value in server.model.named_parameters()
        }

    def test_a_secure_sum_is_the_mean_that_the_server_takes(self):
        one, other = self.step(FedSGD()), self.step(Aggregate(FedSGD(), 4), 8)
        for name, change in one.items():
            torch.testing.assert_close(other[name], change)

    def test_one_local_step_is_a_gradient(self):
        one, other = self.step(FedSGD()), self.step(FedAvg(0.01))
        for name, change in one.items():
            torch.testing.assert_close(other[name], change, rtol=1e-3, atol=1e-6)

    def test_it_learns_and_repeats(self):
        training = FederatedTraining(
            rounds=30, images_per_client=4, learning_rates=[1e-6, 0.05], trial_rounds=20
        )
        found = dealt(2)
        own = found.shards[0]  # what it was trained on it tells
        known = found._replace(test=own, public=own.images, public_labels=own.labels)
        target = ConvNet(20, width=8)
        setting = Setting(target, FedSGD(), [], 4)
        seen = []
        trained = training.run(setting, known, 0, lambda *step: seen.append(step))
        assert trained.curve[0][0] == 0
        assert trained.curve[-1] == (30, 1.0)
        assert trained.learning_rate == 0.05
        assert seen[-1] == (training.num_rounds, training.num_rounds)
        assert training.run(setting, known, 0) == trained
        fresh = ConvNet(20, width=8).state_dict()
        assert all((fresh[name] == value).all() for name, value in target.state_dict().items())

    def test_statistics_that_clients_read_are_the_servers(self):
        setting = Setting(ConvNet(20, width=8), DPSGD(1.0), [], 2)
        server = Server(setting, dealt(2), 0, 0.1, 0.9, 10)
        server.play(0)
        norm = server.model.features[1]
        assert norm.running_mean.abs().max() > 0
        assert norm.momentum == 0.1

    @pytest.mark.parametrize(
        ("client", "size", "said"),
        [
            (FedSGD(), 5, "each client holds 4 images, and a round takes 5"),
            (Aggregate(FedSGD(), 3), 6, "4 clients cannot be summed in groups of 3"),
        ],
    )
    def test_what_cannot_be_played(self, client, size, said):
        with pytest.raises(InputError, match=said):
            self.step(client, size)

    @pytest.mark.parametrize(
        "options", [{"rounds": 0}, {"learning_rates": [-1.0]}, {"momentum": 1.0}]
    )
    def test_ranges(self, options):
        with pytest.raises(InputError, match=rf"training.{next(iter(options))}"):
            FederatedTraining(**options)


# --- the command -------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*more, config=TINY):
    return main(["recommend", "--config", str(config), *more])


def changed(**more):
    content = yaml.safe_load(TINY.read_text())
    content["base"] = str(TINY.with_name("matching_tiny.yaml"))
    Path("mine.yaml").write_text(yaml.safe_dump({**content, **more}, sort_keys=False))
    return "mine.yaml"


DP_FOR_FOUR = {
    "model.init_args.client": {"class_path": "DPSGD", "init_args": {"clip_norm": 1.0}},
    "model.init_args.defenses": [
        {
            "class_path": "DPSGDNoise",
            "init_args": {"clip_norm": 1.0, "num_samples": 4, "noise_multiplier": 1.0},
        }
    ],
}
FOLDER = Path("lightning_logs/recommend_tiny/version_0")


def figures(folder):
    found = json.loads((folder / "recommendation.json").read_text())
    return {name: found[name] for name in ("settings", "scopes", "attacks")}


def test_from_a_file_to_a_page_and_on(monkeypatch, capsys):
    """A run, the same one stopped in its middle and resumed, and its page."""
    assert run() == 0
    whole = figures(FOLDER)
    honest, everyone = whole["scopes"]
    assert honest["attacks"] == ["matching"]
    none, signs, noise = whole["settings"]
    assert [one["leaks"][1]["right"] for one in (none, signs)] == [4, 0]  # the attack's own
    assert everyone["recommended"] == "signs"  # defenses give way to what a defense says
    # Balle & Wang's analytic Gaussian: epsilon 1 at delta 1e-5 for s = 3.731 sensitivities of 2 C
    assert noise["guaranteed"]["round_epsilon"] == pytest.approx(1.0, abs=1e-3)
    assert [place for place, _ in none["accuracy"]["curve"]] == [0, 2, 3]
    assert none["accuracy"]["num_test"] == 4
    with (FOLDER / "settings.csv").open() as file:
        assert [line["defense"] for line in csv.DictReader(file)] == ["none", "signs", "noise"]
    page = Page(FOLDER / "report.html")
    assert "not shown to leak is not safe" in page.text
    assert "Only (epsilon, delta) is a guarantee" in page.text
    before = (FOLDER / "report.html").read_bytes()
    assert write_again(FOLDER).read_bytes() == before
    assert "recommended" in before.decode()
    assert (FOLDER / "figure.png").read_bytes().startswith(b"\x89PNG")

    path = records_file(FOLDER, 0)
    lines = path.read_text().splitlines(keepends=True)
    # defense by defense: its training, then two clients under each of two attacks
    done = [json.loads(line)["client"] for line in lines]
    assert done == [0, 3, 4, 5, 6, 1, 7, 8, 9, 10, 2, 11, 12, 13, 14]
    path.write_text("".join(lines[:5] + lines[-1:]))
    assert run("--resume", str(FOLDER)) == 0
    assert figures(FOLDER) == whole
    assert path.read_text().splitlines(keepends=True)[:5] == lines[:5]

    capsys.readouterr()
    other = changed(training={"rounds": 4})
    for more in ((), ("--dry-run",)):
        assert run("--resume", str(FOLDER), *more, config=other) == 2
        assert "lists other cells" in capsys.readouterr().err


def test_an_attack_that_does_not_fit_is_told_of_and_left_out(capsys):
    attacks = {
        "matching": {"model.init_args.iterations": 3},
        "april": {"model.class_path": "APRIL"},
    }
    small = {"class_path": "LeNet", "init_args": {"num_classes": 20, "image_size": 16}}
    federation = {
        "model.init_args": {"target": small, "defenses": []},
        "data.init_args": {"batch_size": 1, "num_clients": 2, "image_size": 16, "num_public": 8},
    }
    more = {"defenses": {"none": {}}, "set": federation, "local_estimate": 1}
    config = changed(attacks=attacks, **more)
    assert run("--dry-run", config=config) == 0
    assert run(config=config) == 0
    found = json.loads(
        Path("lightning_logs/recommend_mine/version_0/recommendation.json").read_text()
    )
    (none,) = found["settings"]
    assert none["leaks"][1]["num_failed"] == 2
    estimate = none["estimate"]
    assert (estimate["num_images"], estimate["reason"]) == (1, None)
    assert estimate["psnr"] > estimate["mean_image_psnr"] + 3
    assert none["judged"]["an honest-but-curious server"]["holds"] is True
    assert "april does not fit none" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"defences": {}}, "there is no key defences; did you mean defenses?"),
        ({"attacks": {}}, "attacks must hold a label"),
        ({"holds": {"worst_gain": 3}}, "worst_gain"),
        ({"training": {"round": 3}}, "round"),
        ({"local_estimate": -1}, "local_estimate must be a number of clients, not -1"),
        ({"holds": {"right_share": 0.1}}, "cannot be shown with 2 clients"),
        (
            {"attacks": {"a": {}, "b": {"data.init_args.batch_size": 1}}},
            "defense none: attack b has another data than attack a",
        ),
        ({"defenses": {"dp": DP_FOR_FOUR}}, "num_samples is 4, but the client's is 2"),
        (
            {"defenses": {"none": {}, "x": {"model.init_args.defenses": [{"class_path": "Top"}]}}},
            "Top",
        ),
    ],
)
def test_one_line_and_nothing_written(content, said, capsys):
    assert run(config=changed(**content)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("lightning_logs").exists()


def test_dry_run(capsys):
    assert run("--dry-run") == 0
    assert "for 3 trainings" in capsys.readouterr().out
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize("path", sorted((TINY.parents[2] / "configs/recommend").glob("*.yaml")))
def test_every_shipped_file_is_read(path):
    plan = command.Plan(path)
    sweep = Assessment(plan.cells[:4], Path("x"))
    check_criterion(plan.criterion, sweep.parsed[0].data.init_args.num_clients)
    assert [one.is_honest for one in attacked(sweep)] == [True, True, False, False]
