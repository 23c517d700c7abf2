"""Gauss-Newton inversion: second order, to where the information ends and not where descent stops.

The simulated update g of images x is linearised, and the most probable images of the linear model
are the next ones, within a trust region:

    (J' W J + q Q + D) dx = -(J' W (g(x) - u) + q Q (x - mu)),

u the observed update, J = dg/dx, W one over the variance of every number
(:mod:`~lightning_recon.attacks.matching.equations`), mu and Q the mean and the precision of images
with the spectrum of public ones (:mod:`~lightning_recon.attacks.features.spectrum`), q 1 where
noise is known and next to nothing where the update is exact, D the damping of Levenberg and
Marquardt.  Where the update is exact and the unknowns are few, J is made: images move along their
cosines, first along the few of largest variance, then along all, and one J serves for as many steps
as it brings nearer.  Elsewhere a step is conjugate gradients on products with J, and q falls from
what the first images lack to its value: one finds the most probable images as if there were much
noise, then less and less (the iteratively regularised Gauss-Newton method: Bakushinskii,
Computational Mathematics and Mathematical Physics 32, 1992).  Many unknowns of a batch that the
last layer takes apart are met an image at a time
(:mod:`~lightning_recon.attacks.matching.per_image`).

Where the last convolution of a network without kinks has as many channels as places, its gradient
tells what it saw (:mod:`~lightning_recon.attacks.matching.last_maps`), without a search; from
these maps and the layers below the image is found, and no valley of wrong images is met.

Where ReLUs and max-pools are, the update jumps as one flips, and a linear model does not foresee
it.  There the network is soft at first (:mod:`~lightning_recon.attacks.matching.softened`), less
and less, and at last itself; the error that this leaves in each layer is fitted along, as its most
probable size is the one seen, and q is 1: the pattern of open ReLUs is found on the way, and the
images are the most probable ones within it.

Gauss-Newton steps on a network's gradient are not published for images to our knowledge; the
objective is that of Zhu, Liu & Han, "Deep Leakage from Gradients", NeurIPS 2019, with the prior of
Balunović et al., "Bayesian Framework for Gradient Leakage", ICLR 2022.  Levenberg, Quarterly of
Applied Mathematics 2, 1944; Marquardt, SIAM Journal 11, 1963.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_recon.attacks.annealed_inversion import AnnealedInversion
from lightning_recon.attacks.features.decoding import teaching_images
from lightning_recon.attacks.features.spectrum import Spectrum
from lightning_recon.attacks.matching.batched import is_out_of_memory
from lightning_recon.attacks.matching.equations import Equations
from lightning_recon.attacks.matching.evidence import KNOWN, Evidence, Reader, grants_of
from lightning_recon.attacks.matching.from_maps import FromMaps, read_last_maps
from lightning_recon.attacks.matching.linear_model import Found, LinearModel, Taken
from lightning_recon.attacks.matching.per_image import PerImage
from lightning_recon.attacks.matching.probable import probable_step
from lightning_recon.attacks.matching.restarts import Progress, Restarts
from lightning_recon.attacks.optimization import OptimizationAttack
from lightning_recon.clients import Client
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.functional.damped_least_squares import jacobian
from lightning_recon.functional.labels.inference import LabelMethod
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.randomness import derive_seed
from lightning_recon.targets import Target

_T = TypeVar("_T")
_HOT, _COLD = 0.6, 0.03  # first and last temperature of kinks, in standard deviations
_HOT_NEAR, _COLD_NEAR = 0.1, 0.01  # the same from images that annealing led to
_ANNEALED_RESTARTS, _ANNEALED_CYCLES = 3, 4
_SHARES = (1 / 16, 1 / 4, 1 / 2, 1.0)  # of an image's cosines, stage by stage
_STAGE_STEPS = 3  # linear models at most, but in the last
_STAGED = 3072  # unknowns of which Jacobians are taken from the first step on, at most
_NEAR, _NEAR_DAMPING = 1e-8, 1e-6  # variance below which a Jacobian is worth its time
_STALLED = 0.75  # of the misfit that is left where products tell no more of weak directions
_FADED = 4  # steps by products alone that are taken together
_FADING = 0.3  # of the equations' variance that is left after a step which does not halve what is
_START = 0.3  # standard deviations of images about their mean, to begin with
_FEW = 768  # unknowns of a soft linear model, above which its products cost less than a Jacobian
_APPROACHES, _APPROACHING = 12, (1 / 4, 1 / 4, 1 / 2, 1.0)  # steps from maps; of the cosines
_FIRST_ERROR, _LESS_ERROR = 3e-3, 10**-0.5  # of a layer, relative, there; is left after a step
_LAST_DAMPING = 1e-10  # of the mean diagonal, behind them
_UNEXPLAINED = 1e-3  # of the update, squared and relative: it is no exact one


@contextmanager
def _precisely(device: torch.device) -> Iterator[None]:
    """Compute what is differentiated twice, in the precision of its tensors."""
    with (
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield


class GaussNewtonInversion(OptimizationAttack):
    """Solves the observed update for the images by damped Gauss-Newton steps.

    Networks without kinks (sigmoid, SiLU, average pools, small vision transformers) are read to
    about the last digit where the update is exact and determines the images.  ReLUs and max-pools
    are soft at first; of their networks the most probable images come back.  Notes tell the number
    of equations and unknowns, whether the last convolution's maps were read (``maps``), and without
    kinks the rank.

    Args:
        target: the model that the federation trains; it can be differentiated twice.
        client: the protocol that the clients follow; null: FedSGD.
        defenses: what a client does to its update before it sends it, in order.
        known: what is granted to the attacker, of ``labels``, ``num_samples``, ``client`` and
            ``buffers``.  Without the labels they are inferred; without the client, one step of SGD
            at an unknown rate is simulated.
        adaptive: whether the attacker knows the defenses: every number is weighed by what they
            add to it, and the images are the most probable ones.  Without, the update counts as
            exact.
        label_inference: how labels are found that are not known.
        num_restarts: independent starts, at least 1; the one of least objective is returned.
        max_unknowns: of an explicit Jacobian, at least 0; with more, where there is noise, and
            where the memory does not suffice, steps take products alone, by conjugate gradients.
            Above 3,072 the Jacobian is made at the end, when the images are near.
        soft_iterations: linear models at first in which ReLUs and max-pools are soft, less and
            less, where there are any; at least 0.
        annealed_iterations: iterations of :class:`.AnnealedInversion`, of three restarts and four
            cycles with exact values, whose images the first start is then, where there are ReLUs
            or max-pools; 0: it is drawn as the others are.
        levels: values that a pixel may have, from 0 to 1, at least 2; 0: any.  Pixels of a batch
            that is taken apart, ``max_unknowns`` at most, are brought to them one after the other,
            the surest first, and are kept if the update agrees.
        iterations: linear models of one client, at least 1, or four steps by products each; a
            restart that comes no nearer is done.
        seed: of all randomness: the clients', the defenses' and the attack's own.

    Raises:
        InputError: if an argument is out of its range.
    """

    threat_model = "an honest-but-curious server that sees one client's update"
    citation = (
        "this project, after Zhu et al., Deep Leakage from Gradients, NeurIPS 2019, and "
        "Marquardt, SIAM Journal 11, 1963"
    )

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        known: Sequence[str] = KNOWN,
        adaptive: bool = False,
        label_inference: LabelMethod = "residual_counts",
        num_restarts: int = 1,
        max_unknowns: int = 6144,
        soft_iterations: int = 12,
        annealed_iterations: int = 0,
        levels: int = 256,
        iterations: int = 24,
        seed: int = 0,
    ) -> None:
        name = type(self).__name__
        if levels == 1:
            raise InputError(f"{name}: levels must be 0 or at least 2, not 1")
        for argument, value, least in (
            ("num_restarts", num_restarts, 1),
            ("max_unknowns", max_unknowns, 0),
            ("soft_iterations", soft_iterations, 0),
            ("annealed_iterations", annealed_iterations, 0),
            ("levels", levels, 0),
        ):
            if value < least:
                raise InputError(f"{name}: {argument} must be at least {least}, not {value}")
        super().__init__(
            target,
            client,
            defenses,
            iterations=iterations,
            optimizer=partial(Restarts, num_restarts=num_restarts),
            seed=seed,
        )
        self.oracles = grants_of(name, known, adaptive=adaptive)
        self.reader = Reader(name, label_inference)
        self.num_restarts = num_restarts
        self.max_unknowns = max_unknowns
        self.levels = levels
        self.soft_iterations = soft_iterations
        self._apart: PerImage | None = None
        self._first_order: tuple[AnnealedInversion, ...] = ()  # which Lightning does not see
        if annealed_iterations:
            start = AnnealedInversion(
                target,
                client,
                defenses,
                known,
                label_inference=label_inference,
                iterations=annealed_iterations,
                soft_values=False,
                num_restarts=_ANNEALED_RESTARTS,
                num_cycles=_ANNEALED_CYCLES,
                seed=seed,
            )
            self._first_order = (start,)

    @property
    def num_dummies_held(self) -> int:
        """The dummy images of all restarts together."""
        return self.num_restarts * self.spec.max_batch_size

    def server_payload(self, model: Target) -> nn.Module:
        """Send the model as it is."""
        return model

    def learn_public(self, images: Tensor) -> None:
        """Learn the spectrum of images; noise of a natural one replaces fewer than 8."""
        self.reader.learn(images, self.seed)
        seed = derive_seed(self.seed, "synthetic")
        public, _ = teaching_images(images, self.spec.image_shape, seed)
        self.spectrum = Spectrum(public.double())
        for attack in self._first_order:
            attack.bind(self.spec)
            attack.learn_public(images)

    # --- reading the update --------------------------------------------------------------------

    def initialize(self, observation: Observation) -> tuple[Tensor, Equations]:
        """Read the observation; restarts follow one another along the first dimension."""
        evidence = self.reader.evidence(observation, *self.reader.labels(observation))
        reference = next(iter(observation.update.values()))
        starts = []
        for restart in range(self.num_restarts):
            generator = torch.Generator().manual_seed(derive_seed(observation.seed, restart))
            shape = len(evidence.labels), *self.spec.image_shape
            latents = torch.randn(shape, generator=generator, dtype=torch.float64)
            starts.append(self.spectrum.decode(_START * latents.to(reference.device)))
        start = torch.cat(starts).to(reference)
        number = len(evidence.labels)
        equations = self._equations(evidence, start[:number])
        self._apart = self._taken_apart(equations, start)
        if self._first_order and equations.has_kinks:
            start[:number] = self._annealed(observation, evidence.labels)
        if not equations.has_kinks and number == 1:
            with _precisely(start.device):
                equations.seen = read_last_maps(equations, start[:1])
        evidence.notes["maps"] = float(equations.seen is not None)
        return start, equations

    def _taken_apart(self, equations: Equations, start: Tensor) -> PerImage | None:
        """Return a large batch by its images; their features lead to every start, in place."""
        number = len(equations.evidence.labels)
        if number < 2 or start[:number].numel() <= _STAGED:
            return None
        with _precisely(start.device):
            first = start[:number].double()
            apart = PerImage.of(
                equations,
                self.spectrum,
                first,
                self.max_unknowns,
                max(0, self.levels - 1),
                self.seed,
            )
            if apart is not None:
                for share in torch.split(start, number):
                    share.copy_(apart.start(share.double()))
        return apart

    def _annealed(self, observation: Observation, labels: Tensor) -> Tensor:
        """Return what annealing finds, B C H W, in the order of the labels that are assumed."""
        found = self._first_order[0].reconstruct(observation)
        assert found.labels is not None
        order = torch.empty_like(labels)
        order[labels.argsort(stable=True)] = found.labels.argsort(stable=True)
        return found.images[order]

    def _equations(self, evidence: Evidence, images: Tensor) -> Equations:
        """Note what is to be solved; raise InputError if it cannot be differentiated twice."""
        try:
            with _precisely(images.device):
                equations = Equations(evidence, images.double())
                jacobian(equations.residual, images, torch.zeros_like(images[:1]), 1)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:160]
            raise InputError(
                f"{type(self).__name__}: the gradient of {type(self.target).__name__} cannot be "
                f"differentiated by the images: {reason}; choose an attack such as "
                "InvertingGradients"
            ) from error
        unknowns = images.numel()
        evidence.notes.update(equations=float(equations.number), unknowns=float(unknowns))
        if equations.number == 0:
            rank_zero_warn(
                f"{type(self).__name__}: all numbers of the update are 0, and tell nothing of "
                f"{unknowns} unknowns; the mean of public images comes back"
            )
        elif equations.number < unknowns:
            rank_zero_warn(
                f"{type(self).__name__}: {unknowns} unknowns in {equations.number} equations; the "
                "mean and the spectrum of public images decide the rest"
            )
        return equations

    # --- a step --------------------------------------------------------------------------------

    def iterate(
        self, dummy: nn.Parameter, evidence: Equations, optimizer: Any, scheduler: Any
    ) -> dict[str, Tensor]:
        """Take one Jacobian at every restart that is not done, and the steps that it serves for."""
        size = len(evidence.evidence.labels)
        sums = {"matching": 0.0, "spectrum": 0.0}

        def solve() -> Tensor:
            progress = optimizer.param_groups[0]["progress"]
            for restart, before in enumerate(progress):
                share = dummy.data[restart * size : (restart + 1) * size]
                is_near = restart == 0 and bool(self._first_order)
                after, found = self._advance(share.double(), evidence, Progress(*before), is_near)
                progress[restart] = tuple(after)
                share.copy_(found.images)
                sums["matching"] += found.misfit
                sums["spectrum"] += found.prior
                if after.rank >= 0:
                    evidence.evidence.notes["rank"] = float(after.rank)
            return dummy.new_tensor(sum(sums.values()))

        with _precisely(dummy.device):
            optimizer.step(solve)
        parts = {name: torch.tensor(value) for name, value in sums.items()}
        return {"objective": torch.tensor(sum(sums.values())), **parts}

    def _advance(
        self, images: Tensor, equations: Equations, progress: Progress, is_near: bool
    ) -> tuple[Progress, Found]:
        """Take one Jacobian, and go on to the next stage where it did not help much."""
        if equations.has_kinks and not progress.is_done:
            return self._soften(images, equations, progress, is_near)
        if equations.seen is not None and progress.stage == 0:
            return self._approach(images, equations, progress)
        if self._apart is not None:
            return self._together(self._apart, images, equations, progress)
        size = math.prod(self.spec.image_shape)
        most = _STAGED if progress.variance > _NEAR else self.max_unknowns
        if equations.is_noisy or len(images) * size > min(most, self.max_unknowns):
            return self._fade(images, equations, progress)
        equations.weigh(images)
        number = max(1, math.ceil(_SHARES[progress.stage] * size))
        model = LinearModel(equations, self.spectrum, number, self.seed)
        before = model.at(images)
        if progress.is_done:
            return progress, before

        def step(is_explicit: bool) -> Taken | None:
            return model.explicit(before, progress.damping) if is_explicit else None

        after = self._where_memory_suffices(step, len(images) * number)
        if after is None:
            return self._fade(images, equations, progress)
        found = after.found
        progress = progress._replace(damping=after.damping, steps=progress.steps + 1)
        if number < size:
            if after.is_slow or progress.steps >= _STAGE_STEPS:
                progress = progress._replace(stage=progress.stage + 1, steps=0)
            return progress, found
        is_done = found.objective >= before.objective * (1 - 1e-3)
        is_done |= model.is_rounded(found) or equations.seen is not None
        return progress._replace(is_done=is_done, rank=after.rank), found

    def _approach(
        self, images: Tensor, equations: Equations, progress: Progress
    ) -> tuple[Progress, Found]:
        """Take one linear model of what the last convolution saw and of the layers below it."""
        size, done = math.prod(self.spec.image_shape), progress.steps
        number = math.ceil(size * _APPROACHING[min(done, len(_APPROACHING) - 1)])
        guided = FromMaps(equations, _FIRST_ERROR * _LESS_ERROR**done)
        take = partial(probable_step, images, guided, self.spectrum, number)
        found = self._where_memory_suffices(take, number)
        progress = progress._replace(steps=done + 1)
        if progress.steps == _APPROACHES:
            progress = Progress(_LAST_DAMPING, stage=len(_SHARES) - 1, variance=_NEAR)
        equations.weigh(images if found is None else found)
        after = LinearModel(equations, self.spectrum, size, self.seed)
        return progress, after.at(images if found is None else found)

    def _fade(
        self, images: Tensor, equations: Equations, progress: Progress
    ) -> tuple[Progress, Found]:
        """Take steps by products alone, to the most probable images while the prior fades."""
        size = math.prod(self.spec.image_shape)
        equations.weigh(images)
        last = LinearModel(equations, self.spectrum, size, self.seed)
        found = last.at(images)
        least, variance, damping = last.variance, progress.variance, progress.damping
        if math.isinf(variance):
            variance, damping = found.misfit / images.numel(), 0.0
        is_explicit = images.numel() <= self.max_unknowns
        is_last = variance <= least  # and the weights are of images that were near already
        for _ in range(0 if progress.is_done else _FADED):
            variance = max(variance, least)
            model = LinearModel(equations, self.spectrum, size, self.seed, variance)
            before = model.at(found.images)
            found, damping, is_slow, _ = model.matrix_free(before, damping)
            is_still = variance == least and found.objective >= before.objective * (1 - 1e-3)
            is_done = is_still and is_last
            is_done |= variance <= _NEAR and found.misfit > _STALLED * before.misfit
            progress = progress._replace(is_done=is_done or model.is_rounded(found))
            if progress.is_done or is_still:
                break
            if is_slow:
                variance *= _FADING
            if is_explicit and variance <= _NEAR:
                progress, damping = progress._replace(stage=len(_SHARES) - 1), _NEAR_DAMPING
                break
        return progress._replace(variance=variance, damping=damping), last.at(found.images)

    def _together(
        self, apart: PerImage, images: Tensor, equations: Equations, progress: Progress
    ) -> tuple[Progress, Found]:
        """Take one linear model of a batch that the last layer takes apart."""
        if not progress.is_done:
            try:
                images, variance, told, is_done = apart.advance(images, progress.variance)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._warn_of_memory(images.numel())
                self._apart = None
                return self._fade(images, equations, progress._replace(variance=math.inf))
            progress = progress._replace(variance=variance, rank=told, is_done=is_done)
        equations.weigh(images)
        size = math.prod(self.spec.image_shape)
        return progress, LinearModel(equations, self.spectrum, size, self.seed).at(images)

    def _where_memory_suffices(self, step: Callable[[bool], _T], unknowns: int) -> _T:
        """Take a step with an explicit Jacobian, or by products where it would be too large."""
        if unknowns <= self.max_unknowns:
            try:
                return step(True)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._warn_of_memory(unknowns)
                self.max_unknowns = unknowns - 1
        return step(False)

    def _warn_of_memory(self, unknowns: int) -> None:
        rank_zero_warn(
            f"{type(self).__name__}: the memory does not suffice for the Jacobian of "
            f"{unknowns} unknowns; products alone are taken from here on"
        )

    def _soften(
        self, images: Tensor, equations: Equations, progress: Progress, is_near: bool
    ) -> tuple[Progress, Found]:
        """Take one linear model of a network whose kinks are soft, and soon no more."""
        size, done = math.prod(self.spec.image_shape), progress.soft
        hot, cold, first = _HOT, _COLD, _SHARES[0]
        if is_near:
            hot, cold, first = _HOT_NEAR, _COLD_NEAR, 1.0
        number = min(size, math.ceil(size * first * 2**done))
        last = max(1, self.soft_iterations - 1)
        is_soft = done < self.soft_iterations
        with equations.inexact(hot * (cold / hot) ** (done / last) if is_soft else 0.0, images):
            take = partial(probable_step, images, equations, self.spectrum, number)
            unknowns = len(images) * number
            found = self._where_memory_suffices(take, unknowns) if unknowns <= _FEW else take(False)
        equations.weigh(images if found is None else found)
        is_done = found is None and not is_soft
        after = LinearModel(equations, self.spectrum, size, self.seed)
        return (
            progress._replace(soft=done + 1, is_done=is_done),
            after.at(images if found is None else found),
        )

    # --- the end -------------------------------------------------------------------------------

    def objective(self, dummy: Tensor, evidence: Equations) -> dict[str, Tensor]:
        """Return the equations' residual and the prior of one restart, squared: 1 each."""
        evidence.weigh(dummy.double())
        size = math.prod(self.spec.image_shape)
        found = LinearModel(evidence, self.spectrum, size, self.seed).at(dummy.double())
        return {
            "matching": dummy.new_tensor([found.misfit]),
            "spectrum": dummy.new_tensor([found.prior]),
        }

    def finish(self, dummy: Tensor, evidence: Equations) -> Reconstruction:
        """Return the images of the restart of least objective."""
        notes = evidence.evidence.notes
        size = len(evidence.evidence.labels)
        shares = torch.split(dummy.detach(), size)[: self.num_restarts]
        with _precisely(dummy.device):
            totals = [
                torch.cat(list(self.objective(share, evidence).values())).sum() for share in shares
            ]
        total = torch.stack(totals).nan_to_num(torch.inf)
        best = int(total.argmin())
        if not evidence.is_noisy and float(total[best]) > _UNEXPLAINED:
            notes["unexplained"] = float(total[best])
            rank_zero_warn(
                f"{type(self).__name__}: {float(total[best]):.1g} of the update stays unexplained: "
                "the steps stalled, as at kinks, or there is noise; adaptive: true grants its size"
            )
        return Reconstruction(
            images=shares[best].clamp(0, 1),
            labels=evidence.evidence.labels,
            score=total[best].expand(size),
            notes=notes,
        )
