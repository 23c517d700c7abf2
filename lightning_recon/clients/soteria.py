"""Soteria: the client hides the parts of its representation that tell most of its images.

Sun, Li, Wang, Yang, Li, Chen, "Soteria: Provable Defense against Privacy Leakage in Federated
Learning from Representation Perspective", CVPR 2021.
"""

import torch
from torch import Tensor, nn

from lightning_recon.clients.base import Client, randomness
from lightning_recon.clients.fedsgd import FedSGD
from lightning_recon.clients.wrapped import WrappedClient
from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import left_as_found, run_stateless
from lightning_recon.updates import Buffers, PrivateBatch, Update


class Soteria(WrappedClient):
    """FedSGD that zeroes columns of one linear layer's gradient.

    The layer reads the representation r(x), D entries; column i of its weight's gradient belongs
    to entry i.  Zeroed are the columns of highest

        sum over samples of  |r_i| / ||d r_i / d x||,

    by which the paper approximates |r_i| ||(d r_i / d x)^-1||, the ratio of its released code: how
    far an image moves that is reconstructed from a representation without that entry.

    No formal guarantee against other attacks; one that leaves this layer out of the comparison, or
    matches only the columns that are left (:meth:`stand_in`), goes round it.

    Where it differs: the paper perturbs the representation of one image; of a batch, as in the
    released code, one choice is made for all samples, whose gradients are sums.  That code adds
    0.1 to r_i and sums the reciprocals; entries that are zero in all samples, of which the update
    tells nothing anyway, are the last to be pruned here.

    The derivatives take one backward pass for each of the D entries.

    Args:
        client: what computes the update: FedSGD.
        prune_rate: share of the columns that are zeroed, in (0, 1).
        layer: the linear layer's name in the target; null: the last in the update that reads one
            representation of each image, as a rule the classifier.

    Raises:
        InputError: if an argument cannot be used.
    """

    def __init__(self, client: Client, prune_rate: float, layer: str | None = None) -> None:
        super().__init__(client)
        if not isinstance(client, FedSGD) or client.clip_norm is not None:
            raise InputError(
                f"Soteria prunes the gradient of FedSGD, not of {type(client).__name__}; let "
                "client be FedSGD"
            )
        if not 0 < prune_rate < 1:
            raise InputError(f"Soteria: prune_rate must lie between 0 and 1, not {prune_rate}")
        self.prune_rate = prune_rate
        self.layer = layer

    def run(self, payload: nn.Module, batch: PrivateBatch, *, seed: int) -> tuple[Update, Buffers]:
        """Return the pruned gradient, and the buffers; see :meth:`Client.run`.

        Raises:
            InputError: if the payload has no such layer.
        """
        update, buffers = self.client.run(payload, batch, seed=seed)
        with self.working(payload), randomness(seed, batch.images.device):  # the same dropout
            name, ratios = self._ratios(payload, self._weights(update), batch.images)
        num_pruned = max(1, round(self.prune_rate * len(ratios)))
        update[name][:, ratios.topk(num_pruned).indices] = 0
        return update, buffers

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Keep the columns that the observed update has: of ``layer``, or of the last matrix."""
        name = self._weights(observed)[0]
        is_kept = (observed[name] != 0).any(0)
        return {**update, name: update[name] * is_kept}

    def _weights(self, update: Update) -> list[str]:
        """Return the names of the weights, of which the first that will do is pruned."""
        if self.layer is not None:
            if f"{self.layer}.weight" not in update:
                raise InputError(f"Soteria: the target has no layer {self.layer!r} with a weight")
            return [f"{self.layer}.weight"]
        matrices = [name for name, tensor in update.items() if tensor.ndim == 2]
        if not matrices:
            raise InputError("Soteria needs a target with a linear layer; this one has none")
        return matrices[::-1]

    def _ratios(self, payload: nn.Module, weights: list[str], images: Tensor) -> tuple[str, Tensor]:
        """Return how much each entry of a representation tells of the images, D.

        Before it the name of the layer's weight: the first one of a linear layer that reads one
        representation of each image.
        """
        found: dict[str, list[Tensor]] = {weight: [] for weight in weights}
        images = images.detach().requires_grad_()
        with left_as_found(payload) as hooks, torch.enable_grad():
            for weight in weights:
                layer = payload.get_submodule(weight.rpartition(".")[0])
                if isinstance(layer, nn.Linear):
                    hooks.append(
                        layer.register_forward_pre_hook(
                            lambda _, inputs, seen=found[weight]: seen.append(inputs[0])
                        )
                    )
            run_stateless(payload, {}, images)
        read = [name for name, seen in found.items() if len(seen) == 1 and seen[0].ndim == 2]
        if not read:
            raise InputError(
                f"Soteria: {weights[0]} is not of a linear layer that reads one representation of "
                "each image; name another with layer"
            )
        ratios = []
        for entries in found[read[0]][0].unbind(1):
            (slope,) = torch.autograd.grad(entries.sum(), images, retain_graph=True)
            norms = slope.flatten(1).norm(dim=1)
            ratio = entries.detach().abs() / norms
            ratios.append(ratio.nan_to_num(0.0, torch.inf).sum())  # 0 / 0: a dead entry
        return read[0], torch.stack(ratios)
