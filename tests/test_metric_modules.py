import inspect
import socket
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torchmetrics import Metric

from lightning_recon import metrics
from lightning_recon.functional import image_quality
from lightning_recon.functional.registration import registered_psnr
from lightning_recon.metrics import (
    MSE,
    PSNR,
    SSIM,
    ComplexWaveletSSIM,
    FrechetDistance,
    IdentificationRate,
    ImageIdentifiabilityPrecision,
    KernelDistance,
    LabelAccuracy,
    MultiScaleSSIM,
    PerImageMetric,
    RegisteredPSNR,
    TagJaccard,
)
from lightning_recon.targets import LeNet

IMAGE_METRICS = {
    MSE: image_quality.mse,
    PSNR: image_quality.psnr,
    RegisteredPSNR: registered_psnr,
    SSIM: image_quality.ssim,
    MultiScaleSSIM: image_quality.ms_ssim,
    ComplexWaveletSSIM: image_quality.cw_ssim,
}
WITH_MASKS = [metric for metric in IMAGE_METRICS if metric is not MultiScaleSSIM]


def images(count=10, size=32, channels=3, seed=0):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def pairs(count=10, size=32):
    target = images(count, size)
    return (target + 0.2 * images(count, size, seed=1) - 0.1).clamp(0, 1), target


def block_masks(count=10, size=32):
    masks = torch.zeros(count, 1, size, size, dtype=torch.bool)
    for i, mask in enumerate(masks):
        mask[:, 5 : 15 + i, 8:28] = True
    return masks


class Colours(nn.Module):
    """Twelve features: the means of four quarters in each channel."""

    num_features = 12

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def public_metrics():
    members = [getattr(metrics, name) for name in metrics.__all__]
    return [m for m in members if issubclass(m, Metric) and m is not PerImageMetric]


def test_the_table_lists_every_metric_and_its_better_direction():
    rows = [line.split() for line in metrics.__doc__.splitlines()]
    for metric in public_metrics():
        (row,) = [row for row in rows if row and row[0] == metric.__name__]
        assert metric.higher_is_better == ("high" in row), metric
        assert ("low" in row) != ("high" in row)
        assert inspect.getdoc(metric)
    assert len(public_metrics()) == 15


# means over images


@pytest.mark.parametrize("metric", IMAGE_METRICS)
def test_the_module_is_the_mean_of_the_function(metric):
    preds, target = pairs()
    module = metric()
    for part in (slice(0, 1), slice(1, 7), slice(7, 10)):
        module.update(preds[part], target[part])
    expected = IMAGE_METRICS[metric](preds, target)
    torch.testing.assert_close(module.per_image(), expected)
    assert module.compute().item() == pytest.approx(np.mean(expected.double().numpy()), rel=1e-6)
    module.reset()
    assert len(module.per_image()) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics: compute before update
        assert module.compute().isnan()


@pytest.mark.parametrize("metric", WITH_MASKS)
def test_masks_restrict_the_score_to_the_subject(metric):
    (preds, target), masks = pairs(), block_masks()
    module = metric()
    module.update(preds, target, masks)
    torch.testing.assert_close(module.per_image(), IMAGE_METRICS[metric](preds, target, masks))
    assert (module.per_image() != IMAGE_METRICS[metric](preds, target)).all()


def test_arguments_reach_the_function():
    preds, target = pairs()
    for module, expected in (
        (PSNR(cap=15.0), image_quality.psnr(preds, target, cap=15.0)),
        (RegisteredPSNR(2, True, 22.0), registered_psnr(preds, target, None, 2, True, 22.0)),
    ):
        module.update(preds, target)
        torch.testing.assert_close(module.per_image(), expected)
        assert not torch.equal(expected, IMAGE_METRICS[type(module)](preds, target))


def test_the_mean_does_not_depend_on_the_order():
    preds, target = pairs()
    results = set()
    for seed in range(20):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
        module = PSNR()
        for part in order.split(3):
            module.update(preds[part], target[part])
        results.add(module.compute().item())
    assert len(results) == 1


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_the_sum_is_rounded_once():
    module = MSE().set_dtype(torch.float64)
    for value in (1e16, 1.0, 1.0, -1e16):
        module.append(torch.tensor([value], dtype=torch.float64))
    assert module.compute() == 0.5


def test_forward_gives_the_batch_and_keeps_the_whole():
    preds, target = pairs()
    module = PSNR()
    values = [module(preds[part], target[part]) for part in (slice(0, 4), slice(4, 10))]
    expected = image_quality.psnr(preds, target)
    torch.testing.assert_close(
        torch.stack(values), torch.stack([expected[:4].mean(), expected[4:].mean()])
    )
    torch.testing.assert_close(module.compute(), expected.mean())


def test_values_can_be_kept_in_double_precision():
    preds, target = (z.double() for z in pairs())
    module = SSIM().set_dtype(torch.float64)
    module.update(preds, target)
    assert torch.equal(module.per_image(), image_quality.ssim(preds, target))
    assert module.compute().dtype == torch.float64


def test_a_failed_image_shows():
    preds, target = pairs()
    preds[3] = torch.nan
    module = MSE()
    module.update(preds, target)
    assert module.per_image().isnan().sum() == 1
    assert module.compute().isnan()


# identification, tags and labels


def test_identification_rate():
    candidates = images(200, 64)
    index = torch.tensor([7, 190, 33, 2])
    preds = candidates[index] + 0.1 * images(4, 64, seed=1)
    preds[2] = candidates[5]  # someone else
    preds[3] = 0.5
    pool = torch.cat([candidates, candidates[190:191]])  # one truth is there twice: a tie
    module = IdentificationRate()
    module.update(preds[:3], candidates, index[:3])
    module.update(preds[3:], candidates * 0 + 0.5, index[3:])  # all the same: a tie
    assert module.per_image().tolist() == [1, 1, 0, 0]
    assert module.compute() == 0.5
    module.update(preds[1:2], pool, index[1:2])
    assert module.per_image().tolist() == [1, 1, 0, 0, 0]


def test_chance_identifies_one_in_n():
    candidates, index = images(20, 8), torch.arange(20).repeat(50)
    module = IdentificationRate()
    module.update(images(1000, 8, seed=1), candidates, index)
    assert 0.02 < module.compute() < 0.09


def test_identification_within_masks():
    candidates, masks = images(50, 64), torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    masks[..., 10:50, 10:50] = True
    preds = candidates[[3, 8]] * masks
    whole, subject = IdentificationRate(), IdentificationRate(size=16)
    black = torch.cat([candidates[:49], candidates[:1] * 0])
    whole.update(preds * 0.3, black, torch.tensor([3, 8]))
    subject.update(preds * 0.9, black, torch.tensor([3, 8]), masks)
    assert (whole.compute(), subject.compute()) == (0, 1)


def test_image_identifiability_among_the_same_class():
    candidates, labels = images(30), torch.arange(30) % 3
    index = torch.tensor([4, 9])
    preds = torch.stack([0.6 * candidates[5] + 0.4 * candidates[4], candidates[9]])
    among_all, in_class = ImageIdentifiabilityPrecision(), ImageIdentifiabilityPrecision()
    among_all.update(preds, candidates, index)
    in_class.update(preds, candidates, index, labels)
    assert among_all.per_image().tolist() == [0, 1]  # 5 is nearer than 4, and of another class
    assert in_class.per_image().tolist() == [1, 1]


def test_image_identifiability_by_features():
    candidates = images(100)
    preds = candidates[[8, 70, 20]].flip(3).roll(9, dims=2) + 0.02 * images(3, seed=1)
    index = torch.tensor([8, 70, 20])

    class Averages(nn.Module):
        def forward(self, x):
            return x.mean(dim=(2, 3))

    averages = candidates.mean(dim=(2, 3))
    distances = (preds.mean(dim=(2, 3))[:, None] - averages).double().norm(dim=2)
    expected = (distances.argmin(dim=1) == index).float()
    module = ImageIdentifiabilityPrecision(Averages())
    module.update(preds, candidates, index)
    assert torch.equal(module.per_image(), expected)
    exact = ImageIdentifiabilityPrecision(Averages())
    exact.update(candidates[index].flip(3), candidates, index)
    assert exact.compute() == 1
    pixels = ImageIdentifiabilityPrecision()
    pixels.update(candidates[index].flip(3), candidates, index)
    assert pixels.compute() < 1


def test_tag_jaccard_of_a_classifier():
    classifier = LeNet(num_classes=20)
    preds, target = pairs(6)
    module = TagJaccard(classifier, num_tags=4)
    module.update(preds, target)
    classifier.eval()
    expected = []
    for scores, true_scores in zip(classifier(preds), classifier(target), strict=True):
        tags, true_tags = (
            {k for k, _ in sorted(enumerate(s.tolist()), key=lambda pair: -pair[1])[:4]}
            for s in (scores, true_scores)
        )
        expected.append(len(tags & true_tags) / len(tags | true_tags))
    assert module.per_image().tolist() == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_label_accuracy_adds_up_over_batches():
    module = LabelAccuracy()
    assert module.compute().isnan()
    module.update(torch.tensor([3, 1, 1, 2]), torch.tensor([1, 3, 1, 5]))  # 3 of 4
    module.update(torch.tensor([7]), torch.tensor([9]))
    module.update(torch.tensor([], dtype=torch.int64), torch.tensor([9]))
    assert module.compute().item() == pytest.approx(3 / 6)


# two processes


def everything(own):
    """All metrics that need no file, with the arguments of an update with a share of ten images."""
    (all_preds, truths), masks = pairs(), block_masks()[own]
    preds, target, index = all_preds[own], truths[own], torch.arange(10)[own]
    preds = torch.where((index == 1)[:, None, None, None], 0.9 * truths[:1], preds)  # a miss
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    return [
        *((metric(), (preds, target)) for metric in IMAGE_METRICS),
        *((metric(), (preds, target, masks)) for metric in WITH_MASKS),
        (TagJaccard(classifier), (preds, target)),
        (FrechetDistance(Colours()), (preds, target)),
        (KernelDistance(Colours()), (preds, target)),
        (IdentificationRate(), (preds, truths, index)),
        (ImageIdentifiabilityPrecision(), (preds, truths, index)),
        (LabelAccuracy(), (index // 3, index // 2)),
    ]


SHARES = {first: [slice(0, first), slice(first, 10)] for first in (3, 0)}


def _one_of_two(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for first, shares in SHARES.items():
        values, counts = [], []
        for module, arguments in everything(shares[rank]):
            if len(arguments[0]):
                module.update(*arguments)
            values.append(module.compute().double())
            if isinstance(module, PerImageMetric):
                with module.sync_context():
                    counts.append(len(module.per_image()))
        torch.save((torch.stack(values), counts), folder / f"{first}_{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """What each of two processes finds, by how many images the first one has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(_one_of_two, args=(port, folder), nprocs=2)
    return {
        first: [torch.load(folder / f"{first}_{rank}.pt") for rank in (0, 1)] for first in SHARES
    }


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("first", SHARES, ids=["uneven", "nothing on one"])
def test_two_processes_give_the_figures_of_one(first, of_two_processes):
    shares = SHARES[first]
    parts = [everything(own) for own in shares if own.stop > own.start]
    modules = [module for module, _ in parts[0]]
    for part in parts:  # the labels of a batch are one update each, as in the processes
        for module, (_, arguments) in zip(modules, part, strict=True):
            module.update(*arguments)
    expected = torch.stack([module.compute().double() for module in modules])
    is_exact = torch.tensor([not isinstance(module, FrechetDistance) for module in modules])
    for values, counts in of_two_processes[first]:
        assert torch.equal(values[is_exact], expected[is_exact])
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-12)
        assert counts == [10] * 14
    assert len(expected.unique()) > 10
