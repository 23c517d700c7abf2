"""What a patient attacker makes of captures: matching by simulating the clients' own training.

python examples/flower_audit/stronger.py FOLDER ..., each with capture and truth in it
"""

import sys
from pathlib import Path

import torch
from flower_audit.task import NUM_CLASSES, build
from torchvision.utils import save_image

from lightning_recon import reconstruct
from lightning_recon.attacks import InvertingGradients
from lightning_recon.captures import Capture, read_truth
from lightning_recon.clients import FedAvg
from lightning_recon.errors import InputError
from lightning_recon.priors import AnisotropicTotalVariation
from lightning_recon.targets import ModuleTarget

RIGHT = 19.0  # dB, as in the audit


def attack_all(folder: Path) -> str:
    """Attack every reply; return how many images are right, and save them below the true ones."""
    torch.set_num_threads(1)
    rows, psnrs = [], []
    for reply in Capture(folder / "capture").replies():
        if isinstance(reply, InputError):
            sys.exit(str(reply))
        images = read_truth(folder / "truth", reply).images
        facts = reply.facts
        net = build(tuple(facts["image_shape"]))
        net.load_state_dict(reply.payload)
        attack = InvertingGradients(
            ModuleTarget(net, num_classes=NUM_CLASSES),
            client=FedAvg(learning_rate=facts["learning_rate"], epochs=facts["steps"]),
            priors=[AnisotropicTotalVariation(0.03)],
            iterations=300,
        )
        found = reconstruct(
            attack,
            reply.tensors,
            before=reply.payload,
            image_shape=tuple(facts["image_shape"]),
            num_samples=facts["num_examples"],
        ).images
        errors = (found[:, None] - images).square().mean((2, 3, 4))  # found x true
        nearest = errors.argmin(0)
        psnrs += (-10 * errors.amin(0).log10()).tolist()
        rows += [torch.cat([images, found[nearest]], dim=2)]
    pictures = torch.cat(rows)
    save_image(pictures, folder / "stronger.png", nrow=len(pictures))
    right = sum(psnr >= RIGHT for psnr in psnrs)
    return f"{right} of {len(psnrs)} images right: " + ", ".join(f"{p:.1f} dB" for p in psnrs)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{Path(name).name}: {attack_all(Path(name))}")
