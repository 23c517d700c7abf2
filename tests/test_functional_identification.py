from collections import Counter

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics import jaccard_score

from lightning_recon.functional.identification import (
    nearest_candidate,
    nearest_neighbour,
    thumbnails,
)
from lightning_recon.functional.labels.agreement import label_matches, tag_jaccard


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_nearest_neighbour_agrees_with_scipy(dtype):
    queries, points = rand(20, 7).to(dtype), rand(2500, 7, seed=1).to(dtype)  # several chunks
    expected = cdist(queries.double(), points.double()).argmin(axis=1)
    assert nearest_neighbour(queries, points).tolist() == expected.tolist()
    assert len(set(expected // 1024)) == 3


def test_weights_and_allowed_points():
    queries, points = rand(20, 7), rand(50, 7, seed=1)
    weights, allowed = rand(20, 7, seed=2), rand(20, 50, seed=3) < 0.3
    allowed[4] = False
    found = nearest_neighbour(queries, points, weights, allowed).tolist()
    for r in range(20):
        distances = [
            sum(float(weights[r, d]) * float(queries[r, d] - points[n, d]) ** 2 for d in range(7))
            if allowed[r, n]
            else np.inf
            for n in range(50)
        ]
        assert found[r] == (-1 if r == 4 else int(np.argmin(distances)))


def test_a_tie_is_nobody():
    points = torch.tensor([[0.0, 0.1], [0.1, 0.0], [5.0, 5.0]])
    assert nearest_neighbour(torch.zeros(1, 2), points).tolist() == [-1]
    assert nearest_neighbour(torch.tensor([[0.0, 0.01]]), points).tolist() == [0]
    assert nearest_neighbour(points[:1], torch.cat([points, points[:1]])).tolist() == [-1]


def test_a_tie_but_for_rounding_is_nobody():
    """A flat image lies equally far from a picture and its mirror image."""
    pictures = rand(200, 3, 32, 32)
    for picture in pictures:
        candidates = torch.stack([picture, picture.flip(-1), picture.flip(0)])
        assert nearest_candidate(torch.full((1, 3, 32, 32), 0.3), candidates).tolist() == [-1]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_nobody(value):
    queries = torch.tensor([[1.0, value], [1.0, 1.0]])
    assert nearest_neighbour(queries, torch.eye(2) * 3 + 1).tolist() == [-1, -1]
    assert nearest_neighbour(queries, torch.tensor([[0.0, 0.0], [1.0, 2.0]])).tolist() == [-1, 1]
    assert nearest_neighbour(queries, torch.zeros(1, 2)).tolist() == [-1, 0]


def test_thumbnails_are_means_over_areas():
    images = rand(70, 3, 64, 96)
    small = thumbnails(images, 48)
    expected = images.double().numpy().reshape(70, 3, 32, 2, 48, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(small.numpy(), expected, atol=1e-12)
    assert torch.equal(thumbnails(images[..., :28, :28]), images[..., :28, :28].double())
    assert thumbnails(images[..., :1]).shape == (70, 3, 32, 1)


def test_candidates_may_be_thumbnails_already():
    images = rand(6, 3, 64, 64)
    noisy = images[[5, 0, 3]] + 0.3 * rand(3, 3, 64, 64, seed=1)
    assert nearest_candidate(noisy, images).tolist() == [5, 0, 3]
    assert nearest_candidate(noisy, thumbnails(images).float()).tolist() == [5, 0, 3]


def test_masked_reconstructions_are_compared_within_the_mask():
    candidates = rand(5, 3, 64, 64)
    masks = torch.zeros(3, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 5:40, 10:41] = (
        True  # 17 x 15 whole pixels of 32 x 32: rows 3 to 19, columns 5 to 19
    )
    images = candidates[[1, 4, 2]] * masks
    # Outside the mask each looks exactly like candidate 0.
    images = torch.where(masks, images + 0.05, candidates[0])
    assert nearest_candidate(images, candidates, masks).tolist() == [1, 4, 2]
    small, pool = (
        z.double().numpy().reshape(len(z), 3, 32, 2, 32, 2).mean(axis=(3, 5))
        for z in (images, candidates)
    )
    inside = np.s_[:, 3:20, 5:20]
    shaken = [
        int(np.argmin([np.sum((i[inside] - c[inside]) ** 2) for c in pool]))
        for i in small[:, ::-1]  # colours exchanged: the answer is no longer obvious
    ]
    assert nearest_candidate(images.flip(1), candidates, masks).tolist() == shaken


def test_thumbnail_pixels_across_the_edge_of_the_mask_do_not_count():
    truth = rand(1, 3, 64, 64)
    masks = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 5:41, 11:41] = True  # odd: half of the outermost thumbnail pixels is outside
    other = (truth + 0.02) * masks  # not the same picture, but black where the subject ends
    candidates = torch.cat([other, truth])
    assert nearest_candidate(truth * masks, candidates, masks).tolist() == [1]
    assert nearest_candidate(truth * masks, candidates).tolist() == [0]


def test_masks_of_few_pixels_and_of_none():
    candidates = rand(4, 3, 64, 64)
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    masks[0, :, 10, 10] = True
    images = torch.where(masks, candidates[[3, 3]], candidates[[1, 1]])
    assert nearest_candidate(images, candidates, masks)[1].item() == 1
    one_pixel = thumbnails(images)[0, :, 5, 5] - thumbnails(candidates)[:, :, 5, 5]
    expected = one_pixel.square().sum(dim=1).argmin()
    assert nearest_candidate(images, candidates, masks)[0] == expected


def test_bad_arguments_are_refused():
    images = rand(2, 3, 32, 32)
    with pytest.raises(ValueError, match="one shape"):
        nearest_candidate(images, images[:, :1])
    with pytest.raises(ValueError, match="no candidates"):
        nearest_neighbour(torch.zeros(1, 2), torch.zeros(0, 2))
    with pytest.raises(ValueError, match="R D and N D"):
        nearest_neighbour(torch.zeros(1, 2), torch.zeros(1, 3))


def test_label_matches_agree_with_counters():
    random = np.random.default_rng(0)
    for _ in range(50):
        target = torch.from_numpy(random.integers(0, 6, random.integers(1, 12)))
        preds = torch.from_numpy(random.integers(0, 8, random.integers(0, 12)))
        expected = (Counter(target.tolist()) & Counter(preds.tolist())).total()
        assert label_matches(preds, target) == expected


@pytest.mark.parametrize("labels", [[1.0, 2.0], [[1, 2]], [-1, 2]])
def test_what_is_no_label_is_refused(labels):
    with pytest.raises(ValueError, match="labels"):
        label_matches(torch.tensor(labels), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="labels"):
        label_matches(torch.tensor([1, 2]), torch.tensor(labels))


@pytest.mark.parametrize("num_tags", [1, 3, 5, 12])
def test_the_jaccard_index_agrees_with_scikit_learn(num_tags):
    target = rand(9, 12)
    preds = target + 0.5 * rand(9, 12, seed=1)
    sets = [
        np.argsort(np.argsort(-scores.numpy(), axis=1), axis=1) < num_tags
        for scores in (target, preds)
    ]
    found = tag_jaccard(preds, target, num_tags)
    expected = [jaccard_score(true, found_tags) for true, found_tags in zip(*sets, strict=True)]
    assert found.tolist() == pytest.approx(expected)
    assert tag_jaccard(target, target, num_tags).tolist() == [1.0] * 9


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="num_tags"):
        tag_jaccard(rand(2, 4), rand(2, 4), num_tags=5)
    with pytest.raises(ValueError, match="B K"):
        tag_jaccard(rand(2, 4), rand(2, 5))
