"""Every number of every listed class at values that nobody means: it runs, or one line says no."""

import copy
import functools
import inspect
import math
import re
import resource
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jsonargparse import ArgumentError
from PIL import Image

from lightning_recon import attacks, clients, data, defenses, priors, refiners, targets
from lightning_recon.attacks import Attack
from lightning_recon.errors import input_error_in
from lightning_recon.runs.allowed import _options_of, check_named
from lightning_recon.runs.callback import Audit
from lightning_recon.runs.items import cell_parser
from lightning_recon.runs.refusals import explain

VALUES: tuple[Any, ...] = (-1, 0, 2**31, 2**63, math.nan, math.inf, "x", None)
SIZE, CLASSES = 16, 20
SECONDS = 5
"""Of the processor: a case that is not done then runs on, and counts as one that runs."""
SPARE_BYTES = 2 * 2**30
"""What a case may take beside what the process has: else a refusal would depend on the machine."""
Content = dict[str, Any]
ROOMS = {
    "attacks": (attacks, "Attack"),
    "clients": (clients, "Client"),
    "data": (data, "AuditDataModule"),
    "defenses": (defenses, "Defense"),
    "priors": (priors, "Prior"),
    "refiners": (refiners, "Refiner"),
    "targets": (targets, "Target"),
}


def spec(path: str, **arguments: Any) -> Content:
    """Return what names a class in a configuration."""
    return {"class_path": path, "init_args": arguments}


LENET = spec("LeNet", num_classes=CLASSES, image_size=SIZE)
TARGETS = {
    "APRIL": spec("TinyViT", num_classes=CLASSES, image_size=SIZE, depth=1),
    "AnnealedInversion": spec("TutorialCNN", num_classes=CLASSES, image_size=SIZE),
    "FeatureInversionAttack": spec("ROGLeNet", num_classes=CLASSES, image_size=SIZE),
    "LinearLayerInversion": spec("MLP", num_classes=CLASSES, image_size=SIZE, hidden=[64]),
    "RGAP": spec("PlainConvNet", num_classes=CLASSES, image_size=SIZE),
}
"""By attack: a model that it reads; others take a LeNet."""
ATTACKS: dict[str, Content] = {
    "CuriousAbandonHonesty": {"num_rows": 64},
    "LDPAttack": {"num_bins": 64},
    "RobbingTheFed": {"num_bins": 64},
    "SpectralLDPAttack": {"num_bins": 64, "shrinkage_steps": 2},
}
NEEDED: dict[str, Any] = {
    **{"clip_norm": 1.0, "clip_value": 1.0, "epsilon": 1.0, "scale": 0.1, "num_levels": 4},
    **{"num_samples": 2, "rank": 1, "sparsity": 0.5, "learning_rate": 0.1, "num_clients": 2},
    **{"client": spec("FedSGD"), "prune_rate": 0.5, "weight": 0.1, "num_classes": CLASSES},
    "target": LENET,
}
"""By name: what a class cannot be made without."""
OTHERS: dict[str, Content] = {
    "DPSGDNoise": {"noise_multiplier": 1.0},
    "GaussianNoise": {"noise_std": 0.1},
    "ModuleTarget": {"module": spec("torch.nn.Linear", in_features=SIZE, out_features=CLASSES)},
    "ConditionalGenerator": {"width": 2},
    "UNetDenoiser": {"width": 2},
    "SuperResolution": {"num_blocks": 1, "num_features": 4},
}
NOT_MADE = {
    *("DenoiserPrior", "DenoisingRefiner", "AverageRefiner", "ChainedRefiner", "DeepFeatures"),
    *("EfficientNetLite0", "OpacusDPSGD", "TimmClassifier", "TorchvisionDataModule"),
}
"""Those that need files or packages that are not among the requirements, or have no number."""


class Case(NamedTuple):
    """A configuration that nobody means."""

    name: str
    config: Content


class Outcome(NamedTuple):
    """What came of a case."""

    kind: str
    """``ran``, ``refused`` in a line, or ``fault``."""
    text: str


def base(folder: Path) -> Content:
    """Return a small configuration that runs."""
    return {
        "seed_everything": 0,
        "model": spec("InvertingGradients", target=copy.deepcopy(LENET), iterations=2),
        "data": spec(
            "SampleImagesDataModule", batch_size=1, num_clients=2, image_size=SIZE, num_public=8
        ),
        "audit": {"num_candidates": 8},
    }


def prepare(folder: Path) -> None:
    """Write the data that some cases name."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (20, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", x_test=images, y_test=np.arange(20) % CLASSES)
    for number, image in enumerate(images):
        path = folder / "pictures" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    model = targets.LeNet(CLASSES, SIZE)
    update = {name: torch.zeros_like(part) for name, part in model.named_parameters()}
    (folder / "updates").mkdir(exist_ok=True)
    content = {"update": update, "num_samples": 1, "labels": torch.tensor([1])}
    torch.save({**content, "image_shape": (3, SIZE, SIZE)}, folder / "updates/one.pt")


def _placed(room: str, name: str, folder: Path) -> tuple[Content, Content]:
    """Return a configuration with a class in it, and the arguments of that class."""
    config = base(folder)
    model = config["model"]["init_args"]
    kind = getattr(ROOMS[room][0], name)
    options = _options_of(kind)
    required = [
        option
        for option, declared in options.items()
        if declared.default is inspect.Parameter.empty and option in NEEDED
    ]
    own = {option: copy.deepcopy(NEEDED[option]) for option in required} | OTHERS.get(name, {})
    if room == "attacks":
        own = {"target": copy.deepcopy(TARGETS.get(name, LENET)), **ATTACKS.get(name, {})}
        own |= {"iterations": 2} if "iterations" in options else {}
        config["model"] = spec(name, **own)
        return config, config["model"]["init_args"]
    if room == "data":
        roots = {"ArrayDataModule": "images.npz", "ImageFolderDataModule": "pictures"}
        own = {**config["data"]["init_args"], "root": str(folder / roots.get(name, "pictures"))}
        if name not in (*roots, "SampleImagesDataModule"):
            own |= {"on_missing": "samples"}
        if name == "CapturedUpdatesDataModule":
            own = {"folder": str(folder / "updates")}
        config["data"] = spec(name, **own)
        return config, config["data"]["init_args"]
    if room == "targets" and "image_size" in options:
        own["image_size"] = SIZE
    if room == "targets":
        own["num_classes"] = CLASSES
    placed = spec(name, **own)
    if room == "refiners":
        config["model"] = spec("ROGAttack", target=copy.deepcopy(LENET), iterations=2)
        config["model"]["init_args"]["refiner"] = placed
    else:
        is_list = room in ("defenses", "priors")
        model[{"clients": "client", "targets": "target"}.get(room, room)] = (
            [placed] if is_list else placed
        )
    return config, placed["init_args"]


def is_number(hint: Any) -> bool:
    """Whether an option takes a number."""
    return bool(re.search(r"\b(int|float)\b", str(hint)))


def cases(folder: Path) -> Iterator[Case]:
    """Yield every number of every listed class, and of the audit, at every value."""
    for room, (module, _) in ROOMS.items():
        for name in module.__all__:
            kind = getattr(module, name)
            is_offered = inspect.isclass(kind) and not inspect.isabstract(kind)
            if not is_offered or name in NOT_MADE or not _is_below(kind, room):
                continue
            for option, declared in _options_of(kind).items():
                if not is_number(declared.hint) or option in ("args", "kwargs", "seed"):
                    continue
                for value in VALUES:
                    config, own = _placed(room, name, folder)
                    own[option] = value
                    yield Case(f"{room}/{name}.{option}={value}", config)
    for option, declared in _options_of(Audit).items():
        for value in VALUES if is_number(declared.hint) else ():
            config = base(folder)
            config["audit"][option] = value
            yield Case(f"audit.{option}={value}", config)
    for value in (*VALUES, 2**32):
        yield Case(f"seed_everything={value}", {**base(folder), "seed_everything": value})


def _is_below(kind: type, room: str) -> bool:
    module, base_name = ROOMS[room]
    bases = (getattr(module, base_name), *([module.ActivationPrior] if room == "priors" else []))
    return issubclass(kind, bases) and kind not in bases


@functools.cache
def _parser() -> Any:
    return cell_parser()


def attempt(config: Mapping[str, Any], plays: bool = True) -> Outcome:
    """Parse, construct and bind as a run would, and play one round.

    Args:
        config: of a cell.
        plays: whether a round is played.
    """
    try:
        with warnings.catch_warnings(), limited():
            warnings.simplefilter("ignore")
            parser = _parser()
            parsed = parser.parse_object(copy.deepcopy(dict(config)))
            check_named(parsed, Attack, data.AuditDataModule)
            parser.says_where(parsed)
            objects = parser.instantiate_classes(parsed)
            objects.data.prepare_data()
            objects.data.setup()
            objects.model.bind(objects.data.spec, objects.data.public_images())
            if plays:
                objects.data.play(objects.model.federation, 0)
    except TooLongError:
        return Outcome("ran", "runs on")
    except Exception as error:
        found = input_error_in(error)
        if found is not None or isinstance(error, ArgumentError):
            said = " ".join(str(found or explain(str(error))).split())
            return Outcome("refused", said)
        return Outcome("fault", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
    return Outcome("ran", "")


def attempt_call(do: Callable[[], object]) -> Outcome:
    """Return what came of a call that may be refused."""
    try:
        do()
    except TooLongError:
        return Outcome("fault", "hangs")
    except Exception as error:
        found = input_error_in(error)
        if found is not None and "\n" not in str(found):
            return Outcome("refused", str(found))
        return Outcome("fault", f"{type(error).__name__}: {str(error)[:160]}")
    return Outcome("ran", "")


class TooLongError(BaseException):
    """The time of a case is over."""


@contextmanager
def limited() -> Iterator[None]:
    """Within this context there are so many seconds and bytes, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE_BYTES, hard))

    def stop(*_: Any) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    import collections
    import sys

    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        tally: collections.Counter[str] = collections.Counter()
        chosen = [c for c in cases(Path(name)) if len(sys.argv) < 2 or sys.argv[1] in c.name]
        for case in chosen:
            outcome = attempt(case.config)
            tally[outcome.kind] += 1
            if outcome.kind == "fault":
                print(case.name, outcome.text, flush=True)
        print(tally)
