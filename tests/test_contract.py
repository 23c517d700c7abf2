"""The contract of every class that a room offers.

All modules are imported and all concrete subclasses walked; each has a row that builds it.

An attack is run by a Trainer and an audit, as it would be: once plain, once under a guard.  There
the truth raises in whatever an attack does, but for the three places of its base that ask for a
round or for public images; the auditor is shown inverted pictures and other labels, and a client's
batch is overwritten once its round is played.  What the attack finds must be the same bits.
"""

import ast
import importlib
import inspect
import math
import pkgutil
import sys
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import yaml
from attack_helpers import bind_to
from contract_rows import (
    ATTACKS,
    BATCH,
    CLASSES,
    OPTIONAL,
    PARTS,
    ROWS,
    SINGLE,
    SIZE,
    TRAINED,
    UNCOUNTED,
    UNPUBLISHED,
    lenet,
    random,
    random_batch,
)
from PIL import ImageOps
from pytorch_lightning import Callback, Trainer

import lightning_recon
from lightning_recon import attacks, clients, data, defenses, priors, targets
from lightning_recon.attacks import Attack
from lightning_recon.attacks.matching.batch_statistics import batch_statistics
from lightning_recon.audit.records import read_records
from lightning_recon.commands.names import LISTS
from lightning_recon.data.photographs import NUM_PHOTOGRAPHS, PhotographSource
from lightning_recon.federation import Federation
from lightning_recon.observation import Grant, Reconstruction
from lightning_recon.runs.callback import Audit
from lightning_recon.updates import DataSpec, PrivateBatch

pytestmark = [
    pytest.mark.usefixtures("_photographs"),
    pytest.mark.filterwarnings("ignore"),
]

PACKAGE = Path(lightning_recon.__file__).parent
CONFIGS = PACKAGE.parent / "configs"


# --- no class without a row --------------------------------------------------------------------


def concrete_subclasses(base):
    """All classes of the package below a base that can be built."""
    below = {found for child in base.__subclasses__() for found in concrete_subclasses(child)}
    if not inspect.isabstract(base) and base.__module__.startswith("lightning_recon."):
        below.add(base)
    return below


def walked(kind):
    """The concrete classes of one kind, by name, and those of them that its room offers."""
    for module in pkgutil.walk_packages(lightning_recon.__path__, "lightning_recon."):
        if ".integrations." not in module.name:  # those need frameworks that no audit does
            importlib.import_module(module.name)
    room = importlib.import_module(f"lightning_recon.{kind}")
    bases = [getattr(room, name) for name in LISTS[kind]]
    classes = {found for base in bases for found in concrete_subclasses(base)} - set(bases)
    names = {found.__name__: found for found in classes}
    assert len(names) == len(classes), "two classes of one name"
    return names, {name for name in names if name in room.__all__}


def every(kind):
    return pytest.mark.parametrize("name", ROWS[kind])


@pytest.mark.parametrize("kind", LISTS)
def test_every_class_has_a_row(kind):
    names, offered = walked(kind)
    assert ROWS[kind].keys() == offered
    assert names.keys() - offered <= PARTS, "offer them in __all__, or name them as parts"


@pytest.mark.parametrize("kind", ["attacks", "defenses", "data"])
def test_every_class_says_where_it_was_published(kind):
    for name, found in walked(kind)[0].items():
        citation = inspect.getattr_static(found, "citation", None)
        assert (citation is None) == (name in UNPUBLISHED), name
        assert citation is None or (isinstance(citation, str) and citation.strip()), name


@cache
def configured():
    """The names of the attacks of the configuration files."""
    contents = [yaml.safe_load(path.read_text()) for path in CONFIGS.glob("*.yaml")]
    paths = [content.get("model", {}).get("class_path", "") for content in contents]
    return {path.rpartition(".")[2] for path in paths}


@every("attacks")
def test_no_attack_stands_more_than_two_classes_below_attack(name):
    chain = [kind for kind in getattr(attacks, name).__mro__ if issubclass(kind, attacks.Attack)]
    assert len(chain) <= 3


@every("attacks")
def test_every_attack_has_a_configuration_and_a_threat_model(name):
    assert name in configured()
    assert getattr(attacks, name).threat_model.strip()


# --- the guard ---------------------------------------------------------------------------------


class TruthSeen(BaseException):
    """No ``except Exception`` stops it."""


TRUTH = PhotographSource.image, PhotographSource.label
ALLOWED = {method.__code__ for method in (Attack.play, Attack._start_run, Attack.setup)}


@cache
def photograph(place):
    """A cut, small: decoding the large ones would take most of the time."""
    return TRUTH[0](PhotographSource(), place).resize((SIZE, SIZE))


@pytest.fixture(scope="module")
def _photographs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhotographSource, "image", lambda source, place: photograph(place))
        yield


def asking():
    """The code of the nearest caller whose first argument is an attack; None: there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(first, Attack):
            return code
        frame = frame.f_back
    return None


@contextmanager
def guarded():
    """The truth for rounds alone: it raises in an attack, and everybody else gets another one."""
    seen = []
    play = Federation.play

    def tell(truth, other):
        code = asking()
        if code is not None and code not in ALLOWED:
            seen.append(code)
            raise TruthSeen(code.co_name)
        return truth() if code in ALLOWED else other()

    def image(source, place):
        return tell(lambda: photograph(place), lambda: ImageOps.invert(photograph(place)))

    def label(source, place):
        true = TRUTH[1](source, place)
        return tell(lambda: true, lambda: (true + 1) % NUM_PHOTOGRAPHS)

    def play_and_burn(federation, batch, client):
        batch = PrivateBatch(*(field.clone() for field in batch))
        observation = play(federation, batch, client)
        batch.images.fill_(torch.nan)
        batch.masks.zero_()
        batch.indices.fill_(-1)
        if Grant.LABELS not in federation.grants:
            batch.labels.zero_()
        return observation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhotographSource, "image", image)
        patch.setattr(PhotographSource, "label", label)
        patch.setattr(Federation, "play", play_and_burn)
        yield
    assert not seen, "an attack asked for the truth"


# --- attacks -----------------------------------------------------------------------------------


class Catch(Callback):
    """Keeps what an attack finds, client after client."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 == trainer.num_training_batches:
            self.found.append(pl_module.current)

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found.append(outputs)


def sample_clients(batch_size=BATCH):
    return data.SampleImagesDataModule(
        batch_size=batch_size, num_clients=2, image_size=SIZE, num_public=8
    )


def run(stage, attack, folder, batch_size):
    """What is found of each client, and the audit's records."""
    catch = Catch()
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


def check_attack(make, folder, batch_size=BATCH):
    """Run an attack in ``fit`` and in ``test``: it is scored, and the truth has no part in it."""
    for stage in ("fit", "test"):
        plain, records = run(stage, make(), folder / stage, batch_size)
        assert sum(len(found.images) for found in plain), "nothing to compare"
        assert [record.client for record in records] == [0, 1]
        for record, found in zip(records, plain, strict=True):
            assert len(record.rows) == batch_size
            assert all(math.isfinite(row["psnr"]) for row in record.rows)
            assert found.images.shape == (len(found.score), 3, SIZE, SIZE)
            assert len(found.images) <= batch_size
            assert 0 <= found.images.min() <= found.images.max() <= 1
        with guarded():
            again, _ = run(stage, make(), folder / f"{stage} guarded", batch_size)
        for first, second in zip(plain, again, strict=True):
            assert_same_bits(first, second)


def assert_same_bits(first, second):
    assert torch.equal(first.images, second.images), "other images"
    assert torch.equal(first.score, second.score)
    assert first.notes == second.notes
    assert (first.labels is None) == (second.labels is None)
    assert first.labels is None or torch.equal(first.labels, second.labels)


def faintly_noised(name, **more):
    """An attack on updates of a noise that depends on the seed, and hides nothing."""
    return ATTACKS[name](defenses=[defenses.GaussianNoise(1e-9)], **more)


@every("attacks")
def test_attack_keeps_the_contract(name, tmp_path):
    check_attack(partial(faintly_noised, name), tmp_path, 1 if name in SINGLE else BATCH)


@every("attacks")
def test_another_seed_gives_another_observation(name):
    first, same, other = (
        bind_to(faintly_noised(name, seed=seed), sample_clients(1)).play(0) for seed in (0, 0, 1)
    )
    assert first.seed == same.seed != other.seed
    assert all(torch.equal(tensor, same.update[key]) for key, tensor in first.update.items())
    assert not all(torch.equal(tensor, other.update[key]) for key, tensor in first.update.items())


@pytest.mark.parametrize("name", sorted(UNCOUNTED))
def test_max_batch_size_is_room_and_no_hint(name):
    source = sample_clients(1 if name in SINGLE else BATCH)
    found = []
    for room in (source.batch_size, 3 * source.batch_size):
        attack = ATTACKS[name](known=["labels", "client"])
        attack.bind(source.spec._replace(max_batch_size=room), source.public_images())
        observation = attack.federation.play(source.client(0), 0)
        assert observation.num_samples is None
        found.append(attack.reconstruct(observation))
    assert_same_bits(*found)


@pytest.mark.parametrize("name", sorted(ATTACKS.keys() - UNCOUNTED))
def test_the_others_are_told_the_number_of_samples(name):
    assert Grant.NUM_SAMPLES in ATTACKS[name]().oracles


# --- attacks that are neither in closed form nor optimised, honest ones and cheats --------------


class Guess(Attack):
    """Returns the mean of the public images."""

    citation = "no publication"
    threat_model = "an honest-but-curious server that does not look"
    oracles = ("num_samples",)

    def server_payload(self, model):
        return model

    def learn_public(self, images):
        self.mean = images.mean(0)

    def reconstruct(self, observation):
        images = self.find(observation)
        return Reconstruction(images, None, images.new_zeros(len(images)), {})

    def find(self, observation):
        return self.mean.expand(observation.num_samples, -1, -1, -1)


def cheat(find):
    """A guess that finds its images in a way of its own."""
    return type("Cheat", (Guess,), {"find": find})(lenet())


def ask_and_hide_it(attack, observation):
    try:
        return attack.trainer.datamodule.thumbnails([0, 1], SIZE)
    except BaseException:
        return Guess.find(attack, observation)


def ask_for_labels(attack, observation):
    return attack.trainer.datamodule.client_labels(0).view(-1, 1, 1, 1) * attack.mean / CLASSES


def read_the_auditor(attack, observation):
    """Take the candidates that the auditor holds since the first client."""
    audit = next(found for found in attack.trainer.callbacks if isinstance(found, Audit))
    held = audit._auditor._candidates
    return Guess.find(attack, observation) if held is None else held[1][: observation.num_samples]


def keep_the_batch(attack, observation):
    """Have the client of the next round keep its images."""
    kept = getattr(attack, "kept", Guess.find(attack, observation))
    run = clients.FedSGD().run

    def spy(payload, batch, *, seed):
        attack.kept = batch.images
        return run(payload, batch, seed=seed)

    attack.client.run = spy
    return kept


def test_a_guess_is_scored_in_fit_and_in_test(tmp_path):
    check_attack(lambda: Guess(lenet()), tmp_path)


@pytest.mark.parametrize(
    ("find", "failure"),
    [
        (lambda attack, _: attack.trainer.datamodule.client(0).images, "<lambda>"),
        (lambda attack, _: attack.mean[None] / PhotographSource().image(0).width, "<lambda>"),
        (ask_for_labels, "ask_for_labels"),
        (ask_and_hide_it, "an attack asked for the truth"),
        (read_the_auditor, "other images"),
        (keep_the_batch, "other images"),
        (lambda attack, _: torch.rand_like(attack.mean[None]), "other images"),
    ],
)
def test_a_cheat_fails(find, failure, tmp_path):
    with pytest.raises((TruthSeen, AssertionError), match=failure):
        check_attack(lambda: cheat(find), tmp_path)


def test_another_way_to_play_fails(tmp_path):
    class PlaysItself(Guess):
        def play(self, client, *, noise_only=False):
            self.mean = self.trainer.datamodule.client(client).images[0]
            return super().play(client, noise_only=noise_only)

    with pytest.raises(TruthSeen, match="play"):
        check_attack(lambda: PlaysItself(lenet()), tmp_path)


# --- what the files below attacks/ may name ----------------------------------------------------

OWNERS = "self", "attack", "self._attack"
UNNAMED = {
    *("trainer", "_trainer", "datamodule", "client_labels", "public_labels", "thumbnails"),
    *("federation", "PrivateBatch", "lightning_recon.data", "lightning_recon.federation"),
    *(f"{name}.{part}" for name in OWNERS for part in ("client", "defenses")),
}
"""Nowhere below ``attacks/`` but in its base; of the client and the defenses, an attacker knows
what the observation or ``self.channel`` grants."""
ASKS = {"play", "setup", "_start_run"}
"""The methods of the base that name the data module."""


def offences(node, unnamed=UNNAMED, allowed=()):
    """What a file must not name, each as line: words; ``allowed``: the methods that may."""
    if isinstance(node, ast.FunctionDef) and node.name in allowed:
        return []
    if isinstance(node, ast.ClassDef) and "Loop" in {node.name, *map(ast.unparse, node.bases)}:
        unnamed = unnamed - {"self.client"}  # there a client's number
    found = [f"{node.lineno}: {words}" for words in sorted(named(node) & unnamed)]
    for child in ast.iter_child_nodes(node):
        found += offences(child, unnamed, allowed)
    return found


def named(node):
    """What one node of a syntax tree names."""
    match node:
        case ast.Name(id=word) | ast.Constant(value=str(word)):  # getattr(self, "trainer")
            return {word}
        case ast.Attribute(attr=word):
            return {word, ast.unparse(node)}
        case ast.Import(names=aliases):
            return {".".join(alias.name.split(".")[:2]) for alias in aliases}
        case ast.ImportFrom(module=module, names=aliases):
            paths = {f"{module}.{alias.name}" for alias in aliases}
            short = {".".join(path.split(".")[:2]) for path in paths}
            return short | {alias.name for alias in aliases}
    return set()


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "attacks").rglob("*.py")), ids=lambda path: path.stem
)
def test_only_the_base_names_what_has_the_truth(path):
    tree = ast.parse(path.read_text())
    is_base = path == PACKAGE / "attacks/base.py"
    assert (offences(tree, {"datamodule"}, ASKS) if is_base else offences(tree)) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("self.trainer.datamodule", ["1: datamodule", "1: trainer"]),
        ("getattr(attack, '_trainer')", ["1: _trainer"]),
        ("data.client_labels(0)", ["1: client_labels"]),
        ("self.federation.play(batch, 0)", ["1: federation"]),
        ("import lightning_recon.data.base", ["1: lightning_recon.data"]),
        ("from lightning_recon import data", ["1: lightning_recon.data"]),
        ("from lightning_recon.updates import PrivateBatch", ["1: PrivateBatch"]),
        ("class A(Attack):\n def f(self):\n  self.client", ["3: self.client"]),
        ("attack.defenses", ["1: attack.defenses"]),
        ("class A(Loop):\n def f(self):\n  self._attack.client", ["3: self._attack.client"]),
        ("class A(Loop):\n def f(self):\n  self.client = 3", []),
        ("evidence.client, observation.defenses, self.play(client)", []),
    ],
)
def test_an_offence_is_found(source, found):
    assert offences(ast.parse(source)) == found


@pytest.mark.parametrize(("method", "found"), [("play", []), ("reconstruct", ["2: datamodule"])])
def test_the_base_asks_in_three_methods_alone(method, found):
    tree = ast.parse(f"def {method}(self):\n return self.trainer.datamodule")
    assert offences(tree, {"datamodule"}, ASKS) == found


# --- defenses ----------------------------------------------------------------------------------


def small_update():
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (5, 8)}
    return {name: random(*shape, seed=n) - 0.4 for n, (name, shape) in enumerate(shapes.items())}


def assert_fits(update, names):
    assert {name: tensor.shape for name, tensor in update.items()} == names
    assert all(tensor.isfinite().all() for tensor in update.values())


@every("defenses")
def test_defense_keeps_the_contract(name):
    defense = ROWS["defenses"][name]()
    defenses.bind_chain([defense], norm_bound=1.0)
    shapes = {name: tensor.shape for name, tensor in small_update().items()}
    sent, again = (
        defenses.apply_chain([defense], small_update(), generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert_fits(sent, shapes)
    assert all(torch.equal(tensor, again[name]) for name, tensor in sent.items())
    simulated = small_update()
    expected = defense.stand_in(simulated, sent)
    assert_fits(expected, shapes)
    assert all(torch.equal(simulated[name], was) for name, was in small_update().items())
    assert 0 < defenses.num_update_bits([defense], shapes) < math.inf


# --- data --------------------------------------------------------------------------------------


@every("data")
def test_data_module_keeps_the_contract(name, tmp_path):
    source = ROWS["data"][name](tmp_path)
    source.prepare_data()
    source.setup("predict")
    num_classes = getattr(source, "num_classes", None)
    assert source.spec == DataSpec((3, SIZE, SIZE), num_classes, BATCH)
    public = source.public_images()
    assert public.shape == (len(public), 3, SIZE, SIZE)
    assert source.num_clients == 1
    if not isinstance(source, data.ClientDataModule):
        assert num_classes is None
    else:
        assert_is_a_batch(source.client(0), num_classes)
        for field, again in zip(source.client(0), source.client(0), strict=True):
            assert torch.equal(field, again)
    assert source.describe()
    assert_plays(source)


def assert_is_a_batch(batch, num_classes):
    assert batch.images.shape == (BATCH, 3, SIZE, SIZE)
    assert 0 <= batch.images.min() < batch.images.max() <= 1
    assert batch.masks.shape == (BATCH, 1, SIZE, SIZE)
    assert batch.labels.shape == batch.indices.shape == (BATCH,)
    assert 0 <= batch.labels.min() <= batch.labels.max() < num_classes


def assert_plays(source):
    """A round with the first client is the same whenever it is played."""
    num_classes = max(CLASSES, getattr(source, "num_classes", 0))
    attack = Guess(targets.LeNet(num_classes, SIZE))
    observation, again = (bind_to(attack, source).play(0) for _ in range(2))
    assert observation.num_samples == BATCH
    assert all(torch.equal(tensor, again.update[key]) for key, tensor in observation.update.items())


# --- clients -----------------------------------------------------------------------------------


@every("clients")
def test_client_keeps_the_contract(name):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    client, model = ROWS["clients"][name](), lenet()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    (update, buffers), (again, _) = (client.run(model, random_batch(4), seed=3) for _ in range(2))
    assert_fits(update, {key: parameter.shape for key, parameter in model.named_parameters()})
    assert buffers.keys() == dict(model.named_buffers()).keys()
    assert all(torch.equal(tensor, again[key]) for key, tensor in update.items())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert client.protocol in {"fedsgd", "fedavg"}
    assert client.num_gradients(4) > 0


# --- targets -----------------------------------------------------------------------------------


@every("targets")
def test_target_keeps_the_contract(name):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    model, same, other = (ROWS["targets"][name](seed).eval() for seed in (0, 0, 1))
    size = getattr(model, "image_size", SIZE)
    model.check_input((3, size, size))
    with torch.no_grad():
        logits, again, others = (found(random(2, 3, size, size)) for found in (model, same, other))
    assert torch.equal(logits, again)
    assert name in TRAINED or not torch.equal(logits, others)
    assert logits.shape == (2, model.num_classes)
    assert logits.isfinite().all()


# --- priors and refiners -----------------------------------------------------------------------


@every("priors")
def test_prior_keeps_the_contract(name):
    prior, images = ROWS["priors"][name](), random(3, 3, SIZE, SIZE).requires_grad_()
    if isinstance(prior, priors.Prior):
        penalty = prior(images)
        assert penalty.shape == (3,)
    else:
        payload, batch = targets.ConvNet(5, width=2), random_batch(3)
        observed, buffers = clients.FedSGD().run(payload, batch, seed=0)
        statistics = batch_statistics(payload, buffers)
        penalty = prior(images, batch.labels, payload, observed, statistics)
        assert penalty.shape == ()
    assert penalty.isfinite().all()
    (gradient,) = torch.autograd.grad(penalty.sum(), images)
    assert gradient.isfinite().all()
    assert gradient.any()


@every("refiners")
def test_refiner_keeps_the_contract(name):
    images, labels = random(2, 3, 64, 64), torch.tensor([1, 4])
    with torch.no_grad():
        refined = ROWS["refiners"][name]()(images, labels)
    assert refined.shape == images.shape
    assert 0 <= refined.min() <= refined.max() <= 1
