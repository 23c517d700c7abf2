import base64
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_recon.errors import InputError
from lightning_recon.report.pictures import (
    DIFFERENCE_GAIN,
    data_uri,
    has_pictures,
    load_pictures,
    save_grid,
    save_image,
    save_pictures,
)


def _image(channels=3, size=10, seed=0):
    return torch.rand(channels, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 8, 11])
def test_grid_of_pairs(tmp_path, channels, count):
    truth = torch.rand(count, channels, 10, 12, generator=torch.Generator().manual_seed(0))
    reconstruction = 1 - truth
    reconstruction[0] = float("nan")
    path = tmp_path / "reconstructions" / "grid.png"
    save_grid(path, truth, reconstruction)
    assert os.listdir(path.parent) == ["grid.png"]
    grid = np.asarray(Image.open(path).convert("RGB")).astype(float) / 255
    grid = grid[8::10, 8::10]  # 12 pixels become 120, behind a margin of 8
    found = 0
    for image in [*truth, *reconstruction[1:]]:  # every picture is somewhere on the grid
        patch = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
        windows = np.lib.stride_tricks.sliding_window_view(grid, (10, 12, 3))
        found += (np.abs(windows - patch).max(axis=(-1, -2, -3)) < 0.003).any()
    assert found == 2 * count - 1


@pytest.mark.parametrize(("side", "factor"), [(28, 4), (64, 2), (128, 1), (200, 1)])
def test_small_pictures_are_enlarged_pixel_by_pixel(tmp_path, side, factor):
    truth = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    save_grid(tmp_path / "grid.png", truth, 1 - truth)
    grid = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    shown = grid[8 : 8 + factor * side, 8 : 8 + factor * side].reshape(side, factor, side, factor)
    expected = (255 * truth[0, 0]).round().numpy()
    assert (shown == expected[:, None, :, None]).all()


def test_grid_of_nothing_or_of_two_shapes_is_refused(tmp_path):
    images = torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match="one shape"):
        save_grid(tmp_path / "grid.png", images, images[:1])
    with pytest.raises(ValueError, match="one shape"):
        save_grid(tmp_path / "grid.png", images[:0], images[:0])


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_saved_is_loaded(tmp_path, channels):
    truth, found = _image(channels), _image(channels, seed=1)
    save_pictures(tmp_path, 7, 3, truth, found)
    assert sorted(os.listdir(tmp_path)) == [
        "client00007_image003_reconstruction.png",
        "client00007_image003_truth.png",
    ]
    assert has_pictures(tmp_path, 7, 3)
    assert not has_pictures(tmp_path, 7, 4)
    pair = load_pictures(tmp_path, 7, 3)
    for image, expected in zip(pair, (truth, found), strict=True):
        shown = expected.expand(3, -1, -1).permute(1, 2, 0).numpy() * 255
        assert np.abs(np.asarray(image) - shown).max() <= 0.51
    difference = np.abs(np.asarray(pair.truth).astype(int) - np.asarray(pair.reconstruction))
    expected = np.minimum(255, DIFFERENCE_GAIN * difference)
    assert (np.asarray(pair.difference) == expected).all()
    assert (expected == 255).any()
    assert (expected < 255).any()


def test_an_image_that_was_not_matched_leaves_no_reconstruction(tmp_path):
    save_pictures(tmp_path, 0, 0, _image(), _image(seed=1))
    save_pictures(tmp_path, 0, 0, _image(), None)
    pair = load_pictures(tmp_path, 0, 0)
    assert pair.reconstruction is None
    assert pair.difference is None


def test_values_that_are_no_colours_are_shown_nevertheless(tmp_path):
    image = torch.tensor([[[float("nan"), 2.0], [-1.0, 0.5]]])
    save_image(tmp_path / "image.png", image)
    assert np.asarray(Image.open(tmp_path / "image.png")).tolist() == [[0, 255], [0, 128]]


def test_a_broken_picture_is_an_input_error(tmp_path):
    save_pictures(tmp_path, 0, 0, _image(), None)
    (tmp_path / "client00000_image000_truth.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"client00000_image000_truth\.png cannot be read"):
        load_pictures(tmp_path, 0, 0)


def _decoded(uri):
    kind, content = uri.split(",")
    return kind, Image.open(io.BytesIO(base64.b64decode(content)))


def test_small_pictures_lose_nothing_on_a_page():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
    kind, shown = _decoded(data_uri(image, 256))
    assert kind == "data:image/png;base64"
    assert (np.asarray(shown) == np.asarray(image)).all()


def test_large_pictures_are_shrunk_on_a_page():
    y, x = np.mgrid[:400, :200]
    smooth = np.stack([y / 400, x / 200, 0 * x + 0.5], axis=-1) * 255
    kind, shown = _decoded(data_uri(Image.fromarray(smooth.astype(np.uint8)), 100))
    assert kind == "data:image/webp;base64"
    assert shown.size == (50, 100)
    expected = smooth.reshape(100, 4, 50, 4, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(shown.convert("RGB")) - expected).mean() < 3
