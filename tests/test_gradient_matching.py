from functools import partial

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn

from lightning_recon.attacks import DLG, IDLG, GradientMatching, MultiScale, ROGAttack
from lightning_recon.attacks.gradient_matching import KNOWN
from lightning_recon.attacks.matching.batched import stack_clients
from lightning_recon.audit.matching import match
from lightning_recon.clients import Aggregate, FedAvg, FedSGD, MixUp
from lightning_recon.data import SampleImagesDataModule
from lightning_recon.defenses import QSGD, ClipL2, GaussianNoise, TopK
from lightning_recon.errors import InputError
from lightning_recon.functional.gradient_distance import DISTANCES
from lightning_recon.functional.image_quality import psnr
from lightning_recon.priors import BatchNormStatistics
from lightning_recon.refiners import Refiner
from lightning_recon.targets import ConvNet, LeNet, ROGLeNet, Target

pytestmark = pytest.mark.usefixtures("one_thread")


def distances(attack, images, evidence):
    return attack.differentiate(images, evidence)[0]["matching"].detach()


def adam(parameters, lr=0.05):
    return torch.optim.Adam(parameters, lr=lr)


def make(**arguments):
    arguments = {
        "target": ROGLeNet(num_classes=20, image_size=32),
        "iterations": 5,
        "optimizer": adam,
        **arguments,
    }
    attack = ROGAttack(**arguments)
    attack.data = SampleImagesDataModule(batch_size=4, num_clients=2, image_size=32)
    attack.bind(attack.data.spec, attack.data.public_images())
    return attack


def test_the_matching_loop_is_the_plain_one():
    attack = make(iterations=30)
    batch = attack.data.client(0)
    found = attack.reconstruct(attack.federation.play(batch, 0))

    network = ROGLeNet(num_classes=20, image_size=32)
    parameters = list(network.parameters())
    observed = torch.autograd.grad(F.cross_entropy(network(batch.images), batch.labels), parameters)
    start, _ = attack.initialize(attack.federation.play(batch, 0))
    latent = start.clone().requires_grad_()
    optimizer = adam([latent])
    for _ in range(30):
        images = F.interpolate(latent, scale_factor=4, mode="bicubic")
        loss = F.cross_entropy(network(images), batch.labels)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        distance = sum((a - b).square().sum() for a, b in zip(gradients, observed, strict=True))
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
        with torch.no_grad():
            latent.clamp_(0, 1)
    plain = F.interpolate(latent, scale_factor=4, mode="bicubic").detach().clamp(0, 1)
    torch.testing.assert_close(found.images, plain, rtol=0, atol=1e-4)
    assert found.labels.tolist() == batch.labels.tolist()
    assert psnr(found.images, batch.images).mean() > 14
    assert found.curve[-1][1] < found.curve[0][1] / 4


@pytest.mark.parametrize("target", [ROGLeNet(20, 32), ConvNet(num_classes=20, width=4)])
@pytest.mark.parametrize("client", [FedSGD(), FedAvg(0.01, 2, 2, momentum=0.5)])
def test_restarts_run_together_as_they_would_one_by_one(target, client):
    together = make(target=target, client=client, num_restarts=3, upsampling=1)
    observation = together.federation.play(together.data.client(0), 0)
    start, evidence = together.initialize(observation)
    assert not torch.equal(start[:4], start[4:8])
    values = distances(together, start, evidence)
    alone = make(target=target, client=client, upsampling=1)
    for restart in range(3):
        part = start[4 * restart : 4 * restart + 4]
        value = distances(alone, part, evidence)
        torch.testing.assert_close(value[0], values[restart], rtol=1e-4, atol=1e-7)


def test_the_restart_of_least_objective_is_returned():
    attack = make(num_restarts=3, upsampling=1)
    batch = attack.data.client(0)
    start, evidence = attack.initialize(attack.federation.play(batch, 0))
    start[4:8] = batch.images
    found = attack.finish(start, evidence)
    torch.testing.assert_close(found.images, batch.images)
    assert found.score.shape == (4,)
    assert float(found.score[0]) < 1e-6


@pytest.mark.parametrize("distance", sorted(DISTANCES))
@pytest.mark.parametrize("client", [FedSGD(), FedAvg(0.01, 3)])
def test_the_truth_is_at_distance_zero(distance, client):
    attack = make(client=client, distance=distance, upsampling=1)
    batch = attack.data.client(0)
    _, evidence = attack.initialize(attack.federation.play(batch, 0))
    other = attack.data.client(1)
    at_truth = float(distances(attack, batch.images, evidence))
    elsewhere = float(distances(attack, other.images, evidence))
    assert abs(at_truth) < 1e-5
    assert elsewhere > 1e-4
    assert elsewhere > 100 * abs(at_truth)


def test_an_unknown_local_rate_is_fitted():
    attack = make(client=FedAvg(0.37), known=["labels"], distance="relative", upsampling=1)
    batch = attack.data.client(0)
    observation = attack.federation.play(batch, 0)
    assert observation.client is None
    _, evidence = attack.initialize(observation)
    assert evidence.scale is None
    assert float(distances(attack, batch.images, evidence)) < 1e-6


def test_the_adaptive_attacker_clips_as_the_client_does_and_the_naive_one_does_not():
    for adaptive in (True, False):
        attack = make(
            defenses=[ClipL2(0.01), GaussianNoise(1e-9)],
            adaptive=adaptive,
            distance="relative",
            upsampling=1,
        )
        batch = attack.data.client(0)
        observation = attack.federation.play(batch, 0)
        assert (observation.defenses is not None) is adaptive
        assert ("defenses" in attack.oracles) is adaptive
        _, evidence = attack.initialize(observation)
        value = float(distances(attack, batch.images, evidence))
        assert (value < 1e-6) is adaptive


@pytest.mark.parametrize(
    "client",
    [
        FedAvg(1e-3, 6, momentum=0.9),
        Aggregate(FedAvg(1e-3, 6), 2),
        MixUp(FedAvg(1e-3, 6), alpha=1e-3),
    ],
    ids=["momentum", "aggregate", "mixup"],
)
def test_labels_are_inferred_from_the_sum_of_local_gradients(client, monkeypatch):
    seen = {}

    def infer(method, weight, bias, num_samples, **options):
        seen.update(weight=weight, scale=options["scale"])
        return torch.zeros(num_samples, dtype=torch.int64)

    monkeypatch.setattr("lightning_recon.attacks.gradient_matching.infer_labels", infer)
    attack = make(client=client, known=["num_samples", "client"], adaptive=True)
    batch = attack.data.client(0)
    attack.initialize(attack.federation.play(batch, 0))
    gradient = FedSGD()(attack.federation.payload, batch, seed=0)
    last = list(gradient)[-1]
    assert seen["scale"] == 1
    assert (seen["weight"] - gradient[last]).norm() < 0.05 * gradient[last].norm()


def test_priors_see_the_statistics_of_the_batch_where_buffers_are_granted():
    found = {}
    for known in (KNOWN, (*KNOWN, "buffers")):
        attack = make(
            target=ConvNet(20, width=4),
            upsampling=1,
            known=known,
            priors=[BatchNormStatistics(1.0)],
        )
        batch, other = attack.data.client(0), attack.data.client(1)
        observation = attack.federation.play(batch, 0)
        assert (observation.buffers is None) is (known == KNOWN)
        _, evidence = attack.initialize(observation)
        with attack.engine.simulating(evidence):
            found[known] = [
                float(attack.objective(images, evidence)["BatchNormStatistics"].detach())
                for images in (batch.images, other.images)
            ]
    assert found[KNOWN] == [0, 0], "an untrained model has no running statistics"
    at_truth, elsewhere = found[(*KNOWN, "buffers")]
    assert at_truth < 1e-4
    assert elsewhere > 1e-2


def test_clients_attacked_together_keep_their_own_statistics():
    attack = make(
        target=ConvNet(20, width=4),
        upsampling=1,
        num_restarts=2,
        known=(*KNOWN, "buffers"),
        priors=[BatchNormStatistics(1.0)],
    )
    starts, evidences = zip(
        *(attack.initialize(attack.federation.play(attack.data.client(i), i)) for i in range(2)),
        strict=True,
    )
    together, gradient = attack.differentiate(torch.cat(starts), stack_clients(evidences))
    for client, (start, evidence) in enumerate(zip(starts, evidences, strict=True)):
        alone, expected = attack.differentiate(start, evidence)
        found = together["BatchNormStatistics"][2 * client : 2 * client + 2]
        torch.testing.assert_close(found, alone["BatchNormStatistics"], rtol=1e-4, atol=1e-7)
        scale = expected.abs().max()
        assert (gradient[8 * client : 8 * client + 8] - expected).abs().max() < 1e-4 * scale


def test_what_is_not_known_is_not_observed_and_labels_are_inferred():
    attack = make(known=["num_samples"])
    batch = attack.data.client(0)
    observation = attack.federation.play(batch, 0)
    assert (observation.labels, observation.client, observation.defenses) == (None, None, None)
    found = attack.reconstruct(observation)
    assert sorted(found.labels.tolist()) == sorted(batch.labels.tolist())
    assert found.notes["labels_inferred"] == 4
    with pytest.raises(InputError, match="num_samples"):
        make(known=[]).reconstruct(observation._replace(num_samples=None))


def test_line_searches_and_single_steps_both_drive_the_dummies():
    losses = []
    for optimizer in (adam, lambda p: torch.optim.LBFGS(p, lr=1.0, max_iter=5)):
        attack = make(optimizer=optimizer, iterations=6)
        found = attack.reconstruct(attack.federation.play(attack.data.client(0), 0))
        losses.append(found.curve[-1][1] / found.curve[0][1])
    assert max(losses) < 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"known": ["images"]}, "known may hold"),
        ({"distance": "angle"}, "distance must be"),
        ({"num_restarts": 0}, "num_restarts"),
        ({"upsampling": 0}, "upsampling"),
        ({"patience": 0}, "patience"),
        ({"compile": "fast"}, "compile must be true, false, default"),
        ({"clients_at_once": 0}, "clients_at_once must be at least 1"),
        ({"clients_at_once": 2, "optimizer": torch.optim.LBFGS}, "LBFGS mixes what it optimises"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        make(**arguments)
    assert "\n" not in str(caught.value)


def test_images_that_have_no_latent_are_refused():
    with pytest.raises(InputError, match="upsampling"):
        _ = make(upsampling=5).dummy_shape
    assert issubclass(ROGAttack, GradientMatching)


def test_a_compiled_iteration_of_clients_and_restarts_is_the_eager_one():
    target = LeNet(num_classes=20)
    eager = make(target=target, num_restarts=2, upsampling=1)
    compiled = make(target=target, num_restarts=2, upsampling=1, compile="default")
    begun = [eager.initialize(eager.federation.play(eager.data.client(c), c)) for c in (0, 1)]
    expected = [eager.differentiate(start, evidence) for start, evidence in begun]
    again = [
        compiled.initialize(compiled.federation.play(compiled.data.client(c), c)) for c in (0, 1)
    ]
    parts, gradient = compiled.differentiate(
        torch.cat([start for start, _ in again]), stack_clients([e for _, e in again])
    )
    values = torch.cat([parts["matching"] for parts, _ in expected])
    torch.testing.assert_close(parts["matching"], values, rtol=1e-5, atol=0)
    wanted = torch.cat([gradient for _, gradient in expected])
    scale = wanted.abs().max()
    torch.testing.assert_close(gradient / scale, wanted / scale, rtol=0, atol=1e-5)


def test_what_is_compiled_has_its_channels_last_and_the_target_stays_as_it_was():
    target = LeNet(num_classes=20)
    attack = make(target=target, upsampling=1, compile=True)
    payloads = [
        attack.initialize(attack.federation.play(attack.data.client(client), client))[1].payload
        for client in (0, 1)
    ]
    assert payloads[0] is payloads[1]  # compiled once
    weights = [dict(model.named_parameters()) for model in (target, payloads[0])]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name])
        assert weight.is_contiguous()
        if weight.ndim == 4 and min(weight.shape[1:]) > 1:
            assert weights[1][name].is_contiguous(memory_format=torch.channels_last)
            assert not weights[1][name].is_contiguous()
    eager = make(target=target, upsampling=1)
    _, evidence = eager.initialize(eager.federation.play(eager.data.client(0), 0))
    assert evidence.payload is target


def test_where_memory_is_short_fewer_restarts_run_at_once(monkeypatch):
    attack = make(num_restarts=4, upsampling=1)
    start, evidence = attack.initialize(attack.federation.play(attack.data.client(0), 0))
    _, expected = attack.differentiate(start, evidence)
    real = attack.engine._differentiate

    def short(dummy, evidence):
        if len(dummy) > 4:
            raise torch.OutOfMemoryError("too much")
        return real(dummy, evidence)

    monkeypatch.setattr(attack.engine, "_differentiate", short)
    _, gradient = attack.differentiate(start, evidence)
    assert attack.engine.restarts_at_once == 1
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
    assert attack.finish(start, evidence).notes["restarts_at_once"] == 1

    def broken(dummy, evidence):
        raise RuntimeError("something else")

    monkeypatch.setattr(attack.engine, "_differentiate", broken)
    with pytest.raises(RuntimeError, match="something else"):
        attack.differentiate(start, evidence)


def test_a_restart_that_is_not_finite_stops_alone_and_is_counted():
    attack = make(num_restarts=3, upsampling=1, iterations=3)
    observation = attack.federation.play(attack.data.client(0), 0)
    start, evidence = attack.initialize(observation)
    lost = start.clone()
    lost[4:8] = torch.nan
    attack.initialize = lambda observation: (lost, evidence)
    found = attack.reconstruct(observation)
    assert found.notes["restarts_not_finite"] == 1
    assert found.images.isfinite().all()
    assert all(value == value for _, value in found.curve)
    attack.initialize = lambda observation: (start, evidence)
    whole = attack.reconstruct(observation)
    if float(whole.score[0]) == float(found.score[0]):
        torch.testing.assert_close(found.images, whole.images)
    assert "restarts_not_finite" not in whole.notes


def test_a_client_is_left_on_a_plateau():
    still = lambda parameters: torch.optim.SGD(parameters, lr=0.0)  # noqa: E731
    attack = make(optimizer=still, iterations=40, patience=7)
    observation = attack.federation.play(attack.data.client(0), 0)
    assert [place for place, _ in attack.reconstruct(observation).curve] == list(range(8))
    patient = make(optimizer=still, iterations=40)
    assert len(patient.reconstruct(observation).curve) == 40
    moving = make(iterations=20, patience=7)
    assert len(moving.reconstruct(observation).curve) == 20


class TestAnalyticStart:
    """The first restart begins with what the linear layers' gradients tell."""

    @pytest.mark.parametrize(
        ("defenses", "adaptive"), [([], False), ([], True), ([QSGD(16)], True), ([TopK(0.9)], True)]
    )
    def test_it_is_like_the_truth_and_the_other_restarts_are_not(self, defenses, adaptive):
        attack = make(
            analytic_start=True, defenses=defenses, adaptive=adaptive, upsampling=1, num_restarts=2
        )
        batch = attack.data.client(0)
        start, evidence = attack.initialize(attack.federation.play(batch, 0))
        noise, _ = make(
            defenses=defenses, adaptive=adaptive, upsampling=1, num_restarts=2
        ).initialize(attack.federation.play(batch, 0))
        assert evidence.notes["analytic_start"] == 1
        mean = attack.data.public_images().mean(0).expand_as(batch.images)
        assert psnr(start[:4], batch.images).mean() > psnr(mean, batch.images).mean() + 3
        assert psnr(start[:4], batch.images).mean() > psnr(noise[:4], batch.images).mean() + 5
        assert torch.equal(start[4:], noise[4:])

    @pytest.mark.parametrize("known", [["labels", "client"], ["num_samples", "client"], ["labels"]])
    def test_it_holds_whatever_is_granted(self, known):
        attack = make(analytic_start=True, known=known, upsampling=1, client=FedAvg(0.01, 3))
        batch = attack.data.client(0)
        start, _ = attack.initialize(attack.federation.play(batch, 0))
        order = match(start, batch.images).row
        mean = attack.data.public_images().mean(0).expand_as(batch.images)
        assert psnr(start[order], batch.images).mean() > psnr(mean, batch.images).mean() + 2
        assert start.requires_grad is False

    def test_matching_goes_on_from_it(self):
        arguments = {"analytic_start": True, "upsampling": 1, "iterations": 40}
        attack = make(optimizer=partial(adam, lr=0.003), **arguments)
        batch = attack.data.client(0)
        observation = attack.federation.play(batch, 0)
        start, _ = attack.initialize(observation)
        found = attack.reconstruct(observation)
        assert psnr(found.images, batch.images).mean() > psnr(start, batch.images).mean() + 0.5

    def test_a_decoded_latent_is_found_again(self):
        attack = make(upsampling=2)
        latent = 0.3 + 0.4 * torch.rand(2, *attack.dummy_shape)
        torch.testing.assert_close(attack.encode(attack.decode(latent)), latent)

    def test_dummies_of_idlg_and_of_several_scales(self):
        images = torch.rand(2, 3, 32, 32)
        idlg, scales = IDLG(LeNet()), MultiScale(LeNet())
        torch.testing.assert_close(idlg.decode(idlg.encode(images)), images)
        coarse = scales.encode(images)
        assert coarse.shape == images.shape
        assert coarse.std() < images.std() / 2

    def test_what_has_none_says_so(self):
        with pytest.raises(InputError, match="DLG has no analytic_start"):
            DLG(LeNet(), analytic_start=True)
        attack = make(target=NoLinear(), analytic_start=True, upsampling=1)
        with pytest.raises(InputError, match="without analytic_start"):
            attack.initialize(attack.federation.play(attack.data.client(0), 0))


def test_a_refiner_gets_the_pictures_and_their_labels():
    class Darker(Refiner):
        def forward(self, images, labels=None):
            return 0.5 * images + 0.01 * labels[:, None, None, None].sign()

    plain = make()
    batch = plain.data.client(0)
    observation = plain.federation.play(batch, 0)
    found = [attack.reconstruct(observation) for attack in (plain, make(refiner=Darker()))]
    expected = 0.5 * found[0].images + 0.01 * batch.labels[:, None, None, None].sign()
    torch.testing.assert_close(found[1].images, expected.clamp(0, 1))
    assert [one.notes["refined"] for one in found] == [0, 1]


class NoLinear(Target):
    """Convolutions alone."""

    def __init__(self):
        super().__init__(20)
        self.convolution = nn.Conv2d(3, 20, 3)

    def forward(self, images):
        return self.convolution(images).mean((2, 3))


@pytest.mark.parametrize("has_bar", [True, False])
def test_the_progress_bar_shows_the_objective_between_what_is_logged(tmp_path, has_bar):
    attack = make(iterations=3)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=tmp_path,
        logger=False,
        log_every_n_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=has_bar,
    )
    trainer.fit(attack, datamodule=attack.data)
    assert ("objective" in trainer.progress_bar_metrics) == has_bar
