"""What every attack, defense and data set keeps, to be tested of classes inside and outside.

The tests of the package run the same functions on every class that it offers::

    from lightning_recon.contract import IMAGE_SIZE, NUM_CLASSES, check_attack
    from lightning_recon.targets import LeNet

    def make(**settings):
        return MyAttack(LeNet(NUM_CLASSES, IMAGE_SIZE), iterations=2, **settings)

    def test_my_attack():
        check_attack(make)

An attack is run by a Trainer and an audit, as it would be: once plain, once under a guard.  There
the truth raises in whatever an attack does, but for the three places of its base that ask for a
round or for public images; the auditor is shown inverted pictures and other labels, and a client's
batch is overwritten once its round is played.  What the attack finds must be the same bits.
"""

import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image, ImageOps
from pytorch_lightning import Callback, Trainer
from torch import Tensor, nn

from lightning_recon.attacks import Attack
from lightning_recon.audit.records import ClientRecord, read_records
from lightning_recon.clients import FedSGD
from lightning_recon.data import AuditDataModule, ClientDataModule, SampleImagesDataModule
from lightning_recon.data.photographs import NUM_PHOTOGRAPHS, PhotographSource
from lightning_recon.defenses import Defense, GaussianNoise, apply_chain, num_update_bits
from lightning_recon.errors import InputError
from lightning_recon.federation import Federation
from lightning_recon.observation import Grant, Reconstruction
from lightning_recon.runs.callback import Audit
from lightning_recon.runs.hidden_defaults import check_defaults
from lightning_recon.targets import ModuleTarget, Target
from lightning_recon.updates import DataSpec, PrivateBatch, Update

IMAGE_SIZE = 16
"""Height and width of the images that attacks are tried on, which have three channels."""
NUM_CLASSES = NUM_PHOTOGRAPHS
"""Of these images; the target of an attack knows as many."""
BATCH_SIZE = 2
"""Images of one client."""


def check_attack(make: Callable[..., Attack], batch_size: int = BATCH_SIZE) -> None:
    """Make sure that an attack keeps its contract; four runs on two clients, some seconds.

    It says what it is, and hides no default from the command line; another seed is another
    observation; in ``fit`` and in ``test`` every client gets a reconstruction, images in [0, 1] and
    a score for each, that the audit can score; and the truth has no part in it: where none can be
    had, the same bits come out.

    Args:
        make: returns a new attack, quick to run, on a target for :data:`NUM_CLASSES` classes and
            images of :data:`IMAGE_SIZE`.  It takes ``defenses`` and ``seed`` by keyword, and hands
            them on.
        batch_size: images of one client, for attacks that read one alone.

    Raises:
        AssertionError: naming what is not kept.
        TruthSeen: where an attack asks for the truth.
    """
    attack = make()
    for word in (attack.citation, attack.threat_model):
        _check(bool(word.strip()), "citation and threat_model say what it is")
    try:
        check_defaults(type(attack))
    except InputError as error:
        raise AssertionError(str(error)) from error

    def faintly_noised(**settings: Any) -> Attack:
        """On updates of a noise that depends on the seed, and hides nothing."""
        return make(defenses=[GaussianNoise(1e-9)], **settings)

    with small_photographs(), tempfile.TemporaryDirectory() as folder:
        _check_seeds(faintly_noised, batch_size)
        for stage in ("fit", "test"):
            plain, records = _run(stage, faintly_noised(), Path(folder, stage), batch_size)
            _check_found(plain, records, batch_size)
            with _guarded():
                again, _ = _run(stage, faintly_noised(), Path(folder, "guarded", stage), batch_size)
            for first, second in zip(plain, again, strict=True):
                check_same_bits(first, second)


def check_defense(make: Callable[[], Defense]) -> None:
    """Make sure that a defense keeps its contract, on one small update; less than a second.

    What is sent has the names and shapes of the update, is finite, and depends on nothing but the
    update and the generator; it keeps the bound that ``bind`` returns.  ``stand_in`` is
    differentiable within ``torch.func.vmap`` and changes nothing in place; the message has a size.

    Args:
        make: returns a new defense.

    Raises:
        AssertionError: naming what is not kept.
    """
    defense = make()
    norm = _norm(_small_update())
    bound = defense.bind(norm)
    shapes = {name: tensor.shape for name, tensor in _small_update().items()}
    sent, again = (
        apply_chain([defense], _small_update(), generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    _check_fits(sent, shapes, "what is sent")
    _check(_same(sent, again), "forward draws all it draws from its generator: it gave two results")
    if bound is not None:
        _check(
            _norm(sent) <= bound * (1 + 1e-4),
            f"bind returned a bound of {bound:g} for updates of {norm:g}; {_norm(sent):g} was sent",
        )
    _check_stand_in(defense, sent, shapes)
    bits = num_update_bits([defense], shapes)
    _check(0 < bits < math.inf, f"encode gives the size of a message, not {bits} bits")


def check_data(make: Callable[[], AuditDataModule], target: Target | None = None) -> None:
    """Make sure that a data module keeps its contract, by its first client; about a second.

    Images are C H W in [0, 1], public ones too, and not all alike; masks, labels below
    ``num_classes`` and places in the data set stand beside them; a client is the same whenever it
    is asked for, and so is a round with it.

    Args:
        make: returns a new data module, of few images.
        target: that a round is played with; null: one linear layer.

    Raises:
        AssertionError: naming what is not kept.
    """
    data = make()
    data.prepare_data()
    data.setup("predict")
    num_classes = getattr(data, "num_classes", None)
    shape = data.image_shape
    spec = DataSpec(shape, num_classes, data.batch_size)
    _check(data.spec[:3] == spec[:3], f"spec is {data.spec[:3]}, not {spec[:3]}")
    _check(len(shape) == 3 and shape[0] in (1, 3), f"image_shape is C H W, not {shape}")
    public = data.public_images()
    _check(public.shape[1:] == shape, f"public images are N {shape}, not {tuple(public.shape)}")
    _check(bool(data.describe().strip()), "describe says what the data are")
    if isinstance(data, ClientDataModule):
        _check_batch(data.client(0), data)
        for field, again in zip(data.client(0), data.client(0), strict=True):
            _check(torch.equal(field, again), "a client holds the same whenever it is asked")
    federation = Federation(target or _linear(shape, num_classes or NUM_CLASSES), FedSGD())
    federation.start(lambda: federation.target, (Grant.NUM_SAMPLES,))
    first, second = (data.play(federation, 0) for _ in range(2))
    _check(first.num_samples == data.batch_size, "a round has batch_size samples")
    _check(_same(first.update, second.update), "a round is the same whenever it is played")


def check_same_bits(first: Reconstruction, second: Reconstruction) -> None:
    """Make sure that two reconstructions are one.

    Raises:
        AssertionError: naming what differs.
    """
    _check(torch.equal(first.images, second.images), "other images")
    _check(torch.equal(first.score, second.score), "another score")
    _check(first.notes == second.notes, "other notes")
    _check((first.labels is None) == (second.labels is None), "labels once alone")
    if first.labels is not None and second.labels is not None:
        _check(torch.equal(first.labels, second.labels), "other labels")


def _check(holds: bool, what: str) -> None:
    """Raise, with python -O too."""
    if not holds:
        raise AssertionError(what)


# --- the guard ---------------------------------------------------------------------------------


class TruthSeen(BaseException):
    """An attack asked for the truth; no ``except Exception`` stops it."""


_TRUE_IMAGE, _TRUE_LABEL = PhotographSource.image, PhotographSource.label
_ALLOWED = {method.__code__ for method in (Attack.play, Attack._start_run, Attack.setup)}


@cache
def _photograph(place: int) -> Image.Image:
    """A cut, small: decoding the large ones would take most of the time."""
    return _TRUE_IMAGE(PhotographSource(), place).resize((IMAGE_SIZE, IMAGE_SIZE))


@contextmanager
def small_photographs() -> Iterator[None]:
    """Within this context the sample photographs are small, so that none is decoded twice."""
    with patch.object(PhotographSource, "image", lambda source, place: _photograph(place)):
        yield


def _asking() -> CodeType | None:
    """The code of the nearest caller whose first argument is an attack; None: there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(first, Attack):
            return code
        frame = frame.f_back  # type: ignore[assignment]
    return None


@contextmanager
def _guarded() -> Iterator[None]:
    """The truth for rounds alone: it raises in an attack, and everybody else gets another one."""
    seen = []
    play = Federation.play

    def tell(truth: Callable[[], Any], other: Callable[[], Any]) -> Any:
        code = _asking()
        if code is not None and code not in _ALLOWED:
            seen.append(code)
            raise TruthSeen(f"{code.co_name} asks for the truth, in {code.co_filename}")
        return truth() if code in _ALLOWED else other()

    def image(source: PhotographSource, place: int) -> Any:
        return tell(lambda: _photograph(place), lambda: ImageOps.invert(_photograph(place)))

    def label(source: PhotographSource, place: int) -> Any:
        true = _TRUE_LABEL(source, place)
        return tell(lambda: true, lambda: (true + 1) % NUM_PHOTOGRAPHS)

    def play_and_burn(federation: Federation, batch: PrivateBatch, client: int) -> Any:
        batch = PrivateBatch(*(field.clone() for field in batch))
        observation = play(federation, batch, client)
        batch.images.fill_(torch.nan)
        batch.masks.zero_()
        batch.indices.fill_(-1)
        if Grant.LABELS not in federation.grants:
            batch.labels.zero_()
        return observation

    with (
        patch.object(PhotographSource, "image", image),
        patch.object(PhotographSource, "label", label),
        patch.object(Federation, "play", play_and_burn),
    ):
        yield
    _check(not seen, "an attack asked for the truth")


# --- attacks -----------------------------------------------------------------------------------


class _Catch(Callback):
    """Keeps what an attack finds, client after client."""

    def __init__(self) -> None:
        self.found: list[Reconstruction] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == trainer.num_training_batches:
            self.found.append(pl_module.current)

    def on_test_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.found.append(outputs)


def sample_clients(batch_size: int = BATCH_SIZE) -> SampleImagesDataModule:
    """Return the two clients that :func:`check_attack` tries attacks on."""
    return SampleImagesDataModule(
        batch_size=batch_size, num_clients=2, image_size=IMAGE_SIZE, num_public=8
    )


def _run(
    stage: str, attack: Attack, folder: Path, batch_size: int
) -> tuple[list[Reconstruction], list[ClientRecord]]:
    """What is found of each client, and the audit's records."""
    catch = _Catch()
    audit = Audit(null_controls=False, num_candidates=4, num_pictured_clients=0)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[catch, audit],
        max_epochs=2,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        inference_mode=False,
    )
    getattr(trainer, stage)(attack, datamodule=sample_clients(batch_size))
    return catch.found, read_records(folder)


def _check_found(found: list[Reconstruction], records: list[ClientRecord], batch_size: int) -> None:
    _check(sum(len(one.images) for one in found) > 0, "nothing to compare: it finds no images")
    _check([record.client for record in records] == [0, 1], "two clients are recorded")
    for record, one in zip(records, found, strict=True):
        psnr = [row["psnr"] for row in record.rows]
        _check(len(psnr) == batch_size and all(map(math.isfinite, psnr)), f"PSNRs of {psnr}")
        shape = (len(one.score), 3, IMAGE_SIZE, IMAGE_SIZE)
        _check(one.images.shape == shape, f"images of {tuple(one.images.shape)}, not {shape}")
        _check(len(one.images) <= batch_size, "more images than the client has")
        low, high = float(one.images.min()), float(one.images.max())
        _check(0 <= low <= high <= 1, f"images lie in [0, 1], not in [{low:g}, {high:g}]")


def _check_seeds(make: Callable[..., Attack], batch_size: int) -> None:
    observations = []
    for seed in (0, 0, 1):
        attack, data = make(seed=seed), sample_clients(batch_size)
        attack.bind(data.spec, data.public_images())
        observations.append(data.play(attack.federation, 0))
    first, same, other = observations
    _check(_same(first.update, same.update), "one seed, and two observations")
    is_other = not _same(first.update, other.update) and first.seed == same.seed != other.seed
    _check(is_other, "another seed is another observation: make hands on seed and defenses")


# --- defenses ----------------------------------------------------------------------------------


def _small_update() -> Update:
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (5, 8)}
    update = {}
    for number, (name, shape) in enumerate(shapes.items()):
        generator = torch.Generator().manual_seed(number)
        update[name] = torch.rand(shape, generator=generator) - 0.4
    return update


def _check_stand_in(defense: Defense, sent: Update, shapes: Mapping[str, torch.Size]) -> None:
    simulated = _small_update()
    before = {name: tensor.clone() for name, tensor in sent.items()}
    expected = defense.stand_in(simulated, sent)
    _check_fits(expected, shapes, "what stand_in returns")
    is_left = _same(simulated, _small_update()) and _same(sent, before)
    _check(is_left, "stand_in changes nothing in place")

    def size(update: Update) -> Tensor:
        told = defense.stand_in(update, sent)
        return torch.stack([tensor.square().sum() for tensor in told.values()]).sum()

    restarts = {name: torch.stack([tensor, 2 * tensor]) for name, tensor in simulated.items()}
    try:
        slopes = torch.func.vmap(torch.func.grad(size))(restarts)
    except Exception as error:
        raise AssertionError(
            f"stand_in is to run within torch.func.vmap and to be differentiated: {error}"
        ) from error
    _check_fits({name: slopes[name][1] for name in slopes}, shapes, "the gradient through stand_in")


def _check_fits(update: Update, shapes: Mapping[str, torch.Size], what: str) -> None:
    found = {name: tensor.shape for name, tensor in update.items()}
    _check(found == dict(shapes), f"{what} has the names and shapes of the update")
    is_finite = all(bool(tensor.isfinite().all()) for tensor in update.values())
    _check(is_finite, f"{what} is finite")


def _norm(update: Update) -> float:
    return math.hypot(*(float(tensor.double().norm()) for tensor in update.values()))


def _same(first: Update, second: Update) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# --- data --------------------------------------------------------------------------------------


def _check_batch(batch: PrivateBatch, data: ClientDataModule) -> None:
    num, shape = data.batch_size, data.image_shape
    _check(batch.images.shape == (num, *shape), f"images are B C H W, not {batch.images.shape}")
    low, high = float(batch.images.min()), float(batch.images.max())
    _check(0 <= low < high <= 1, f"images lie in [0, 1] and differ, not in [{low:g}, {high:g}]")
    _check(batch.masks.shape == (num, 1, *shape[1:]), "masks are B 1 H W")
    _check(batch.labels.shape == batch.indices.shape == (num,), "labels and places are B each")
    highest = int(batch.labels.max())
    fits = int(batch.labels.min()) >= 0 and highest < data.num_classes
    _check(fits, f"labels are below num_classes, {data.num_classes}, not {highest}")


def _linear(shape: tuple[int, ...], num_classes: int) -> Target:
    def layer() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_classes))

    return ModuleTarget(layer, num_classes, mean=0.5)
