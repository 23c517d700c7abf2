"""The real command line, end to end, on 32x32 images."""

import csv
import json
import shutil
from itertools import compress
from pathlib import Path

import pytest
import torch
import yaml
from attack_helpers import bind
from command_line import run_processes
from conforming import problems
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_recon.attacks import Attack
from lightning_recon.audit.schema import ResultsJson
from lightning_recon.commands import plain
from lightning_recon.commands.lightning import ReconCLI, main
from lightning_recon.data import AuditDataModule
from lightning_recon.report.folder import read_rows
from lightning_recon.targets import MLP

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests/conf/ldp_tiny.yaml")
MPS = torch.backends.mps.is_available()
GRADIENTS = str(ROOT / "configs/inverting_gradients.yaml")
CALIBRATED = "[{class_path: GaussianNoise, init_args: {calibration: std}}]"
RESULT_KEYS = {
    "experiment", "attack", "data", "masks", "num_images", "recovered", "precision", "recall",
    "metrics", "null", "privacy", "wall_seconds", "peak_memory_bytes", "import_memory_bytes",
    "seed", "versions", "command", "oracles", "threat_model", "schema_version",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def latest(parent: Path | str = ".") -> Path:
    return max(Path(parent).glob("lightning_logs/version_*"), key=lambda path: path.name)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "clients.csv").open() as file:
        return list(csv.DictReader(file))


def figures(folder: Path) -> list[list[float]]:
    return [
        [float(value) for name, value in row.items() if name != "file"] for row in rows_of(folder)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The outputs of one fit."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("fit")
        patch.chdir(folder)
        assert main(["fit", "--config", TINY]) == 0
    return latest(folder)


class TestFit:
    def test_all_outputs_are_there(self, run):
        names = {path.name for path in run.iterdir()}
        assert {"config.yaml", "clients.csv", "results.json", "report.html"} <= names
        assert any(name.startswith("events.out") for name in names)
        pictures = {path.name for path in (run / "reconstructions").iterdir()}
        grids = {f"client{client:05d}.png" for client in range(2)}
        rows = rows_of(run)
        names = [f"client0000{row['client']}_image00{row['image']}" for row in rows]
        truths = {f"{name}_truth.png" for name in names}
        matched = [int(row["matched"]) >= 0 for row in rows]
        found = {f"{name}_reconstruction.png" for name in compress(names, matched)}
        assert len(found) >= 6
        assert pictures == grids | truths | found
        assert not [path for path in run.rglob("*") if path.name.startswith(".")]

    def test_results(self, run):
        results = json.loads((run / "results.json").read_text())
        assert set(results) >= RESULT_KEYS
        assert results["experiment"] == "ldp_tiny"
        assert results["num_images"] == 8
        assert results["recovered"] >= 6
        assert results["metrics"]["psnr"]["mean"] > results["null"]["mean_image"]["psnr"] + 5
        assert results["null"]["noise_only"]["recovered"] == 0
        assert results["oracles"] == ["num_samples"]
        assert results["threat_model"].endswith("; protocol fedsgd, train mode")
        assert results["privacy"]["noise_std"] == 0.005
        assert results["privacy"]["claimed"] is None
        assert results["privacy"]["actual"]["epsilon"] > 1e6
        assert results["import_memory_bytes"] <= results["peak_memory_bytes"]

    def test_a_row_for_every_image(self, run):
        rows = rows_of(run)
        assert [(row["client"], row["image"]) for row in rows] == [
            (str(client), str(image)) for client in range(2) for image in range(4)
        ]
        classes = json.loads((run / "results.json").read_text())["data"]["classes"]
        for row in rows:
            assert row["file"].startswith(classes[int(row["label"])])
        assert len({row["file"] for row in rows}) == 8
        assert len(read_rows(run / "clients.csv")) == 8
        mean = sum(float(row["psnr"]) for row in rows) / 8
        results = json.loads((run / "results.json").read_text())
        assert results["metrics"]["psnr"]["mean"] == pytest.approx(mean)

    def test_tensorboard_shows_scalars_images_and_the_config(self, run):
        events = EventAccumulator(str(run)).Reload()
        assert {"objective", "psnr", "rows", "total_variation", "client/psnr"} <= set(
            events.Tags()["scalars"]
        )
        assert "pictures/client_0_truth_above_reconstruction" in events.Tags()["images"]
        assert "config/text_summary" in events.Tags()["tensors"]

    def test_the_written_config_makes_the_same_run(self, run):
        assert main(["fit", "--config", str(run / "config.yaml")]) == 0
        assert figures(latest()) == figures(run)

    def test_test_gives_the_same_figures_as_fit(self, run):
        assert main(["test", "--config", TINY]) == 0
        assert torch.allclose(
            torch.tensor(figures(latest())), torch.tensor(figures(run)), atol=1e-4
        )

    def test_another_seed_is_another_run(self, run):
        assert main(["fit", "--config", TINY, "--seed_everything", "1"]) == 0
        results = json.loads((latest() / "results.json").read_text())
        assert results["seed"] == 1
        assert [row["index"] for row in rows_of(latest())] != [row["index"] for row in rows_of(run)]


class TestResume:
    def test_resumed_equals_uninterrupted(self):
        every = ["--checkpoint.every_n_train_steps", "5", "--checkpoint.save_top_k", "-1"]
        assert main(["fit", "--config", TINY, *every]) == 0
        whole = latest()
        for step in (5, 20, 35, 40):  # in the first client, between both, in the second, after
            stopped = Path("lightning_logs/version_1")
            shutil.copytree(whole, stopped, ignore=shutil.ignore_patterns("records", "clients.csv"))
            (checkpoint,) = stopped.glob(f"checkpoints/*step={step}.ckpt")
            assert main(["fit", "--config", TINY, "--ckpt_path", str(checkpoint)]) == 0
            assert latest() == stopped
            assert figures(stopped) == figures(whole)
            shutil.rmtree(stopped)

    def test_validate_scores_what_a_checkpoint_holds(self, run):
        checkpoint = str(run / "checkpoints/last.ckpt")
        assert main(["validate", "--config", TINY, "--ckpt_path", checkpoint]) == 0
        assert figures(latest()) == figures(run)[4:]  # the checkpoint holds the last client


class TestPages:
    def test_report_is_built_anew(self, run):
        page = run / "report.html"
        text = page.read_text()
        page.unlink()
        assert plain.main(["report", str(run)]) == 0
        assert page.read_text() == text

    def test_compare(self, run, capsys):
        assert plain.main(["compare", str(run), str(run), "--output", "both.html"]) == 0
        assert capsys.readouterr().out == "both.html\n"
        assert "LDPAttack" in Path("both.html").read_text()


class TestPredict:
    def test_captured_updates_without_truth(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "300")
        cli = instantiate(["--config", TINY])
        data, attack = cli.datamodule, cli.model
        data.prepare_data()
        data.setup()
        attack.num_samples = 4
        bind(attack, data.public_images())
        observation = attack.federation.play(data.client(0), 0)
        Path("captured").mkdir()
        torch.save(
            {
                "update": {name: part.to_dense() for name, part in observation.update.items()},
                "num_samples": 4,
                "labels": None,
                "image_shape": (3, 32, 32),
            },
            "captured/round0.pt",
        )
        arguments = [
            "predict", "--config", TINY,
            "--data.class_path", "CapturedUpdatesDataModule", "--data.init_args.folder", "captured",
            "--model.init_args.bin_location", str(attack.location),
            "--model.init_args.bin_scale", str(attack.scale),
        ]  # fmt: skip
        config = yaml.safe_load(Path(TINY).read_text())
        del config["data"]
        Path("attack.yaml").write_text(yaml.safe_dump(config))
        arguments[2] = "attack.yaml"
        assert main(arguments) == 0
        pictures = list((latest() / "reconstructions").iterdir())
        results = json.loads((latest() / "results.json").read_text())
        assert len(pictures) == results["num_reconstructions"] >= 3
        assert results["metrics"] == {}
        assert problems(ResultsJson, results) == []
        outputs = capsys.readouterr().out.split("outputs  ")[1].split("(")[1].split(")")[0]
        assert outputs == "report.html, results.json, reconstructions/, records/, config.yaml"
        written = {path.name for path in latest().iterdir()}
        assert {name.strip("/") for name in outputs.split(", ")} <= written
        assert "clients.csv" not in written
        page = (latest() / "report.html").read_text()
        assert page.count("<article") == len(pictures)
        assert "nothing here is a score" in page
        assert "PSNR" not in page.partition("Privacy against leakage")[0]
        assert all(path.stat().st_size for path in latest().rglob("*"))

    def test_what_clients_did_and_nobody_said_is_unknown(self):
        net = MLP(10, 8, (16,)).requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(net(torch.rand(1, 3, 8, 8)), torch.tensor([3]))
        names = [name for name, _ in net.named_parameters()]
        gradient = dict(zip(names, torch.autograd.grad(loss, net.parameters()), strict=True))
        Path("captured").mkdir()
        content = {"update": gradient, "num_samples": 1, "labels": None, "image_shape": (3, 8, 8)}
        torch.save(content, "captured/a.pt")
        arguments = {"num_classes": 10, "image_size": 8, "hidden": [16]}
        target = {"class_path": "MLP", "init_args": arguments}
        model = {"class_path": "LinearLayerInversion", "init_args": {"target": target}}
        data = {"class_path": "CapturedUpdatesDataModule", "init_args": {"folder": "captured"}}
        Path("linear.yaml").write_text(yaml.safe_dump({"model": model, "data": data}))
        assert main(["predict", "--config", "linear.yaml", "--trainer.accelerator", "cpu"]) == 0
        statement = json.loads((latest() / "results.json").read_text())["privacy"]["statement"]
        assert statement.startswith("unknown")
        page = (latest() / "report.html").read_text()
        assert "defenses unknown" in page
        assert "no defense" not in page


class TestFallback:
    def test_the_users_own_command_needs_no_data(self):
        assert (
            main([
                "fit", "--config", str(ROOT / "configs/ldp_imagenet.yaml"),
                "--data.init_args.image_size", "64",
                "--data.init_args.num_public", "4",
                "--data.init_args.batch_size", "4",
                "--model.init_args.num_bins", "128",
                "--model.init_args.iterations", "5",
                "--trainer.accelerator", "cpu",
            ]) == 0
        )  # fmt: skip
        results = json.loads((latest() / "results.json").read_text())
        assert results["data"]["fallback"] == "samples"
        assert results["masks"]["method"] == "grabcut"
        assert 0.02 <= results["masks"]["mean_area"] <= 0.95
        report = (latest() / "report.html").read_text().lower()
        assert "sample photographs" in report
        assert "grabcut" in report


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--model.class_path", "NoAttack"], "there is no class NoAttack"),
            (["--model.init_args.num_bins", "many"], "Got value: many"),
            (["--model.init_args.unknown", "1"], "model (LDPAttack): there is no option unknown"),
            (["--no_such_option", "1"], "no_such_option"),
            (
                ["--model.init_args.defenses.init_args.noise_std", "-1"],
                "noise_std must be at least 0",
            ),
            (
                ["--model.init_args.defenses.init_args.epsilon", "-3"],
                "epsilon must be a number above",
            ),
            (
                ["--model.init_args.defenses.init_args.epsilon", "3"],
                "noise_std=0.005 was given together",
            ),
            (
                ["--data.init_args.batch_size", "30"],
                "2 clients of 30 need 60 images, but there are",
            ),
            (["--data.init_args.image_size", "0"], "image_size must be at least 1"),
            (["--data.init_args.num_public", "0"], "set bin_location and bin_scale"),
            (["--model.init_args.target.init_args.num_classes", "5"], "the target knows 5"),
            (["--model.init_args.target.init_args.weights", "no.pt"], "no weights file at"),
            (["--ckpt_path", "no.ckpt"], "no.ckpt"),
            (["--trainer.devices", "0"], "trainer: `Trainer(devices='0')` value is not a valid"),
            (["--trainer.strategy", "ddpp"], "invalid strategy name: `strategy='ddpp'`"),
            (["--trainer.default_root_dir", "a_file"], "a_file/lightning_logs: Not a directory"),
            (["--config", "broken.yaml"], "broken.yaml, line 2, column 1: no YAML: "),
            (["--config", "none.yaml"], "error: config: File does not exist: '/"),
            (
                ["--model.init_args.client", "FedAvg"],
                "init_args.client (FedAvg): the following arguments are required: learning_rate",
            ),
            (
                ["--model.init_args.client", "{class_path: FedAvg, init_args: {momentum: fast}}"],
                "client.init_args.momentum (FedAvg): Expected a float. Got value: fast",
            ),
            (
                [
                    "--model.init_args.defenses",
                    "[{class_path: PrivUnit2, init_args: {epsilon: 1}}]",
                ],
                "model.init_args.defenses (PrivUnit2): the following arguments are required: clip_",
            ),
            (
                ["--model.init_args.defenses", CALIBRATED],
                "defenses.init_args.calibration (GaussianNoise): takes record_mean, null, not std",
            ),
            (
                ["--data", "ImageNetDataModule", "--data.init_args.root", "nowhere"],
                "nowhere; expected folders by WordNet id",
            ),
            (
                ["--data", "{class_path: ImageFolderDataModule, init_args: {root: 2024}}"],
                "got 2024; in YAML, quote a text that looks like a number",
            ),
        ],
    )
    def test_one_line_and_nothing_written(self, arguments, words, capfd):
        Path("a_file").touch()
        Path("broken.yaml").write_text("model: [1")
        assert main(["fit", "--config", TINY, *arguments]) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert words in lines[0]
        assert list(Path().rglob("lightning_logs/*/*")) == []

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (
                ["optimizer", "{class_path: torch.optim.Adam, init_args: {lr: -1}}"],
                "error: model.init_args.optimizer (Adam): Invalid learning rate: -1.0\n",
            ),
            (
                ["compile", "fast"],
                "model.init_args.compile (InvertingGradients): takes default, reduce-overhead, "
                "max-autotune, a bool, not fast\n",
            ),
        ],
    )
    def test_options_of_an_optimizing_attack(self, arguments, words, capfd):
        option, value = arguments
        size = ["--data.init_args.image_size", "32", "--model.init_args.iterations", "2"]
        given = [f"--model.init_args.{option}", value]
        assert main(["test", "--config", GRADIENTS, *size, *given]) == 2
        assert words in capfd.readouterr().err
        assert list(Path().rglob("lightning_logs/*/*")) == []

    @pytest.mark.skipif(torch.cuda.is_available() or MPS, reason="there is a GPU")
    def test_no_gpu(self, capfd):
        assert main(["test", "--config", TINY, "--trainer.accelerator", "gpu"]) == 2
        assert "error: trainer: No supported gpu backend found!\n" in capfd.readouterr().err

    def test_no_config(self, capfd):
        assert main(["test"]) == 2
        assert capfd.readouterr().err.endswith("; give --config configs/NAME.yaml\n")

    def test_a_broken_target_leaves_nothing(self, capfd):
        cli = instantiate(["--config", TINY])
        state = cli.model.target.state_dict()
        torch.save(
            {k: v * torch.nan if v.is_floating_point() else v for k, v in state.items()}, "w.pt"
        )
        assert (
            main(["fit", "--config", TINY, "--model.init_args.target.init_args.weights", "w.pt"])
            == 2
        )
        assert "NaN or infinity" in capfd.readouterr().err
        assert list(Path().rglob("lightning_logs/*/*")) == []

    def test_an_unreadable_checkpoint(self, capfd):
        Path("broken.ckpt").write_bytes(b"not a checkpoint")
        assert main(["fit", "--config", TINY, "--ckpt_path", "broken.ckpt"]) == 2
        assert "broken.ckpt is no readable checkpoint" in capfd.readouterr().err

    def test_a_fault_of_ours_is_not_hidden(self, monkeypatch):
        def fail(*_):
            raise ValueError("a bug")

        monkeypatch.setattr("lightning_recon.attacks.LDPAttack.initialize", fail)
        with pytest.raises(ValueError, match="a bug"):
            main(["fit", "--config", TINY])


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(("subcommand", "num_clients", "count"), [("test", 4, 3), ("fit", 2, 2)])
def test_a_second_run_and_several_processes_give_the_same_bits(subcommand, num_clients, count):
    args = [subcommand, "--config", TINY, "--data.init_args.num_clients", str(num_clients)]
    assert main(args) == 0
    assert main(args) == 0
    run_processes(count, *args)
    runs = [Path(f"lightning_logs/version_{version}") for version in range(3)]
    assert len(figures(runs[0])) == 4 * num_clients
    whole = bits(runs[0])
    assert len(whole) > num_clients
    for run, processes in zip(runs, (1, 1, count), strict=True):
        assert bits(run) == whole
        assert json.loads((run / "results.json").read_text())["num_processes"] == processes
        assert len(list((run / "records").iterdir())) == processes


def bits(run: Path) -> dict[str, bytes]:
    """The bytes of a run's table and of all its pictures."""
    files = [run / "clients.csv", *(run / "reconstructions").rglob("*.png")]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def instantiate(arguments: list[str]) -> ReconCLI:
    return ReconCLI(
        Attack,
        AuditDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_callback=None,
        run=False,
        args=arguments,
    )


ATTACKS = sorted(
    set((ROOT / "configs").glob("*.yaml")) - set((ROOT / "configs").glob("train_*.yaml"))
)


@pytest.mark.parametrize("path", ATTACKS, ids=lambda p: p.stem)
def test_every_config_can_be_built(path):
    cli = instantiate(["--config", str(path), "--trainer.accelerator", "cpu"])
    assert isinstance(cli.model, Attack)
    header = path.read_text().splitlines()[0]
    assert header.startswith(f"# python cli.py fit --config configs/{path.name}")
