"""What a malicious author of this app ships in it: an attack's model in place of the clients' own.

Server and clients make the same one, since the app is the code of both.
"""

import math

import torch

from flower_audit.task import NUM_CLASSES, build
from lightning_recon.attacks import (
    Attack,
    CuriousAbandonHonesty,
    RobbingTheFed,
    SpectralLDPAttack,
)
from lightning_recon.targets import ModuleTarget
from lightning_recon.updates import DataSpec


def attack_of(name: str, image_shape: tuple[int, ...], epsilon: float, images: int) -> Attack:
    """Return an attack, bound, so that its payload is there.

    Args:
        name: of the attack.
        image_shape: C, H, W.
        epsilon: of the clients' LocalDpMod at clipping norm 1 and delta 1e-5; 0: without.
        images: of one client.
    """
    target = ModuleTarget(build(image_shape), num_classes=NUM_CLASSES)
    noise_std = math.sqrt(2 * math.log(1.25e5)) / epsilon if epsilon else 1e-6
    attacks = {
        "RobbingTheFed": lambda: RobbingTheFed(
            target, num_bins=64, location=0.4, scale=0.15, sparse=True
        ),
        "CuriousAbandonHonesty": lambda: CuriousAbandonHonesty(
            target, num_rows=1000, scaling=0.996
        ),
        "SpectralLDPAttack": lambda: SpectralLDPAttack(
            target, clip_norm=1.0, noise_std=noise_std, num_bins=64, shrinkage_steps=0
        ),
    }
    attack: Attack = attacks[name]()
    channels, height, width = image_shape
    spec = DataSpec((channels, height, width), NUM_CLASSES, images)
    attack.bind(spec, torch.empty(0, *image_shape))  # no public image travels with the app
    return attack
