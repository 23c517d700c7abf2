"""Exact images with certificates, from an honest network that begins with linear and ReLU.

Shariati, 2026 (peeling of gradients), after Boenisch et al., "When the Curious Abandon Honesty",
EuroS&P 2023, and Luby, "LT codes", FOCS 2002; Dimitrov, Baader, Müller, Vechev, "SPEAR: Exact
Gradient Inversion of Batches in Federated Learning", NeurIPS 2024 (the gradient's low rank and the
ReLU's sparsity); Bakarsky, Dimitrov, Baader, Vechev, "SPEAR++: Scaling Gradient Inversion via
Sparsely-Used Dictionary Learning", 2025; Kariyappa et al., "Cocktail Party Attack", ICML 2023
(independent components).

In the order of cost: candidates come from rows that one sample alone reaches (:mod:`.peeling`);
where these end, from gates that are open or shut (:mod:`.gates`), or, where more than one linear
layer follows, from sparsity (:mod:`.sparsity`).  Each is put to a test that needs no truth
(:mod:`.certificate`), and every image is marked: certified, likely or a guess.  Guesses are what
:class:`~lightning_recon.attacks.LinearLayerInversion` returns, and independent components
(:mod:`.independence`).

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
        target: a model whose first layer is linear, and has a bias or reads images that are not
            shifted; with a ReLU behind it, samples can be told apart.
        client: the clients' protocol; null: FedSGD.
        defenses: the clients' defenses, in order.
        snap: whether pixels near 8-bit levels are set to them: for pictures of 8 bits; rows of a
            table are left as they are.
        sparsity: whether low rank and sparsity, or a table's categories, are tried where rows show
            no new images: of up to a third as many samples as rows, seconds to minutes.
        independence: whether independent components are looked for where images are missing: they
            are guesses, and help sparsity to begin; seconds.
        seed: of all randomness.
    """

    threat_model = "an honest server sees one update of the client, and knows how it trains"
    oracles = ("num_samples", "client")
    citation = (
        "Shariati, 2026; Boenisch et al., EuroS&P 2023; Dimitrov et al., NeurIPS 2024; Bakarsky et "
        "al., 2025; Kariyappa et al., ICML 2023"
    )

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        snap: bool = True,
        sparsity: bool = True,
        independence: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(target, client, defenses, seed)
        self.snap = snap
        self.sparsity = sparsity
        self.independence = independence

    def server_payload(self, model: Target) -> Target:
        """Return the model as it is.

        Raises:
            InputError: if it has no such layer, or mixes the samples of a batch.
        """
        first_linear(model, self.known_shape, needs_bias=False)
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
            independence=self.independence,
        )
