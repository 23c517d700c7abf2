"""What papers claim, beside what this project reached: the one source of ``papers`` and its page.

A figure of ours stands here only where a command of ``docs/`` made it; what was not run says so.
Figures of a paper that were not held against its text end in "(?)".
"""

import json
from typing import NamedTuple

NOT_RUN = "not run"


class Claim(NamedTuple):
    """One published claim; PSNR in dB, mean over all images, unless said."""

    name: str
    """Of the attack, and the row of the paper's table."""
    paper: str
    """Authors, title, where and when."""
    setting: str
    oracles: str
    """What the paper's attacker has beside the update; what was chosen by the truth."""
    published: str
    same: str
    """Ours with the same oracles."""
    blind: str
    """Ours without them."""
    mean_image: str
    """The null control, on the images of ours."""
    estimate: str
    """The local estimate, likewise."""
    config: str
    """That runs it; empty: none does."""
    shown_in: str
    """Page of ``docs/`` that has the command of our figures; empty: there are none."""


_DLG = "Zhu, Liu & Han, Deep Leakage from Gradients, NeurIPS 2019"
_INVERTING = "Geiping et al., Inverting Gradients, NeurIPS 2020"
_LENET = "DLG's sigmoid LeNet, untrained, CIFAR-10, 1 image"
_EXACT = "100, the cap (3 images of 8x8, 10 % of the entries)"

CLAIMS = (
    Claim(
        "DLG",
        _DLG,
        _LENET,
        "none",
        "alike to the eye; no PSNR",
        "37.5 (10 images)",
        "the same: there are none",
        "12.5",
        _EXACT,
        "dlg",
        "classic.md",
    ),
    Claim(
        "iDLG",
        "Zhao, Mopuri & Bilen, iDLG: Improved Deep Leakage from Gradients, 2020",
        "LeNet, 1 image; share of labels that are right, MNIST / CIFAR-100 / LFW",
        "none",
        "100 / 100 / 100 % (DLG: 89.9 / 83.3 / 79.1 %)",
        "the same: there are none",
        "10 of 10 labels, 37.4 (CIFAR-10)",
        "12.5",
        _EXACT,
        "idlg",
        "classic.md",
    ),
    Claim(
        "Inverting Gradients, Adam",
        _INVERTING,
        _LENET + ", first 100 of the validation images, 4,800 iterations",
        "labels",
        "18.00 +- 3.33",
        "19.5 (the same 100 images)",
        "the same: the label of one image is always inferred",
        "12.6",
        _EXACT,
        "inverting_gradients",
        "classic.md",
    ),
    Claim(
        "Inverting Gradients, its L-BFGS row",
        _INVERTING,
        _LENET + ", Euclidean distance",
        "labels",
        "46.25 +- 12.66 (?)",
        "26.8 (`DLG`, 20 images, 50 iterations); second order: 99.7 +- .2 (100 images)",
        "the same: the label of one image is always inferred",
        "12.5",
        _EXACT,
        "second_order",
        "second_order.md",
    ),
    Claim(
        "Inverting Gradients, in a large study",
        "Guo et al., Exploring the Vulnerabilities of Federated Learning, 2025 (2503.11514)",
        "ResNet-18, untrained, CIFAR-10, 24,000 iterations, 1 / 32 images",
        "labels; stem and mode of batch norm are not told",
        "22.03 / 12.59",
        NOT_RUN,
        NOT_RUN,
        NOT_RUN,
        NOT_RUN,
        "modern",
        "",
    ),
    Claim(
        "GradInversion",
        "Yin et al., See through Gradients, CVPR 2021",
        "ResNet-50, ImageNet, 8 images; gradient alone, then all its terms",
        "statistics of batch norm; classes of a batch differ",
        "10.75, then 12.93; 99.56 % of the labels",
        "10.7 (ConvNet of width 16, CIFAR-10, labels known, 1,000 of 20,000 iterations, 20 images)",
        NOT_RUN,
        "12.3",
        NOT_RUN,
        "grad_inversion",
        "classic.md",
    ),
    Claim(
        "Robbing the Fed",
        "Fowl et al., Robbing the Fed, ICLR 2022",
        "1,000 bins, 64 / 16 images: images alone in their bin",
        "the server changes the model",
        "60.1 of 64 / 15.8 of 16, by its formula",
        "60.3 of 64 (12 clients) / 15.70 of 16 (20 clients), CIFAR-10",
        "the same: nothing else is granted",
        NOT_RUN,
        NOT_RUN,
        "robbing_the_fed",
        "classic.md",
    ),
    Claim(
        "CAH, trap weights",
        "Boenisch et al., When the Curious Abandon Honesty, EuroS&P 2023",
        "1,000 rows, 100 images, CIFAR-10: share of the images that is extracted",
        "the server changes the model",
        ".54",
        ".51 (8 clients); with peeling .855",
        "the same: nothing else is granted",
        NOT_RUN,
        NOT_RUN,
        "curious_abandon_honesty",
        "classic.md",
    ),
    Claim(
        "APRIL",
        "Lu et al., APRIL, CVPR 2022",
        "ViT whose first attention reads patches and positions as they are, 1 image",
        "none; gradient of the positions",
        "closed form: alike to the eye; no PSNR",
        "84.3 (`TinyViT`, CIFAR-10, 20 images); from the embedding (ours) 100",
        "the same: there are none",
        NOT_RUN,
        NOT_RUN,
        "april",
        "classic.md",
    ),
    Claim(
        "R-GAP",
        "Zhu & Blaschko, R-GAP, ICLR 2021",
        "chain of layers without biases, CIFAR-10, 1 image",
        "none",
        "exact where the rank suffices; no PSNR",
        "100 (`PlainConvNet`, 1 image)",
        "the same: there are none",
        NOT_RUN,
        NOT_RUN,
        "r_gap",
        "classic.md",
    ),
    Claim(
        "Cocktail Party",
        "Kariyappa et al., Cocktail Party Attack, ICML 2023",
        "two fully connected layers, Tiny-ImageNet, 32 images",
        "the batch size; strengths chosen by LPIPS of the true images",
        "LPIPS .081; no PSNR",
        "33.5 +- 1.5, of 32 images 29.9 +- 1.1 (CIFAR-10, 3072-256-10, 3 clients of 16)",
        "the same: strengths are not chosen by the truth",
        "12.8 (16 images)",
        NOT_RUN,
        "cocktail_party",
        "exact.md",
    ),
    Claim(
        "ROG",
        "Yue et al., Gradient Obfuscation Gives a False Sense of Security, USENIX Security 2023",
        "LeNet of ReLUs, ImageNet at 128x128, 16 images, QSGD of 16 levels",
        "labels; a network trained on public images",
        "its released loop here: 23.1 (1 client)",
        "24.4 from an analytic start (1 client); feature inversion 26.3 (5 clients)",
        NOT_RUN,
        "12.1",
        NOT_RUN,
        "rog_qsgd",
        "rog.md",
    ),
    Claim(
        "You et al.",
        "You et al., Local Differential Privacy is Not Enough, IEEE TIFS 20, 2025",
        "ResNet-18, ImageNet, 16 masked images, C = 10, noise .002, 1,024 bins",
        "rows chosen with the client's own forward pass; scored on those alone",
        "its released code here: 22.3 on 12 of 16 images",
        NOT_RUN,
        "29.99 over all 320 images (20 clients); `SpectralLDPAttack` 45.1 (1 client)",
        "13.7",
        NOT_RUN,
        "ldp_imagenet",
        "results.md",
    ),
    Claim(
        "FedLeak",
        "Fan et al., Boosting Gradient Leakage Attacks, USENIX Security 2025",
        "ResNets and others on ImageNet and CIFAR, several local steps",
        "labels; sigmoids in the place of ReLUs; best restart by the true PSNR",
        "its tables were not read",
        NOT_RUN,
        NOT_RUN,
        NOT_RUN,
        NOT_RUN,
        "",
        "",
    ),
)

_HEADS = (
    *("claim", "setting", "its oracles", "published", "ours, same oracles", "ours, blind"),
    *("mean image", "local estimate", "run by", "command in"),
)
_INTRO = """# What papers claim

Made by `python -m benchmarks.papers` from `lightning_recon/commands/claims.py`, and listed by
`python cli.py papers`.  PSNR in dB, mean over all images, unless said.  Oracles: what an attacker
has beside the update, and what was chosen by the truth.  The mean image is the null control, the
local estimate what a linearised Gaussian attacker gets ([second_order.md](second_order.md)); where
a page names no mean image, it is that of 7,805 CIFAR-10 training images on the test images.  "Not
run" means that nobody ran it here, "(?)" that the paper's figure was not held against its text.
Where few images or iterations are named, the figure shows that an attack runs as published, and not
how attacks rank.
"""


def page() -> str:
    """Return ``docs/papers.md``."""
    lines = [_INTRO, f"| {' | '.join(_HEADS)} |", "|---" * len(_HEADS) + "|"]
    for claim in CLAIMS:
        config = f"[{claim.config}](../configs/{claim.config}.yaml)" if claim.config else ""
        shown = f"[{claim.shown_in}]({claim.shown_in})" if claim.shown_in else ""
        cells = [claim.setting, claim.oracles, claim.published, claim.same, claim.blind]
        cells += [claim.mean_image, claim.estimate, config, shown]
        lines.append(f"| {claim.name} ({claim.paper}) | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def as_json() -> str:
    """Return the claims for programs."""
    return json.dumps([claim._asdict() for claim in CLAIMS], indent=2)


def words() -> str:
    """Return the claims for a terminal."""
    lines = []
    for claim in CLAIMS:
        lines += [f"{claim.name}", f"  {claim.paper}", f"  setting: {claim.setting}"]
        lines.append(f"  its oracles: {claim.oracles}")
        values = {
            "published": claim.published,
            "ours, same oracles": claim.same,
            "ours, blind": claim.blind,
            "mean image": claim.mean_image,
            "local estimate": claim.estimate,
        }
        lines += [f"  {name}: {value}" for name, value in values.items()]
        if claim.config:
            lines.append(f"  --config {claim.config}")
    return "\n".join(lines)
