"""The images of a batch as independent components of a linear layer's gradient.

Kariyappa, Guo, Maeng, Xiong, Suh, Qureshi, Lee, "Cocktail Party Attack: Breaking Aggregation-Based
Privacy in Federated Learning using Independent Component Analysis", ICML 2023, arXiv 2209.05578.

Every row of the gradient of a first linear layer is a mixture of the batch's images, whatever
activation follows, labels are, or the weights: no slope is computed, nothing simulated.  So it
serves where nothing can be certified, and proves nothing: what comes is alike, not exact.  How the
mixtures are separated, and what differs from the paper: :mod:`.exact.independence`.

The paper also separates what the first linear layer behind convolutions sees, and inverts these
features.  :class:`~lightning_recon.attacks.FeatureInversionAttack` does this with the exact inputs,
which their zeros tell.
"""

import torch

from lightning_recon.attacks.analytic import AnalyticAttack
from lightning_recon.attacks.exact.certificate import read_spans
from lightning_recon.attacks.exact.independence import independent_images
from lightning_recon.attacks.exact.recovery import as_gradient
from lightning_recon.attacks.linear_layer import first_linear
from lightning_recon.errors import InputError
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.randomness import make_generator
from lightning_recon.targets import Target


class CocktailParty(AnalyticAttack):
    """Independent components of the gradient of a fully connected first layer.

    Args:
        target: a model whose first layer is linear, and has a bias or reads images that are not
            shifted.
        client: the clients' protocol; null: FedSGD.
        defenses: the clients' defenses, in order.
        seed: of all randomness.
    """

    threat_model = "an honest server sees one update of the client and knows the batch size"
    oracles = ("num_samples",)
    citation = "Kariyappa et al., ICML 2023"

    def server_payload(self, model: Target) -> Target:
        """Return the model as it is.

        Raises:
            InputError: if it has no such layer.
        """
        first_linear(model, self.known_shape, needs_bias=False)
        return model

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Return as many components as the gradient has dimensions, at most one a sample.

        An image's score is its mean square outside of [0, 1].

        Raises:
            InputError: if there are more samples than the gradient can have dimensions.
        """
        first = first_linear(observation.payload, self.known_shape, needs_bias=False)
        gradient = as_gradient(first, observation)
        most, (height, width) = observation.num_samples, gradient.shape
        if most is not None and most > min(height, width):
            raise InputError(
                f"{type(self).__name__}: {most} samples are more than the first layer's gradient "
                f"of {height} x {width} has dimensions; take smaller batches or a wider layer"
            )
        generator = make_generator(observation.seed, "cocktail party")
        with torch.autocast(gradient.device.type, enabled=False), torch.no_grad():
            spans = read_spans(gradient, most, generator)
            found = independent_images(spans.rows, self.known_shape, generator)
        images = found.clamp(0, 1)
        score = (found - images).square().mean(1)
        order = score.argsort(stable=True)
        return Reconstruction(
            images=images[order].view(-1, *self.known_shape),
            labels=None,
            score=score[order],
            notes={"rank": spans.rank, "noise_std": spans.noise_std},
        )
