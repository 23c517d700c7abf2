"""What all attacks share that look for images whose update is like the observed one.

    min over x of  D(f(x), u) + priors(x),

u the observed update, f the client run on the dummy images x, D a distance
(:mod:`lightning_recon.attacks.matching.matcher`).

What a class below :class:`GradientMatching` may change, in the order in which it is called.  Once,
``learn_public(images)``, what the attacker takes from public images, and ``server_payload(model)``,
the model that the server sends.  Of every client:

- ``labels_to_begin(observation)``: the labels, known or inferred;
- ``start(num_samples, generator)``: the dummies to begin with, once for each restart;
- ``initialize(observation)``, which calls these two: what else is taken from the observation.

Of every iteration, ``self.iteration`` from 0 on, of ``self.iterations``:

- ``objective(dummy, evidence)``, its parts by name, whose sum is minimised.  It calls
  ``decode(dummy)``, the images that dummies stand for, and ``labels_of(dummy, evidence)``,
  simulates the client, calls ``compare(simulated, observed)``, the distance, and adds the priors;
- ``adjust(gradient)``, in place;
- the optimizer's step, and the schedule's;
- ``project(dummy)``, in place.

At the end ``finish(dummy, evidence)`` returns the images of the restart of least objective.
"Dummies" are images unless ``decode`` says otherwise, of ``dummy_shape`` each.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_recon.attacks.base import Attack
from lightning_recon.attacks.dummy_loop import DummyLoop
from lightning_recon.attacks.features.decoding import analytic_start, teaching_images
from lightning_recon.attacks.matching.batched import BatchedGradient, CompileMode
from lightning_recon.attacks.matching.best_iterate import BestIterate
from lightning_recon.attacks.matching.evidence import KNOWN, Reader, grants_of
from lightning_recon.attacks.matching.evidence import Evidence as Evidence  # to build on this
from lightning_recon.attacks.matching.matcher import Matcher
from lightning_recon.attacks.matching.together import attack_together, check_batchable
from lightning_recon.clients import Client
from lightning_recon.defenses import Defense
from lightning_recon.functional.gradient_distance import Distance
from lightning_recon.functional.labels.inference import LabelMethod
from lightning_recon.observation import Failure, Grant, Observation, Reconstruction
from lightning_recon.priors import ActivationPrior, Prior
from lightning_recon.randomness import derive_seed
from lightning_recon.targets import Target
from lightning_recon.updates import Update


class GradientMatching(Attack):
    """An attack that optimises a batch of dummy images until their update is the observed one.

    All restarts run as one batched computation; the one of least objective is returned.

    Args:
        known: what is granted to the attacker, of ``labels``, ``num_samples``, ``client`` (the
            local hyperparameters) and ``buffers`` (batch norm's statistics as the client left
            them).  Without the labels they are inferred; without the client, one step of SGD at
            an unknown rate is simulated; without the buffers, a prior that reads statistics
            reads those that the server sent.
        adaptive: whether the attacker knows the defenses, and simulates them.
        distance: between the simulated update and the observed one: ``squared``, ``relative`` (to
            the observed one's norm), ``cosine`` or ``absolute``.
        priors: penalties on the dummy images, added to the distance.
        label_inference: how labels are found that are not known.
        num_restarts: independent starts, at least 1.
        analytic_start: whether the first restart begins with what the gradients of the last linear
            layers tell (:mod:`~lightning_recon.attacks.features.decoding`), decoded by what public
            images teach, instead of noise; the target ends in a linear layer.
        clients_at_once: clients that ``test`` attacks as one batched computation, at least 1.
            Each comes out as it would alone but for rounding (a network with dropout draws other
            masks), and is recorded by itself.  Those of another batch size than the others, or
            whose computation cannot be batched, are attacked one by one.  Where the memory does
            not suffice, half as many are computed at once from then on.
            The optimizer must treat every number by itself, which L-BFGS does not.
        compile: whether an iteration is compiled (torch.compile): half a minute once, and for
            small networks two to three times as fast from then on.  A mode of torch.compile may be
            named: ``reduce-overhead`` and ``max-autotune`` use CUDA graphs, and were not tried on
            a GPU by us.
        patience: iterations in which the objective must fall by 1 %, or the client is left; null:
            all iterations are done.
        iterations: steps on the dummy images of one client.
        optimizer: makes the optimizer of the dummy images.
        lr_scheduler: makes its schedule, stepped at every iteration; null: constant.

    Raises:
        InputError: if an argument is out of its range, or clients are to be attacked together that
            the optimizer or the attack (``is_batchable``) would mix.
    """

    threat_model = "an honest-but-curious server that sees one client's update"
    can_simulate_defenses = True
    is_batchable = True
    """Whether several clients can be attacked as one computation."""
    returns_best = False
    """Whether the best dummies that were ever evaluated are returned, and no box holds them."""
    loop: DummyLoop
    dummy: nn.Parameter

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        known: Sequence[str] = KNOWN,
        adaptive: bool = False,
        distance: Distance = "squared",
        priors: Sequence[Prior | ActivationPrior] = (),
        label_inference: LabelMethod = "residual_counts",
        num_restarts: int = 1,
        analytic_start: bool = False,
        clients_at_once: int = 1,
        compile: bool | CompileMode = False,
        patience: int | None = None,
        iterations: int = 400,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(target, client, defenses, seed)
        name = type(self).__name__
        self.loop = DummyLoop(self, iterations, optimizer, lr_scheduler, patience=patience)
        self.engine = BatchedGradient(
            name,
            self.objective,
            num_restarts=num_restarts,
            clients_at_once=clients_at_once,
            compile=compile,
        )
        if clients_at_once > 1:
            check_batchable(name, optimizer, self.is_batchable and not self.returns_best)
        self.oracles = grants_of(name, known, adaptive=adaptive)
        self.priors = nn.ModuleList(priors)
        self.matcher = Matcher(name, distance, self.priors)
        self.reader = Reader(name, label_inference)
        self.best = BestIterate() if self.returns_best else None
        self.num_restarts = num_restarts
        self.clients_at_once = clients_at_once
        self.analytic_start = analytic_start

    def learn_public(self, images: Tensor) -> None:
        """Keep public images; to decode by, noise of a natural spectrum replaces fewer than 8."""
        self.reader.learn(images, self.seed)
        seed = derive_seed(self.seed, "synthetic")
        self.public, _ = teaching_images(images, self.spec.image_shape, seed)

    # --- what a method may change --------------------------------------------------------------

    def server_payload(self, model: Target) -> nn.Module:
        """Send the model as it is."""
        return model

    @property
    def dummy_shape(self) -> tuple[int, ...]:
        """C, H, W of the dummy images."""
        return self.spec.image_shape

    def start(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Return the dummy images of one restart to begin with, num_samples x dummy shape.

        Here uniform in [0, 1].

        Args:
            num_samples: of the batch.
            generator: the restart's own.
        """
        return torch.rand(num_samples, *self.dummy_shape, generator=generator)

    def decode(self, dummy: Tensor) -> Tensor:
        """Return the images that dummies stand for, R C H W; here the dummies themselves."""
        return dummy

    def encode(self, images: Tensor) -> Tensor:
        """Return dummies that stand for images, R C H W, as nearly as dummies can."""
        return images

    def labels_to_begin(self, observation: Observation) -> tuple[Tensor, dict[str, float]]:
        """Return the labels of the batch, B, int64, known or inferred, and notes on them."""
        return self.reader.labels(observation)

    def labels_of(self, dummy: Tensor, evidence: Evidence) -> Tensor:
        """Return the labels that dummies stand for: R, int64, or R num_classes probabilities.

        Here those of the evidence, in every restart.
        """
        return evidence.labels.repeat(len(dummy) // len(evidence.labels))

    def compare(self, simulated: Update, observed: Update) -> Tensor:
        """Return how far a simulated update is from the observed one, a number to be minimised.

        Here the option ``distance``.  It is differentiated, within ``torch.func.vmap`` where there
        are several restarts or clients: without branches on values, and nothing in place.

        Args:
            simulated: of the dummies of one restart: a tensor for each parameter of the payload,
                by its name and in the payload's order, so that the last ones are those of its last
                layer.  The stand-ins of the defenses are applied where they are known.
            observed: what the server saw, scaled like it; the same names and shapes.
        """
        return self.matcher.compare(simulated, observed)

    def adjust(self, gradient: Tensor) -> None:
        """Change the gradient before the optimizer's step, in place; here not at all.

        Args:
            gradient: of the objective by all dummies, those of all restarts and clients one after
                the other.
        """

    def project(self, dummy: Tensor) -> None:
        """Bring the dummies back to where images lie, in place: [0, 1], or leave them.

        It comes last in every iteration, without gradients: the place for what is done every so
        many iterations; ``self.iteration`` counts them from 0 on.

        Args:
            dummy: those of all restarts and clients one after the other.
        """
        if not self.returns_best:
            dummy.clamp_(0, 1)

    # --- the attack ----------------------------------------------------------------------------

    def initialize(self, observation: Observation) -> tuple[Tensor, Any]:
        """Read the observation; restarts follow one another along the first dimension."""
        labels, notes = self.labels_to_begin(observation)
        reference = next(iter(observation.update.values()))
        payload = self.engine.laid_out(observation.payload, reference.device)
        evidence = self.reader.evidence(observation, labels, notes)._replace(payload=payload)
        starts = []
        for restart in range(self.num_restarts):
            generator = torch.Generator().manual_seed(derive_seed(observation.seed, restart))
            starts.append(self.start(len(labels), generator))
        start = torch.cat(starts).to(reference)
        if self.analytic_start:
            seed = derive_seed(observation.seed, "rehearsal")
            is_adaptive = Grant.DEFENSES in self.oracles
            images = analytic_start(evidence, self.public, seed, is_adaptive=is_adaptive)
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                start[: len(labels)] = self.encode(images)
        return start, evidence

    def objective(self, dummy: Tensor, evidence: Evidence) -> dict[str, Tensor]:
        """Return the distance and the priors of one restart, each of shape 1.

        Call it within :meth:`.BatchedGradient.simulating`.
        """
        images, labels = self.decode(dummy), self.labels_of(dummy, evidence)
        simulated, observed = self.matcher.updates(images, labels, evidence)
        parts = {"matching": self.compare(simulated, observed)[None]}
        return self.matcher.with_priors(parts, images, labels, evidence)

    def differentiate(self, dummy: Tensor, evidence: Evidence) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of the objective and the gradient of their sum."""
        parts, gradient = self.engine.differentiate(dummy, evidence, self.spec.image_shape)
        if self.best is not None:
            total = torch.stack([part.detach() for part in parts.values()]).sum(0)
            self.best.see(dummy.detach(), total, evidence.observed)
        return parts, gradient

    def finish(self, dummy: Tensor, evidence: Any) -> Reconstruction:
        """Return the images of the restart of least objective."""
        if self.best is not None:
            with torch.enable_grad():
                self.differentiate(dummy, evidence)  # the last step's were not evaluated yet
            assert self.best.best is not None
            dummy = self.best.best.dummy
        with torch.enable_grad():
            parts, _ = self.differentiate(dummy, evidence)
        total = torch.stack([part.detach() for part in parts.values()]).sum(0)
        finite = total.isfinite()
        best = int(total.where(finite, torch.inf).argmin())
        notes = {**evidence.notes}
        if not finite.all():
            notes["restarts_not_finite"] = float((~finite).sum())
        if self.engine.restarts_at_once < self.num_restarts:
            notes["restarts_at_once"] = float(self.engine.restarts_at_once)
        if self.engine.clients_together < self.clients_at_once:
            notes["clients_at_once"] = float(self.engine.clients_together)
        images = self.decode(dummy).chunk(self.num_restarts)[best]
        labels = self.labels_of(dummy, evidence).chunk(self.num_restarts)[best]
        return Reconstruction(
            images=images.detach().clamp(0, 1),
            labels=labels.argmax(1) if labels.is_floating_point() else labels,
            score=total[best].expand(len(images)),
            notes=notes,
        )

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Run all iterations on one client."""
        kept, self.best = self.best, BestIterate() if self.returns_best else None
        try:  # a control may run between two iterations of fit
            return self.loop.reconstruct(observation)
        finally:
            self.best = kept

    # --- what the loop asks for ----------------------------------------------------------------

    def iterate(
        self, dummy: nn.Parameter, evidence: Any, optimizer: Any, scheduler: Any
    ) -> dict[str, Tensor]:
        """Do one iteration on the dummies; see :meth:`.DummyLoop.iterate`."""
        return self.loop.iterate(dummy, evidence, optimizer, scheduler)

    @property
    def num_dummies_held(self) -> int:
        """The dummy images of all restarts together."""
        return self.num_restarts * self.spec.max_batch_size

    def num_clients_of(self, evidence: Evidence) -> int:
        """Return how many clients' dummy images are optimised together."""
        return evidence.num_clients

    @contextmanager
    def iterating(self, evidence: Evidence) -> Iterator[None]:
        """Simulate once for the whole loop."""
        with self.engine.simulating(evidence):
            yield

    def forget(self) -> None:
        """Forget the best dummies of the client before."""
        if self.best is not None:
            self.best.forget()

    # --- several clients, and Lightning --------------------------------------------------------

    def attack_together(
        self, clients: Sequence[int], *, noise_only: bool = False
    ) -> list[Reconstruction | Failure]:
        """Attack several clients as one computation; what cannot be, one after the other."""
        return attack_together(self, clients, noise_only=noise_only)

    def test_step(  # type: ignore[override]
        self, batch: Tensor, batch_idx: int
    ) -> Reconstruction | Failure | list[Reconstruction | Failure]:
        """Attack one client, or several; ``batch`` is a number, or a vector of numbers."""
        if batch.ndim == 0:
            return super().test_step(batch, batch_idx)
        return self.attack_together(batch.tolist())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the best dummies, too."""
        super().on_save_checkpoint(checkpoint)
        if self.best is not None:
            checkpoint["best"] = self.best.save()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See :meth:`on_save_checkpoint`."""
        super().on_load_checkpoint(checkpoint)
        if self.best is not None:
            self.best.load(checkpoint.get("best"))
