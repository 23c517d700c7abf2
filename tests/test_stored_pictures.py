"""Pictures as they are: what fits is untouched, and what is changed is an option and is told."""

import json
import struct
import warnings

import cv2
import numpy as np
import pytest
import torch
from data_helpers import picture
from PIL import Image

from lightning_recon.data import (
    ArrayDataModule,
    ImageFolderDataModule,
    ImageNetDataModule,
    MaskFolder,
    SubjectMasks,
    TorchvisionDataModule,
)
from lightning_recon.errors import InputError
from lightning_recon.functional.identification import thumbnails
from lightning_recon.targets import MLP, ConvNet, LeNet

RAMP = np.linspace(0, 1, 16)[None].repeat(16, 0)


def folder(root, **kwargs):
    kwargs = {"image_size": 16, "batch_size": 1, "num_public": 0, **kwargs}
    return ImageFolderDataModule(root=str(root), **kwargs)


def only_image(root, **kwargs):
    data = folder(root, **kwargs)
    return data.client(0).images[0], data.describe()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# Sizes


@pytest.mark.parametrize("size", [28, [28, 28], [20, 12], None])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_that_fits_is_untouched(tmp_path, size, channels):
    height, width = (20, 12) if size == [20, 12] else (28, 28)
    pixels = noise(height, width, 3)[..., :channels].squeeze()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = folder(tmp_path, image_size=size, channels=channels)
    expected = torch.from_numpy(pixels.reshape(height, width, channels)).permute(2, 0, 1) / 255
    assert torch.equal(data.client(0).images[0], expected)
    assert data.image_shape == (channels, height, width)
    assert f"; {height}x{width} as stored; no masks" in data.describe()
    small = thumbnails(data.client(0).images, 8)
    assert torch.allclose(data.thumbnails([0], 8).double(), small, atol=1e-6)


def test_what_is_done_to_other_sizes(tmp_path):
    picture(0, 40, 30).save(tmp_path / "a.png")
    image, words = only_image(tmp_path, image_size=28)
    assert image.shape == (3, 28, 28)
    assert "shorter side to 32, centre 28x28 of it" in words
    image, words = only_image(tmp_path, image_size=[14, 28])
    assert image.shape == (3, 14, 28)
    assert "resized to cover 16x32, centre 14x28 of it" in words
    image, words = only_image(tmp_path, image_size=[14, 28], resize="stretch")
    assert "resized to 14x28" in words
    expected = np.array(picture(0, 40, 30).resize((28, 14), Image.Resampling.BILINEAR))
    assert torch.equal(image, torch.from_numpy(expected).permute(2, 0, 1) / 255)
    for options in ({"image_size": 28, "resize": "refuse"}, {"image_size": None}):
        picture(0, 20, 10).save(tmp_path / "b.png")
        with pytest.raises(InputError, match=r"/[ab]\.png is \d+x\d+, not \d+x\d+; set resize"):
            folder(tmp_path, batch_size=2, **options).client(0)


def test_only_some_fit(tmp_path):
    picture(0, 28, 28).save(tmp_path / "a.png")
    picture(0, 40, 40).save(tmp_path / "b.png")
    data = folder(tmp_path, image_size=28, batch_size=2)
    assert "centre 28x28 of it (1 image as stored)" in data.describe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": [28, 0]}, "image_size must be at least 1, not 0"),
        ({"image_size": [28]}, r"one number or \[height, width\]"),
        ({"channels": 2}, "channels must be 1, 3 or null"),
        ({"background": 256}, "grey level from 0 to 255"),
        ({"value_range": [5, 5]}, "value_range"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=message):
        folder("anywhere", **options)


@pytest.mark.parametrize("target", [LeNet, MLP])
def test_targets_take_grey_and_rectangles(target):
    model = target(image_size=[12, 20], in_channels=1)
    assert model(torch.rand(2, 1, 12, 20)).shape == (2, 10)
    assert ConvNet(in_channels=1)(torch.rand(2, 1, 12, 20)).shape == (2, 10)


@pytest.mark.parametrize("masks", ["folder", "grabcut"])
@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_masks_of_grey_rectangles(tmp_path, masks, mode):
    values = np.array(picture(0, 48, 32).convert("L"))
    stored = values if mode == "L" else values.astype(np.uint16) * 257
    Image.fromarray(stored).save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    mask = np.zeros((32, 48), dtype=bool)
    mask[:, :24] = True
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    source = MaskFolder(str(tmp_path / "masks"))
    if masks == "grabcut":
        source = SubjectMasks(None, on_missing="grabcut", cache_dir=str(tmp_path / "cache"))
        (tmp_path / "masks" / "a.png").unlink()
    data = folder(tmp_path, image_size=[32, 48], channels=1, masks=source, indices=[0])
    batch = data.client(0)
    assert batch.images.shape == batch.masks.shape == (1, 1, 32, 48)
    expected = torch.from_numpy(values)[None, None] / 255 * batch.masks
    assert torch.allclose(batch.images, expected, atol=1e-6)
    if masks == "folder":
        assert torch.equal(batch.masks[0, 0], torch.from_numpy(mask))


# Colours and values


def test_channels_are_told(tmp_path):
    (tmp_path / "colour").mkdir()
    (tmp_path / "grey").mkdir()
    picture(0, 16, 16).save(tmp_path / "colour" / "a.png")
    picture(0, 16, 16).convert("L").save(tmp_path / "grey" / "a.png")
    image, words = only_image(tmp_path / "colour", channels=1)
    assert image.shape == (1, 16, 16)
    assert "converted to 1 channel" in words
    image, words = only_image(tmp_path / "grey")
    assert (image[0] == image[2]).all()
    assert "grey repeated in 3 channels" in words
    assert folder(tmp_path / "grey", channels=None).image_shape == (1, 16, 16)
    assert folder(tmp_path / "colour", channels=None).image_shape == (3, 16, 16)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "stored", "white"),
    [
        ("a.png", (RAMP * 65535).round().astype(np.uint16), 65535),
        ("a.tif", (RAMP * 4095).round().astype(np.uint16), 4095),
        ("a.tif", (RAMP * 1023).round().astype(np.int32), 1023),
        ("a.tif", RAMP.astype(np.float32), 1),
    ],
)
def test_more_than_8_bits_are_scaled(tmp_path, channels, name, stored, white):
    Image.fromarray(stored).save(tmp_path / name)
    image, words = only_image(tmp_path, channels=channels)
    assert image.shape == (channels, 16, 16)
    assert torch.allclose(image, torch.from_numpy(stored / white).float().expand_as(image))
    assert f"values 0 to {white} scaled to 0 to 1 (guessed)" in words
    image, words = only_image(tmp_path, value_range=[0, white / 2])
    assert torch.allclose(image[0], torch.from_numpy(stored / white * 2).float().clamp(0, 1))
    assert f"values 0 to {white / 2:g} scaled to 0 to 1 (clipped outside)" in words


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ((RAMP * 3000 - 1000).astype(np.int32), r"-1000 to 2000: .* set value_range"),
        ((RAMP * 1e6).astype(np.int32), "set value_range"),
        ((RAMP * 3.7).astype(np.float32), r"0 to 3\.7: .* set value_range"),
        (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), r"a\.tif has values .* not finite"),
    ],
)
def test_values_without_a_scale_are_refused(tmp_path, stored, message):
    Image.fromarray(stored).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=message) as caught:
        folder(tmp_path).client(0)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bits_a_colour(tmp_path, name):
    stored = (RAMP * 4095).astype(np.uint16)[..., None].repeat(3, 2)
    cv2.imwrite(str(tmp_path / name), stored * 16)
    image, words = only_image(tmp_path)
    assert image.max() == 1
    assert "upper 8 of 16 bits a colour" in words
    cv2.imwrite(str(tmp_path / name), stored)
    with pytest.raises(InputError, match=rf"{name} has 16 bits a colour.* would be black; save"):
        folder(tmp_path).client(0)


def test_one_scale_for_all_pictures(tmp_path):
    for number in range(64):
        stored = RAMP * (4095 if number % 2 else 900)
        Image.fromarray(stored.astype(np.uint16)).save(tmp_path / f"{number:02d}.png")
    Image.fromarray((RAMP * 4095).astype(np.uint16)).save(tmp_path / "64.png")
    image, _ = only_image(tmp_path, indices=[0])
    assert image.max() == pytest.approx(900 / 4095, abs=1e-3)
    Image.fromarray((RAMP * 60000).astype(np.uint16)).save(tmp_path / "01.png")
    with pytest.raises(InputError, match=r"01\.png has values from 0 to 60000.*set value_range"):
        folder(tmp_path, indices=[1]).client(0)


def test_exif_orientation(tmp_path):
    upright = Image.new("RGB", (16, 16))
    upright.paste((255, 255, 255), (0, 0, 16, 8))
    exif = upright.getexif()
    exif[0x0112] = 6
    upright.save(tmp_path / "a.jpg", exif=exif, quality=100)
    image, words = only_image(tmp_path)
    assert image[:, 2].mean() > 0.9 > 0.1 > image[:, -3].mean()
    assert "EXIF orientation ignored (1 image)" in words
    image, words = only_image(tmp_path, exif_orientation=True)
    assert image[:, :, -3].mean() > 0.9 > 0.1 > image[:, :, 2].mean()
    assert "EXIF orientation applied (1 image)" in words


def test_exif_turns_sides(tmp_path):
    stored = picture(0, 20, 12)
    exif = stored.getexif()
    exif[0x0112] = 6
    stored.save(tmp_path / "a.png", exif=exif)
    image, words = only_image(tmp_path, image_size=None, exif_orientation=True)
    assert image.shape == (3, 20, 12)
    expected = np.array(stored.transpose(Image.Transpose.ROTATE_270))
    assert torch.equal(image, torch.from_numpy(expected).permute(2, 0, 1) / 255)
    assert "20x12 as stored" in words


def test_transparency(tmp_path):
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., 1] = 255
    pixels[4:12, 4:12] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image, words = only_image(tmp_path)
    assert image[:, 0, 0].tolist() == [0, 1, 0]
    assert "transparency dropped" in words
    image, words = only_image(tmp_path, background=255)
    assert image[:, 0, 0].tolist() == [1, 1, 1]
    assert image[:, 8, 8].tolist() == [1, 0, 0]
    assert "laid on grey level 255" in words


@pytest.mark.parametrize(
    ("name", "format", "mode", "words"),
    [
        ("a.jpg", "JPEG", "CMYK", "CMYK decoded"),
        ("a.png", "PNG", "P", "palette decoded"),
        ("a.png", "PNG", "1", "1-bit decoded"),
        ("a.gif", "GIF", "P", "palette decoded"),
        ("a.webp", "WEBP", "RGB", "16x16 as stored"),
        ("a.jfif", "JPEG", "RGB", "16x16 as stored"),
        ("a.JPE", "JPEG", "L", "grey repeated in 3 channels"),
    ],
)
def test_every_kind_of_picture_as_it_decodes(tmp_path, name, format, mode, words):
    picture(0, 16, 16).convert(mode).save(tmp_path / name, format=format)
    image, told = only_image(tmp_path)
    with Image.open(tmp_path / name) as stored:
        expected = np.array(stored.convert("RGB"))
    assert torch.equal(image, torch.from_numpy(expected).permute(2, 0, 1) / 255)
    assert words in told


# Folders


def classes(root, names, count=1):
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture(label, 16, 16).save(root / name / f"{number}.png")


def labels_of(data):
    source = data.source
    return {source.key(place): source.label(place) for place in range(len(source))}


def test_links_are_followed(tmp_path):
    classes(tmp_path / "disk", ["cat", "dog", "owl"])
    root = tmp_path / "data"
    root.mkdir()
    (root / "cat").symlink_to(tmp_path / "disk" / "cat")
    (root / "dog").mkdir()
    (root / "dog" / "0.png").symlink_to(tmp_path / "disk" / "dog" / "0.png")
    (root / "dog" / "loop").symlink_to(root)
    classes(root, ["owl"])
    assert labels_of(folder(root)) == {"cat/0": 0, "dog/0": 1, "owl/0": 2}
    (tmp_path / "disk" / "dog" / "0.png").unlink()
    with pytest.raises(InputError, match=r"cannot read the image .*dog/0\.png"):
        folder(root, indices=[1]).client(0)
    (root / "ant").symlink_to(tmp_path / "unplugged")
    with pytest.raises(InputError, match=r"the link .*/ant leads to .*unplugged.* not there"):
        folder(root).setup()


def test_what_is_hidden_is_not_data(tmp_path):
    names = [".cache", ".ipynb_checkpoints", "__MACOSX", "cat", "dog"]
    classes(tmp_path, names)
    picture(0).save(tmp_path / "cat" / "._0.png")
    classes(tmp_path / "cat", [".ipynb_checkpoints"])
    assert labels_of(folder(tmp_path)) == {"cat/0": 0, "dog/0": 1}


def test_a_class_without_pictures_is_told(tmp_path):
    classes(tmp_path, ["cat", "dog"])
    (tmp_path / "bat").mkdir()
    assert folder(tmp_path).num_classes == 2
    (tmp_path / "bat" / "0.heic").write_bytes(b"")
    with pytest.warns(UserWarning, match="they hold no pictures: bat"):
        folder(tmp_path).setup()


@pytest.mark.parametrize(
    "parts", [["train", "val"], ["train"], ["Test_set", "Training"], ["train2017", "val2017", "x"]]
)
def test_parts_are_no_classes(tmp_path, parts):
    classes(tmp_path, parts)
    with pytest.raises(InputError, match=rf"parts of a data set.* set root to .*/{parts[0]}"):
        folder(tmp_path).setup()


def test_a_train_is_a_class_among_vehicles(tmp_path):
    classes(tmp_path, ["bus", "car", "train"])
    assert folder(tmp_path).num_classes == 3


def tiny_imagenet(root):
    ids = ["n01443537", "n01629819"]
    for wordnet_id in ids:
        images = root / "train" / wordnet_id / "images"
        images.mkdir(parents=True)
        picture(0, 64, 64).save(images / f"{wordnet_id}_0.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    for number in range(2):
        picture(0, 64, 64).save(root / "val" / "images" / f"val_{number}.JPEG")
    rows = [f"val_{number}.JPEG\t{ids[1 - number]}\t0\t32\t44\t62\n" for number in range(2)]
    (root / "val" / "val_annotations.txt").write_text("".join(rows))


def test_tiny_imagenet(tmp_path):
    tiny_imagenet(tmp_path)
    options = {"root": str(tmp_path), "image_size": 64, "batch_size": 1}
    for split, labels in (("train", [0, 1]), ("val", [1, 0])):
        data = ImageNetDataModule(split=split, **options)
        assert data.num_classes == 200
        assert list(labels_of(data).values()) == labels
        assert "64x64 as stored" in data.describe()
    assert ImageNetDataModule(num_classes=7, **options).num_classes == 7
    (tmp_path / "val" / "val_annotations.txt").write_text("")
    with pytest.raises(InputError, match=r"no class that is known for images/val_0\.JPEG"):
        ImageNetDataModule(split="val", **options).setup()


# Arrays and torchvision


@pytest.mark.parametrize("shape", [(4, 28, 28), (4, 28, 28, 1), (4, 20, 12, 3)])
def test_arrays(tmp_path, shape):
    pixels = noise(*shape)
    np.savez(tmp_path / "a.npz", x_test=pixels, y_test=np.array([[3], [0], [1], [2]]))
    data = ArrayDataModule(root=str(tmp_path / "a.npz"), batch_size=4, indices=[0, 1, 2, 3])
    channels = 3 if shape[-1] == 3 else 1
    expected = torch.from_numpy(pixels.reshape(*shape[:3], channels)).permute(0, 3, 1, 2) / 255
    assert torch.equal(data.client(0).images, expected)
    assert data.client(0).labels.tolist() == [3, 0, 1, 2]
    assert data.num_classes == 4


def test_arrays_that_are_no_pictures(tmp_path):
    np.savez(tmp_path / "a.npz", x_test=np.zeros((4, 28, 28)), y_test=np.zeros(4))
    with pytest.raises(InputError, match=r"a\.npz: x_test must be .* of uint8, not .*float64"):
        ArrayDataModule(root=str(tmp_path / "a.npz")).setup()
    np.savez(tmp_path / "a.npz", x_test=noise(2, 8, 8), y_test=np.array([0.5, 1]))
    with pytest.raises(InputError, match="y_test must be integers"):
        ArrayDataModule(root=str(tmp_path / "a.npz")).setup()


def fashion_mnist(root):
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = noise(5, 28, 28)
    for part in ("train", "t10k"):
        head = struct.pack(">4I", 0x803, *pixels.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = struct.pack(">2I", 0x801, 5) + bytes([9, 0, 3, 2, 1])
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return pixels


def test_torchvision_by_name(tmp_path):
    pixels = fashion_mnist(tmp_path)
    data = TorchvisionDataModule(
        "FashionMNIST", root=str(tmp_path), batch_size=5, indices=[*range(5)], num_public=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = data.client(0)
    assert torch.equal(batch.images, torch.from_numpy(pixels)[:, None] / 255)
    assert batch.labels.tolist() == [9, 0, 3, 2, 1]
    assert data.num_classes == 10
    assert data.describe() == f"FashionMNIST: 5 images in {tmp_path}; 28x28 as stored; no masks"
    large = TorchvisionDataModule(
        "FashionMNIST", split="train", root=str(tmp_path), batch_size=1, image_size=32, channels=3
    )
    assert large.client(0).images.shape == (1, 3, 32, 32)
    assert "resized to 32x32, grey repeated in 3 channels" in large.describe()


def test_torchvision_that_is_not_there(tmp_path):
    for name in ("Fashion", "utils", "VisionDatasets"):
        with pytest.raises(InputError, match=f"no data set {name}"):
            TorchvisionDataModule(name)
    with pytest.raises(InputError, match=f"MNIST: no data at {tmp_path}; expected .*not found"):
        TorchvisionDataModule("MNIST", root=str(tmp_path)).setup()
    assert list(tmp_path.iterdir()) == []
    data = TorchvisionDataModule(
        "MNIST", root=str(tmp_path), on_missing="samples", num_classes=10, batch_size=2
    )
    with pytest.warns(UserWarning, match="sample photographs"):
        assert data.client(0).images.shape == (2, 3, 224, 224)
    with pytest.raises(InputError, match="torchvision cannot open EMNIST"):
        TorchvisionDataModule("EMNIST", root=str(tmp_path)).setup()
    images = fashion_mnist(tmp_path) is not None and tmp_path / "FashionMNIST" / "raw"
    (images / "t10k-images-idx3-ubyte").write_bytes(b"noise")
    with pytest.raises(InputError, match="FashionMNIST"):
        TorchvisionDataModule("FashionMNIST", root=str(tmp_path)).setup()


# Paths


def test_paths_as_people_write_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("pics", "2024", "größe & <b> [red]x"):
        classes(tmp_path / name, ["cat"])
    for root in ("~/pics", "$HOME/pics", "${HOME}/pics/", "2024", "größe & <b> [red]x/"):
        data = folder(root)
        assert len(data.source) == 1
        assert f" in {tmp_path}" in data.describe()
    with pytest.raises(InputError, match=r"the variable \$NOWHERE in the path \$NOWHERE/pics"):
        folder("$NOWHERE/pics").setup()
    with pytest.raises(InputError, match="no such user"):
        folder("~nobody-of-that-name/pics").setup()
    classes(tmp_path / "a$NOWHERE", ["cat"])
    assert len(folder("a$NOWHERE").source) == 1


def test_description_fits_in_results(tmp_path):
    picture(0, 16, 16).save(tmp_path / "a.png")
    assert json.loads(json.dumps(folder(tmp_path).describe()))
