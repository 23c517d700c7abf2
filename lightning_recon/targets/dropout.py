"""Dropout in front of a target's classifier, as a defense."""

from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.targets.base import Target
from lightning_recon.targets.representation import represent, split_classifier


class Dropout(Target):
    """A target that drops entries of its representation while it trains.

    Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR
    2014.  As a defense it makes the client's model one of many of which the attacker does not know
    which; Scheliga, Mäder, Seeland, "Dropout is NOT All You Need to Prevent Gradient Leakage",
    AAAI 2023, break it by fitting the masks together with the images.

    No formal guarantee.  An attacker who simulates the client draws masks of its own.

    Args:
        target: any whose logits are the output of its last linear layer; it is copied.
        rate: share of the entries that are dropped, in (0, 1).

    Raises:
        InputError: if an argument is out of its range, or the target has no linear layer.
    """

    def __init__(self, target: Target, rate: float = 0.5) -> None:
        super().__init__(target.num_classes)
        if not 0 < rate < 1:
            raise InputError(f"Dropout: rate must lie between 0 and 1, not {rate}")
        self.name = f"{target.name} with dropout {rate:g}"
        self.has_penalty = target.has_penalty
        self.body, classifier = split_classifier(target, "Dropout")
        self.dropout = nn.Dropout(rate)
        self.classifier = classifier  # last: the last linear layer of this target, too

    def forward(
        self, images: Tensor, *, with_penalty: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the logits of B C H W images in [0, 1], and the inner target's penalty."""
        representation, penalty = represent(self.body, images)
        logits: Tensor = self.classifier(self.dropout(representation))
        return (logits, penalty) if with_penalty else logits
