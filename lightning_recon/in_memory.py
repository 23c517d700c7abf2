"""From a model and an update in memory to images: without a Trainer, a data module or files."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_recon.attacks.base import Attack
from lightning_recon.errors import InputError
from lightning_recon.functional.labels.given import given_labels
from lightning_recon.functional.stateless import sent_buffers
from lightning_recon.observation import Grant, Reconstruction
from lightning_recon.targets.names import Tensors, named_as
from lightning_recon.updates import DataSpec, Update


def reconstruct(
    attack: Attack,
    sent: Tensors,
    *,
    image_shape: tuple[int, int, int],
    before: Tensors | None = None,
    num_samples: int | None = None,
    labels: Tensor | Sequence[int] | None = None,
    public_images: Tensor | None = None,
    client: int = 0,
) -> Reconstruction:
    """Return what an attack makes of the update of one client.

    It is what ``test``, ``fit`` and ``predict`` do: the attack is bound, its
    :class:`~lightning_recon.federation.Federation` gives the observation, the attack reads it.

    Args:
        attack: whose target has the weights that the client was sent, and was left in the mode in
            which the client computed, which its ``client`` simulates.
        sent: the client's gradient by parameter name or in the order of the parameters; with
            ``before``, the ``state_dict`` that it sent back.
        image_shape: C, H, W of the images.
        before: the ``state_dict`` that the client was sent; null: ``sent`` is the update.
        num_samples: of the client's batch; null: as many as labels, or one.
        labels: B, of the client's batch; null: not known.
        public_images: N C H W in [0, 1], the server's own; null: none.
        client: its number, from which the attack's randomness is derived.

    Raises:
        InputError: if the update does not fit the model, or an argument the others; if the target
            was left in another mode than the client simulates, and that matters.

    Examples:
        >>> from torch import nn
        >>> from lightning_recon.attacks import LinearLayerInversion
        >>> from lightning_recon.targets import ModuleTarget
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> image = torch.arange(12.0).reshape(1, 3, 2, 2) / 255
        >>> loss = nn.functional.cross_entropy(net(image), torch.tensor([1]))
        >>> gradient = torch.autograd.grad(loss, net.parameters())
        >>> attack = LinearLayerInversion(ModuleTarget(net, num_classes=2))
        >>> found = reconstruct(attack, gradient, image_shape=(3, 2, 2))
        >>> torch.allclose(found.images, image, atol=1e-5)
        True
    """
    if num_samples is not None and num_samples < 1:
        raise InputError(f"num_samples must be at least 1, not {num_samples}")
    count = num_samples or 1
    if labels is not None:
        labels = given_labels(labels, "sent", num_samples, attack.target.num_classes)
        count = len(labels)
    if public_images is None:
        public_images = torch.empty(0, *image_shape)
    attack.bind(DataSpec((*image_shape,), None, count), public_images)
    payload = attack.federation.payload
    found = named_as(payload, sent, "sent")
    captured: dict[str, Any] = {"update": _update(attack, found, before)}
    captured["image_shape"] = tuple(image_shape)
    captured |= {"labels": labels, "num_samples": count}
    if Grant.BUFFERS in attack.oracles:
        buffers = sent_buffers(payload)
        captured["buffers"] = {name: found[name] for name in buffers if name in found} or None
    observation = attack.federation.receive(captured, client, "sent")
    with attack.computing():
        return attack.reconstruct(observation)


def _update(attack: Attack, found: dict[str, Tensor], before: Tensors | None) -> Update:
    """Return the update by the names of the payload's parameters."""
    payload = attack.federation.payload
    parameters = dict(payload.named_parameters())
    if before is None:
        return {name: found[name] for name in parameters}
    if not attack.client.protocol.startswith("fedavg"):
        raise InputError(
            "two state dicts are a change of weights by local training; give the attack "
            f"client=FedAvg(learning_rate=...), which is {type(attack.client).__name__} now"
        )
    known = named_as(payload, before, "before")
    for name, parameter in parameters.items():
        if not torch.allclose(known[name], parameter.detach(), rtol=1e-3, atol=1e-6):
            raise InputError(
                f"before is not what the target holds: {name} differs; load_state_dict(before) "
                "into the model before the target is made of it"
            )
    return {name: found[name] - known[name] for name in parameters}
