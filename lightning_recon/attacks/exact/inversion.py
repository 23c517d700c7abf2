"""Exact images with certificates, from an honest network that begins with linear and ReLU.

Shariati, 2026 (peeling of gradients), after Boenisch et al., "When the Curious Abandon Honesty",
EuroS&P 2023, and Luby, "LT codes", FOCS 2002; Dimitrov, Baader, Müller, Vechev, "SPEAR: Exact
Gradient Inversion of Batches in Federated Learning", NeurIPS 2024 (the gradient's low rank and the
ReLU's sparsity).

Candidates come from rows that one sample alone reaches (:mod:`.peeling`) and, where these end and
the samples that are left are few, from low rank and sparsity (:mod:`.sparsity`); each is put to a
test that needs no truth (:mod:`.certificate`).  Every image is marked: certified, likely or a
guess.  What :class:`~lightning_recon.attacks.LinearLayerInversion` returns is among the guesses.

What differs: the certificate is a test of hypotheses on the span of the whole gradient, not the
vanishing of single rows; float32 suffices, for errors do not add up.
"""

from collections.abc import Sequence

from lightning_recon.attacks.analytic import AnalyticAttack
from lightning_recon.attacks.exact.recovery import check_alone, recover
from lightning_recon.attacks.linear_layer import first_linear
from lightning_recon.clients import Client
from lightning_recon.defenses import Defense
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.targets import Target


class ExactInversion(AnalyticAttack):
    """Peeling with certificates on the first linear layer of an honest network.

    Args:
        target: a model whose first layer is linear and has a bias; with a ReLU behind it, samples
            can be told apart.
        client: the clients' protocol; null: FedSGD.
        defenses: the clients' defenses, in order.
        snap: whether pixels near 8-bit levels are set to them: for pictures of 8 bits; rows of a
            table are left as they are.
        sparsity: whether low rank and sparsity, or a table's categories, are tried where rows show
            no new images: of up to 24 samples that are left, seconds to a minute.
        seed: of all randomness.
    """

    threat_model = "an honest server sees one update of the client, and knows how it trains"
    oracles = ("num_samples", "client")
    citation = "Shariati, 2026; Boenisch et al., EuroS&P 2023; Dimitrov et al., NeurIPS 2024"

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        snap: bool = True,
        sparsity: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(target, client, defenses, seed)
        self.snap = snap
        self.sparsity = sparsity

    def server_payload(self, model: Target) -> Target:
        """Return the model as it is.

        Raises:
            InputError: if it has no linear layer with a bias that reads the image, or mixes the
                samples of a batch.
        """
        first_linear(model, self.known_shape)
        check_alone(model, self.mode, type(self).__name__)
        return model

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Return the images, marked, the surest first.

        Raises:
            InputError: if the batch is larger than the layer's rank allows.
        """
        return recover(
            observation,
            self.known_shape,
            type(self).__name__,
            snap=self.snap,
            sparsity=self.sparsity,
            columns=self.spec.columns,
        )
