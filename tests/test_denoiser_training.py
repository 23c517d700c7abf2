"""Training a denoiser: the patches, what is learnt, the weights' way into a prior, the commands."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import run_processes
from data_helpers import picture
from PIL import Image

from lightning_recon.commands.doctor import check_inputs
from lightning_recon.commands.lightning import TrainingCLI, main
from lightning_recon.data.sources import open_picture
from lightning_recon.errors import InputError
from lightning_recon.priors import DenoiserPrior, FFDNet
from lightning_recon.training.denoiser import DenoiserTraining
from lightning_recon.training.patches import PatchDataModule

BILINEAR = Image.Resampling.BILINEAR
ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/train_denoiser.yaml")
TINY = """
model:
  class_path: DenoiserTraining
  init_args:
    denoiser: {class_path: FFDNet, init_args: {num_layers: 3, num_features: 32}}
    noise_std: [0.1, 0.3]
    val_noise_stds: [0.2]
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.003}}
data:
  class_path: PatchDataModule
  init_args:
    root: pictures
    batch_size: 4
    patches_per_image: 4
    steps_per_epoch: 40
    patch_size: 32
    image_size: 64
    num_val_images: 8
trainer: {accelerator: cpu, max_epochs: 2, enable_progress_bar: false, log_every_n_steps: 1}
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    for number in range(12):
        path = Path("pictures", f"{number % 3}", f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, 80, 64).save(path)


def run(version: int = 0) -> Path:
    return Path(f"lightning_logs/version_{version}")


def fit(*arguments: str, command: str = "fit") -> int:
    return main([command, "--config", "tiny.yaml", *arguments])


def metrics(capsys, version: int = 0) -> tuple[float, float, Path]:
    """PSNR before and after, in dB, and the weights' path, of what fit prints."""
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("noise 0.2: PSNR ")
    before, after = lines[-2].removeprefix("noise 0.2: PSNR ").removesuffix(" dB").split(" -> ")
    return float(before), float(after), Path(lines[-1].removeprefix("weights: "))


class TestFit:
    def test_it_learns_and_the_weights_serve_a_prior(self, capsys):
        assert fit() == 0
        before, after, path = metrics(capsys)
        assert before == pytest.approx(14.4, abs=0.7)  # noise .2 is 14 dB; clamping adds a little
        assert after > before + 4
        assert path.samefile(run() / "weights.pth")
        assert {"config.yaml", "weights.pth", "checkpoints"} <= {x.name for x in run().iterdir()}
        assert not list(run().glob(".*"))

        # the network is built from the file alone, and is the one that was trained
        network = FFDNet(str(path))
        (checkpoint,) = run().glob("checkpoints/*.ckpt")
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        assert {f"denoiser.{name}" for name in network.state_dict()} == set(state)
        trained = FFDNet(num_layers=3, num_features=32)
        trained.load_state_dict({name.removeprefix("denoiser."): x for name, x in state.items()})
        generator = torch.Generator().manual_seed(0)
        clean = torch.from_numpy(np.array(picture(99, 64, 64))).permute(2, 0, 1)[None] / 255
        noisy = clean + 0.2 * torch.randn(clean.shape, generator=generator)
        level = torch.tensor([0.2])
        with torch.no_grad():
            denoised = network(noisy, level)
            assert torch.equal(denoised, trained.eval()(noisy, level))
        assert (denoised - clean).square().mean() < 0.4 * (noisy - clean).square().mean()
        penalty = DenoiserPrior(network, noise_std=0.2)
        expected = (noisy - denoised).square().mean() / 0.2**2 / 2
        assert penalty(noisy).item() == pytest.approx(expected.item(), rel=1e-5)

    def test_resumed_equals_uninterrupted(self):
        scheduler = "--model.init_args.lr_scheduler"
        few = [
            "--data.init_args.steps_per_epoch", "3",
            scheduler, "torch.optim.lr_scheduler.CosineAnnealingLR", f"{scheduler}.T_max", "2",
        ]  # fmt: skip
        assert fit(*few, "--trainer.max_epochs", "1") == 0
        (checkpoint,) = run().glob("checkpoints/*.ckpt")
        first = torch.load(run() / "weights.pth")
        assert fit(*few, "--ckpt_path", str(checkpoint)) == 0
        assert fit(*few) == 0
        resumed, whole = (torch.load(run(n) / "weights.pth") for n in range(2))
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)
        assert not torch.equal(first["layers.0.weight"], whole["layers.0.weight"])

    def test_training_can_begin_with_weights(self, capsys):
        start = FFDNet(num_layers=3, num_features=32)
        torch.save(start.state_dict(), "start.pth")
        assert fit(
            "--model.init_args.denoiser.init_args.weights", "start.pth",
            "--model.init_args.optimizer.init_args.lr", "0", "--trainer.max_epochs", "1",
            "--data.init_args.steps_per_epoch", "1",
        ) == 0  # fmt: skip
        written = torch.load(run() / "weights.pth")
        assert torch.equal(written["layers.0.weight"], start.layers[0].weight)

    def test_validate_measures_a_checkpoint(self, capsys):
        few = ["--data.init_args.steps_per_epoch", "3", "--trainer.max_epochs", "1"]
        assert fit(*few) == 0
        _, after, _ = metrics(capsys)
        (checkpoint,) = run().glob("checkpoints/*.ckpt")
        assert fit(*few, "--ckpt_path", str(checkpoint), command="validate") == 0
        (line,) = (x for x in capsys.readouterr().out.splitlines() if " psnr/0.2 " in x)
        assert float(line.split()[-2]) == pytest.approx(after, abs=0.01)

    def test_a_plateau_scheduler_sees_the_training_error(self):
        scheduler = "--model.init_args.lr_scheduler"
        assert fit(
            scheduler, "torch.optim.lr_scheduler.ReduceLROnPlateau",
            f"{scheduler}.mode", "max",  # an error that falls is then no progress
            f"{scheduler}.patience", "0", f"{scheduler}.factor", "0.5",
            "--trainer.max_epochs", "3",  # the last is saved before the scheduler's step
            "--data.init_args.steps_per_epoch", "20",
        ) == 0  # fmt: skip
        (checkpoint,) = run().glob("checkpoints/*.ckpt")
        (optimizer,) = torch.load(checkpoint, weights_only=True)["optimizer_states"]
        assert optimizer["param_groups"][0]["lr"] == 0.0015

    @pytest.mark.slow
    @pytest.mark.alone
    def test_two_processes(self):
        odd = ["--data.init_args.num_val_images", "7"]
        done = run_processes(2, "fit", "--config", "tiny.yaml", *odd)
        (line,) = (x for x in done.stdout.splitlines() if x.startswith("noise 0.2: "))
        before, after = line.removeprefix("noise 0.2: PSNR ").removesuffix(" dB").split(" -> ")
        assert float(after) > float(before) + 4
        assert FFDNet(str(run() / "weights.pth")).layers[0].weight.shape == (32, 15, 3, 3)


class TestTraining:
    def test_loss_is_the_formula(self, monkeypatch):
        training = DenoiserTraining(FFDNet(num_layers=2, num_features=2), noise_std=(0.1, 0.3))
        seen = []

        def halve(images, noise_std):
            seen.append((images, noise_std))
            return images / 2

        monkeypatch.setattr(training.denoiser, "forward", halve)
        monkeypatch.setattr(training, "log", lambda *_, **__: None)
        clean = torch.rand(100, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        loss = training.training_step(clean, 0)
        ((noisy, std),) = seen
        clean = clean.flatten(0, 1)
        assert loss.item() == pytest.approx((noisy / 2 - clean).square().mean().item(), rel=1e-5)
        assert std.min() >= 0.1
        assert std.max() <= 0.3
        assert std.mean().item() == pytest.approx(0.2, abs=0.01)
        # every patch has the noise that the denoiser is told, within 5 standard errors
        found = (noisy - clean).flatten(1).std(dim=1) / std
        assert (found - 1).abs().max() < 5 / (2 * clean[0].numel()) ** 0.5

    def test_a_network_that_was_frozen_is_trained(self):
        frozen = FFDNet(num_layers=3, num_features=2).requires_grad_(False)
        training = DenoiserTraining(frozen)
        assert all(parameter.requires_grad for parameter in training.parameters())
        assert all(module.training for module in training.denoiser.modules())


class TestNetwork:
    def test_size_comes_from_the_file(self, tmp_path):
        torch.save({"state_dict": FFDNet(None, 5, 7).state_dict()}, "weights.pth")
        network = FFDNet("weights.pth")
        kernels = [x.shape for x in network.parameters() if x.ndim == 4]
        assert len(kernels) == 5
        assert kernels[0] == (7, 15, 3, 3)
        assert sum(x.ndim == 4 for x in FFDNet().parameters()) == 12

    def test_batch_normalisation_comes_from_the_file(self):
        plain = FFDNet(num_layers=3, num_features=4, batch_norm=False)
        torch.save(plain.state_dict(), "weights.pth")
        images, level = torch.rand(1, 3, 8, 8), torch.tensor([0.1])
        with torch.no_grad():
            assert torch.equal(FFDNet("weights.pth")(images, level), plain(images, level))
        for network, expected in ((FFDNet("weights.pth"), 0), (FFDNet(num_layers=3), 1)):
            found = [x for x in network.modules() if isinstance(x, torch.nn.BatchNorm2d)]
            assert len(found) == expected

    @pytest.mark.parametrize("content", [b"no weights", [1, 2], {"a": torch.zeros(3)}])
    def test_files_that_are_no_network(self, content):
        if isinstance(content, bytes):
            Path("weights.pth").write_bytes(content)
        else:
            torch.save(content, "weights.pth")
        with pytest.raises(InputError, match=r"weights\.pth"):
            FFDNet("weights.pth")

    def test_untrained_it_is_close_to_the_identity(self):
        images = torch.rand(2, 3, 16, 16)
        with torch.no_grad():
            assert (FFDNet()(images, torch.tensor([0.1])) - images).abs().max() < 0.2


class TestPatches:
    @staticmethod
    def make(**arguments):
        options = {
            "root": "pictures", "batch_size": 2, "patches_per_image": 3, "steps_per_epoch": 4,
            "patch_size": 16, "image_size": 32, "num_val_images": 5, "val_fraction": 0.25,
        }  # fmt: skip
        data = PatchDataModule(**(options | arguments))
        data.setup()
        return data

    def test_split_is_by_file(self):
        data = self.make()
        assert len(data.val_places) == 3
        assert sorted(data.train_places + data.val_places) == list(range(12))
        assert self.make(seed=1).val_places != data.val_places

    def test_cuts_of_a_photograph_stay_together(self):
        data = self.make(root=None, on_missing="samples")
        sides = [{data.source.label(x) for x in y} for y in (data.train_places, data.val_places)]
        assert len(sides[0]) == 13
        assert len(sides[1]) == 4
        assert not sides[0] & sides[1]

    def test_every_patch_is_cut_out_of_a_picture_of_its_split(self):
        # pictures of noise: no two cuts are alike
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Path("exact").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(f"exact/{number}.png")
        data = self.make(root="exact", patch_size=30, image_size=32, num_val_images=8)
        crops = [
            np.array(data.source.crop(open_picture(Path(f"exact/{n}.png")), 32, 2))
            for n in range(4)
        ]
        orientations = set()
        for loader, places in (
            (data.train_dataloader(), data.train_places),
            (data.val_dataloader(), data.val_places),
        ):
            for patch in torch.cat(list(loader)).flatten(0, 1):
                pixels = (patch * 255).round().byte().permute(1, 2, 0).numpy()
                found = [
                    (place, turn, mirror)
                    for place in places
                    for turn in range(4)
                    for mirror in (False, True)
                    for top in range(3)
                    for left in range(3)
                    if np.array_equal(
                        pixels,
                        _turned(crops[place][top : top + 30, left : left + 30], turn, mirror),
                    )
                ]
                assert len(found) == 1
                orientations.add(found[0][1:])
        assert len(orientations) == 8

    def test_shapes_and_range(self):
        batches = list(self.make().train_dataloader())
        assert [batch.shape for batch in batches] == [(2, 3, 3, 16, 16)] * 4
        assert batches[0].dtype == torch.float32
        assert 0 <= min(x.min() for x in batches) < max(x.max() for x in batches) <= 1
        assert sum(len(batch) for batch in self.make().val_dataloader()) == 5

    def test_epochs_processes_and_seeds_have_patches_of_their_own(self, monkeypatch):
        def patches(epoch, rank, world_size, seed=0, split="train"):
            data = self.make(seed=seed, num_val_images=8)
            monkeypatch.setattr(data, "_place", lambda: (rank, world_size))
            loader = getattr(data, f"{split}_dataloader")()
            if split == "train":
                loader.sampler.set_epoch(epoch)
            return torch.cat(list(loader)).flatten(1)

        first = patches(0, 0, 1)
        assert torch.equal(first, patches(0, 0, 1))
        for other in (patches(1, 0, 1), patches(0, 0, 1, seed=1)):
            assert torch.cdist(first, other).min() > 0
        assert torch.cdist(patches(0, 0, 2), patches(0, 1, 2)).min() > 0
        # two processes do together what one does in twice the time, and share the validation
        both = torch.stack([patches(0, 0, 2), patches(0, 1, 2)], dim=1).flatten(0, 1)
        assert torch.equal(both, torch.cat([first, patches(1, 0, 1)]))
        both = torch.stack([patches(0, rank, 2, split="val") for rank in range(2)], dim=1)
        assert torch.equal(both.flatten(0, 1), patches(0, 0, 1, split="val"))

    def test_unreadable_pictures_are_passed_over(self):
        Path("pictures/0/broken.jpg").write_bytes(b"no picture")
        data = self.make(steps_per_epoch=20)
        with pytest.warns(UserWarning, match=r"skipped: cannot read the image .*broken\.jpg"):
            assert len(list(data.train_dataloader())) == 20
        for path in Path("pictures").rglob("*.png"):
            path.write_bytes(b"no picture")
        with (
            pytest.raises(InputError, match="20 pictures in a row"),
            pytest.warns(UserWarning, match="skipped"),
        ):
            list(self.make().train_dataloader())


def _turned(pixels, turn, mirror):
    """Quarter turns anticlockwise, then left and right exchanged."""
    pixels = np.rot90(pixels, turn)
    return pixels[:, ::-1] if mirror else pixels


class TestCommandLine:
    def test_the_config_can_be_built(self):
        header = Path(CONFIG).read_text().splitlines()[0]
        assert header.startswith("# python cli.py fit --config configs/train_denoiser.yaml")
        cli = TrainingCLI(
            DenoiserTraining,
            PatchDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            run=False,
            args=["--config", CONFIG, "--trainer.accelerator", "cpu", "--seed_everything", "3"],
        )
        assert isinstance(cli.model, DenoiserTraining)
        assert cli.model.seed == cli.datamodule.seed == 3
        scheduler = yaml.safe_load(Path(CONFIG).read_text())["model"]["init_args"]["lr_scheduler"]
        assert scheduler["init_args"]["T_max"] == cli.trainer.max_epochs

    def test_the_doctor_knows_its_data(self):
        Path("configs").mkdir()
        Path("configs/train.yaml").write_text(TINY)
        (found,) = check_inputs(Path("configs"))["data"]
        assert (found.status, found.text) == ("ok", "pictures for train")
        Path("pictures").rename("elsewhere")
        (found,) = check_inputs(Path("configs"))["data"]
        assert found.status == "missing"

    def test_without_a_config(self):
        config = yaml.safe_load(TINY)
        Path("data.yaml").write_text(yaml.safe_dump({"data": config["data"]}))
        assert main([
            "fit", "--config=data.yaml", "--model.class_path=DenoiserTraining",
            "--model.init_args.denoiser", "FFDNet",
            "--model.init_args.denoiser.init_args.num_layers", "2",
            "--model.init_args.denoiser.init_args.num_features", "2",
            "--data.init_args.steps_per_epoch", "1", "--trainer.max_epochs", "1",
            "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
        ]) == 0  # fmt: skip
        assert FFDNet(str(run() / "weights.pth")).layers[0].weight.shape == (2, 15, 3, 3)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--data.init_args.root", "nowhere"], "nowhere; expected a folder with at least 2"),
            (["--data.init_args.root", "null"], "no root given"),
            (["--data.init_args.patch_size", "65"], "image_size must be at least 65, not 64"),
            (["--data.init_args.val_fraction", "1"], "val_fraction must be between 0 and 1"),
            (["--model.init_args.noise_std", "[0.2, 0.1]"], "noise_std must be a lowest level"),
            (["--model.init_args.val_noise_stds", "[0]"], "val_noise_stds must be above 0"),
            (["--model.init_args.denoiser.init_args.num_layers", "1"], "num_layers must be"),
            (["--model.init_args.denoiser.init_args.weights", "no.pth"], "no weights file at"),
            (["--ckpt_path", "no.ckpt"], "no checkpoint at"),
            (["--ckpt_path", "tiny.yaml"], "no readable checkpoint of a training"),
            (["--ckpt_path", "attack.ckpt"], "another network"),
            (["--data", "NoData"], "there is no class NoData"),
            (["--no_such_option", "1"], "no_such_option"),
            (["--config", "nowhere.yaml"], "nowhere.yaml"),
            (
                ["--model.init_args.optimizer.init_args.lr", "1e30"],
                "the training diverged: its weights are not finite; lower lr",
            ),
        ],
    )
    def test_bad_input_is_one_line(self, arguments, words, capfd):
        attack = {"state_dict": {"dummy": torch.zeros(1)}, "optimizer_states": []}
        torch.save(attack | {"pytorch-lightning_version": "2.6.6"}, "attack.ckpt")
        few = ["--data.init_args.steps_per_epoch", "3"]
        assert fit(*few, *arguments) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert words in lines[0]
        assert not list(Path().rglob("weights.pth"))
        if "diverged" not in words:
            assert list(Path().glob("lightning_logs/*/*")) == []

    @pytest.mark.parametrize("command", ["test", "predict"])
    def test_commands_that_it_does_not_know(self, command, capsys):
        assert fit(command=command) == 2
        assert f"knows fit and validate, not {command}" in capsys.readouterr().err
