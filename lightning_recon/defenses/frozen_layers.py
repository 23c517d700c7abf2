"""Frozen layers: nothing of them is sent, and the server leaves them as they are."""

from collections.abc import Iterable

import torch

from lightning_recon.defenses.base import Defense, Encoding, Shapes
from lightning_recon.errors import InputError
from lightning_recon.updates import Update


class FrozenLayers(Defense):
    """Sends 0 for every parameter of some layers.

    Frozen layers are common in fine-tuning and save communication: no published defense, and no
    guarantee.  What the other layers' gradients tell of the images they still tell.

    For one step of a client that is training with these layers frozen.  Where it differs: within
    several local steps the client's own copy of them moves on, and is dropped.

    Args:
        layers: names of modules or parameters; all below a module is frozen with it.  What the
            update does not have is an error, so that no misspelt name protects nothing.
    """

    def __init__(self, layers: list[str]) -> None:
        super().__init__()
        if not layers:
            raise InputError("FrozenLayers: name at least one layer")
        self.layers = tuple(layers)

    def bind(self, norm_bound: float | None) -> float | None:
        """Return the same bound: entries only become 0."""
        return norm_bound

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the update without the frozen layers, in place.

        Raises:
            InputError: if the update has no such layer.
        """
        for name in self._frozen(update):
            update[name].zero_()
        return update

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return the same: the attacker knows which layers are frozen."""
        frozen = self._frozen(update)
        return {name: tensor * (name not in frozen) for name, tensor in update.items()}

    def encode(self, encoding: Encoding, shapes: Shapes) -> Encoding:
        """Return what is left: nothing of a frozen layer is sent."""
        frozen = self._frozen(shapes)
        whole = sum(shape.numel() for shape in shapes.values())
        left = whole - sum(shapes[name].numel() for name in frozen)
        share = left / max(whole, 1)
        return Encoding(
            encoding.num_values * share, encoding.bits_per_value, encoding.overhead * share
        )

    def _frozen(self, names: Iterable[str]) -> set[str]:
        """Return the names of the frozen parameters.

        A payload may hold the model behind a prefix, such as ``model.``.
        """
        names, found = list(names), set[str]()
        for layer in self.layers:
            mine = {name for name in names if f".{layer}." in f".{name}."}
            if not mine:
                raise InputError(
                    f"FrozenLayers: the update has no layer {layer}; there are "
                    f"{', '.join(names[:12])}"
                )
            found |= mine
        return found
