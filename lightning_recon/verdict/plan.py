"""Which attacks a reply calls for: by the model's architecture, and by what was shared."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor

from lightning_recon.attacks import (
    RGAP,
    AnnealedInversion,
    Attack,
    ExactInversion,
    FeatureInversionAttack,
    InvertingGradients,
    LinearLayerInversion,
)
from lightning_recon.attacks.features.linear_stack import find_stack
from lightning_recon.attacks.linear_layer import first_linear
from lightning_recon.attacks.r_gap import chain
from lightning_recon.clients import Client, FedAvg, FedSGD
from lightning_recon.errors import InputError
from lightning_recon.targets import Target
from lightning_recon.verdict.sent import Sent

Effort = Literal["quick", "thorough"]
"""How long the optimising attacks go on; quick is what the confidence is calibrated on."""
_ITERATIONS: Mapping[Effort, int] = {"quick": 150, "thorough": 1200}
_ANNEALED_ITERATIONS: Mapping[Effort, int] = {"quick": 100, "thorough": 1000}
_DECODER_STEPS: Mapping[Effort, int] = {"quick": 0, "thorough": 960}


class Setting(NamedTuple):
    """What an attacker takes for known of all clients of a capture."""

    image_shape: tuple[int, int, int]
    """C, H, W."""
    public: Tensor
    """N C H W in [0, 1], N at least 2: images that belong to no client."""
    effort: Effort = "quick"
    seed: int = 0


class Training(NamedTuple):
    """What is known, or assumed, of a client's training; None: not known."""

    num_samples: int
    is_assumed: bool
    """Whether nobody said how many samples there are, nor did the numbers."""
    learning_rate: float | None
    steps: int | None
    momentum: float
    mode: Literal["train", "eval"] = "train"
    """Of the layers, in which clients compute."""

    @property
    def is_known(self) -> bool:
        """Whether the training can be simulated."""
        return self.learning_rate is not None and self.steps is not None


class Plan(NamedTuple):
    """One attack."""

    name: str
    make: Callable[[int], Attack]
    """From a seed."""
    is_random: bool
    """Whether another seed is another look."""
    is_instant: bool
    """Whether it costs nothing to try."""


def plan_attacks(
    target: Target, sent: Sent, training: Training, setting: Setting
) -> tuple[list[Plan], dict[str, str]]:
    """Return the attacks to try, and why others are not, by name.

    Linear layers that read the image come first, for they give it in closed form; then features
    where the tail is linear, layer by layer for one sample of a chain; matching elsewhere.

    Args:
        target: with the payload's weights.
        sent: by the client.
        training: of the client.
        setting: of the audit.
    """
    client, known = client_of(sent, training), _known(sent, training)
    skipped: dict[str, str] = {}
    plans: list[Plan] = []

    def consider(name: str, check: Callable[[], object], make: Callable[[int], Attack]) -> None:
        try:
            check()
        except InputError as error:
            skipped[name] = str(error)
        else:
            is_random, is_instant = name == "InvertingGradients", name == "LinearLayerInversion"
            plans.append(Plan(name, make, is_random, is_instant))

    shape = setting.image_shape
    consider(
        "LinearLayerInversion",
        lambda: _check_sent(sent, first_linear(target, shape).prefix),
        lambda seed: LinearLayerInversion(target, client, seed=seed),
    )
    consider(
        "RGAP",
        lambda: _check_chain(target, sent, training, shape),
        lambda seed: RGAP(target, client, seed=seed),
    )
    consider(
        "AnnealedInversion",
        lambda: _check_stack(target, sent, setting),
        lambda seed: AnnealedInversion(
            target,
            client,
            known=known,
            iterations=_ANNEALED_ITERATIONS[setting.effort],
            seed=seed,
        ),
    )
    consider(
        "FeatureInversionAttack",
        lambda: _check_stack(target, sent, setting),
        lambda seed: FeatureInversionAttack(
            target,
            client,
            known=known,
            adaptive=False,
            decoder_steps=_DECODER_STEPS[setting.effort],
            seed=seed,
        ),
    )
    consider(
        "InvertingGradients",
        lambda: _check_sent(sent, ""),
        lambda seed: matching(target, sent, training, setting, seed),
    )
    return plans, skipped


def proving(target: Target, sent: Sent, training: Training, seed: int) -> ExactInversion:
    """Return the attack whose images carry a proof.

    Args:
        target: with the payload's weights.
        sent: by the client.
        training: of the client.
        seed: of the attack.
    """
    return ExactInversion(target, client_of(sent, training), independence=False, seed=seed)


def matching(
    target: Target, sent: Sent, training: Training, setting: Setting, seed: int
) -> InvertingGradients:
    """Return the attack that matches updates, which needs nothing of the architecture.

    Args:
        target: with the payload's weights.
        sent: by the client.
        training: of the client.
        setting: of the audit.
        seed: of the attack.
    """
    return InvertingGradients(
        target,
        client=client_of(sent, training),
        known=_known(sent, training),
        iterations=_ITERATIONS[setting.effort],
        seed=seed,
    )


def _known(sent: Sent, training: Training) -> list[str]:
    """Return what is granted to the attacks."""
    simulates = training.is_known or sent.protocol == "fedsgd"
    return ["num_samples", "client"] if simulates else ["num_samples"]


def client_of(sent: Sent, training: Training) -> Client:
    """Return the protocol that the attacks simulate; unknown numbers are not granted to them.

    Args:
        sent: by the client.
        training: of the client.
    """
    if sent.protocol == "fedsgd":
        return FedSGD(mode=training.mode)
    return FedAvg(
        learning_rate=training.learning_rate or 1.0,
        epochs=training.steps or 1,
        momentum=training.momentum,
        shuffle=False,
        mode=training.mode,
    )


def _check_sent(sent: Sent, prefix: str) -> None:
    """Raise InputError if a parameter that an attack reads was not sent."""
    if lacking := [name for name in sent.missing if name.startswith(prefix)]:
        raise InputError(f"{lacking[0]} was not sent")


def _check_chain(
    target: Target, sent: Sent, training: Training, shape: tuple[int, int, int]
) -> None:
    _check_sent(sent, "")
    if training.num_samples != 1:
        raise InputError(f"reads one sample, not {training.num_samples}")
    chain(target, shape)


def _check_stack(target: Target, sent: Sent, setting: Setting) -> None:
    _check_sent(sent, "")
    parameter = next(target.parameters())
    stack = find_stack(target, setting.public[:2].to(parameter))
    if stack.map_shape[1:] == (1, 1):
        raise InputError("the linear tail sees features without places, which leave images open")
