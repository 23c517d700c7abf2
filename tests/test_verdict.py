"""The audit of a captured update without the truth: what it says, and what it must not say."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_recon.captures import CaptureWriter, Reply, write_truth
from lightning_recon.commands import plain
from lightning_recon.detect import detect
from lightning_recon.errors import InputError
from lightning_recon.targets import MLP, LeNet, ModuleTarget
from lightning_recon.verdict import Auditor, Setting, preflight, scan
from lightning_recon.verdict.confidence import SURE, confidence
from lightning_recon.verdict.evidence import margin, shuffled
from lightning_recon.verdict.numbers import read_numbers
from lightning_recon.verdict.plan import Training, matching, plan_attacks
from lightning_recon.verdict.preflight import compare_replies, read_declared
from lightning_recon.verdict.sent import read_reply

SHAPE = (3, 8, 8)
LOCAL_DP = {"name": "LocalDpMod", "clip_norm": 1.0, "epsilon": 1.0, "delta": 1e-5}


class Net(nn.Module):
    """A user's own: batch norm on what a linear layer gives."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.first = nn.Linear(192, 64)
        self.norm = nn.BatchNorm1d(64)
        self.last = nn.Linear(64, num_classes)

    def forward(self, images):
        return self.last(self.norm(self.first(images.flatten(1))).relu())


@pytest.fixture(scope="module")
def images(sample_data):
    found = F.avg_pool2d(sample_data.client(0).images, 4)
    return (255 * found).round() / 255


@pytest.fixture(scope="module")
def public(sample_data):
    return F.avg_pool2d(sample_data.public_images(), 4)


def trained(net, images, labels, steps=1, rate=0.1):
    net = copy.deepcopy(net).requires_grad_(True)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def mlp():
    return MLP(10, 8, (128, 32)).requires_grad_(True)


def reply_of(net, images, *, kind="weights", change=None, **facts):
    before = {name: value.detach().clone() for name, value in net.state_dict().items()}
    after = trained(net, images, torch.arange(len(images)) % 10)
    tensors = after if change is None else change(before, after)
    return Reply(1, "c", tensors, before, {"kind": kind, **facts})


def texts(findings, kind=None):
    return " | ".join(found.text for found in findings if kind in (None, found.kind))


class TestSent:
    """Wrong inputs that look like "safe"."""

    def test_weights_that_are_declared_as_a_change_are_read_as_weights(self, images):
        net = mlp()
        right = read_reply(reply_of(net, images), net, SHAPE)
        wrong = read_reply(reply_of(net, images, kind="delta"), net, SHAPE)
        assert right.findings == []
        assert "these are weights" in texts(wrong.findings, "contradiction")
        for name, value in right.update.items():
            assert torch.equal(value, wrong.update[name])

    def test_a_change_that_is_declared_as_weights(self, images):
        def change(before, after):
            return {name: after[name] - before[name] for name in before}

        net = mlp()
        found = read_reply(reply_of(net, images, change=change), net, SHAPE)
        assert "read as a change of weights" in texts(found.findings, "contradiction")
        assert found.protocol == "fedavg"

    @pytest.mark.parametrize(("sign", "kind"), [(1, "delta"), (-10, "gradient")])
    def test_the_sign_is_told_from_the_last_bias(self, images, sign, kind):
        def change(before, after):
            return {name: sign * (after[name] - before[name]) for name in before}

        net = mlp()
        other = "gradient" if kind == "delta" else "delta"
        found = read_reply(reply_of(net, images[:2], kind=other, change=change), net, SHAPE)
        assert (
            f"declared as a {'change of weights' if kind == 'gradient' else 'gradient'}"
            in texts(found.findings, "contradiction")
        )
        assert found.protocol == ("fedavg" if kind == "delta" else "fedsgd")
        right = read_reply(reply_of(net, images[:2], kind=kind, change=change), net, SHAPE)
        assert right.findings == []

    def test_another_model(self, images):
        with pytest.raises(Exception, match="another model"):
            read_reply(reply_of(mlp(), images), MLP(10, 8, (64, 32)), SHAPE)

    def test_another_shape_is_told_with_both(self, images):
        with pytest.raises(InputError, match=r"another model .*128x192, not 64x192"):
            read_reply(reply_of(mlp(), images), MLP(10, 8, (64, 32)), SHAPE)

    def test_a_list_of_another_length_is_told(self, images):
        reply = reply_of(mlp(), images)
        listed = {str(place): value for place, value in enumerate(list(reply.tensors.values())[1:])}
        with pytest.raises(InputError, match="5 tensors, but the model has 6 parameters"):
            read_reply(reply._replace(tensors=listed), mlp(), SHAPE)

    def test_weights_that_began_elsewhere(self, images):
        net = mlp()
        reply = reply_of(net, images)
        other = {name: torch.randn_like(value) for name, value in reply.payload.items()}
        found = read_reply(reply._replace(payload=other), net, SHAPE)
        assert "do not resemble the payload" in texts(found.findings)

    def test_names_of_wrappers_counters_and_lists(self, images):
        net = Net()
        reply = reply_of(net, images)
        assert reply.tensors["norm.num_batches_tracked"].ndim == 0
        plain = read_reply(reply, net, SHAPE)
        assert plain.buffers is not None
        prefixed = {f"_module.{name}": value for name, value in reply.tensors.items()}
        listed = {str(place): value for place, value in enumerate(reply.tensors.values())}
        for tensors in (prefixed, listed):
            found = read_reply(reply._replace(tensors=tensors), net, SHAPE)
            for name, value in plain.update.items():
                assert torch.equal(value, found.update[name])

    def test_halves_are_cast_and_told(self, images):
        def change(before, after):
            return {name: value.half() for name, value in after.items()}

        net = mlp()
        found = read_reply(reply_of(net, images, change=change), net, SHAPE)
        assert "float16" in texts(found.findings, "note")
        assert all(value.dtype == torch.float32 for value in found.update.values())
        right = read_reply(reply_of(net, images), net, SHAPE)
        assert all(value > right.rounding[name] for name, value in found.rounding.items())

    def test_what_was_not_sent_is_zero_and_told(self, images):
        def change(before, after):
            return dict(list(after.items())[2:])

        net = mlp()
        found = read_reply(reply_of(net, images, change=change), net, SHAPE)
        first = next(iter(dict(net.named_parameters())))
        assert first in found.missing
        assert not found.update[first].any()
        assert "not sent" in texts(found.findings)


class TestNumbers:
    @pytest.mark.parametrize("std", [1e-3, 1e-1, 10.0])
    def test_noise_is_measured(self, images, std):
        net = mlp()
        sent = read_reply(reply_of(net, images[:4]), net, SHAPE)
        generator = torch.Generator().manual_seed(0)
        noisy = {
            name: value + std * torch.randn(value.shape, generator=generator)
            for name, value in sent.update.items()
        }
        assert read_numbers(noisy, sent.rounding).noise_std == pytest.approx(std, rel=0.05)

    def test_without_noise_there_is_none_and_the_rank_tells_the_samples(self, images):
        net = mlp()
        for size in (1, 3, 5):
            sent = read_reply(reply_of(net, images[:size]), net, SHAPE)
            numbers = read_numbers(sent.update, sent.rounding)
            assert numbers.noise_std == 0
            assert numbers.rank == size

    def test_signs_and_grids_are_seen(self, images):
        net = mlp()
        sent = read_reply(reply_of(net, images[:4]), net, SHAPE)
        signs = {name: 1 - 2.0 * (value < 0) for name, value in sent.update.items()}
        assert read_numbers(signs, {}).reading.kind == "signs"
        step = {name: value.abs().max() / 7 for name, value in sent.update.items()}
        grid = {
            name: (value / step[name]).round() * step[name] for name, value in sent.update.items()
        }
        assert read_numbers(grid, {}).reading.kind == "rounded"

    def test_black_pixels_and_shut_relus_are_no_sparsification(self, images):
        net = MLP(10, 8, (64,)).requires_grad_(True)
        dark = images[:2] * (images[:2] > 0.5)
        sent = read_reply(reply_of(net, dark), net, SHAPE)
        assert sent.numbers.zeros > 0.2
        assert sent.numbers.reading.kind == "exact"
        generator = torch.Generator().manual_seed(0)
        some = {
            name: value * (torch.rand(value.shape, generator=generator) < 0.3)
            for name, value in sent.update.items()
        }
        assert read_numbers(some, sent.rounding).reading.kind == "kept"


class TestDeclared:
    def test_unknown_is_never_no_defense(self):
        assert not read_declared(None).is_known
        assert read_declared([]).is_known

    def test_the_noise_of_flowers_mod(self):
        found = read_declared(
            [{"name": "LocalDpMod", "clip_norm": 1.0, "epsilon": 1.0, "delta": 1e-5}]
        )
        assert found.noise_std == pytest.approx(math.sqrt(2 * math.log(1.25e5)))
        assert found.clip_norm == 1

    def test_noise_that_is_declared_and_does_not_show_is_a_contradiction(self, images, public):
        auditor = Auditor(mlp(), 10, Setting(SHAPE, public))
        mods = [{"name": "LocalDpMod", "clip_norm": 1.0, "epsilon": 1.0, "delta": 1e-5}]
        audit = auditor.audit(reply_of(mlp(), images[:4], mods=mods))
        assert "noise of standard deviation 4.84 is declared" in texts(
            audit.findings, "contradiction"
        )
        assert audit.verdict == "leaked"
        silent = auditor.audit(reply_of(mlp(), images[:4]))
        assert "unknown" in silent.privacy["Declared"]
        assert "no defense" not in json.dumps(silent.privacy).lower()

    def test_a_norm_beyond_the_declared_clip(self, images, public):
        auditor = Auditor(mlp(), 10, Setting(SHAPE, public))
        mods = [{"name": "fixedclipping_mod", "clip_norm": 1e-4}]
        audit = auditor.audit(reply_of(mlp(), images[:4], mods=mods))
        assert "clipping to 0.0001 is declared" in texts(audit.findings, "contradiction")


class TestVerdict:
    def test_a_leak_is_found_and_is_one(self, images, public):
        audit = Auditor(mlp(), 10, Setting(SHAPE, public)).audit(reply_of(mlp(), images[:4]))
        assert audit.verdict == "leaked"
        assert len(audit.pictures) >= 3
        for picture in audit.pictures:
            if picture.confidence >= SURE:
                assert (images[:4] - picture.image).square().mean((1, 2, 3)).min() < 1e-6

    def test_noise_that_hides_everything_is_no_leak(self, images, public):
        generator = torch.Generator().manual_seed(0)

        def change(before, after):
            return {
                name: value + torch.randn(value.shape, generator=generator)
                for name, value in after.items()
            }

        audit = Auditor(mlp(), 10, Setting(SHAPE, public)).audit(
            reply_of(mlp(), images[:4], change=change)
        )
        assert audit.verdict == "not shown"

    def test_a_zero_update(self, images, public):
        audit = Auditor(mlp(), 10, Setting(SHAPE, public)).audit(
            reply_of(mlp(), images, change=lambda before, after: before)
        )
        assert audit.verdict == "not shown"
        assert "the update is zero" in texts(audit.findings)

    def test_a_payload_that_is_made_to_steal_images_is_told(self, images, public):
        net = mlp()
        auditor = Auditor(net, 10, Setting(SHAPE, public))
        honest = auditor.audit(reply_of(net, images[:1]))
        assert "suspicious" not in texts(honest.findings)
        with torch.no_grad():
            net.layers[1].bias.copy_(-net.layers[1].weight.sum(1) / 2 - 0.1)
        told = texts(auditor.audit(reply_of(net, images[:1])).findings, "warning")
        assert "the model that the client was sent is suspicious" in told

    def test_a_payload_of_several_clients_is_looked_at_once(self, images, public, monkeypatch):
        seen = []
        monkeypatch.setattr(preflight, "detect", lambda state: seen.append(state) or detect(state))
        net = mlp()
        auditor = Auditor(net, 10, Setting(SHAPE, public))
        with torch.no_grad():
            net.layers[1].bias.copy_(-net.layers[1].weight.sum(1) / 2 - 0.1)
        told = [texts(auditor.audit(reply_of(net, images[n : n + 1])).findings) for n in (0, 1)]
        assert len(seen) == 1
        assert all("suspicious" in text for text in told)
        auditor.audit(reply_of(mlp(), images[:1]))
        assert len(seen) == 2, "another payload is another one"

    def test_what_cannot_be_read_cannot_be_told(self, images, public):
        audit = Auditor(MLP(10, 8, (64, 32)), 10, Setting(SHAPE, public)).audit(
            reply_of(mlp(), images)
        )
        assert audit.verdict == "cannot tell"
        assert "another model" in audit.reason

    def test_the_model_of_the_caller_stays_as_it_is(self, images, public):
        net = Net()
        before = copy.deepcopy(net.state_dict())
        Auditor(net, 10, Setting(SHAPE, public)).audit(reply_of(Net(), images[:4]))
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name])

    def test_equal_updates_are_told(self):
        found = compare_replies({"a": "1", "b": "2", "c": "1"})
        assert found.keys() == {"a", "c"}
        assert "that of c" in found["a"].text


FEATURES = {"rehearsed": 0.7, "floor": 0.1, "fit": 0.0, "agreement": 2.5, "natural": 0.85}


class TestConfidence:
    def test_it_lies_between_0_and_1_and_believes_what_speaks_for_an_image(self):
        good = FEATURES | {"rehearsed": 0.94, "floor": 2.0, "fit": -0.1, "agreement": 3.5}
        bad = FEATURES | {"rehearsed": 0.06, "floor": -1.5, "fit": 0.5, "natural": 0.4}
        assert 0 < confidence(bad) < 0.1 < SURE < confidence(good) < 1

    @pytest.mark.parametrize(
        ("name", "less", "more"),
        [
            ("rehearsed", 0.5, 0.9),
            ("floor", -0.3, 0.3),
            ("fit", 0.3, 0.0),
            ("agreement", 1.6, 3.4),
            ("natural", 0.5, 0.9),
        ],
    )
    def test_each_evidence_speaks_in_its_own_direction(self, name, less, more):
        low, high = (confidence(FEATURES | {name: value}) for value in (less, more))
        assert low < high

    def test_a_single_look_is_neither_agreement_nor_its_contrary(self):
        unlike, alone, like = (
            confidence(FEATURES | {"agreement": value}) for value in (1.5, 0.0, 3.5)
        )
        assert unlike < alone < like

    def test_right_is_19_dB_and_4_dB_above_the_best_control(self):  # noqa: N802
        values = margin(torch.tensor([18.9, 19.1, 25.0]), torch.tensor([10.0, 15.2, 20.0]))
        assert (values >= 0).tolist() == [False, False, True]

    def test_the_control_has_the_same_numbers_in_another_order(self):
        update = {"w": torch.arange(100.0).view(10, 10)}
        mixed = shuffled(update, 0)["w"]
        assert not torch.equal(mixed, update["w"])
        assert torch.equal(mixed.flatten().sort().values, update["w"].flatten())


def test_the_plan_follows_the_architecture(images, public):
    def plan(net, size):
        sent = read_reply(reply_of(net, images[:size]), net, SHAPE)
        training = Training(size, False, 0.1, 1, 0.0)
        return [one.name for one in plan_attacks(net, sent, training, Setting(SHAPE, public))[0]]

    assert plan(mlp(), 4) == ["LinearLayerInversion", "InvertingGradients"]
    lenet = LeNet(10, 8).requires_grad_(True)
    assert plan(lenet, 1)[0] == "RGAP"
    assert "RGAP" not in plan(lenet, 2)
    assert plan(lenet, 2)[-1] == "InvertingGradients"


@pytest.mark.parametrize(
    ("steps", "found", "said"),
    [
        (1, (None, None), "none fits clearly better than a single step"),
        (5, (0.1, 5), "5 steps at learning rate 0.1 fit best"),
    ],
)
def test_how_a_client_trained_is_told_by_the_fit(images, public, monkeypatch, steps, found, said):
    monkeypatch.setattr(scan, "RATES", (0.1,))
    monkeypatch.setattr(scan, "STEPS", (1, 5))
    torch.manual_seed(0)
    net = mlp()
    before = {name: value.detach().clone() for name, value in net.state_dict().items()}
    after = trained(net, images[:2], torch.tensor([1, 2]), steps)
    reply = Reply(1, "c", after, before, {"kind": "weights", "batch_size": 2})
    auditor = Auditor(net, 10, Setting(SHAPE, public, "thorough"))
    sent = read_reply(reply, auditor.target, SHAPE)
    training = auditor.training(reply, sent)
    scanned = scan.scan(auditor.target, sent, training, auditor.setting)
    assert (scanned.training.learning_rate, scanned.training.steps) == found
    assert said in scanned.text


class TestMode:
    """The mode of batch norm: assumed, and then said, or given, and then simulated."""

    def audit(self, net, images, public, mode=None):
        auditor = Auditor(net, 10, Setting(SHAPE, public), batch_size=2, mode=mode)
        reply = reply_of(net, images[:2])
        training = auditor.training(reply, read_reply(reply, auditor.target, SHAPE))
        empty = reply._replace(tensors=reply.payload)  # nothing to attack
        return texts(auditor.audit(empty).findings), training.mode

    def test_it_is_said_where_it_matters(self, images, public):
        said, mode = self.audit(Net(), images, public)
        assert mode == "train"
        assert "assumed to have computed in train mode" in said
        said, mode = self.audit(Net(), images, public, "eval")
        assert mode == "eval"
        assert "train mode" not in said
        assert "train mode" not in self.audit(mlp(), images, public)[0]

    @pytest.mark.parametrize("rate", [0.1, None])
    def test_the_attacks_simulate_it(self, images, public, rate):
        net = Net()
        sent = read_reply(reply_of(net, images[:2]), ModuleTarget(net, 10), SHAPE)
        training = Training(2, False, rate, 1, 0.0, "eval")
        target = ModuleTarget(net, 10)
        assert matching(target, sent, training, Setting(SHAPE, public), 0).client.mode == "eval"


@pytest.fixture
def captured(tmp_path, images, monkeypatch):
    """A capture of three clients, and the truth of one: the canary."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(\n"
        "            nn.Flatten(), nn.Linear(192, 96), nn.ReLU(), nn.Linear(96, 10)\n"
        "        )\n"
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 96), nn.ReLU(), nn.Linear(96, 10))
    writer = CaptureWriter("capture", "a test", image_shape=list(SHAPE))
    payload = writer.add_payload(net.state_dict())
    for client in range(3):
        batch = images[2 * client : 2 * client + 2]
        after = trained(net, (batch - 0.5) / 0.25, torch.arange(2))
        writer.add_reply(1, client, after, "weights", payload)
    write_truth("truth", 1, 0, images[:2], torch.arange(2))
    return tmp_path


class TestCommand:
    def run(self, *args):
        return plain.main(["audit", "capture", *args])

    ARGS = ("--model", "my_net:Net", "--normalize", ".5", ".25")

    def test_from_a_capture_to_verdicts_and_a_page(self, captured, capsys):
        assert self.run(*self.ARGS, "--truth", "truth", "--output", "out") == 0
        said = capsys.readouterr().out
        assert said.count("LEAKED") == 3
        assert "by the truth: 2 of 2 images right" in said
        content = json.loads((captured / "out" / "audit.json").read_text())
        assert content["summary"]["leaked"] == 3
        assert content["summary"]["clients_with_truth"] == 1
        page = (captured / "out" / "report.html").read_text()
        assert "Audit of a real federation" in page
        assert page.count("data:image/png") >= 6
        assert len(list((captured / "out" / "reconstructions").glob("*_00?.png"))) == 6
        (captured / "out" / "report.html").unlink()
        assert plain.main(["report", "out"]) == 0
        assert (captured / "out" / "report.html").read_text() == page

    def test_a_canary_has_a_local_estimate(self, captured, capsys):
        known = ("--truth", "truth", "--lr", ".1", "--steps", "1", "--estimate")
        assert self.run(*self.ARGS, *known, "--output", "out") == 0
        assert "by the mean squared error: mean image" in capsys.readouterr().out
        content = json.loads((captured / "out" / "audit.json").read_text())
        truths = [client["truth"] for client in content["clients"] if client["truth"]]
        (found,) = [truth["local_estimate"] for truth in truths]
        assert found["psnr"] > found["psnr_mean_image"] + 3
        assert "a linearised attacker" in (captured / "out" / "report.html").read_text()

    def test_an_estimate_needs_the_truth(self, captured, capsys):
        assert self.run(*self.ARGS, "--estimate", "--output", "out") == 2
        assert "add --truth FOLDER" in capsys.readouterr().err

    def test_an_audit_that_was_stopped_goes_on_and_another_is_refused(self, captured, capsys):
        assert self.run(*self.ARGS, "--output", "out") == 0
        first = (captured / "out" / "clients.csv").read_text()
        done = sorted((captured / "out" / "clients").iterdir())
        kept = {path: path.stat().st_mtime_ns for path in done[:2]}
        done[2].unlink()
        (captured / "out" / "audit.json").unlink()
        assert self.run(*self.ARGS, "--output", "out") == 0
        assert (captured / "out" / "clients.csv").read_text() == first
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        capsys.readouterr()
        assert self.run(*self.ARGS, "--seed", "1", "--output", "out") == 2
        assert "other settings" in capsys.readouterr().err

    def test_a_broken_reply_is_told_and_the_others_are_audited(self, captured, capsys):
        path = sorted(captured.glob("capture/rounds/*/*.safetensors"))[1]
        path.write_bytes(path.read_bytes()[:100])
        assert self.run(*self.ARGS, "--output", "out") == 0
        said = capsys.readouterr().out
        assert said.count("LEAKED") == 2
        assert "truncated" in said

    @pytest.mark.parametrize(
        ("args", "reason"),
        [
            (("--model", "my_net:Nett"), "did you mean Net"),
            (("--model", "my_nett:Net"), "no module my_nett"),
            (("--model", "my_net:Net", "--normalize", "a", "1"), "--normalize takes"),
            (("--model", "my_net:Net", "--normalize", ".1,.2", "1"), "2 numbers for 3 channels"),
            (("--model", "my_net:Net", "--image-shape", "1", "8", "8"), "does not take images"),
            (("--model", "my_net:Net", "--model-args", "{"), "should be JSON"),
            (("--model", "my_net:Net", "--truth", "nowhere"), "no folder"),
        ],
    )
    def test_bad_input_is_one_line(self, captured, capsys, args, reason):
        assert self.run(*args, "--output", "out") == 2
        said = capsys.readouterr().err
        assert reason in said
        assert len(said.strip().splitlines()) == 1
        assert not (captured / "out").exists()
