"""What an objective needs of an observation, and how it is read."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_recon.attacks.matching.batch_statistics import batch_statistics
from lightning_recon.clients import Client, FedSGD
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.functional.labels.inference import LabelMethod, infer_labels
from lightning_recon.functional.labels.last_layer import dummy_forward, last_linear_layer
from lightning_recon.observation import Grant, Observation
from lightning_recon.randomness import derive_seed
from lightning_recon.updates import Buffers, Update

KNOWN = ("labels", "num_samples", "client")
"""What is granted beside the update unless ``known`` says otherwise."""
GRANTABLE = (*KNOWN, "buffers")
"""What can be granted beside the update; the defenses are granted by ``adaptive``."""
NUM_SEEN = 16  # public images from which label inference learns


class Evidence(NamedTuple):
    """What the objective needs of an observation, or of those of several clients."""

    payload: nn.Module
    """The model that the server sent; :meth:`.Client.simulate` runs a client on it."""
    observed: Update
    """As the server received it, at the end of the defenses: tensors by the name of the payload's
    parameter, in its order."""
    reference: Update
    """The same times ``scale``, for a gradient or what is comparable to one: what simulated
    updates are compared with."""
    labels: Tensor
    """B, int64; known or inferred."""
    statistics: Buffers
    """The means and variances that batch norm is known to see, for priors; see
    :func:`~lightning_recon.attacks.matching.batch_statistics.batch_statistics`."""
    client: Client
    """That is simulated: the federation's where it is known, else FedSGD."""
    chain: tuple[Defense, ...] | None
    """Whose stand-ins are used, and the client's own; None: the naive attacker uses none."""
    scale: float | None
    """Simulated updates are multiplied by it before they are compared; None: fitted."""
    notes: dict[str, float]
    """Numbers on how the observation was read; they end in the records."""
    num_clients: int = 1
    """Where it is not 1, all tensors have a first dimension for the clients."""
    is_functional: bool = False
    """Whether the objective is differentiated by ``torch.func``, as within vmap and compile."""

    def some(self, first: int, number: int) -> "Evidence":
        """Return the evidence of the clients from ``first`` on, ``number`` of them or fewer."""
        number = min(number, self.num_clients - first)
        if number == self.num_clients:
            return self
        places: int | slice = first if number == 1 else slice(first, first + number)
        observed = {name: tensor[places] for name, tensor in self.observed.items()}
        reference = observed
        if self.reference is not self.observed:
            reference = {name: tensor[places] for name, tensor in self.reference.items()}
        return self._replace(
            observed=observed,
            reference=reference,
            labels=self.labels[places],
            statistics={name: tensor[places] for name, tensor in self.statistics.items()},
            num_clients=number,
        )


def stack_clients(evidences: Sequence[Evidence]) -> Evidence:
    """Return the evidence of several clients as one; they differ in their tensors alone."""
    first = evidences[0]

    def stacked(updates: Sequence[Update]) -> Update:
        return {name: torch.stack([update[name] for update in updates]) for name in updates[0]}

    observed = stacked([evidence.observed for evidence in evidences])
    reference = observed
    if first.reference is not first.observed:
        reference = stacked([evidence.reference for evidence in evidences])
    return first._replace(
        observed=observed,
        reference=reference,
        labels=torch.stack([evidence.labels for evidence in evidences]),
        statistics=stacked([evidence.statistics for evidence in evidences]),
        notes={},
        num_clients=len(evidences),
    )


def grants_of(attack: str, known: Sequence[str], *, adaptive: bool) -> tuple[Grant, ...]:
    """Return what is granted to an attacker.

    Args:
        attack: its name, for the message.
        known: what its user says is known.
        adaptive: whether it knows the defenses.

    Raises:
        InputError: if something cannot be granted.
    """
    for word in known:
        if word not in GRANTABLE:
            raise InputError(f"{attack}: known may hold {', '.join(GRANTABLE)}, not {word!r}")
    return (*map(Grant, known), *([Grant.DEFENSES] if adaptive else []))


class Reader:
    """Reads an observation: what a simulated update is compared with, and labels not granted.

    Args:
        attack: name of the attack, for messages.
        label_inference: how labels are found that are not known.
    """

    def __init__(self, attack: str, label_inference: LabelMethod) -> None:
        self.attack = attack
        self.label_inference: LabelMethod = label_inference
        self.seen = torch.empty(0)
        """N C H W, from which labels are inferred, once :meth:`learn` has seen public images."""

    def learn(self, images: Tensor, seed: int) -> None:
        """Keep some public images; noise takes their place where there are none.

        Args:
            images: N C H W in [0, 1], N may be 0.
            seed: of the noise.
        """
        generator = torch.Generator().manual_seed(derive_seed(seed, "label inference"))
        noise = torch.rand(NUM_SEEN, *images.shape[1:], generator=generator)
        self.seen = images[:NUM_SEEN] if len(images) else noise

    def labels(self, observation: Observation) -> tuple[Tensor, dict[str, float]]:
        """Return the labels of the batch, B, int64, and notes on how they were found.

        Raises:
            InputError: if neither they nor their number are known.
        """
        if observation.labels is not None:
            return observation.labels, {}
        if observation.num_samples is None:
            raise InputError(
                f"{self.attack} needs the number of samples; add num_samples or labels to known"
            )
        payload, update, client = observation.payload, observation.update, observation.client
        seen = self.seen.to(next(iter(update.values())))
        # an update that passed no defense has the size, and for FedAvg the end, that it says
        is_whole = observation.defenses == ()
        is_sized = is_whole and (client is not None or observation.protocol == "fedsgd")
        fitted = _scale(observation)
        scale = -1.0 if fitted is None else fitted
        if client is not None:
            scale /= client.num_gradients(observation.num_samples)
        is_delta = is_whole and observation.protocol == "fedavg"
        with torch.no_grad(), (client or FedSGD()).working(payload):
            weight, bias = last_linear_layer(payload, seen[:1])
            dummies = dummy_forward(payload, seen, weight_delta=update if is_delta else None)
        labels = infer_labels(
            self.label_inference,
            scale * update[weight],
            None if bias is None else scale * update[bias],
            observation.num_samples,
            dummies=dummies,
            scale=1.0 if is_sized else None,
        )
        return labels, {"labels_inferred": float(len(labels))}

    def evidence(
        self, observation: Observation, labels: Tensor, notes: dict[str, float]
    ) -> Evidence:
        """Return what the objective needs of an observation.

        Args:
            observation: of one client.
            labels: B, int64, known or inferred.
            notes: of the attack; more may be added.
        """
        scale = _scale(observation)
        return Evidence(
            payload=observation.payload,
            observed=observation.update,
            reference=scaled(observation.update, 1.0 if scale is None else scale),
            labels=labels,
            statistics=batch_statistics(observation.payload, observation.buffers),
            client=observation.client or FedSGD(),
            chain=observation.defenses,
            scale=scale,
            notes=notes,
        )


def scaled(update: Update, scale: float) -> Update:
    """Multiply an update by a number; itself for 1."""
    return update if scale == 1 else {name: scale * tensor for name, tensor in update.items()}


def _scale(observation: Observation) -> float | None:
    """Return the number that makes a gradient of the update; None: not known."""
    if observation.client is not None:
        return observation.client.gradient_scale
    return None if observation.protocol == "fedavg" else 1.0
