"""What a linearised attacker would get of a canary: a client whose images the auditor knows."""

import math

import torch
from torch import Tensor

from lightning_recon.attacks import InvertingGradients
from lightning_recon.audit.local_estimate import Estimator, LocalEstimate
from lightning_recon.captures import Reply
from lightning_recon.defenses import GaussianNoise
from lightning_recon.errors import InputError
from lightning_recon.updates import DataSpec, PrivateBatch
from lightning_recon.verdict.client import Auditor
from lightning_recon.verdict.plan import client_of
from lightning_recon.verdict.sent import Sent, read_reply


def estimate_canary(
    auditor: Auditor, reply: Reply, images: Tensor, labels: Tensor
) -> LocalEstimate:
    """Return what a linearised Gaussian attacker gets of a client; no attack sees it.

    The client is simulated at its images as the capture says that it trained, with as much noise
    as its update shows.

    Args:
        auditor: of the federation.
        reply: of the client.
        images: B C H W in [0, 1], the truth.
        labels: B.

    Raises:
        InputError: if it cannot be had, in one line.
    """
    setting, target = auditor.setting, auditor.target
    sent = read_reply(reply, target, setting.image_shape)
    training = auditor.training(reply, sent)._replace(num_samples=len(images))
    if sent.protocol == "fedavg" and not training.is_known:
        raise InputError("the learning rate or the number of steps is not known; add --lr, --steps")
    if sent.numbers.reading.kind != "exact":
        raise InputError(f"the update's entries are {sent.numbers.reading.kind}")
    target.load_state_dict(sent.state, strict=False)
    grain = _grain(sent)
    defenses = [GaussianNoise(grain)] if grain else []
    attack = InvertingGradients(target, client=client_of(sent, training), defenses=defenses)
    attack.bind(DataSpec(setting.image_shape, None, len(images)), setting.public)
    masks = torch.ones_like(images[:, :1], dtype=torch.bool)
    batch = PrivateBatch(images, labels, masks, torch.arange(len(images)))
    return Estimator(attack, setting.public, setting.seed).estimate(batch, 0)


def _grain(sent: Sent) -> float:
    """Return the standard deviation of noise and rounding on an entry."""
    sizes = {name: part.numel() for name, part in sent.update.items()}
    rounding = sum(sizes[name] * std**2 for name, std in sent.rounding.items() if name in sizes)
    return math.hypot(sent.numbers.noise_std or 0.0, math.sqrt(rounding / sum(sizes.values())))
