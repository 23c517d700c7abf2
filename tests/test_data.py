import hashlib
import inspect
import json
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_helpers import IDS, imagenet_tree, picture, real_data
from jsonargparse import ArgumentParser
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torchvision import datasets

from lightning_recon.data import (
    ArrayDataModule,
    AuditDataModule,
    Caltech256DataModule,
    CapturedUpdate,
    CapturedUpdatesDataModule,
    CIFAR10DataModule,
    CIFAR100DataModule,
    ClientDataModule,
    Flowers102DataModule,
    ImageFolderDataModule,
    ImageNetDataModule,
    MaskFolder,
    SampleImagesDataModule,
    SubjectMasks,
)
from lightning_recon.errors import InputError


@pytest.fixture
def root(tmp_path):
    """Twelve small pictures in three classes."""
    imagenet_tree(tmp_path / "imagenet")
    return tmp_path / "imagenet"


def small(root, **kwargs):
    kwargs = {"batch_size": 2, "image_size": 28, "num_public": 3, **kwargs}
    return ImageNetDataModule(root=str(root), **kwargs)


def on_rank(data, rank, world_size, epoch=0, iterations=3, stage=TrainerFn.TESTING):
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        current_epoch=epoch,
        state=SimpleNamespace(fn=stage),
        lightning_module=SimpleNamespace(iterations=iterations, clients_at_once=1),
    )
    return data


def all_places(data):
    return [place for i in range(data.num_clients) for place in data.client(i).indices.tolist()]


# Clients


def test_client_has_the_documented_types(root):
    data = small(root)
    data.prepare_data()
    data.setup("test")
    batch = data.client(0)
    assert data.image_shape == (3, 28, 28)
    assert batch.images.shape == (2, 3, 28, 28)
    assert batch.images.dtype == torch.float32
    assert batch.images.min() >= 0
    assert 0.2 < batch.images.max() <= 1
    assert batch.masks.shape == (2, 1, 28, 28)
    assert batch.masks.dtype == torch.bool
    assert batch.masks.all()
    assert batch.labels.dtype == batch.indices.dtype == torch.int64
    assert batch.labels.tolist() == [place // 4 for place in batch.indices.tolist()]
    assert data.mask_summary() == {"method": "none", "mean_area": None, "replaced": 0}
    assert (
        data.describe()
        == f"imagenet: 12 images in {root}; shorter side to 32, centre 28x28 of it; no masks"
    )


def test_labels_are_known_without_a_look_at_the_images(root, monkeypatch):
    data = small(root, num_clients=2)
    expected = [data.client(client).labels for client in range(2)]
    monkeypatch.setattr(type(data.source), "image", None)
    for client, labels in enumerate(expected):
        assert data.client_labels(client).dtype == torch.int64
        assert torch.equal(data.client_labels(client), labels)
    with pytest.raises(InputError, match="no client 2"):
        data.client_labels(2)


def test_same_seed_same_clients_whatever_the_global_generator(root):
    torch.manual_seed(1)
    first = small(root, num_clients=3, seed=5)
    torch.manual_seed(2)
    second = small(root, num_clients=3, seed=5)
    assert all_places(first) == all_places(second)
    for a, b in zip(first.client(1), second.client(1), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(first.public_images(), second.public_images())
    assert all_places(small(root, num_clients=3, seed=6)) != all_places(first)


def test_drawing_leaves_the_global_generator_alone(root):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    small(root).client(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_clients_are_runs_of_one_permutation(root):
    pairs, singles = small(root, num_clients=3), small(root, num_clients=6, batch_size=1)
    assert all_places(pairs) == all_places(singles)
    assert len(set(all_places(pairs))) == 6


def test_public_images_are_nobodys(root):
    data = small(root, num_clients=3, num_public=100)
    everything = torch.stack([small(root, indices=[i, i]).client(0).images[0] for i in range(12)])
    public = data.public_images()
    assert len(public) == 6  # the data set ends

    def places(images):
        return [
            next(place for place, known in enumerate(everything) if torch.equal(known, image))
            for image in images
        ]

    assert sorted(places(public) + all_places(data)) == list(range(12))
    assert places(small(root, num_clients=3).public_images()) == places(public)[:3]
    assert small(root, num_public=0).public_images().shape == (0, 3, 28, 28)
    assert small(root, num_clients=6).public_images().shape == (0, 3, 28, 28)


def test_given_indices(root):
    assert small(root, indices=[7, 1]).client(0).indices.tolist() == [7, 1]
    data = small(root, indices=[[7, 1], [2, 3]], num_clients=2, num_public=100)
    assert all_places(data) == [7, 1, 2, 3]
    assert len(data.public_images()) == 8


@pytest.mark.parametrize(
    ("indices", "num_clients", "message"),
    [
        ([1, 2, 3], 1, r"lists of lengths \[3\]"),
        ([1, 2], 2, "2 lists of 2"),
        ([[1, 2], [3]], 2, r"lengths \[2, 1\]"),
        ([[1, 2]], 2, "2 lists of 2"),
        ([], 1, "1 lists of 2"),
        ([1, 12], 1, "index 12 is out of range: there are 12 images"),
        ([-1, 1], 1, "index -1 is out of range"),
    ],
)
def test_wrong_indices(root, indices, num_clients, message):
    data = small(root, indices=indices, num_clients=num_clients)
    with pytest.raises(InputError, match=message):
        data.setup()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("batch_size", 0),
        ("num_clients", -1),
        ("image_size", 0),
        ("num_public", -1),
        ("seed", -1),
    ],
)
def test_numbers_out_of_range(argument, value):
    with pytest.raises(InputError, match=f"{argument} must be at least [01], not {value}"):
        ImageNetDataModule(**{argument: value})


def test_more_images_asked_than_there_are(root):
    with pytest.raises(InputError, match="7 clients of 2 need 14 images, but there are 12"):
        small(root, num_clients=7).setup()


def test_unknown_client(root):
    for index in (-1, 1):
        with pytest.raises(InputError, match=f"no client {index}"):
            small(root).client(index)


def test_geometry_is_the_one_of_imagenet_evaluation(tmp_path):
    wide = Image.new("RGB", (128, 64))
    wide.paste((255, 255, 255), (64, 0, 128, 64))
    (tmp_path / IDS[0]).mkdir(parents=True)
    wide.save(tmp_path / IDS[0] / "a.png")
    image = small(tmp_path, batch_size=1, image_size=56).client(0).images[0]
    assert image.shape == (3, 56, 56)  # 128x64 has that shorter side; the centre is cut out
    assert (image[:, :, :28] == 0).all()
    assert (image[:, :, 28:] == 1).all()


def test_can_be_sent_to_another_process(root):
    data = small(root)
    data.setup()
    assert torch.equal(pickle.loads(pickle.dumps(data)).client(0).images, data.client(0).images)


# Masks


@pytest.fixture
def mask_folder(root, tmp_path):
    """Masks of the whole pictures: three halves, one of nearly nothing, and so on."""
    for number, path in enumerate(sorted(root.glob("*/*"))):
        mask = np.zeros((32, 40), dtype=bool)
        mask[:, : 1 if number % 4 == 3 else 20] = True
        target = (tmp_path / "masks" / path.relative_to(root)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(target)
    return tmp_path / "masks"


def test_masks_are_applied_and_counted(root, mask_folder):
    plain = small(root, indices=[[0, 3], [4, 11]], num_clients=2)
    data = small(root, indices=[[0, 3], [4, 11]], num_clients=2, masks=MaskFolder(str(mask_folder)))
    data.prepare_data()
    for client in range(2):
        batch, whole = data.client(client), plain.client(client)
        assert torch.equal(batch.images, whole.images * batch.masks)
        assert not torch.equal(batch.images, whole.images)
        assert torch.equal(batch.masks[0, 0], torch.arange(28).expand(28, 28) < 14)
        # Nothing is left of the narrow mask: the ellipse takes its place.
        assert batch.masks[1].float().mean().item() == pytest.approx(0.3, abs=0.02)
    summary = data.mask_summary()
    assert summary["method"] == "folder"
    assert summary["replaced"] == 2
    assert summary["mean_area"] == pytest.approx(0.4, abs=0.01)
    assert "masks: folder, mean area 0.40, 2 replaced by an ellipse" in data.describe()


def test_public_images_are_masked_like_the_clients(root, mask_folder):
    public = small(root, masks=MaskFolder(str(mask_folder)), num_public=10).public_images()
    is_half = [not image[..., 15:].any() for image in public]
    assert sum(is_half) >= 7
    assert all(not image[:, 0, -1].any() for image in public)


def test_preparing_makes_all_masks(root, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    masks = SubjectMasks(None, on_missing="grabcut", cache_dir=str(cache))
    data = small(root, num_clients=2, masks=masks)
    data.prepare_data()
    assert len(list(cache.iterdir())) == 2 * 2 + 3
    monkeypatch.setattr("lightning_recon.data.masks.grabcut", None)
    data.client(1)
    data.public_images()
    assert data.mask_summary()["method"] == "grabcut"


def test_mask_files_are_looked_for_at_setup(root, tmp_path):
    with pytest.raises(InputError, match=r"none\.pth"):
        small(root, masks=SubjectMasks(str(tmp_path / "none.pth"))).setup()


# Missing data


def test_missing_root_says_what_was_expected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        ImageNetDataModule(root="data/imagenet").prepare_data()
    message = str(caught.value)
    assert str(tmp_path / "data" / "imagenet") in message
    assert "n01440764" in message
    assert "https://image-net.org" in message
    assert "\n" not in message
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "module",
    [
        ImageNetDataModule,
        CIFAR10DataModule,
        CIFAR100DataModule,
        Caltech256DataModule,
        Flowers102DataModule,
        ImageFolderDataModule,
    ],
)
def test_every_data_set_misses_its_files_in_both_ways(module, tmp_path):
    with pytest.raises(InputError, match=r"no root given; expected .*on_missing: samples"):
        module().setup()
    with pytest.raises(InputError, match=f"no data at {tmp_path}; expected"):
        module(root=str(tmp_path)).setup()
    assert list(tmp_path.iterdir()) == []
    data = module(root=str(tmp_path), on_missing="samples", batch_size=40, image_size=32)
    with pytest.warns(UserWarning, match="sample photographs") as caught:
        data.setup()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup("fit")
        batch = data.client(0)
    assert data.fallback == "samples"
    assert batch.images.shape == (40, 3, 32, 32)
    assert batch.labels.max() < data.num_classes
    assert f"SAMPLE PHOTOGRAPHS, since nothing was found at {tmp_path}" in data.describe()


def test_no_fallback_where_the_data_are(root):
    assert small(root, on_missing="samples").fallback is None


def test_label_beyond_the_classes(root):
    data = ImageFolderDataModule(root=str(root), num_classes=2, batch_size=12, image_size=8)
    with pytest.raises(InputError, match=f"{IDS[2]}.*label 2, but there are 2 classes"):
        data.client(0)


# Corrupt images


@pytest.fixture
def corrupt(root):
    """The path of a truncated image, and its place in the data set."""
    paths = sorted(root.glob("*/*"))
    paths[5].write_bytes(paths[5].read_bytes()[:-150])
    return paths[5], 5


def test_corrupt_image_is_named(root, corrupt):
    path, place = corrupt
    with pytest.raises(InputError, match=str(path)) as caught:
        small(root, indices=[0, place]).client(0)
    assert "\n" not in str(caught.value)


def test_corrupt_image_is_skipped_alike_everywhere(root, corrupt):
    path, place = corrupt
    seed = next(s for s in range(99) if place in all_places_of_order(s)[:4])
    order = all_places_of_order(seed)
    results = []
    for _ in range(2):
        data = small(root, num_clients=2, seed=seed, on_corrupt="skip", num_public=100)
        with pytest.warns(UserWarning, match=f"skipped.*{path}"):
            data.setup()
        results.append((all_places(data), data.public_images()))
    expected = [order[4] if each == place else each for each in order[:4]]
    assert results[0][0] == results[1][0] == expected
    assert torch.equal(results[0][1], results[1][1])
    assert len(results[0][1]) == 12 - 1 - 4


def all_places_of_order(seed):
    return torch.randperm(12, generator=torch.Generator().manual_seed(seed)).tolist()


def test_what_was_skipped_is_told_and_does_not_count(root, corrupt):
    _, place = corrupt
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        data = small(root, on_corrupt="skip", num_public=100)
        data.setup()
        data.candidates(100)  # it is tried once
    assert len([one for one in told if "skipped" in str(one.message)]) == 1
    assert data.skipped == [f"{IDS[1]}/{IDS[1]}_1.JPEG"]
    assert "11 images in" in data.describe()
    assert f"1 more skipped, for they cannot be used ({data.skipped[0]})" in data.describe()
    assert small(root).skipped == []
    assert "more skipped" not in small(root, indices=[0, place - 1]).describe()


def test_many_skipped_images_are_not_all_named(root):
    for path in sorted(root.glob("*/*"))[:8]:
        path.write_bytes(b"no picture")
    data = small(root, on_corrupt="skip", num_public=100)
    with pytest.warns(UserWarning, match="skipped"):
        data.setup()
    assert "8 more skipped" in data.describe()
    assert data.describe().count(".JPEG") == 3
    assert len(data.skipped) == 8


def test_a_broken_image_says_what_it_was_opened_for_and_how_to_go_on(root, corrupt):
    _, place = corrupt
    others = [p for p in range(12) if p != place][:2]
    cases = {
        "one of client 0's images": lambda data: data.client(0),
        "one of the server's own images, see num_public": lambda data: data.public_images(),
        "one of the candidates for identification, see num_candidates": (
            lambda data: data.thumbnails(data.candidates(12), 8)
        ),
    }
    for number, (purpose, use) in enumerate(cases.items()):
        data = small(root, indices=[0, place] if number == 0 else others, num_public=100)
        with pytest.raises(InputError, match="set on_corrupt: skip") as caught:
            use(data)
        assert f"(opened as {purpose})" in str(caught.value)


def test_a_broken_first_image_decides_nothing(root):
    first = sorted(root.glob("*/*"))[0]
    first.write_bytes(b"no picture")
    options = {"image_size": None, "channels": None, "indices": [1, 2]}
    with pytest.raises(InputError, match=r"set on_corrupt: skip \(opened as the first picture"):
        small(root, **options).client(0)
    assert small(root, **options, on_corrupt="skip").client(0).images.shape == (2, 3, 32, 40)


def test_a_missing_mask_is_no_corrupt_image(root, tmp_path):
    with pytest.raises(InputError) as caught:
        small(root, masks=MaskFolder(str(tmp_path))).client(0)
    assert "on_corrupt" not in str(caught.value)


# Public images of their own


class TestPublic:
    """Images of the server that are not of the clients' data set."""

    @pytest.fixture
    def other(self, tmp_path):
        """Pictures of two of the three classes, one of them of no client's class, and a link."""
        folder = tmp_path / "other"
        for number, name in enumerate((IDS[0], IDS[2], "n09999999")):
            (folder / name).mkdir(parents=True)
            for place in range(2):
                picture(500 + 10 * number + place).save(folder / name / f"{place}.JPEG")
        return folder

    def test_they_are_those_of_the_folder(self, root, other):
        data = small(root, public_root=str(other), num_public=6)
        names = [IDS[0], IDS[2], "n09999999"]
        alone = small(other, batch_size=6, num_public=0, seed=data.seed)
        expected = {image.numpy().tobytes() for image in alone.client(0).images}
        assert {image.numpy().tobytes() for image in data.public_images()} == expected
        assert sorted(data.public_labels().tolist()) == [-1, -1, 0, 0, 2, 2]
        assert f"6 public images of {other}" in data.describe()
        assert len(names) == 3
        # the clients are the same, whatever the public images
        assert torch.equal(data.client(0).images, small(root).client(0).images)

    def test_labels_go_with_the_images(self, root, other):
        data = small(root, public_root=str(other), num_public=4)
        for image, label in zip(data.public_images(), data.public_labels(), strict=True):
            same = small(other, batch_size=6, num_public=0)
            batch = same.client(0)
            (place,) = (batch.images == image).flatten(1).all(1).nonzero().flatten()
            name = same.classes[batch.labels[place]]
            assert label == (IDS.index(name) if name in IDS else -1)

    def test_too_few_are_told(self, root, other):
        assert "6 public images of" in small(root, public_root=str(other), num_public=9).describe()
        words = small(root, num_public=100).describe()
        assert "10 public images, not 100: no more are left" in words
        assert "public" not in small(root, num_public=10).describe()

    def test_the_clients_own_are_not_among_them(self, root, other, tmp_path):
        data = small(root)
        for place in data.client(0).indices.tolist():
            (other / IDS[0] / f"link{place}.JPEG").symlink_to(data.source.where(place))
        linked = small(root, public_root=str(other), num_public=100)
        assert len(linked.public_images()) == 6
        (tmp_path / "again").symlink_to(root)
        with pytest.raises(InputError, match="the clients' own data set"):
            small(root, public_root=str(tmp_path / "again")).setup()

    def test_nothing_there_and_no_splits(self, root, tmp_path):
        with pytest.raises(InputError, match=r"no public images at .*nowhere; expected folders"):
            small(root, public_root=str(tmp_path / "nowhere")).setup()
        data = ImageFolderDataModule(root=str(root), batch_size=2, public_split="train")
        with pytest.raises(InputError, match=r"no splits.*public_root"):
            data.setup()

    def test_a_broken_one_is_skipped_and_counted(self, root, other):
        (other / IDS[0] / "0.JPEG").write_bytes(b"no picture")
        with pytest.raises(InputError, match="server's own images"):
            small(root, public_root=str(other), num_public=6).public_images()
        data = small(root, public_root=str(other), num_public=6, on_corrupt="skip")
        with pytest.warns(UserWarning, match="skipped"):
            data.setup()
        assert len(data.public_images()) == 5
        assert data.skipped == [f"{IDS[0]}/0.JPEG"]
        assert "12 images in" in data.describe()

    def test_their_masks_lie_in_a_folder_of_their_own(self, root, other, tmp_path):
        masks = tmp_path / "masks"
        for folder, prefix in ((root, "."), (other, "public")):
            for path in folder.glob("*/*"):
                half = np.zeros((32, 40), dtype=np.uint8)
                half[:, : 10 if prefix == "public" else 30] = 255
                target = masks / prefix / path.relative_to(folder).with_suffix(".png")
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(half).save(target)
        data = small(root, public_root=str(other), num_public=2, masks=MaskFolder(str(masks)))
        data.prepare_data()
        assert (data.client(0).images[..., 14:18] > 0).any()
        assert not (data.public_images()[..., 14:] > 0).any()


@pytest.mark.parametrize("module", [ArrayDataModule, CIFAR10DataModule])
def test_public_images_of_another_split(tmp_path, module):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(6)
    path = tmp_path / "a.npz"
    np.savez(path, x_test=pixels[0], y_test=labels, x_train=pixels[1], y_train=labels)
    data = module(root=str(path), batch_size=2, public_split="train", num_public=6)
    expected = torch.from_numpy(pixels[1]).permute(0, 3, 1, 2) / 255
    assert torch.equal(data.public_images(), expected[data.public_labels()])
    assert "6 public images of train" in data.describe()
    with pytest.raises(InputError, match="the clients' own data set"):
        module(root=str(path), batch_size=2, public_split="test").setup()


def test_without_the_data_the_public_images_are_samples_too(tmp_path):
    data = ImageNetDataModule(
        root=str(tmp_path / "none"), on_missing="samples", public_split="train", batch_size=2
    )
    with pytest.warns(UserWarning, match="sample photographs"):
        assert len(data.public_images()) == 32
    assert data.classes is None


# Files and classes


def test_a_person_finds_the_file_and_the_class(root):
    data = small(root)
    paths = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))
    batch = data.client(0)
    for place, label in zip(batch.indices.tolist(), batch.labels.tolist(), strict=True):
        assert data.file(place) == paths[place]
        assert data.file(place).split("/")[0] == data.classes[label]
    assert ImageFolderDataModule(root=str(root), batch_size=1).classes == list(IDS)
    assert "coffee" in SampleImagesDataModule(batch_size=1).classes


def test_too_many_corrupt_images(root, corrupt):
    data = small(root, batch_size=12, on_corrupt="skip")
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(InputError, match="fewer than 12 images can be read"),
    ):
        data.setup()


# Loaders


def items(loader):
    found = [int(item) for item in loader]
    assert len(found) == len(loader)
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("loader", ["val_dataloader", "test_dataloader", "predict_dataloader"])
def test_every_client_goes_to_one_process(root, world_size, loader):
    shares = [
        items(getattr(on_rank(small(root, num_clients=5), rank, world_size), loader)())
        for rank in range(world_size)
    ]
    assert shares == [list(range(rank, 5, world_size)) for rank in range(world_size)]


def test_fit_validates_no_client(root):
    data = on_rank(small(root, num_clients=5), 0, 1, stage=TrainerFn.FITTING)
    assert items(data.val_dataloader()) == []
    data = on_rank(small(root, num_clients=5), 0, 1, stage=TrainerFn.VALIDATING)
    assert items(data.val_dataloader()) == [0, 1, 2, 3, 4]


def test_fewer_clients_than_processes(root):
    data = on_rank(small(root, num_clients=2), 0, 3)
    with pytest.raises(InputError, match="use at most 2 devices"):
        data.test_dataloader()


def test_fit_gives_each_process_its_client(root):
    for epoch in range(2):
        for rank in range(3):
            data = on_rank(small(root, num_clients=6), rank, 3, epoch, iterations=4)
            assert items(data.train_dataloader()) == [epoch * 3 + rank] * 4
    data = on_rank(small(root, num_clients=4), 0, 3)
    with pytest.raises(InputError, match="multiple of 3, not 4"):
        data.train_dataloader()


class _Recorder(LightningModule):
    """Notes which clients it is given."""

    iterations = 3
    clients_at_once = 1

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.automatic_optimization = False
        self.seen = []

    def training_step(self, batch, batch_idx):
        assert batch.dtype == torch.int64
        self.seen.append((self.current_epoch, batch_idx, int(batch)))

    def test_step(self, batch, batch_idx):
        self.seen.append(int(batch))

    def predict_step(self, batch, batch_idx):
        return self.trainer.datamodule.client(int(batch)).indices

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**kwargs):
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


@pytest.mark.parametrize("use_distributed_sampler", [True, False])
def test_lightning_walks_through_the_clients(root, use_distributed_sampler):
    data = small(root, num_clients=3)
    model = _Recorder()
    runner = trainer(
        max_epochs=3,
        use_distributed_sampler=use_distributed_sampler,
        reload_dataloaders_every_n_epochs=0,
    )
    runner.fit(model, datamodule=data)
    assert model.seen == [(epoch, step, epoch) for epoch in range(3) for step in range(3)]
    model.seen.clear()
    runner.test(model, datamodule=data)
    assert model.seen == [0, 1, 2]
    predicted = trainer().predict(model, datamodule=data)
    assert [places.tolist() for places in predicted] == [
        data.client(index).indices.tolist() for index in range(3)
    ]


# Data sets


@pytest.mark.parametrize("layout", ["plain", "val", "train"])
def test_imagenet_layouts(tmp_path, layout):
    folder = tmp_path if layout == "plain" else tmp_path / layout
    imagenet_tree(folder, per_class=2)
    (folder / "notes").mkdir()
    picture(99).save(folder / "notes" / "not_imagenet.png")
    split = "train" if layout == "train" else "val"
    data = ImageNetDataModule(root=str(tmp_path), split=split, batch_size=6, image_size=8)
    assert len(data.source) == 6
    assert [data.source.label(i) for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert data.source.key(5) == f"{IDS[2]}/{IDS[2]}_1"
    assert data.num_classes == 1000


def test_own_pictures(tmp_path):
    (tmp_path / "cats" / "old").mkdir(parents=True)
    (tmp_path / "dogs").mkdir()
    (tmp_path / "empty").mkdir()
    picture(0).save(tmp_path / "cats" / "old" / "a.png")
    picture(1).convert("L").save(tmp_path / "dogs" / "b.JPG")
    (tmp_path / "dogs" / "notes.txt").write_text("no picture")
    data = ImageFolderDataModule(root=str(tmp_path), batch_size=2, indices=[0, 1], image_size=16)
    assert data.client(0).labels.tolist() == [0, 1]
    assert data.num_classes == 2
    assert data.source.key(0) == "cats/old/a"
    flat = ImageFolderDataModule(root=str(tmp_path / "dogs"), batch_size=1, num_classes=10)
    assert flat.client(0).labels.tolist() == [0]
    assert flat.num_classes == 10


def write_npz(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8),
        "y_train": np.arange(6, dtype=np.uint8),
        "x_test": rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
        "y_test": np.array([9, 8, 7, 6], dtype=np.uint8),
    }
    np.savez(path, **{**arrays, **changes})
    return arrays


def test_cifar10_from_npz(tmp_path):
    path = tmp_path / "cifar.npz"
    arrays = write_npz(path)
    data = CIFAR10DataModule(root=str(path), batch_size=4, indices=[0, 1, 2, 3])
    batch = data.client(0)
    expected = torch.from_numpy(arrays["x_test"]).permute(0, 3, 1, 2) / 255
    assert torch.equal(batch.images, expected)  # native size: not one pixel changes
    assert batch.labels.tolist() == [9, 8, 7, 6]
    large = CIFAR10DataModule(root=str(path), split="train", batch_size=6, image_size=48)
    assert large.client(0).images.shape == (6, 3, 48, 48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": np.zeros((4, 32, 32, 3))}, "uint8"),
        ({"x_test": np.zeros((4, 3072), dtype=np.uint8)}, "N 32 32 3"),
        ({"y_test": np.zeros(3)}, "4 images but 3 labels"),
        ({"x_test": np.array([{}])}, "not an .npz file with arrays"),
    ],
)
def test_wrong_npz(tmp_path, changes, message):
    write_npz(tmp_path / "cifar.npz", **changes)
    with pytest.raises(InputError, match=message):
        CIFAR10DataModule(root=str(tmp_path / "cifar.npz")).setup()
    (tmp_path / "noise.npz").write_bytes(b"PK\x03\x04 noise")
    with pytest.raises(InputError, match=r"noise\.npz"):
        CIFAR10DataModule(root=str(tmp_path / "noise.npz")).setup()


def test_cifar100_from_torchvision_files(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    contents = {
        "test": {"data": pixels.reshape(5, -1), "fine_labels": [99, 0, 3, 2, 1]},
        "train": {"data": pixels[:2].reshape(2, -1), "fine_labels": [1, 2]},
        "meta": {"fine_label_names": [str(label) for label in range(100)]},
    }
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    cifar = datasets.CIFAR100
    monkeypatch.setattr(cifar, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(cifar, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": sums["meta"]})
    data = CIFAR100DataModule(root=str(tmp_path), batch_size=5, indices=[0, 1, 2, 3, 4])
    assert torch.equal(data.client(0).images, torch.from_numpy(pixels) / 255)
    assert data.client(0).labels.tolist() == [99, 0, 3, 2, 1]
    assert len(CIFAR100DataModule(root=str(tmp_path), split="train").source) == 2
    (folder / "test").write_bytes(b"noise")
    with pytest.raises(InputError, match="incomplete or damaged"):
        CIFAR100DataModule(root=str(tmp_path), on_missing="samples").setup()


def test_caltech256(tmp_path):
    folder = tmp_path / "caltech256" / "256_ObjectCategories"
    for label, name in enumerate(("001.ak47", "002.american-flag")):
        (folder / name).mkdir(parents=True)
        for number in (1, 2):
            picture(label).save(folder / name / f"{label + 1:03d}_{number:04d}.jpg")
    data = Caltech256DataModule(root=str(tmp_path), batch_size=4, indices=[0, 1, 2, 3])
    assert data.client(0).labels.tolist() == [0, 0, 1, 1]
    assert data.source.key(3) == "002.american-flag/002_0002"
    assert data.num_classes == 257


def test_flowers102_with_the_real_labels(tmp_path):
    labels = real_data("flowers102-labels") / "flowers-102"
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for name in ("imagelabels.mat", "setid.mat"):
        (folder / name).write_bytes((labels / name).read_bytes())
    data = Flowers102DataModule(root=str(tmp_path), batch_size=1, split="train", indices=[0])
    assert len(data.source) == 1020
    picture(0).save(folder / "jpg" / f"{data.source.key(0)}.jpg")
    assert data.client(0).labels.tolist() == [data.source.label(0)]
    assert {data.source.label(i) for i in range(1020)} == set(range(102))
    (folder / "setid.mat").write_bytes(b"noise")
    with pytest.raises(InputError, match=r"setid\.mat"):
        Flowers102DataModule(root=str(tmp_path)).setup()


def test_sample_photographs_are_many_and_distinct():
    data = SampleImagesDataModule()
    number = len(data.source)
    assert number >= 40
    data = SampleImagesDataModule(batch_size=number, indices=list(range(number)), num_public=0)
    batch = data.client(0)
    assert batch.images.shape == (number, 3, 224, 224)
    thumbs = torch.nn.functional.avg_pool2d(batch.images, 8)
    distances = ((thumbs[:, None] - thumbs[None]) ** 2).mean((2, 3, 4))
    distances.fill_diagonal_(1)
    assert distances.min() > 0.005
    assert batch.images.flatten(1).std(1).min() > 0.02
    assert len({data.source.key(i) for i in range(number)}) == number
    assert sorted(set(batch.labels.tolist())) == list(range(data.num_classes))
    assert all(min(data.source.image(i).size) >= 224 for i in range(number))
    assert data.fallback is None


def test_real_imagenet_sample():
    data = ImageNetDataModule(
        root=str(real_data("imagenet-sample")),
        masks=MaskFolder(str(real_data("imagenet-sample-masks"))),
        num_clients=8,
    )
    assert len(data.source) == 900
    batch = data.client(0)
    assert batch.images.shape == (16, 3, 224, 224)
    assert (batch.images * ~batch.masks == 0).all()
    summary = data.mask_summary()
    assert summary["method"] == "folder"
    assert 0.26 < summary["mean_area"] < 0.36


def test_real_imagenet_labels():
    names = json.loads(real_data("imagenet-sample-class-index.json").read_text())
    source = ImageNetDataModule(root=str(real_data("imagenet-sample"))).source
    ids = [source.key(i).split("/")[0] for i in range(len(source))]
    assert ids == sorted(ids)
    assert [source.label(i) for i in range(900)] == list(range(900))
    assert set(ids) <= set(names)


def test_real_cifar10():
    data = CIFAR10DataModule(root=str(real_data("cifar10-sample.npz")), split="train")
    assert len(data.source) == 7805
    assert data.client(0).images.shape == (16, 3, 32, 32)


# Captured updates


def captured_file(path, **changes):
    content = {
        "update": {"weight": torch.randn(2, 3)},
        "num_samples": 4,
        "labels": torch.tensor([1, 2, 3, 4]),
        "image_shape": (3, 8, 8),
    }
    torch.save({**content, **changes}, path)
    return {**content, **changes}


def test_captured_updates(tmp_path):
    second = captured_file(tmp_path / "b.pt", num_samples=7, labels=None)
    first = captured_file(tmp_path / "a.pt", num_samples=None, image_shape=[3, 8, 8])
    (tmp_path / "notes.txt").write_text("no update")
    data = CapturedUpdatesDataModule(str(tmp_path))
    data.setup("predict")
    assert (data.name, data.num_clients, data.batch_size) == ("captured", 2, 7)
    assert data.image_shape == (3, 8, 8)
    assert data.public_images().shape == (0, 3, 8, 8)
    assert items(data.predict_dataloader()) == [0, 1]
    assert items(on_rank(data, 1, 2).predict_dataloader()) == [1]
    for index, expected in enumerate((first, second)):
        captured = data.captured(index)
        assert torch.equal(captured["update"]["weight"], expected["update"]["weight"])
        assert captured["num_samples"] == expected["num_samples"]
        assert captured["image_shape"] == (3, 8, 8)
        assert "buffers" not in captured
    assert data.captured(1)["labels"] is None
    expected = captured_file(tmp_path / "b.pt", buffers={"norm.running_mean": torch.rand(3)})
    assert torch.equal(
        data.captured(1)["buffers"]["norm.running_mean"], expected["buffers"]["norm.running_mean"]
    )
    with pytest.raises(InputError, match="no update 2"):
        data.captured(2)
    for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader):
        with pytest.raises(InputError, match="use predict"):
            loader()


def test_captured_keys():
    """A file needs all keys but ``buffers``, and Python 3.10 can import the class."""
    assert CapturedUpdate.__required_keys__ == {"update", "num_samples", "labels", "image_shape"}
    assert CapturedUpdate.__optional_keys__ == {"buffers"}
    source = Path(inspect.getfile(CapturedUpdatesDataModule)).read_text()
    assert "NotRequired" not in source  # of Python 3.11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 1}, "keys update, num_samples, labels, image_shape"),
        ({"update": {}}, "update must be"),
        ({"update": {"weight": 3}}, "update must be"),
        ({"buffers": {"norm.running_mean": 3}}, "buffers must be"),
        ({"image_shape": (8, 8)}, "image_shape"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": 3}, "4 labels, but num_samples is 3"),
        ({"update": {"weight": [1.0]}}, "not one with a list in it"),
        ({"labels": [1, 2, 3, 4.5]}, "labels must be a vector of whole numbers, not 1, 2, 3, 4.5"),
        ({"labels": torch.rand(4)}, "labels must be"),
        ({"labels": torch.eye(4)}, "not 4x4 numbers; of one-hot labels give the place"),
    ],
)
def test_wrong_captured_file(tmp_path, changes, message):
    captured_file(tmp_path / "a.pt", **changes)
    with pytest.raises(InputError, match=rf"{tmp_path}/a\.pt.*{message}"):
        CapturedUpdatesDataModule(str(tmp_path)).setup()


def test_unusable_captured_folder(tmp_path):
    with pytest.raises(InputError, match=rf"\*\.pt files in {tmp_path}"):
        CapturedUpdatesDataModule(str(tmp_path)).setup()
    (tmp_path / "a.pt").write_bytes(b"noise")
    with pytest.raises(InputError, match=r"a\.pt is no readable captured update") as caught:
        CapturedUpdatesDataModule(str(tmp_path)).setup()
    assert "\n" not in str(caught.value)
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.pt is empty"):
        CapturedUpdatesDataModule(str(tmp_path)).setup()
    torch.save({"update": torch.nn.Linear(1, 1)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"Linear\), and is not unpickled") as caught:
        CapturedUpdatesDataModule(str(tmp_path)).setup()
    assert "weights_only" not in str(caught.value)
    captured_file(tmp_path / "a.pt")
    captured_file(tmp_path / "b.pt", image_shape=(1, 8, 8))
    with pytest.raises(InputError, match=r"b\.pt.*one folder per model"):
        CapturedUpdatesDataModule(str(tmp_path)).setup()


# All of them


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("ImageNetDataModule", {"split": "train", "root": "data/imagenet"}),
        ("CIFAR10DataModule", {"split": "test", "image_size": 32}),
        ("CIFAR100DataModule", {"indices": [[1, 2], [3, 4]]}),
        ("Caltech256DataModule", {"indices": [1, 2]}),
        ("Flowers102DataModule", {"split": "val"}),
        ("ImageFolderDataModule", {"num_classes": 7}),
        ("SampleImagesDataModule", {"seed": 3}),
    ],
)
@pytest.mark.parametrize("masks", ["sam", "folder"])
def test_yaml_makes_every_data_set(module, extra, masks):
    chosen = {
        "sam": {
            "class_path": "lightning_recon.data.SubjectMasks",
            "init_args": {"checkpoint": "checkpoints/a.pth", "on_missing": "grabcut"},
        },
        "folder": {"class_path": "lightning_recon.data.MaskFolder", "init_args": {"folder": "m"}},
    }[masks]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ClientDataModule, "data")
    arguments = {"batch_size": 2, "num_public": 5, "on_corrupt": "skip", "masks": chosen, **extra}
    config = {"data": {"class_path": f"lightning_recon.data.{module}", "init_args": arguments}}
    data = parser.instantiate_classes(parser.parse_object(config)).data
    assert type(data).__name__ == module
    assert data.num_public == 5
    assert data.masks.method == {"sam": "grabcut", "folder": "folder"}[masks]
    assert data.indices == extra.get("indices")


def test_yaml_makes_captured_updates():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AuditDataModule, "data")
    path = "lightning_recon.data.CapturedUpdatesDataModule"
    config = {"data": {"class_path": path, "init_args": {"folder": "captured"}}}
    data = parser.instantiate_classes(parser.parse_object(config)).data
    assert data.folder == "captured"
