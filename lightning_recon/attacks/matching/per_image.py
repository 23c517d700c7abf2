"""Linear models of a batch whose images the last layer takes apart.

Where the labels are known, the last linear layer's gradient tells the features of every image
(:mod:`~lightning_recon.functional.labels.separated`), and the most probable images with these
features are a start that does not depend on the size of the batch.  All other gradients are sums
over images of what each adds alone: the Jacobian is made of one image after the other, and a linear
model is solved in the equations' space, which is smaller than that of the images:

    z = J' (J J' + v N)^-1 (J z0 - e),

z the images in standard deviations of the prior, z0 where they are, e what the equations lack there
in units of the rounding of float32, N the covariance of that rounding, v what fades to 1
(Bakushinskii, Computational Mathematics and Mathematical Physics 32, 1992).
"""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from lightning_recon.attacks.features.spectrum import Spectrum
from lightning_recon.attacks.matching.equations import Equations
from lightning_recon.attacks.matching.grid import whole
from lightning_recon.attacks.matching.white_model import WhiteModel
from lightning_recon.errors import InputError
from lightning_recon.functional.damped_least_squares import gram, jacobian
from lightning_recon.functional.labels.last_layer import last_linear_layer
from lightning_recon.functional.labels.separated import Separated, separated
from lightning_recon.functional.stateless import left_as_found, watched
from lightning_recon.randomness import derive_seed
from lightning_recon.updates import Update

_FIRST, _FADING = 0.1, 0.01  # variance that comes next, of the equations' mean misfit
_ALONE, _ALONE_FADING = 20, 0.2  # linear models of one image by its features, and their fading
_STEPS = 8  # of one linear model
_TRIES = 6  # of a variance
_FITS, _BAND, _TRUST = 2, 96, 4.0  # of each image's spectrum: bands; as if so many were usual
_SERVES = 0.3  # of the objective that is left: above, the linear model is too old
_AGREES = 10.0  # of the rounding: more is no rounding
_RETREAT = 10.0  # of the variance, where a step leads nowhere
_STILL = 0.99  # of the objective that is left by the last linear model
_TOGETHER = 64  # features whose slopes are computed together
_LEAST_ROUNDING = 1e-9  # of a layer's numbers


class Point(NamedTuple):
    """Where the images are, and what the equations lack there."""

    latents: Tensor
    """B CHW, along the cosines, in standard deviations of the prior."""
    lacking: Tensor
    """B D + M, in units of the rounding of the last layer's gradient and of every other."""
    misfit: float
    """Its squared length, by the covariance of the rounding."""

    def objective(self, variance: float) -> float:
        """Return minus twice the logarithm of the posterior."""
        return self.misfit + variance * float(self.latents.square().sum())


class PerImage:
    """The equations of a batch as features of each image and sums over all.

    Args:
        equations: exact, without kinks.
        spectrum: of public images, float64.
        apart: what the last layer tells.
        last: names of that layer's parameters.
        max_unknowns: of pixels that are brought to levels.
        levels: whose multiples, 1 over this number, pixels are; 0: of any value.
    """

    def __init__(
        self,
        equations: Equations,
        spectrum: Spectrum,
        apart: Separated,
        last: tuple[str, str],
        max_unknowns: int,
        levels: int,
    ) -> None:
        self.equations = equations
        self.spectrum = spectrum
        self.apart = apart
        self.max_unknowns = max_unknowns
        self.levels = levels
        self._last = last[0]
        observed = equations.evidence.observed
        self._names = [name for name in observed if name not in last]
        self._std = spectrum.variances.sqrt().repeat(len(equations.evidence.labels), 1)
        self._num_fits = 0
        above, self._width = self._bottleneck()
        self._above = torch.cat(
            [
                torch.full_like(observed[n], n in above, dtype=torch.bool).flatten()
                for n in self._names
            ]
        )

    @classmethod
    def of(
        cls,
        equations: Equations,
        spectrum: Spectrum,
        images: Tensor,
        max_unknowns: int,
        levels: int,
        seed: int,
    ) -> "PerImage | None":
        """Return a batch taken apart; None: it cannot be, or is too large.

        Args:
            equations: of one client.
            spectrum: of public images, float64.
            images: B C H W, float64, any, on which shares are tried.
            max_unknowns: of pixels that are brought to levels; twice as many numbers at most
                may be in the other layers' gradients.
            levels: whose multiples, 1 over this number, pixels are; 0: of any value.
            seed: of the random starts.
        """
        evidence = equations.evidence
        if equations.is_noisy or equations.has_kinks or evidence.chain or evidence.scale is None:
            return None
        images, labels, payload = images.double(), evidence.labels, equations.precise
        try:
            weight, bias = last_linear_layer(payload, images[:1])
        except InputError:
            return None
        if bias is None:
            return None
        last = weight, bias
        others = sum(part.numel() for n, part in evidence.observed.items() if n not in last)
        if not 0 < others <= 2 * max_unknowns:
            return None
        apart = separated(
            payload.get_parameter(weight),
            payload.get_parameter(bias),
            evidence.reference[weight],
            evidence.reference[bias],
            labels,
            derive_seed(seed, "last layer"),
        )
        if apart is None or equations.mixes(images):
            return None
        return cls(equations, spectrum, apart, last, max_unknowns, levels)

    # --- the equations -------------------------------------------------------------------------

    def weigh(self, images: Tensor) -> None:
        """Take every layer's rounding from these images, B C H W, float64."""
        found = self.equations.rounding_of(images)
        observed = self.equations.evidence.observed
        least = {n: _LEAST_ROUNDING**2 * observed[n].double().square().mean() for n in found}
        tiny = torch.finfo(torch.float64).tiny
        self._rounding = {
            name: part.maximum(least[name]).clamp_min(tiny).sqrt() for name, part in found.items()
        }
        scale = self.equations.evidence.scale
        assert scale is not None
        self._covariance = self.apart.covariance(float(scale * self._rounding[self._last]) ** 2)
        self._observed = self._shared(observed)

    def _latents(self, images: Tensor) -> Tensor:
        latents: Tensor = self.spectrum.along(images - self.spectrum.mean) / self._std
        return latents

    def images(self, latents: Tensor) -> Tensor:
        """Return the images of latents, B C H W."""
        images: Tensor = self.spectrum.mean + self.spectrum.moved(latents * self._std)
        return images

    def at(self, latents: Tensor) -> Point:
        """Return what the equations lack."""
        images = self.images(latents)
        features = self._features(images) - self.apart.features
        labels = self.equations.evidence.labels
        shares = [
            self._shared(self.equations.share(image[None], label[None]))
            for image, label in zip(images, labels, strict=True)
        ]
        shared = torch.stack(shares).sum(0) - self._observed
        told = torch.linalg.solve(self._covariance, features)
        misfit = float((told * features).sum() + shared.square().sum())
        return Point(latents, torch.cat([features.flatten(), shared]), misfit)

    def _shared(self, update: Update) -> Tensor:
        """Return the other layers' numbers in units of their rounding."""
        return torch.cat([(update[name] / self._rounding[name]).flatten() for name in self._names])

    def _features(self, images: Tensor) -> Tensor:
        """Return what images bring to the last layer, B D."""
        payload = self.equations.precise
        last = payload.get_submodule(self._last.rpartition(".")[0])
        with self.equations.evidence.client.working(payload), watched([last]) as seen:
            payload(images)
        return seen[last]

    def _bottleneck(self) -> tuple[set[str], int]:
        """Return the parameters above the narrowest layer, and how many numbers that gives."""
        payload = self.equations.precise
        called: list[tuple[str, float]] = []

        def note(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
            called.append((name, output.numel() if isinstance(output, Tensor) else math.inf))

        layers = {name: part for name, part in payload.named_modules() if not [*part.children()]}
        image = self.spectrum.mean[None]
        with self.equations.evidence.client.working(payload), left_as_found(payload) as hooks:
            for name, layer in layers.items():
                hooks.append(layer.register_forward_hook(partial(note, name)))
            payload(image)
        last = self._last.rpartition(".")[0]
        before = called[: [name for name, _ in called].index(last)]
        width = min([size for _, size in before], default=image.numel())
        cut = [size for _, size in before].index(width) if before else 0
        above = {name for name, _ in before[cut + 1 :]} - {name for name, _ in before[: cut + 1]}
        names = {name for name in self._names if name.rpartition(".")[0] in above}
        return names, int(min(width, image.numel()))

    # --- the start -----------------------------------------------------------------------------

    def start(self, images: Tensor) -> Tensor:
        """Return the most probable images with these features, B C H W, as the prior fades.

        Args:
            images: B C H W, float64, where to begin.
        """
        self.weigh(images)
        latents = self._latents(images)
        least = self._covariance.diagonal().tolist()
        found = [
            self._alone(place, of_image, least[place]) for place, of_image in enumerate(latents)
        ]
        return self.images(torch.stack(found))

    def _alone(self, place: int, latents: Tensor, least: float) -> Tensor:
        """Return the most probable latents of one image, CHW, with its features."""
        std, features = self._std[place], self.apart.features[place]

        def image(latents: Tensor) -> Tensor:
            moved: Tensor = self.spectrum.mean + self.spectrum.moved((latents * std)[None])
            return moved

        def lacking(latents: Tensor) -> Tensor:
            return self._features(image(latents))[0] - features

        left = lacking(latents)
        variance = max(least, float(left.square().mean()))
        for _ in range(_ALONE):
            rows = self._slopes_of_features(image(latents)) * std
            hessian, wanted = gram(rows), left - rows @ latents
            is_nearer = False
            for _ in range(_TRIES):
                factor = torch.linalg.cholesky(hessian + variance * torch.eye(len(rows)).to(rows))
                there = -rows.T @ torch.cholesky_solve(wanted[:, None], factor)[:, 0]
                left_there = lacking(there)
                before, after = (
                    float(e.square().sum() + variance * z.square().sum())
                    for e, z in ((left, latents), (left_there, there))
                )
                is_nearer = after < before
                if is_nearer:
                    break
                variance *= 3
            if not is_nearer:
                break
            latents, left = there, left_there
            if variance == least and after > _STILL * before:
                break
            variance = max(least, _ALONE_FADING * variance)
        return latents

    def _slopes_of_features(self, image: Tensor) -> Tensor:
        """Return how the features change along every cosine, D CHW."""
        features, back, *_ = vjp(self._features, image)
        units = torch.eye(features.shape[1]).to(features)[:, None]
        backwards = vmap(lambda unit: back(unit)[0][0])
        slopes = torch.cat([backwards(some) for some in torch.split(units, _TOGETHER)])
        along: Tensor = self.spectrum.along(slopes)
        return along

    # --- a linear model ------------------------------------------------------------------------

    def advance(self, images: Tensor, variance: float) -> tuple[Tensor, float, int, bool]:
        """Take one linear model, and the steps that it serves for.

        Args:
            images: B C H W, float64.
            variance: of the rounding, at least 1, as the prior fades; infinite: what the equations
                lack.

        Returns:
            The images, the variance that the next one begins with, how many directions are told
            above it, and whether nothing is left to do.
        """
        self.weigh(images)
        point = self.at(self._latents(images))
        number = len(point.lacking)
        if math.isinf(variance):
            variance = max(1.0, _FIRST * point.misfit / number)
        model = WhiteModel(
            [self._jacobian(images, place) for place in range(len(images))],
            self._covariance,
            self._above,
            self._width,
        )
        told, is_still, began = -1, True, variance
        has_levels = self.levels > 0 and images.numel() <= self.max_unknowns
        for _ in range(_STEPS):
            before = point.objective(variance)
            there, found = self._step(model, point, variance)
            if there is None or not there.objective(variance) < before:
                if told >= 0:
                    break
                variance *= _RETREAT
                continue
            point, told = there, found
            after = point.objective(variance)
            is_still = variance == 1 and after > _STILL * before
            is_still |= variance == 1 and not has_levels and point.misfit <= _AGREES * number
            if is_still or after > _SERVES * before:
                break
            variance = min(variance, max(1.0, _FADING * point.misfit / number))
        images = self.images(point.latents)
        if has_levels and (is_still or began == 1):
            found_whole = self._on_grid(model, point)
            if found_whole is not None:
                images, is_still = found_whole, True
        elif is_still and self._num_fits < _FITS:
            self._fit(model, point.latents)
            is_still = False
        return images, variance, told, is_still

    def _on_grid(self, model: WhiteModel, point: Point) -> Tensor | None:
        """Return the images by levels, as far as the update tells them; None: it tells none."""
        images = self.images(point.latents)
        covariance = model.covariance(
            lambda rows: self.spectrum.moved(rows * self._std[0]).flatten(1) * self.levels
        )
        values, number = whole(self.levels * images.flatten(), covariance)
        there = (values / self.levels).view_as(images)
        misfit = self.at(self._latents(there)).misfit
        if not number or misfit > _AGREES * max(len(point.lacking), point.misfit):
            return None
        self.equations.evidence.notes["pixels_by_levels"] = float(number)
        return there

    def _fit(self, model: WhiteModel, latents: Tensor) -> None:
        """Take the spread of every image's cosines, a band at a time, from what is known of them.

        The images' own variances are the most probable ones at the next step of expectation
        maximisation (Dempster, Laird & Rubin, Journal of the Royal Statistical Society B 39, 1977);
        a band is of cosines of about the same variance in the public images.
        """
        self._num_fits += 1
        energy = latents.square() + model.variances()  # in the units of the last spread
        relative = energy * self._std.square() / self.spectrum.variances
        bands = torch.split(relative, _BAND, dim=1)
        fitted = [((some.sum(1) + _TRUST) / (some.shape[1] + _TRUST)) for some in bands]
        sizes = torch.tensor([some.shape[1] for some in bands], device=latents.device)
        scale = torch.stack(fitted, dim=1).repeat_interleave(sizes, dim=1)
        self._std = (scale * self.spectrum.variances).sqrt()

    def _step(self, model: WhiteModel, point: Point, variance: float) -> tuple[Point | None, int]:
        """Return where a linear model leads, and how many directions it tells."""
        noised = model.hessian.clone()
        noised.diagonal().add_(variance)
        factor, failed = torch.linalg.cholesky_ex(noised)
        if int(failed):
            return None, -1
        wanted = model.white(point.lacking) - model.forward(point.latents)
        moved = torch.cholesky_solve(wanted[:, None], factor)[:, 0]
        told = int((factor.diagonal().square() > 2 * variance).sum())
        return self.at(-model.backward(moved)), min(told, point.latents.numel())

    def _jacobian(self, images: Tensor, place: int) -> Tensor:
        """Return how features and all else change along the latents of one image, CHW x (D + M)."""
        label = self.equations.evidence.labels[place, None]

        def numbers(image: Tensor) -> Tensor:
            shared = self._shared(self.equations.share(image, label))
            return torch.cat([self._features(image)[0], shared])

        basis = self.spectrum.moved(torch.eye(self._std.shape[1]).to(self._std))
        length = self.apart.features.shape[1] + len(self._above)
        rows = jacobian(numbers, images[place, None], basis, length)
        latents: Tensor = rows * self._std[place][:, None]
        return latents
