"""Training of refiners: simulated reconstructions, losses, the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import run_processes
from data_helpers import picture

from lightning_recon.commands.lightning import TrainingCLI, main
from lightning_recon.data import ImageNetDataModule
from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.refiners import ConditionalGenerator, SuperResolution
from lightning_recon.refiners.base import decode, encode
from lightning_recon.targets import ConvNet, LeNet
from lightning_recon.training.losses import PatchDiscriminator, PerceptualLoss
from lightning_recon.training.patches import PatchDataModule
from lightning_recon.training.refiner import RefinerTraining, simulate

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/train_refiner.yaml")
TINY = """
model:
  class_path: RefinerTraining
  init_args:
    refiner: {class_path: SuperResolution, init_args: {num_blocks: 1, num_features: 16}}
    noise_std: [0.05, 0.15]
    val_noise_stds: [0.1]
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.005}}
data:
  class_path: PatchDataModule
  init_args:
    root: pictures
    batch_size: 4
    patches_per_image: 2
    steps_per_epoch: 40
    patch_size: 32
    image_size: 64
    num_val_images: 8
trainer:
  accelerator: cpu
  max_epochs: 2
  enable_progress_bar: false
  log_every_n_steps: 1
  callbacks:
    class_path: pytorch_lightning.callbacks.ModelCheckpoint
    init_args: {save_last: true}
"""
CONDITIONAL = [
    "--model.init_args.refiner", "ConditionalGenerator",
    "--model.init_args.refiner.init_args.width", "2",
    "--model.init_args.refiner.init_args.num_classes", "3",
    "--data.init_args.labels", "true", "--data.init_args.batch_size", "2",
]  # fmt: skip
ADVERSARIAL = [
    "--model.init_args.adversarial_weight", "0.01", "--model.init_args.perceptual_weight", "0.1",
    "--model.init_args.perceptual", "ConvNet", "--model.init_args.perceptual.init_args.width", "4",
]  # fmt: skip


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


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class TestSimulation:
    def test_without_noise_it_is_the_closest_latent(self):
        images = random(2, 3, 32, 32)
        found = simulate(images, 4, torch.zeros(2), torch.Generator())
        assert torch.equal(found, decode(encode(images, 4), 4))

    def test_the_noise_is_what_is_documented(self):
        images, std = torch.full((64, 3, 128, 128), 0.5), torch.tensor([0.02, 0.06]).repeat(32)
        noise = encode(simulate(images, 4, std, torch.Generator().manual_seed(0)), 4) - 0.5
        noise = noise / std[:, None, None, None]
        for part in (noise[::2], noise[1::2]):
            assert part.square().mean().item() == pytest.approx(1, rel=0.05)
        offset = noise.mean((2, 3), keepdim=True)
        assert offset.square().mean().item() == pytest.approx(0.15, abs=0.04)
        noise = noise - offset
        assert np.corrcoef(noise.transpose(0, 1).flatten(1))[0, 1] == pytest.approx(1 / 3, abs=0.02)
        # of a frequency uniform in the square [-1/2, 1/2)^2, (u^2 + v^2)^2 is 7/180 in the mean
        power = torch.fft.fft2(noise, norm="ortho").abs().square().mean((0, 1))
        assert power[0, 1:4].mean().item() == pytest.approx(0.45, abs=0.1)
        assert power[0, 16].item() == pytest.approx(0.45 + 0.4 * (1 / 16) * 180 / 7, abs=0.3)
        assert power[15:18, 15:18].mean().item() == pytest.approx(
            0.45 + 0.4 * 0.22 * 180 / 7, abs=0.4
        )

    def test_the_seed_decides(self):
        images, std = random(2, 3, 32, 32), torch.full((2,), 0.1)
        first, again, other = (
            simulate(images, 4, std, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


class TestLosses:
    def test_perceptual_loss_is_the_formula(self):
        network = ConvNet(num_classes=3, width=2).eval()
        found, truth = random(2, 3, 32, 32), random(2, 3, 32, 32, seed=1)
        loss = PerceptualLoss(network)(found, truth)
        expected = []
        layers = list(network.features)
        for x, y in zip(found, truth, strict=True):
            x, y = x[None], y[None]
            for layer in layers:
                x, y = layer(x), layer(y)
                if isinstance(layer, torch.nn.ReLU):
                    x, y = x.clone(), y.clone()
                    unit = [z / (z.square().sum(1, keepdim=True) + 1e-8).sqrt() for z in (x, y)]
                    expected.append((unit[0] - unit[1]).square().sum(1).mean().item())
        assert loss.item() == pytest.approx(np.mean(expected), rel=1e-4)
        assert PerceptualLoss(network)(truth, truth).item() == 0

    def test_it_reaches_the_images_and_not_the_classifier(self):
        network = ConvNet(num_classes=3, width=2)
        images = random(1, 3, 32, 32).requires_grad_()
        PerceptualLoss(network)(images, random(1, 3, 32, 32, seed=1)).backward()
        assert images.grad.abs().max() > 0
        assert all(parameter.grad is None for parameter in network.parameters())

    def test_a_classifier_without_relu(self):
        with pytest.raises(InputError, match="no ReLU layers"):
            PerceptualLoss(LeNet())

    def test_the_discriminator_sees_patches(self):
        assert PatchDiscriminator(4)(random(2, 3, 64, 32)).shape == (2, 1, 8, 4)


class TestTraining:
    def test_loss_is_the_formula(self, monkeypatch):
        training = RefinerTraining(SuperResolution(None, 1, 4), (0.05, 0.1), l1_weight=2.0)
        seen, losses = [], []

        def halve(images, labels):
            seen.append((images, labels))
            return images / 2 * scale

        scale = torch.ones((), requires_grad=True)
        monkeypatch.setattr(training.refiner, "forward", halve)
        monkeypatch.setattr(training, "_step", lambda optimizer, loss: losses.append(loss))
        monkeypatch.setattr(training, "optimizers", lambda **_: None)
        monkeypatch.setattr(training, "log", lambda *_, **__: None)
        clean = 0.3 + 0.4 * random(50, 2, 3, 32, 32, seed=1)
        training.training_step(clean, 0)
        ((degraded, labels),) = seen
        clean = clean.flatten(0, 1)
        expected = 2 * (degraded / 2 - clean).abs().mean().item()
        assert losses[0].item() == pytest.approx(expected, rel=1e-5)
        assert labels is None
        # every patch is its own latent, decoded, with noise of its own level
        noise = (encode(degraded, 4) - encode(clean, 4)).flatten(1)
        level = noise.std(dim=1) / 0.85**0.5  # without the offset
        assert level.min() > 0.04
        assert level.max() < 0.12
        assert level.mean().item() == pytest.approx(0.075, abs=0.005)

    def test_refiner_and_discriminator_move_against_each_other(self, monkeypatch):
        training = RefinerTraining(
            SuperResolution(None, 1, 4), adversarial_weight=1.0, optimizer=torch.optim.SGD
        )
        optimizers, _ = training.configure_optimizers()
        clean = random(2, 3, 32, 32)
        verdicts = []

        def step(optimizer, loss):
            for parameter in training.parameters():
                parameter.grad = None
            loss.backward()
            ours, theirs = (
                sum(x.grad is not None and bool(x.grad.any()) for x in network.parameters())
                for network in (training.refiner, training.discriminator)
            )
            verdicts.append((ours > 0, theirs > 0, loss.item()))

        monkeypatch.setattr(training, "_step", step)
        monkeypatch.setattr(training, "optimizers", lambda **_: optimizers)
        for name in ("log", "log_dict"):
            monkeypatch.setattr(training, name, lambda *_, **__: None)
        training.training_step(clean, 0)
        assert [verdict[:2] for verdict in verdicts] == [(True, False), (False, True)]
        parts = {len(list(x.param_groups[0]["params"])) for x in optimizers}
        assert parts == {
            len(list(training.refiner.parameters())),
            len(list(training.discriminator.parameters())),
        }

    def test_labels_reach_every_patch_of_their_picture(self, monkeypatch):
        training = RefinerTraining(ConditionalGenerator(None, 9, 2), label_dropout=0)
        images, labels = training._take([random(2, 3, 3, 64, 64), torch.tensor([4, 7])])
        assert labels.tolist() == [4, 4, 4, 7, 7, 7]
        assert torch.equal(images[3], random(2, 3, 3, 64, 64)[1, 0])
        assert RefinerTraining(SuperResolution())._take([images, labels[:6]])[1] is None

    @pytest.mark.parametrize("dropout", [0.0, 1.0])
    def test_label_dropout(self, dropout, monkeypatch):
        training = RefinerTraining(ConditionalGenerator(None, 9, 2), label_dropout=dropout)
        seen = []
        forward = training.refiner.forward

        def keep(images, labels):
            seen.append(labels)
            return forward(images, labels)

        monkeypatch.setattr(training.refiner, "forward", keep)
        monkeypatch.setattr(training, "_step", lambda optimizer, loss: None)
        monkeypatch.setattr(training, "optimizers", lambda **_: None)
        monkeypatch.setattr(training, "log", lambda *_, **__: None)
        training.training_step([random(2, 1, 3, 64, 64), torch.tensor([4, 7])], 0)
        assert (seen[0] is None) == (dropout == 1)

    def test_without_a_classifier_it_says_so(self):
        with pytest.warns(UserWarning, match="uses one with random weights"):
            training = RefinerTraining(SuperResolution(None, 1, 4), perceptual_weight=0.1)
        images = random(1, 3, 32, 32)
        assert training.perceptual(images, images) == 0
        assert training.perceptual(images, 1 - images) > 0


class TestFit:
    def test_it_learns_and_the_weights_serve_a_refiner(self, capsys):
        assert fit() == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-2].startswith("noise 0.1: PSNR ")
        found = lines[-2].removeprefix("noise 0.1: PSNR ").removesuffix(" dB").split(" -> ")
        before, after = map(float, found)
        assert after > before + 2
        path = Path(lines[-1].removeprefix("weights: "))
        assert path.samefile(run() / "weights.pth")

        refiner = SuperResolution(str(path), num_blocks=1, num_features=16)
        state = torch.load(run() / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        kept = {f"refiner.{name}": tensor for name, tensor in refiner.state_dict().items()}
        assert kept.keys() == state.keys()
        assert all(torch.equal(kept[name], state[name]) for name in state)
        # on pictures that are in neither part of the folder
        clean = torch.stack(
            [torch.from_numpy(np.array(picture(n, 64, 64))).permute(2, 0, 1) for n in (97, 98)]
        )
        clean = clean / 255
        images = simulate(clean, 4, torch.full((2,), 0.1), torch.Generator().manual_seed(0))
        with torch.no_grad():
            gain = psnr(refiner(images), clean) - psnr(images, clean)
        assert gain.min() > 2

    @pytest.mark.parametrize("options", [[], [*CONDITIONAL, *ADVERSARIAL]], ids=["l1", "all"])
    def test_resumed_equals_uninterrupted(self, options):
        scheduler = "--model.init_args.lr_scheduler"
        few = [
            "--data.init_args.steps_per_epoch", "3", "--data.init_args.num_val_images", "2",
            "--data.init_args.patch_size", "64", *options,
            scheduler, "torch.optim.lr_scheduler.CosineAnnealingLR", f"{scheduler}.T_max", "2",
        ]  # fmt: skip
        assert fit(*few, "--trainer.max_epochs", "1") == 0
        first = torch.load(run() / "weights.pth")
        assert fit(*few, "--ckpt_path", str(run() / "checkpoints/last.ckpt")) == 0
        assert fit(*few) == 0
        resumed, whole = (torch.load(run(n) / "weights.pth") for n in range(2))
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)
        assert any(not torch.equal(first[name], whole[name]) for name in whole)

    def test_the_schedule_is_followed(self):
        scheduler = "--model.init_args.lr_scheduler"
        few = ["--data.init_args.steps_per_epoch", "2", "--trainer.max_epochs", "3"]
        assert fit(*few, scheduler, "torch.optim.lr_scheduler.StepLR",
                   f"{scheduler}.step_size", "1", f"{scheduler}.gamma", "0.1") == 0  # fmt: skip
        assert fit(*few, scheduler, "torch.optim.lr_scheduler.ReduceLROnPlateau",
                   f"{scheduler}.mode", "max", f"{scheduler}.patience", "0",
                   f"{scheduler}.factor", "0.5") == 0  # fmt: skip
        rates = []
        for version in range(2):
            state = torch.load(run(version) / "checkpoints/last.ckpt", weights_only=True)
            rates.append(state["optimizer_states"][0]["param_groups"][0]["lr"])
        assert rates[0] == pytest.approx(0.005 * 0.1**3)
        assert rates[1] < 0.005

    @pytest.mark.slow
    @pytest.mark.alone
    def test_two_processes(self):
        done = run_processes(2, "fit", "--config", "tiny.yaml")
        (line,) = (x for x in done.stdout.splitlines() if x.startswith("noise 0.1: "))
        before, after = line.removeprefix("noise 0.1: PSNR ").removesuffix(" dB").split(" -> ")
        assert float(after) > float(before) + 2

    def test_validate_measures_a_checkpoint(self, capsys):
        few = ["--data.init_args.steps_per_epoch", "3", "--trainer.max_epochs", "1"]
        assert fit(*few) == 0
        line = capsys.readouterr().out.splitlines()[-2]
        after = float(line.removesuffix(" dB").split()[-1])
        checkpoint = str(run() / "checkpoints/last.ckpt")
        assert fit(*few, "--ckpt_path", checkpoint, command="validate") == 0
        (line,) = (x for x in capsys.readouterr().out.splitlines() if " psnr/0.1 " in x)
        assert float(line.split()[-2]) == pytest.approx(after, abs=0.01)


class TestLabels:
    def test_they_are_those_of_the_attacks(self):
        for number, name in enumerate(("n01440764", "n01443537", "n02084071")):
            Path("imagenet", name).mkdir(parents=True)
            if number != 1:  # an empty folder has a number too
                for n in range(2):
                    picture(10 * number + n, 40, 40).save(f"imagenet/{name}/{n}.JPEG")
        clients = ImageNetDataModule(root="imagenet", batch_size=4, image_size=32)
        clients.setup()
        data = PatchDataModule(
            root="imagenet", labels=True, batch_size=3, steps_per_epoch=4, patch_size=32,
            image_size=32, patches_per_image=2,
        )  # fmt: skip
        data.setup()
        assert [data._labels()[place] for place in range(4)] == [0, 0, 2, 2]
        assert clients.client(0).labels.sort().values.tolist() == [0, 0, 2, 2]
        means = {}
        for images, labels in zip(*clients.client(0)[:2], strict=True):
            means[round(images.mean().item(), 4)] = int(labels)
        for patches, labels in data.train_dataloader():
            assert patches.shape == (3, 2, 3, 32, 32)
            for image, label in zip(patches, labels, strict=True):
                assert means[round(image[0].mean().item(), 4)] == label

    def test_sample_photographs_have_theirs(self):
        data = PatchDataModule(labels=True, on_missing="samples")
        with pytest.warns(UserWarning, match="sample photographs"):
            data.setup()
        assert data._labels() == [data.source.label(place) for place in range(len(data.source))]


class TestCommandLine:
    def test_the_config_can_be_built(self):
        header = Path(CONFIG).read_text().splitlines()[0]
        assert header.startswith("# python cli.py fit --config configs/train_refiner.yaml")
        cli = TrainingCLI(
            RefinerTraining,
            PatchDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            run=False,
            args=["--config", CONFIG, "--trainer.accelerator", "cpu", "--seed_everything", "3"],
        )
        assert isinstance(cli.model, RefinerTraining)
        assert cli.model.seed == cli.datamodule.seed == 3
        scheduler = yaml.safe_load(Path(CONFIG).read_text())["model"]["init_args"]["lr_scheduler"]
        assert scheduler["init_args"]["T_max"] == cli.trainer.max_epochs
        SuperResolution().load_state_dict(cli.model.refiner.state_dict())  # weights: PATH suffices

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--data.init_args.root", "nowhere"], "nowhere; expected a folder with at least 2"),
            (["--data.init_args.patch_size", "30"], "multiples of 4, not 30x30"),
            (["--model.init_args.noise_std", "[0.2, 0.1]"], "noise_std must be a lowest level"),
            (["--model.init_args.val_noise_stds", "[-1]"], "val_noise_stds must be at least 0"),
            (["--model.init_args.l1_weight", "0"], "one of them above, not 0, 0, 0"),
            (["--model.init_args.label_dropout", "2"], "label_dropout must be between 0 and 1"),
            (["--model.init_args.refiner.init_args.num_blocks", "0"], "num_blocks and num"),
            (["--model.init_args.refiner.init_args.weights", "no.pth"], "no weights file at"),
            (["--model.init_args.refiner.init_args.weights", "other.pth"], "do not fit the model"),
            ([*CONDITIONAL, "--data.init_args.labels", "false"], "set labels: true in the data"),
            (
                [*CONDITIONAL, "--model.init_args.refiner.init_args.num_classes", "2",
                 "--data.init_args.patch_size", "64"],
                "but its num_classes is 2",
            ),
            (["--ckpt_path", "no.ckpt"], "no checkpoint at"),
            (["--ckpt_path", "tiny.yaml"], "no readable checkpoint of a training"),
            (["--ckpt_path", "denoiser.ckpt"], "another network than the configuration's refiner"),
            (["--model.init_args.optimizer.init_args.lr", "1e30"], "the training diverged"),
        ],
    )  # fmt: skip
    def test_bad_input_is_one_line(self, arguments, words, capfd):
        torch.save(SuperResolution(None, 2, 4).state_dict(), "other.pth")
        other = {"state_dict": {"denoiser.a": torch.zeros(1)}, "optimizer_states": []}
        torch.save(other | {"pytorch-lightning_version": "2.6.6"}, "denoiser.ckpt")
        few = ["--data.init_args.steps_per_epoch", "3", "--data.init_args.num_val_images", "2"]
        assert fit(*few, *arguments) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert words in lines[0]
        assert not list(Path().rglob("weights.pth"))

    @pytest.mark.parametrize("command", ["test", "predict"])
    def test_commands_that_it_does_not_know(self, command, capsys):
        assert fit(command=command) == 2
        assert f"RefinerTraining knows fit and validate, not {command}" in capsys.readouterr().err
