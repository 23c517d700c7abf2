"""What one makes of captures by hand, in Python: a closed form, and an attack that takes longer.

python examples/flower_audit/by_hand.py FOLDER ..., each with capture and truth in it
"""

import sys
from pathlib import Path

import torch
from flower_audit.task import NUM_CLASSES, build
from torch import Tensor
from torchvision.utils import save_image

from lightning_recon import reconstruct
from lightning_recon.attacks import Attack, InvertingGradients, LinearLayerInversion
from lightning_recon.captures import Capture, Reply, read_truth
from lightning_recon.clients import FedAvg
from lightning_recon.errors import InputError
from lightning_recon.priors import AnisotropicTotalVariation
from lightning_recon.targets import ModuleTarget

RIGHT = 19.0  # dB, as in the audit


def attacks_on(reply: Reply) -> list[Attack]:
    """Return the attacks, on the model that this client was sent."""
    net = build(tuple(reply.facts["image_shape"]))
    net.load_state_dict(reply.payload)
    target = ModuleTarget(net, num_classes=NUM_CLASSES)
    client = FedAvg(learning_rate=reply.facts["learning_rate"], epochs=reply.facts["steps"])
    priors = [AnisotropicTotalVariation(0.03)]
    return [
        LinearLayerInversion(target, client=client),
        InvertingGradients(target, client=client, priors=priors, iterations=300),
    ]


def found_for(images: Tensor, found: Tensor) -> tuple[Tensor, list[float]]:
    """Return what is nearest to each of the true images, black if nothing is, and the PSNRs."""
    if not len(found):
        found = torch.zeros_like(images[:1])
    errors = (found[:, None] - images).square().mean((2, 3, 4))  # found x true
    return found[errors.argmin(0)], (-10 * errors.amin(0).log10()).tolist()


def attack_all(folder: Path) -> None:
    """Attack every reply; print the PSNRs, and save true images above what the attacks found."""
    psnrs: dict[str, list[float]] = {}
    columns = []
    for reply in Capture(folder / "capture").replies():
        if isinstance(reply, InputError):
            sys.exit(str(reply))
        images = read_truth(folder / "truth", reply).images
        column = [images]
        for attack in attacks_on(reply):
            found = reconstruct(
                attack,
                reply.tensors,
                before=reply.payload,
                image_shape=tuple(reply.facts["image_shape"]),
                num_samples=reply.facts["num_examples"],
            )
            nearest, some = found_for(images, found.images)
            column.append(nearest)
            psnrs.setdefault(type(attack).__name__, []).extend(some)
        columns.append(torch.cat(column, dim=2))
    pictures = torch.cat(columns)
    save_image(pictures, folder / "by_hand.png", nrow=len(pictures))
    for name, some in psnrs.items():
        right = sum(psnr >= RIGHT for psnr in some)
        figures = ", ".join(f"{psnr:.1f}" for psnr in some)
        print(f"{folder.name}: {name}: {right} of {len(some)} images right ({figures} dB)")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        attack_all(Path(name))
