import copy
import multiprocessing
import os
import warnings

import numpy as np
import pytest
import torch
from data_helpers import (
    as_is,
    mask_in_other_process,
    picture,
    subject_picture,
    tiny_sam,
)
from PIL import Image
from segment_anything import SamPredictor, sam_model_registry

from lightning_recon.data import FileSource, MaskFolder, MaskSource, SubjectMasks
from lightning_recon.data import masks as masks_module
from lightning_recon.data.masks import centred_ellipse, grabcut
from lightning_recon.data.sam import load_sam, sam_for
from lightning_recon.errors import InputError


@pytest.fixture
def subject():
    return Image.fromarray(subject_picture()[0])


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "tiny.pth"
    torch.save(tiny_sam().state_dict(), path)
    return path


def grabcut_masks(tmp_path):
    return SubjectMasks(None, on_missing="grabcut", cache_dir=str(tmp_path / "cache"))


# Segment Anything


def test_network_is_rebuilt_from_shapes(checkpoint):
    truth, loaded = tiny_sam().eval(), load_sam(checkpoint)
    pixels, _ = subject_picture()
    answers = []
    for sam in (truth, loaded):
        predictor = SamPredictor(sam)
        predictor.set_image(pixels)
        answers.append(predictor.predict(np.array([[20, 30]]), np.array([1])))
    for expected, got in zip(*answers, strict=True):
        np.testing.assert_array_equal(expected, got)
    assert [block.window_size for block in loaded.image_encoder.blocks] == [3, 0, 3, 0]
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("size", ["vit_b", "vit_l", "vit_h"])
def test_published_sizes_are_recognised(size):
    with torch.device("meta"):
        published = sam_model_registry[size]()
        rebuilt = sam_for(published.state_dict())
    shapes = [
        {name: tensor.shape for name, tensor in sam.state_dict().items()}
        for sam in (published, rebuilt)
    ]
    assert shapes[0] == shapes[1]
    for ours, theirs in zip(
        rebuilt.image_encoder.blocks, published.image_encoder.blocks, strict=True
    ):
        assert ours.window_size == theirs.window_size
        assert ours.attn.num_heads == theirs.attn.num_heads
        assert ours.norm1.eps == theirs.norm1.eps
    assert rebuilt.image_encoder.img_size == 1024


def test_best_scored_mask_of_the_central_point(checkpoint, tmp_path, subject):
    masks = SubjectMasks(str(checkpoint), cache_dir=str(tmp_path / "cache"), device="cpu")
    assert masks.method == "sam"
    mask = masks.mask(subject, "any", as_is)
    predictor = SamPredictor(load_sam(checkpoint))
    predictor.set_image(np.array(subject))
    all_masks, scores, _ = predictor.predict(
        np.array([[32.0, 32.0]]), np.array([1]), multimask_output=True
    )
    assert mask.dtype == torch.bool
    assert 0 < mask.float().mean() < 1
    assert len({one.tobytes() for one in all_masks}) == 3
    assert torch.equal(mask, torch.from_numpy(all_masks[scores.argmax()]))


def test_network_is_let_go_after_preparing(checkpoint, tmp_path, subject, monkeypatch):
    masks = SubjectMasks(str(checkpoint), cache_dir=str(tmp_path / "cache"), device="cpu")
    masks.prepare([(subject, "any", as_is)])
    assert masks._predictor is None
    monkeypatch.setattr(masks_module, "load_sam", None)  # a later call needs the cache only
    assert masks.mask(subject, "any", as_is).shape == (64, 64)


def test_missing_checkpoint_says_what_to_download(tmp_path):
    path = tmp_path / "sam_vit_h_4b8939.pth"
    with pytest.raises(InputError) as caught:
        SubjectMasks(str(path)).check()
    message = str(caught.value)
    assert str(path) in message
    assert "sam_vit_b_01ec64.pth" in message
    assert "dl.fbaipublicfiles.com/segment_anything" in message
    assert "checkpoints/" in message
    assert "\n" not in message
    with pytest.raises(InputError, match="null"):
        SubjectMasks(None).check()


def test_missing_checkpoint_falls_back_once(tmp_path):
    masks = SubjectMasks(str(tmp_path / "none.pth"), on_missing="grabcut")
    assert masks.method == "grabcut"
    with pytest.warns(UserWarning, match=r"none\.pth.*GrabCut"):
        masks.check()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks.check()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"mask_decoder.hf_token.weight": 1}, "HQ-SAM's network"),
        ({"mask_decoder.compress_vit_feat.0.weight": 1}, "HQ-SAM's network"),
        ({"mask_decoder.embedding_maskfeature.0.weight": 1}, "HQ-SAM's network"),
        ({"model": {"memory_attention.layers.0.norm1.weight": 1}}, "SAM 2's network"),
        ({"image_encoder.trunk.pos_embed": 1}, "SAM 2's network"),
        ({"image_encoder.layers.0.blocks.0.conv1.c.weight": 1}, "MobileSAM's network"),
        ({"model": {"image_encoder.pos_embed": 1}}, "its tensors under the key model"),
        ({"fc.weight": 1}, "other names than SAM's, such as fc.weight"),
        ([1, 2], "a list, not tensors by name"),
    ],
)
def test_another_network_is_named(tmp_path, content, said):
    path = tmp_path / "sam_vit_b_01ec64.pth"

    def filled(part):
        if isinstance(part, dict):
            return {name: filled(inner) for name, inner in part.items()}
        return torch.zeros(1) if part == 1 else part

    torch.save(filled(content), path)
    with pytest.raises(InputError) as caught:
        load_sam(path)
    message = str(caught.value)
    assert message.startswith(f"{path} holds {said}")
    assert "wanted is one of SAM's own, sam_vit_b_01ec64.pth" in message
    assert "download it again" not in message


@pytest.mark.parametrize("content", ["noise", "other", "short"])
def test_unusable_checkpoint(tmp_path, subject, content):
    path = tmp_path / "broken.pth"
    if content == "noise":
        path.write_bytes(b"not a checkpoint")
    elif content == "other":
        torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    else:
        state = tiny_sam().state_dict()
        del state["mask_decoder.iou_token.weight"]
        torch.save(state, path)
    masks = SubjectMasks(str(path), on_missing="grabcut", cache_dir=str(tmp_path), device="cpu")
    with pytest.raises(InputError, match=r"broken\.pth .*; wanted is one of SAM's own") as caught:
        masks.mask(subject, "any", as_is)
    assert "\n" not in str(caught.value)


# GrabCut


def test_grabcut_finds_the_subject():
    pixels, is_subject = subject_picture(96)
    mask = grabcut(pixels)
    overlap = (mask & is_subject).sum() / (mask | is_subject).sum()
    assert overlap > 0.9
    np.testing.assert_array_equal(mask, grabcut(pixels))


def test_grabcut_fills_holes_and_drops_far_pieces():
    pixels, _ = subject_picture(96)
    pixels[44:50, 40:46] = 25  # a hole in the subject
    pixels[4:14, 4:14] = pixels[48, 30]  # the subject's colour, far away
    mask = grabcut(pixels)
    assert mask[44:50, 40:46].all()
    assert not mask[4:14, 4:14].any()


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_grabcut_of_nothing_is_empty(size):
    assert not grabcut(np.full((size, size, 3), 100, dtype=np.uint8)).any()


# The cache


def test_second_call_reads_the_cache(tmp_path, subject, monkeypatch):
    first = grabcut_masks(tmp_path).mask(subject, "any", as_is)
    monkeypatch.setattr(masks_module, "grabcut", None)
    assert torch.equal(grabcut_masks(tmp_path).mask(subject, "other name", as_is), first)
    (file,) = (tmp_path / "cache").iterdir()
    assert file.suffix == ".png"
    with Image.open(file) as stored:
        assert stored.mode == "1"


def test_cache_key_depends_on_everything(tmp_path, checkpoint):
    pixels, _ = subject_picture()
    changed = pixels.copy()
    changed[0, 0, 0] += 1
    other = tmp_path / "other.pth"
    torch.save(tiny_sam(seed=1).state_dict(), other)
    by_grabcut = grabcut_masks(tmp_path)
    paths = {
        by_grabcut.cache_path(pixels),
        by_grabcut.cache_path(changed),
        by_grabcut.cache_path(pixels.reshape(32, 128, 3)),
        SubjectMasks(str(checkpoint), cache_dir=str(tmp_path / "cache")).cache_path(pixels),
        SubjectMasks(str(other), cache_dir=str(tmp_path / "cache")).cache_path(pixels),
    }
    assert len(paths) == 5
    assert by_grabcut.cache_path(pixels) == grabcut_masks(tmp_path).cache_path(pixels.copy())


@pytest.mark.parametrize("damage", ["noise", "truncated", "wrong size"])
def test_damaged_cache_file_is_made_anew(tmp_path, subject, damage):
    masks = grabcut_masks(tmp_path)
    expected = masks.mask(subject, "any", as_is)
    path = masks.cache_path(np.array(subject))
    if damage == "noise":
        path.write_bytes(b"noise")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        Image.new("1", (5, 5)).save(path)
    with pytest.warns(UserWarning, match="made anew"):
        again = masks.mask(subject, "any", as_is)
    assert torch.equal(again, expected)
    with Image.open(path) as stored:
        np.testing.assert_array_equal(np.array(stored), expected.numpy())


def test_cache_is_written_in_one_step(tmp_path, subject, monkeypatch):
    masks = grabcut_masks(tmp_path)
    path = masks.cache_path(np.array(subject))
    replaced = []

    def replace(source, target):
        assert not path.exists()
        with Image.open(source) as complete:
            complete.load()
        assert os.path.dirname(source) == str(path.parent)
        replaced.append(target)
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(InputError, match="cache_dir"):
        masks.mask(subject, "any", as_is)
    assert replaced == [path]
    assert list(path.parent.iterdir()) == []


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    pixels, _ = subject_picture()
    masks = SubjectMasks(None, on_missing="grabcut")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert masks.cache_path(pixels).parent == tmp_path / "lightning_recon" / "masks"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = tmp_path / "home" / ".cache" / "lightning_recon" / "masks"
    assert masks.cache_path(pixels).parent == expected


@pytest.mark.alone
def test_two_processes_make_the_same_mask(tmp_path, subject):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    cache = tmp_path / "cache"
    workers = [
        context.Process(target=mask_in_other_process, args=(str(cache), barrier, results))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    areas = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    mask = grabcut_masks(tmp_path).mask(subject, "any", as_is)
    assert areas == [mask.float().mean().item()] * 2
    assert [file.suffix for file in cache.iterdir()] == [".png"]


# Ready masks


def test_folder_masks_go_through_the_geometry_of_the_image(tmp_path):
    whole = picture(0, width=60, height=40)
    is_left = np.zeros((40, 60), dtype=np.uint8)
    is_left[:, :25] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(is_left).convert("1").save(tmp_path / "a" / "b.png")
    source = FileSource(tmp_path, [])

    def crop(image, resample):
        return source.crop(image, 28, resample)

    marked = np.array(whole)
    marked[...] = is_left[..., None]
    seen = np.array(crop(Image.fromarray(marked), Image.Resampling.NEAREST))[..., 0] > 0
    mask = MaskFolder(str(tmp_path)).mask(whole, "a/b", crop)
    assert mask.shape == (28, 28)
    assert torch.equal(mask, torch.from_numpy(seen))
    assert mask[:, 0].all()
    assert not mask[:, -1].any()


def test_folder_errors_name_the_file(tmp_path):
    masks = MaskFolder(str(tmp_path))
    whole = picture(0, width=60, height=40)
    with pytest.raises(InputError, match=r"missing\.png"):
        masks.mask(whole, "missing", as_is)
    Image.new("1", (28, 27)).save(tmp_path / "small.png")
    with pytest.raises(InputError, match=r"small\.png.*28x27.*60x40"):
        masks.mask(whole, "small", as_is)
    (tmp_path / "broken.png").write_bytes(b"noise")
    with pytest.raises(InputError, match=r"broken\.png"):
        masks.mask(whole, "broken", as_is)
    with pytest.raises(InputError, match="nowhere"):
        MaskFolder(str(tmp_path / "nowhere")).check()


# Failed masks


class _Given(MaskSource):
    method = "given"

    def __init__(self, mask):
        self.given = mask

    def check(self):
        pass

    def mask(self, picture, key, crop):
        return self.given


@pytest.mark.parametrize(
    ("num_true", "is_replaced"), [(0, True), (19, True), (20, False), (950, False), (951, True)]
)
def test_extreme_masks_become_the_ellipse(num_true, is_replaced):
    given = torch.arange(1000).reshape(25, 40) < num_true
    mask, replaced = _Given(given).usable_mask(picture(0), "any", as_is)
    assert replaced is is_replaced
    assert torch.equal(mask, centred_ellipse(25, 40) if is_replaced else given)


def test_ellipse_is_centred_and_covers_three_tenths():
    ellipse = centred_ellipse(200, 300)
    assert ellipse.float().mean().item() == pytest.approx(0.30, abs=0.002)
    assert torch.equal(ellipse, ellipse.flip(0))
    assert torch.equal(ellipse, ellipse.flip(1))
    height, width = ellipse.any(1).sum(), ellipse.any(0).sum()
    assert (width / height).item() == pytest.approx(1.5, abs=0.03)


def test_sources_can_be_copied_to_other_processes(checkpoint):
    assert copy.deepcopy(SubjectMasks(str(checkpoint))).method == "sam"
