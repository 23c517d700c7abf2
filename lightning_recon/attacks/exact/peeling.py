"""Candidates from single rows, and peeling: what is certain is taken out, and others show.

Boenisch et al., "When the Curious Abandon Honesty", EuroS&P 2023 (rows that one sample alone
reaches); Luby, "LT codes", FOCS 2002 (the peeling of a sparse code); Shariati, 2026 (peeling of
gradients).  Behind a ReLU a row holds the samples that it lets through.  One that holds a single
sample shows it, as the quotient of its weights' and its bias' gradient; once the sample is
certified, its part c d_j (x, 1) is subtracted from every row j, and some that held two hold one.

What differs: the certificate is of the untouched update, so its errors do not grow with the depth
of the cascade, and only where nothing new shows of what is left; candidates are moved into the span
of the update's rows, which takes most of the noise off; and pixels near 8-bit levels are set to
them, if the client's pictures have any, so that the parts which are subtracted are exact.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recon.attacks.exact.categories import rows_of_categories
from lightning_recon.attacks.exact.certificate import (
    CERTAIN,
    TOLD,
    MixtureNull,
    Spans,
    Tested,
    examine_all,
    how_often,
    misfit,
    read_spans,
    simulate_null,
)
from lightning_recon.attacks.exact.gates import Starts, fitted, gated_directions
from lightning_recon.attacks.exact.independence import independent_images
from lightning_recon.attacks.exact.scales import read_rows, row_sizes
from lightning_recon.attacks.exact.slopes import SlopeModel
from lightning_recon.attacks.exact.smooth import is_smooth, moved_images
from lightning_recon.attacks.exact.sparsity import MAX_RANK, shown_images, sparse_directions
from lightning_recon.attacks.linear_layer import FAINT, grid_misfit
from lightning_recon.observation import HALF_LEVEL

LIKELY = 0.05
"""p-value up to which an image is likely."""
_NEAR_GRID = 0.15  # mean distance from a grey level, in levels, of what is set to the levels
_NULL_SIZE = 300  # mixtures
_ROWS_A_SAMPLE = 3  # below, neither low rank nor sparsity is tried
_STARTS = 256  # of gates, at and beside the components of what is left
_SPREAD = 1.0  # root of the squares of all parts by which those beside are off, at the most
_SAME = (3 / 255) ** 2  # mean square between two looks at one image whose pixels have no levels
_NEIGHBOURS = 24  # images towards which one without levels is moved by half a level


class Found(NamedTuple):
    """R candidates and what speaks for them."""

    images: Tensor
    """R D in [0, 1]."""
    tested: Tested
    p_value: Tensor
    """R: that a mixture, of all that were tried, comes as far."""
    is_certified: Tensor
    """R, bool."""

    def at(self, places: Tensor) -> "Found":
        """Return some of them."""
        images, tested, p_value, is_certified = self
        return Found(images[places], tested.at(places), p_value[places], is_certified[places])


class Peeling:
    """The search in one update.

    Args:
        gradient: K (D + 1), of weights and bias, as if the layer read images in [0, 1]; float64.
        spans: of it.
        model: the payload.
        image_shape: C, H, W with C H W = D.
        generator: of the null hypothesis, and of the spans of what is left.
        num_samples: of the client; null: nobody says.
        snap: whether pixels near 8-bit levels are set to them.
        sparsity: whether candidates of :mod:`.gates`, :mod:`.sparsity` or :mod:`.smooth` are tried
            where rows show no new ones.
        independence: whether :mod:`.independence` says where these begin to look, as the last must
            know.
    """

    def __init__(
        self,
        gradient: Tensor,
        spans: Spans,
        model: SlopeModel,
        image_shape: tuple[int, int, int],
        generator: torch.Generator,
        *,
        num_samples: int | None = None,
        snap: bool = True,
        sparsity: bool = True,
        independence: bool = True,
    ) -> None:
        self.left = gradient.clone()
        self.spans = spans
        self.model = model
        self.image_shape = image_shape
        self.snap = snap
        self.sparsity = sparsity
        self.independence = independence
        self.scale: float | None = None
        """Common to all samples; None: nothing passed yet."""
        self._agree = 0
        self.is_snapped = False
        """Whether there were pixels near 8-bit levels, and candidates are set to them."""
        self.rank = spans.rank
        """Of the whole gradient."""
        self.num_tried = 0
        self.num_rounds = 0
        self.num_left = num_samples
        """Samples that are not certified; None: nobody says."""
        self.generator = generator
        self._images = gradient.new_zeros(0, gradient.shape[1] - 1)
        self._seen: set[bytes] = set()
        self._floor = max(FAINT * float(row_sizes(gradient).max()), spans.noise_std)
        self._shown = read_rows(self.left, image_shape).images.flatten(1)
        self.null = self._null(generator)
        self.jacobian = model.open_jacobian(generator) if sparsity else None
        """Of the logits behind open gates, C K; None: the network is not of that kind."""

    def run(self) -> Found:
        """Return all that was tried, the certified first, in the order in which they showed."""
        certified: list[Found] = []
        others: list[Found] = []
        has_news, source = False, self._rows
        while True:
            found = self.judge(source())
            good = self._once(found)
            others.append(found.at((~found.is_certified).nonzero()[:, 0]))
            if len(good):
                self.num_rounds += 1
                certified.append(found.at(good))
                self.subtract(certified[-1])
                self._images = torch.cat([self._images, certified[-1].images])
                has_news, source = True, self._rows
            elif has_news and self.num_left != 0:
                self.narrow(others)
                others, has_news = [], False
            elif self.sparsity and source == self._rows and self.num_left != 0:
                source = self._sparse  # dearer
            else:
                return join([*certified, *others])

    def narrow(self, others: list[Found]) -> None:
        """Read the spans anew from what is left, so that the faint samples stand out.

        The null hypothesis stays that of the wider spans, in which mixtures come further.

        Args:
            others: what failed in the old spans, and may be tried again.
        """
        spans = read_spans(self.left, self.num_left, self.generator)
        self.spans = spans._replace(constant=self.spans.constant)
        for image in self._keys(torch.cat([found.images for found in others])):
            self._seen.discard(image)

    def judge(self, images: Tensor) -> Found:
        """Test candidates, N D in [0, 1], that have not been tried."""
        images = images[self._new(images)]
        tested = examine_all(self.spans, self.model, images)
        self.num_tried += len(images)
        fits = tested.fits_noise & tested.fits_pixels
        if self.scale is None and fits.any():
            self.scale = float(tested.scale[fits].median())
            self._agree = int(fits.sum())
        # one candidate alone agrees with itself
        scale = self.scale if self._agree > 1 else None
        rate = self.null.pass_rate(misfit(tested, scale), scale)
        p_value = (rate * self.num_tried).clamp_max(1)
        is_whole = misfit(tested, self.scale) <= misfit(tested, None)
        is_certified = fits & is_whole & (p_value <= CERTAIN)
        if not self.is_snapped:  # what lies on levels is no mixture
            places = is_certified.nonzero()[:, 0]
            told = self._tells_half_a_level(images[places], images[fits], scale)
            is_certified[places] = told
        return Found(images, tested, p_value, is_certified)

    def _tells_half_a_level(self, images: Tensor, others: Tensor, scale: float | None) -> Tensor:
        """Return which images, N D, the tests tell from those half a level nearer to others, N.

        A sample with a little of another has nearly the slopes of the sample, so that its misfit is
        small, and without levels its pixels lie in the span as well.  The misfit is a square: where
        each move makes it several times as large, what the image itself is off by moves it less.
        """
        pool = torch.cat([self._shown, others, self._images])
        chosen = torch.randperm(len(pool), generator=self.generator)[:_NEIGHBOURS]
        pool = pool[chosen.to(pool.device)]
        told = torch.ones(len(images), dtype=torch.bool, device=images.device)
        for place, image in enumerate(images):
            far = (pool - image).abs().amax(1)
            ways = ((pool - image) / far[:, None])[far > HALF_LEVEL]
            here = misfit(examine_all(self.spans, self.model, image[None]), scale)
            there = misfit(examine_all(self.spans, self.model, image + HALF_LEVEL * ways), scale)
            told[place] = bool((TOLD * here < there).all())
        return told

    def subtract(self, found: Found) -> None:
        """Take certified images out of all rows."""
        assert self.scale is not None
        counts = how_often(found.tested, self.scale)
        times = counts * self.scale
        if self.num_left is not None:
            self.num_left = max(0, self.num_left - int(counts.sum()))
        slopes = times[:, None] * found.tested.slopes
        self.left -= slopes.T @ self.spans.extended(found.images)

    def _rows(self) -> Tensor:
        """Return the images that single rows show, N D in [0, 1]."""
        rows = self.left[row_sizes(self.left) > self._floor]
        return self._cleaned(read_rows(rows, self.image_shape).images.flatten(1))

    def _sparse(self) -> Tensor:
        """Return the images that low rank and sparsity, or categories, show, N D in [0, 1]."""
        if self.model.columns is not None:
            found = self._cleaned(rows_of_categories(self.spans.rows, self.model.columns))
            if len(found):
                return found
        columns, strengths, rows = self.spans[:3]
        directions = columns[:0]
        if 2 <= self.spans.rank <= len(columns) // _ROWS_A_SAMPLE:
            if self.jacobian is not None:
                guess = partial(self._guess, jacobian=self.jacobian)
                directions = gated_directions(
                    columns, self.jacobian, self.generator, guess if self.independence else None
                )
            elif self.independence and is_smooth(self.null.tested.slopes):
                return self._cleaned(self._moved())
            elif self.spans.rank <= MAX_RANK:
                directions = sparse_directions(columns, self.generator)
        return self._cleaned(shown_images(directions, strengths, rows))

    def _moved(self) -> Tensor:
        """Return the independent components, moved until their slopes fit the columns, N D."""
        images = self.independent()
        labels = examine_all(self.spans, self.model, images).label
        return moved_images(self.spans, self.model, images, labels)

    def independent(self) -> Tensor:
        """Return the independent components of the rows' span, N D in [0, 1]."""
        return independent_images(self.spans.rows, self.image_shape, self.generator).clamp(0, 1)

    def _guess(self, found: Tensor, jacobian: Tensor) -> Starts:
        """Return starts at and beside the components of what is left without the found, R r."""
        left = torch.linalg.qr(found.T, mode="complete").Q[:, len(found) :]
        rows = left.T @ (self.spans.strengths[:, None] * self.spans.rows)
        images = independent_images(rows, self.image_shape, self.generator)
        images = torch.cat([images, self._beside(images)]).clamp(0, 1)
        slopes = examine_all(self.spans, self.model, images).slopes
        return Starts(slopes @ self.spans.columns, fitted(slopes, slopes != 0, jacobian))

    def _beside(self, images: Tensor) -> Tensor:
        """Return images with a little of others, so that there are enough of few, M D."""
        copies = _STARTS // max(len(images), 1) - 1
        if copies <= 0:
            return images[:0]
        drawn = torch.randn(copies, len(images), len(images), generator=self.generator)
        spread = _SPREAD * torch.rand(copies, len(images), 1, generator=self.generator)
        share = spread * drawn / len(images) ** 0.5
        share = share - share.mean(2, keepdim=True)  # all parts of an image remain 1 together
        beside: Tensor = images.repeat(copies, 1) + share.flatten(0, 1).to(images) @ images
        return beside

    def _cleaned(self, images: Tensor) -> Tensor:
        """Return images, N D, moved into the span of the rows, and set to levels."""
        images = self.spans.project(images)
        if self.snap:
            is_near = grid_misfit(images) <= _NEAR_GRID
            if is_near.any() or self.is_snapped:
                self.is_snapped = True
                return (255 * images[is_near]).clamp(0, 255).round() / 255 + 0.0  # no -0
        return images[((images >= -HALF_LEVEL) & (images <= 1 + HALF_LEVEL)).all(1)].clamp(0, 1)

    def _new(self, images: Tensor) -> list[int]:
        """Return the places of images that were not tried before, each once."""
        known = set()
        if not self.is_snapped:
            known = set((_distances(images, self._images) < _SAME).any(1).nonzero()[:, 0].tolist())
        places = []
        for place, key in enumerate(self._keys(images)):
            if key not in self._seen and place not in known:
                self._seen.add(key)
                places.append(place)
        return places

    def _once(self, found: Found) -> Tensor:
        """Return the places of the certified, the best of several looks at one image."""
        good = found.is_certified.nonzero()[:, 0]
        if self.is_snapped:
            return good
        kept: list[int] = []
        for place in good[found.tested.statistic[good].argsort()].tolist():
            if not (_distances(found.images[[place]], found.images[kept]) < _SAME).any():
                kept.append(place)
        return torch.tensor(kept, dtype=torch.int64, device=good.device)

    @staticmethod
    def _keys(images: Tensor) -> list[bytes]:
        return [image.tobytes() for image in (255 * images).round().byte().cpu().numpy()]

    def _null(self, generator: torch.Generator) -> MixtureNull:
        shown = self._shown
        noise = torch.rand(16, shown.shape[1], generator=generator, dtype=torch.float64).to(shown)
        for pool in (shown, torch.cat([shown, noise])):
            if len(pool) > 1:
                null = simulate_null(self.spans, self.model, pool, _NULL_SIZE, generator)
                if len(null.tested.statistic) >= _NULL_SIZE // 2:
                    break
        return null


def _distances(images: Tensor, others: Tensor) -> Tensor:
    """Return mean squares of differences, N M."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(images, others, compute_mode=exact).square() / images.shape[1]


def join(parts: list[Found]) -> Found:
    """Return several findings as one."""
    images, tests, p_values, certified = zip(*parts, strict=True)
    tested = Tested(*(torch.cat(fields) for fields in zip(*tests, strict=True)))
    return Found(torch.cat(images), tested, torch.cat(p_values), torch.cat(certified))
