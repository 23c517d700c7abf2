"""What every prior is that reads the payload's activations: a penalty on a batch as a whole.

The activations come from a forward pass of the prior's own, beside that of the simulated client:
about a fifth of the cost of an iteration, but no state, no hook that outlives a call, and the same
under several local steps.
"""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_recon.functional.stateless import run_stateless, watched
from lightning_recon.priors.base import Penalty
from lightning_recon.updates import Buffers, Update


class ActivationPrior(Penalty):
    """A penalty on what the layers of the payload see of a batch.

    Args:
        weight: what the penalty is multiplied by, at least 0.

    Raises:
        InputError: if the weight is negative.
    """

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        payload: nn.Module,
        observed: Update,
        statistics: Buffers,
    ) -> Tensor:
        """Return the weighted penalty of the batch, a number.

        Args:
            images: B C H W, about [0, 1].
            labels: B, int64, or B num_classes probabilities.
            payload: the model that the server sent, in the client's mode.
            observed: the update that came back, of either sign and any size.
            statistics: the means and variances that batch norm is known to see; see
                :func:`~lightning_recon.attacks.matching.batch_statistics.batch_statistics`.
        """


def layer_inputs(payload: nn.Module, layers: Sequence[nn.Module], images: Tensor) -> list[Tensor]:
    """Return what each layer sees when the payload runs on a batch, differentiable in the images.

    Args:
        payload: B C H W -> B K logits; neither it nor its buffers are changed.
        layers: of the payload.  One that runs several times gives its last input.
        images: B C H W.
    """
    with watched(layers) as seen:
        run_stateless(payload, {}, images)
    return [seen[layer] for layer in layers]
