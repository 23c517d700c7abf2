import itertools

import pytest
import torch

from lightning_recon.audit.matching import match


def _images(count, seed, size=4):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def _total(row, reconstructions, truths):
    pairs = [(int(r), i) for i, r in enumerate(row) if r >= 0]
    return sum(float((reconstructions[r] - truths[i]).square().mean()) for r, i in pairs)


@pytest.mark.parametrize("num_reconstructions", range(6))
@pytest.mark.parametrize("num_truths", [1, 3, 5])
def test_the_assignment_is_as_cheap_as_the_best_of_all(num_reconstructions, num_truths):
    reconstructions, truths = _images(num_reconstructions, 1), _images(num_truths, 2)
    row = match(reconstructions, truths).row

    pairs = min(num_reconstructions, num_truths)
    used = row[row >= 0].tolist()
    assert row.shape == (num_truths,)
    assert row.dtype == torch.int64
    assert len(used) == len(set(used)) == pairs
    assert set(used) <= set(range(num_reconstructions))

    # Brute force: every way to place the shorter side's members on the longer side's.
    totals = []
    for places in itertools.permutations(range(max(num_reconstructions, num_truths)), pairs):
        candidate = [-1] * num_truths
        for here, there in enumerate(places):
            if num_reconstructions <= num_truths:
                candidate[there] = here
            else:
                candidate[here] = there
        totals.append(_total(candidate, reconstructions, truths))
    assert _total(row, reconstructions, truths) == pytest.approx(min(totals), abs=1e-6)


def test_copies_are_found_in_any_order():
    truths = _images(5, 0)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert match(truths[order], truths).row.tolist() == order.argsort().tolist()


def test_near_copies_are_told_apart():
    base = _images(1, 0, size=32)
    truths = base + 1e-3 * torch.arange(3)[:, None, None, None]
    assert match(truths.flip(0), truths).row.tolist() == [2, 1, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_diverged_reconstruction_is_matched_to_nothing(value):
    truths = _images(3, 0)
    reconstructions = truths.clone()
    reconstructions[1, 0, 0, 0] = value
    assert match(reconstructions, truths).row.tolist() == [0, -1, 2]


def test_diverged_reconstructions_do_not_disturb_the_others():
    truths = _images(3, 0)
    broken = torch.full_like(truths, float("nan"))
    mixed = torch.stack([broken, truths], dim=1).flatten(0, 1)
    assert match(mixed, truths).row.tolist() == [1, 3, 5]
    assert match(mixed[:4], truths).row.tolist() == [1, 3, -1]


def test_nothing_to_match():
    truths = _images(3, 0)
    assert match(truths[:0], truths).row.tolist() == [-1, -1, -1]
    assert match(torch.full_like(truths, float("nan")), truths).row.tolist() == [-1, -1, -1]
    assert match(truths, truths[:0]).row.shape == (0,)


def test_a_poisoned_truth_is_matched_to_nothing():
    truths = _images(3, 0)
    poisoned = truths.clone()
    poisoned[0] = float("nan")
    assert match(truths, poisoned).row.tolist() == [-1, 1, 2]
    assert match(truths, torch.full_like(truths, float("nan"))).row.tolist() == [-1, -1, -1]


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="cannot be matched"):
        match(_images(2, 0, size=4), _images(2, 0, size=5))


def test_errors_that_differ_in_the_ninth_digit_are_told_apart():
    reconstructions = torch.ones(2, 3, 224, 224)
    reconstructions[0, 0, 0, 0] += 2**-12
    assert match(reconstructions, torch.zeros(1, 3, 224, 224)).row.tolist() == [1]
    assert match(reconstructions.flip(0), torch.zeros(1, 3, 224, 224)).row.tolist() == [0]
