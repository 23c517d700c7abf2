import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from lightning_recon.data import SubjectMasks

IDS = ("n01440764", "n01443537", "n02084071")


def real_data(name):
    """Path of a real data file; skips the test where there is none."""
    beside_repo = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("LIGHTNING_RECON_DATA", beside_repo)) / name
    if not path.exists():
        pytest.skip(f"needs {name} of the real data")
    return path


def picture(seed, width=40, height=32):
    """Smooth random picture, different for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def imagenet_tree(root, per_class=4, suffix=".JPEG"):
    """Folders by WordNet id with small pictures; returns their paths in order."""
    paths = []
    for label, wordnet_id in enumerate(IDS):
        (root / wordnet_id).mkdir(parents=True)
        for number in range(per_class):
            path = root / wordnet_id / f"{wordnet_id}_{number}{suffix}"
            picture(10 * label + number).save(path)
            paths.append(path)
    return paths


def subject_picture(size=64):
    """A bright disc left of the middle on a dark ground: H W 3, uint8."""
    y, x = np.mgrid[:size, :size]
    pixels = np.full((size, size, 3), 20, dtype=np.uint8)
    pixels += np.random.default_rng(0).integers(0, 12, pixels.shape, dtype=np.uint8)
    is_subject = (x - 0.45 * size) ** 2 + (y - 0.5 * size) ** 2 < (0.3 * size) ** 2
    pixels[is_subject] += np.array([200, 120, 30], dtype=np.uint8)
    return pixels, is_subject


def as_is(image, resample):
    return image


def tiny_sam(seed=0):
    """Segment Anything of the real architecture, a few thousand times smaller."""
    torch.manual_seed(seed)
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=64,
            patch_size=8,
            embed_dim=48,
            depth=4,
            num_heads=3,
            mlp_ratio=2,
            out_chans=32,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            rel_pos_zero_init=False,
            window_size=3,
            global_attn_indexes=(1, 3),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=32,
            image_embedding_size=(8, 8),
            input_image_size=(64, 64),
            mask_in_chans=8,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=32,
            transformer=TwoWayTransformer(depth=1, embedding_dim=32, num_heads=8, mlp_dim=24),
            iou_head_depth=2,
            iou_head_hidden_dim=20,
        ),
    )


def mask_in_other_process(cache_dir, barrier, results):
    """Make one mask at the same moment as another process does."""
    pixels, _ = subject_picture()
    masks = SubjectMasks(None, on_missing="grabcut", cache_dir=cache_dir)
    barrier.wait()
    mask = masks.mask(Image.fromarray(pixels), "any", as_is)
    results.put(mask.float().mean().item())
