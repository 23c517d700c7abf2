"""What holds for whatever is given: defenses, metrics, the matcher, records and captures."""

import json
import math
import random
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from contract_rows import DEFENSES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from lightning_recon import metrics
from lightning_recon.audit.matching import match
from lightning_recon.audit.records import ClientRecord, append_record, read_records, records_file
from lightning_recon.captures import Capture, CaptureWriter
from lightning_recon.defenses import FrozenLayers
from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import mse, psnr
from lightning_recon.targets import LeNet

FEW = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SHAPES = st.sampled_from([(), (0,), (1,), (3,), (2, 3), (1, 1, 1, 1), (2, 0, 3), (4, 2, 3, 3)])
SPECIAL = (0.0, -0.0, 1.0, 1e-38, -1e30, 3e38, math.inf, -math.inf, math.nan)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@st.composite
def updates(draw, numbers=SPECIAL):
    """Tensors of odd shapes, zeros, infinities and NaN, all of one type."""
    dtype = draw(st.sampled_from(DTYPES))
    found = {}
    for place in range(draw(st.integers(1, 3))):
        shape = draw(SHAPES)
        count = math.prod(shape)
        drawn = draw(st.lists(st.sampled_from(numbers), min_size=count, max_size=count))
        found[f"p{place}"] = torch.tensor(drawn, dtype=torch.float64).to(dtype).reshape(shape)
    return found


@pytest.mark.parametrize("name", DEFENSES)
@FEW
@given(update=updates())
def test_a_defense_keeps_names_shapes_and_types(name, update):
    """Of what is not finite nothing is promised but that it is told apart, or stays odd."""
    defense = DEFENSES[name]()
    before = {key: (tensor.shape, tensor.dtype) for key, tensor in update.items()}
    defense.bind(1.0)
    try:
        found = defense(update, generator=torch.Generator().manual_seed(0))
    except (InputError, ValueError):
        return
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in found.items()} == before


@pytest.mark.parametrize("name", DEFENSES)
@FEW
@given(update=updates(numbers=(0.0, 1.0, -0.5)))
def test_a_finite_update_stays_finite(name, update):
    defense = FrozenLayers(list(update)) if name == "FrozenLayers" else DEFENSES[name]()
    defense.bind(1.0)
    found = defense(update, generator=torch.Generator().manual_seed(0))
    assert all(tensor.isfinite().all() for tensor in found.values())


PIXELS = st.sampled_from([0.0, 0.25, 1.0, math.nan, math.inf])


def pictures(count, values):
    return st.lists(values, min_size=4 * count, max_size=4 * count).map(
        lambda numbers: torch.tensor(numbers).reshape(count, 1, 2, 2)
    )


@FEW
@given(data=st.data())
def test_the_matcher_is_one_to_one_and_the_cheapest(data):
    found = data.draw(st.integers(0, 4).flatmap(lambda count: pictures(count, PIXELS)))
    truth = data.draw(
        st.integers(0, 4).flatmap(lambda count: pictures(count, st.sampled_from([0.0, 0.5, 1.0])))
    )
    row = match(found, truth).row
    used = row[row >= 0].tolist()
    whole = [place for place, image in enumerate(found) if image.isfinite().all()]
    assert len(set(used)) == len(used) == min(len(whole), len(truth))
    assert set(used) <= set(whole)
    cost = (found[whole][:, None] - truth[None]).square().flatten(2).mean(2)
    best = linear_sum_assignment(cost.double().numpy()) if cost.numel() else ([], [])
    total = sum(float(cost[whole.index(one), place]) for place, one in enumerate(row) if one >= 0)
    assert math.isclose(total, sum(float(cost[a, b]) for a, b in zip(*best, strict=True)))


@FEW
@given(seed=st.integers(0, 10**6), contrast=st.sampled_from([0.0, 1e-6, 1.0]))
def test_a_metric_is_in_its_range_and_says_nothing_of_nan(seed, contrast):
    generator = torch.Generator().manual_seed(seed)
    images, other = contrast * torch.rand(2, 2, 1, 7, 7, generator=generator)
    assert (mse(images, other) >= 0).all()
    assert torch.equal(mse(images, other), mse(other, images))
    assert (psnr(images, images) == 100).all()
    assert ((psnr(images, other) >= -1e-4) & (psnr(images, other) <= 100)).all()
    spoilt = images.clone()
    spoilt[0, 0, 0, 0] = math.nan
    assert psnr(spoilt, other)[0].isnan()
    assert torch.equal(psnr(spoilt, other)[1], psnr(images, other)[1])


SIDE = 16
METRICS = {
    **{name: getattr(metrics, name) for name in ("MSE", "PSNR", "SSIM", "MultiScaleSSIM")},
    **{name: getattr(metrics, name) for name in ("RegisteredPSNR", "ComplexWaveletSSIM")},
    "IdentificationRate": partial(metrics.IdentificationRate, SIDE),
    "ImageIdentifiabilityPrecision": metrics.ImageIdentifiabilityPrecision,
    "TagJaccard": lambda: metrics.TagJaccard(LeNet(9, SIDE)),
    "TopKAgreement": lambda: metrics.TopKAgreement(LeNet(9, SIDE), 2),
}
OF_FILES = {"LPIPS", "DISTS"}
"""Of networks that are no part of the package; torchmetrics' own are their oracles."""
CONTENTS = st.sampled_from(["black", "white", "noise", "faint", "ramp", "black and white"])


def picture(content, generator, channels):
    noise = torch.rand(channels, SIDE, SIDE, generator=generator)
    return {
        "black": torch.zeros_like(noise),
        "white": torch.ones_like(noise),
        "noise": noise,
        "faint": 0.5 + 1e-6 * noise,
        "ramp": torch.linspace(0, 1, SIDE).expand_as(noise),
        "black and white": noise.round(),
    }[content]


def values_of(name, preds, target):
    metric = METRICS[name]()
    by_place = name.startswith(("Identification", "Image"))
    metric.update(preds, target, *[torch.arange(len(target))] if by_place else [])
    return metric.per_image()


def test_every_metric_of_images_is_here():
    known = [getattr(metrics, name) for name in metrics.__all__]
    kinds = {k.__name__ for k in known if issubclass(k, metrics.PerImageMetric)}
    assert kinds - {"PerImageMetric"} == METRICS.keys() | OF_FILES


@pytest.mark.parametrize("name", METRICS)
@FEW
@given(
    contents=st.lists(CONTENTS, min_size=6, max_size=6),
    seed=st.integers(0, 10**6),
    odd=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_every_metric_is_in_its_range_and_one_odd_image_spoils_no_other(name, contents, seed, odd):
    generator = torch.Generator().manual_seed(seed)
    images = torch.stack([picture(one, generator, 3) for one in contents])
    preds, target = images[:3], images[3:]
    words = next(w for w in map(str.split, metrics.__doc__.splitlines()) if w and w[0] == name)
    least, most = (float(word.strip("[],)")) for word in words[1:3])
    found = values_of(name, preds, target)
    assert ((found >= least - 1e-5) & (found <= most + 1e-5)).all()
    spoilt = preds.clone()
    spoilt[1, :, 3:5] = odd
    again = values_of(name, spoilt, target)
    assert torch.equal(again[[0, 2]], found[[0, 2]])
    worst = -math.inf if METRICS[name]().higher_is_better else math.inf
    assert again[1].isnan() or again[1] == worst or least <= again[1] <= most


def assert_one_line(said, words):
    assert words in said
    assert "\n" not in said


# --- files with flipped bytes ------------------------------------------------------------------


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    for client in range(3):
        rows = [{"client": client, "image": 0, "index": 4, "label": 1, "psnr": 20.5}]
        notes = {"rows_hit": 3.0}
        append_record(folder, 0, ClientRecord(client, rows, 1, notes, {}, [(0, 2.0)], 0.5, None))
    return folder, records_file(folder, 0).read_bytes(), read_records(folder)


@settings(FEW, max_examples=150)
@given(place=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_record_with_another_byte_is_never_believed(lines, place, byte):
    folder, content, known = lines
    place %= len(content)
    damaged = content[:place] + bytes([byte]) + content[place + 1 :]
    records_file(folder, 0).write_bytes(damaged)
    try:
        found = read_records(folder)
    except InputError as error:
        assert_one_line(str(error), "process0000.jsonl, line ")
    else:  # nothing was changed, or the end of the last line, which then was being written
        assert found == known or (found == known[:-1] and place == len(content) - 1)


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captures")
    state = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
    writer = CaptureWriter(folder / "whole", "test")
    payload = writer.add_payload(state)
    writer.add_reply(1, "a", state, "weights", payload, batch_size=2, learning_rate=0.1)
    return folder / "whole"


@settings(FEW, max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_a_capture_with_another_byte_is_read_or_refused_in_a_line(capture, seed, tmp_path):
    chance = random.Random(seed)
    # a folder for each, since payloads that were read are remembered by their path
    changed = Path(shutil.copytree(capture, tmp_path / str(seed), dirs_exist_ok=True))
    path = chance.choice(sorted(path for path in changed.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    content[place] ^= chance.randrange(1, 256)
    path.write_bytes(content)
    try:
        found = Capture(changed)
        reply = found.read(found.files[0])
    except InputError as error:
        assert_one_line(str(error), "")
    else:
        assert path.suffix == ".json"  # tensors have checksums
        assert reply.facts["kind"] in {"weights", "delta", "gradient"}
        assert reply.facts.get("batch_size") is None or 1 <= reply.facts["batch_size"] <= 2**20


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("batch_size", value) for value in (0, -1, 2**40, "2", 1.5, True, [2], 2**70)],
        *[("image_shape", value) for value in ([3, 32], [3, 0, 32], "3", [3, "x", 1])],
        *[("learning_rate", value) for value in (-1, 1e300, "fast", [1])],
        *[("mods", value) for value in ("x", [1], [{"clip_norm": "1"}])],
        *[("missing", value) for value in ("w", [3])],
        *[("client", value) for value in (3, {})],
        *[("round", value) for value in (-1, "1", 2**40)],
    ],
)  # fmt: skip
def test_what_a_reply_says_is_of_its_schema(key, value, capture, tmp_path):
    changed = Path(shutil.copytree(capture, tmp_path / "changed"))
    path = Capture(changed).files[0]
    text = json.dumps(json.loads(path.read_text()) | {key: value}, indent=2)
    path.write_text(text)
    line = next(n for n, one in enumerate(text.splitlines(), 1) if f'"{key}":' in one)
    with pytest.raises(InputError, match=rf"a\.json, line \d+: {key}") as error:
        Capture(changed).read(path)
    assert_one_line(str(error.value), "")
    told = int(str(error.value).partition(", line ")[2].partition(":")[0])
    assert line <= told <= line + 2  # that of the key, or of what is wrong within its value
