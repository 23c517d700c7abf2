"""What a malicious author of the app reads from what its clients sent.

python examples/flower_audit/red_team.py FOLDER ..., each with capture and truth in it
"""

import sys
from pathlib import Path

import torch
from flower_audit.malice import attack_of

from lightning_recon import reconstruct
from lightning_recon.captures import Capture, read_truth
from lightning_recon.errors import InputError

RIGHT = 19.0  # dB, as in the audit


def read_all(folder: Path) -> str:
    """Return how many images of a run come back."""
    psnrs = []
    for reply in Capture(folder / "capture").replies():
        if isinstance(reply, InputError):
            sys.exit(str(reply))
        images = read_truth(folder / "truth", reply).images
        facts = reply.facts
        epsilon = next((mod["epsilon"] for mod in facts["mods"] if "epsilon" in mod), 0.0)
        attack = attack_of(
            facts["config"]["red-team"], tuple(images.shape[1:]), epsilon, len(images)
        )
        update = {  # of one step: the gradient
            name: (tensor - reply.tensors[name]) / facts["learning_rate"]
            for name, tensor in reply.payload.items()
        }
        found = reconstruct(
            attack, update, image_shape=tuple(images.shape[1:]), num_samples=len(images)
        ).images
        errors = (found[:, None] - images).square().mean((2, 3, 4))  # found x true
        best = -10 * errors.log10().amin(0) if len(found) else torch.zeros(len(images))
        psnrs += best.tolist()
    right = sum(psnr >= RIGHT for psnr in psnrs)
    return f"{right} of {len(psnrs)} images right: " + ", ".join(f"{p:.1f} dB" for p in psnrs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        print(f"{Path(name).name}: {read_all(Path(name))}")
