"""What speaks for a reconstruction when nobody has the truth.

Five things can be known without it:

- whether the pixels lie on the 256 grey levels that a picture has, which a mixture does not;
- whether a second look, of another attack or another start, gives the same picture;
- whether the attack gives the same picture of the update with its entries shuffled within every
  parameter, the control: then it is the attack's prior, and no leak;
- how the attack does on public images in this very setting: this model, this number of samples,
  and as much noise, rounding or sparsity as this update shows (the rehearsal, whose truth the
  attacker has);
- whether the objective comes as low on the update as in the rehearsal: if not, the simulation is
  not what the client did.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recon.attacks import Attack
from lightning_recon.attacks.features.linear_layers import obfuscate, read_entries
from lightning_recon.attacks.linear_layer import grid_misfit
from lightning_recon.audit.matching import match
from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.in_memory import reconstruct
from lightning_recon.observation import Reconstruction
from lightning_recon.randomness import derive_seed, make_generator
from lightning_recon.updates import PrivateBatch, Update
from lightning_recon.verdict.plan import Plan, Setting, Training
from lightning_recon.verdict.sent import Sent

RIGHT_PSNR = 19.0
"""In dB: a right reconstruction has at least this."""
RIGHT_GAIN = 4.0
"""In dB: and at least this much more than the best null control of its image."""
NUM_REHEARSED = 8
"""Public images, about, that an attack is rehearsed on."""
_MAX_REHEARSALS = 4  # clients
_CAP = 40.0  # dB; more is the same
_LEAST_LEFT = 0.15  # of the noise's norm: an update below cannot be told from it
_DROWNED = 0.02  # of the noise's norm, that such an update is taken to have
_UNKNOWN_RATE = 0.01  # at which a step is rehearsed whose learning rate nobody knows

Features = dict[str, float]
"""What speaks for one reconstruction, by name.

``rehearsed``: share of the rehearsed images that are right, in (0, 1); ``margin`` and ``floor``: by
what, in tens of dB, from -1.5 to 2.5; ``grid``: 1 on the grid of 256 grey levels, about 0 off it;
``agreement`` and ``control``: the best PSNR with another look's image and with the control's, in
tens of dB, 0 where there is none; ``fit``: log10 of the objective over the rehearsal's, from -2 to
2; ``contrast``: standard deviation; ``natural``: correlation of neighbours, from -1 to 1.
"""


class Rehearsal(NamedTuple):
    """How an attack does on public images in one setting."""

    right: int
    """Images that it gets right."""
    num_images: int
    margin: float
    """In dB: by how much a public image is right, or is not, in the median."""
    floor: float
    """Likewise, of the quarter that does worst."""
    score: float
    """The objective, in the median; NaN where the attack returns nothing."""


class Look(NamedTuple):
    """What one attack makes of an update."""

    attack: str
    found: Reconstruction
    features: list[Features]
    """Of each image."""


def margin(psnrs: Tensor, controls: Tensor) -> Tensor:
    """Return by how much images are right, in dB; below 0 they are not.

    Args:
        psnrs: of the reconstructions.
        controls: of the best null control of each image.
    """
    return torch.minimum(psnrs - RIGHT_PSNR, psnrs - controls - RIGHT_GAIN)


def best_psnr(images: Tensor, others: Tensor) -> Tensor:
    """Return for each image its PSNR with the likest of the others, N; 0 without any.

    Args:
        images: N C H W in [0, 1].
        others: M C H W in [0, 1].
    """
    if not len(others) or not len(images):
        return torch.zeros(len(images))
    pairs = [psnr(images, other.expand_as(images)) for other in others.to(images)]
    return torch.stack(pairs).amax(0).float().cpu()


def look(
    attack: Attack, update: Update, training: Training, setting: Setting, client: int = 0
) -> Reconstruction:
    """Return what an attack makes of an update; no images where it fails.

    Args:
        attack: that has seen nothing of the client.
        update: by parameter name.
        training: of the client.
        setting: of the audit.
        client: a number, from which the attack's randomness is derived.
    """
    teach = setting.public[: len(setting.public) // 2]
    try:
        found = reconstruct(
            attack,
            update,
            image_shape=setting.image_shape,
            num_samples=training.num_samples,
            public_images=teach,
            client=client,
        )
    except (InputError, RuntimeError, ValueError) as error:  # torch raises the last two
        return _nothing(setting, " ".join(str(error).split()))
    images = found.images.detach().float().cpu()
    kept = images.flatten(1).isfinite().all(1)
    labels = None if found.labels is None else found.labels.cpu()[kept]
    marks, p_values = found.marks, found.p_values
    return found._replace(
        images=images[kept],
        labels=labels,
        score=found.score.cpu()[kept],
        marks=marks and tuple(compress(marks, kept.tolist())),
        p_values=None if p_values is None else p_values.cpu()[kept],
    )


def _nothing(setting: Setting, reason: str) -> Reconstruction:
    return Reconstruction(
        torch.empty(0, *setting.image_shape), None, torch.empty(0), {f"failed: {reason}": 1.0}
    )


def shuffled(update: Update, seed: int) -> Update:
    """Return an update whose entries are shuffled within every parameter: the control.

    Args:
        update: by parameter name.
        seed: of the order.
    """
    mixed = {}
    for name, part in update.items():
        order = torch.randperm(part.numel(), generator=make_generator(seed, name, "shuffled")).to(
            part.device
        )
        mixed[name] = part.flatten()[order].view_as(part)
    return mixed


def noise_of(sent: Sent, training: Training) -> float:
    """Return the noise on an entry, to two digits, or over the update's norm where that is unknown.

    Where the training can be simulated, the size of an update is known by rehearsing it.  Else it
    is what the noise leaves of the norm, which is not known closer than the noise is: an update
    that drowns is taken for very small.
    """
    numbers = sent.numbers
    if not numbers.noise_std:
        return 0.0
    if sent.protocol == "fedsgd" or training.is_known:
        return float(f"{numbers.noise_std:.1e}")
    count = sum(part.numel() for part in sent.update.values())
    drowned = numbers.noise_std * math.sqrt(count)
    left = math.sqrt(max(numbers.norm**2 - drowned**2, 0.0))
    if left < _LEAST_LEFT * drowned:
        left = _DROWNED * drowned
    return float(f"{numbers.noise_std / left:.1e}")


def rehearse(
    plan: Plan, sent: Sent, labels: Tensor | None, training: Training, setting: Setting
) -> Rehearsal:
    """Return how an attack does on public images, in the setting that the update shows.

    Args:
        plan: of the attack.
        sent: by a client; of its update's numbers, only what was done to them plays a part.
        labels: B, int64, as they were inferred: those of the rehearsed images repeat likewise;
            null: they are drawn.
        training: of the client.
        setting: of the audit.
    """
    size = training.num_samples
    public = setting.public[len(setting.public) // 2 :]
    mean = setting.public.mean(0, keepdim=True)
    margins: list[Tensor] = []
    scores: list[float] = []
    for number in range(min(_MAX_REHEARSALS, max(1, NUM_REHEARSED // size))):
        seed = derive_seed(setting.seed, number, "rehearsal")
        generator = make_generator(seed, "images")
        images = public[torch.randint(len(public), (size,), generator=generator)]
        attack = plan.make(setting.seed)
        classes = torch.randperm(attack.target.num_classes, generator=generator)
        places = torch.randint(len(classes), (size,), generator=generator)
        drawn = classes[places if labels is None else labels]
        update = _simulated(attack, images, drawn, sent, training, seed)
        found = look(attack, update, training, setting, number + 1)
        rows = match(found.images, images).row
        controls = psnr(mean.expand_as(images), images).float()
        reached = controls.new_zeros(size)
        for place, row in enumerate(rows.tolist()):
            if row >= 0:
                reached[place] = float(psnr(found.images[row][None], images[place][None]))
        margins.append(margin(reached, controls))
        scores += found.score.tolist()
    together = torch.cat(margins)
    return Rehearsal(
        int((together >= 0).sum()),
        len(together),
        float(together.median()),
        float(together.quantile(0.25)),
        float(torch.tensor(scores).median()) if scores else math.nan,
    )


def _simulated(
    attack: Attack,
    images: Tensor,
    labels: Tensor,
    sent: Sent,
    training: Training,
    seed: int,
) -> Update:
    """Return the update of a client with public images, on whose entries the same was done."""
    target, client = attack.target, attack.client
    batch = PrivateBatch(images, labels, torch.ones_like(images[:, :1]).bool(), labels)
    update = client.run(target, batch, seed=seed)[0]
    noise = noise_of(sent, training)
    if sent.protocol == "fedavg" and not training.is_known:  # of a size that nobody knows
        if training.learning_rate is None:
            update = {name: _UNKNOWN_RATE * part for name, part in update.items()}
        noise *= sum(float(part.square().sum()) for part in update.values()) ** 0.5
    generator = make_generator(seed, "obfuscation")
    done = {}
    for name, part in update.items():
        observed = sent.update[name].flatten(1) if part.ndim > 1 else sent.update[name][None]
        shape = observed.shape
        if sent.numbers.reading.kind != "exact" and observed.any():
            part = obfuscate(part.reshape(shape), read_entries(observed), observed, generator)
        grain = math.hypot(noise, sent.rounding.get(name, 0.0))
        drawn = torch.randn(shape, generator=generator).to(part)
        done[name] = (part.reshape(shape) + grain * drawn).view_as(sent.update[name])
    return done


def weigh(
    looks: Sequence[tuple[str, Reconstruction]],
    controls: Mapping[str, Reconstruction],
    rehearsals: Mapping[str, Rehearsal],
) -> list[Look]:
    """Return what speaks for every image of every look.

    Args:
        looks: name of the attack, and what it found; an attack may look twice.
        controls: what each attack makes of the shuffled update.
        rehearsals: of each attack.
    """
    weighed = []
    for place, (name, found) in enumerate(looks):
        images = found.images
        others = [other.images for index, (_, other) in enumerate(looks) if index != place]
        agreement = best_psnr(images, torch.cat([images[:0], *others])).clamp(0, _CAP)
        mine = controls[name].images if name in controls else images[:0]
        control = best_psnr(images, mine).clamp(0, _CAP)
        misfit = grid_misfit(images.flatten(1)) if len(images) else images.new_empty(0)
        rehearsal = rehearsals[name]
        natural = _smoothness(images)
        features = [
            {
                "rehearsed": (rehearsal.right + 0.5) / (rehearsal.num_images + 1),
                "margin": max(-15.0, min(25.0, rehearsal.margin)) / 10,
                "floor": max(-15.0, min(25.0, rehearsal.floor)) / 10,
                "grid": float(1 - misfit[index] / 0.25),
                "agreement": float(agreement[index]) / 10,
                "control": float(control[index]) / 10,
                "fit": _fit(float(found.score[index]), rehearsal.score),
                "contrast": float(images[index].std()),
                "natural": float(natural[index]),
            }
            for index in range(len(images))
        ]
        weighed.append(Look(name, found, features))
    return weighed


def _fit(score: float, rehearsed: float) -> float:
    """Return how the objective compares with the rehearsal's, in powers of ten, from -2 to 2."""
    if not score > 0 or not rehearsed > 0:
        return 0.0
    return max(-2.0, min(2.0, math.log10(score / rehearsed)))


def _smoothness(images: Tensor) -> Tensor:
    """Return the correlation of neighbouring pixels, N in [-1, 1]: near 1 in a photograph."""
    if not len(images):
        return torch.zeros(0)
    centred = images - images.mean((2, 3), keepdim=True)
    power = centred.square().mean((1, 2, 3)).clamp_min(1e-12)
    right = (centred[..., 1:] * centred[..., :-1]).mean((1, 2, 3))
    down = (centred[..., 1:, :] * centred[..., :-1, :]).mean((1, 2, 3))
    return (right + down) / (2 * power)
