"""The contract of every class that a room offers.

All modules are imported and all concrete subclasses walked; each has a row that builds it.  What
attacks, defenses and data must keep stands in :mod:`lightning_recon.contract`.
"""

import ast
import importlib
import inspect
import pkgutil
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import yaml
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

import lightning_recon
from lightning_recon import attacks, clients, data, defenses, priors, targets
from lightning_recon.attacks import Attack
from lightning_recon.attacks.matching.batch_statistics import batch_statistics
from lightning_recon.commands.names import LISTS
from lightning_recon.contract import (
    TruthSeen,
    check_attack,
    check_data,
    check_defense,
    check_same_bits,
    sample_clients,
    small_photographs,
)
from lightning_recon.data.photographs import PhotographSource
from lightning_recon.observation import Grant, Reconstruction
from lightning_recon.runs.callback import Audit

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


# --- attacks -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _photographs():
    with small_photographs():
        yield


@every("attacks")
def test_attack_keeps_the_contract(name):
    check_attack(ATTACKS[name], 1 if name in SINGLE else BATCH)


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
    check_same_bits(*found)


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
    """What makes a guess that finds its images in a way of its own."""
    return partial(type("Cheat", (Guess,), {"find": find}), lenet())


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


def test_a_guess_is_scored_in_fit_and_in_test():
    check_attack(partial(Guess, lenet()))


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
def test_a_cheat_fails(find, failure):
    with pytest.raises((TruthSeen, AssertionError), match=failure):
        check_attack(cheat(find))


def test_another_way_to_play_fails():
    class PlaysItself(Guess):
        def play(self, client, *, noise_only=False):
            self.mean = self.trainer.datamodule.client(client).images[0]
            return super().play(client, noise_only=noise_only)

    with pytest.raises(TruthSeen, match="play"):
        check_attack(partial(PlaysItself, lenet()))


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


def assert_fits(update, names):
    assert {name: tensor.shape for name, tensor in update.items()} == names
    assert all(tensor.isfinite().all() for tensor in update.values())


@every("defenses")
def test_defense_keeps_the_contract(name):
    check_defense(ROWS["defenses"][name])


class Sends(defenses.Defense):
    """Multiplies, and stands in for it, in some way that is wrong."""

    def __init__(self, **wrong):
        super().__init__()
        self.wrong = wrong

    def bind(self, norm_bound):
        return self.wrong.get("bound")

    def forward(self, update, *, generator):
        return self.wrong.get("forward", dict)(update)

    def stand_in(self, update, observed):
        return self.wrong.get("stand_in", dict)(update)

    def encode(self, encoding, shapes):
        return encoding._replace(bits_per_value=self.wrong.get("bits", 32.0))


def each(change):
    return lambda update: {name: change(tensor) for name, tensor in update.items()}


WRONG = {
    "two results": {"forward": each(lambda tensor: tensor + torch.rand_like(tensor))},
    "what is sent has the names": {"forward": each(torch.Tensor.sum)},
    "what is sent is finite": {"forward": each(lambda tensor: tensor / 0)},
    "a bound of 0.1": {"bound": 0.1},
    "in place": {"stand_in": each(torch.Tensor.neg_)},
    "within torch.func.vmap": {"stand_in": each(lambda tensor: tensor * float(tensor.max()))},
    "gradient through stand_in": {"stand_in": each(lambda tensor: (0 * tensor).sqrt())},
    "a message": {"bits": 0.0},
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_defense_fails(said):
    check_defense(Sends)
    with pytest.raises(AssertionError, match=said):
        check_defense(partial(Sends, **WRONG[said]))


# --- data --------------------------------------------------------------------------------------


@every("data")
def test_data_module_keeps_the_contract(name, tmp_path):
    source = ROWS["data"][name](tmp_path)
    check_data(lambda: source, lenet() if name == "CapturedUpdatesDataModule" else None)
    rows = (1, 11, 11)  # 108 places, zeros up to a square
    assert source.image_shape == (rows if name == "TabularDataModule" else (3, SIZE, SIZE))
    assert source.batch_size == BATCH
    assert source.num_clients == 1


def batch_with(**fields):
    return lambda data, index: random_batch(BATCH)._replace(**fields)


@pytest.mark.parametrize(
    ("method", "wrong", "said"),
    [
        ("client", batch_with(images=torch.zeros(BATCH, 3, SIZE, SIZE)), "and differ"),
        ("client", batch_with(labels=torch.tensor([0, 99])), "below num_classes"),
        ("public_images", lambda data: torch.zeros(2, 3, SIZE, SIZE + 1), "public images are"),
        ("describe", lambda data: "", "describe says"),
    ],
)
def test_wrong_data_fail(method, wrong, said):
    kind = type("Wrong", (data.SampleImagesDataModule,), {method: wrong})
    with pytest.raises(AssertionError, match=said):
        check_data(lambda: kind(batch_size=BATCH, image_size=SIZE, num_public=1))


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
    assert client.protocol in {"fedsgd", "fedavg", "fedavg-adamw"}
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
