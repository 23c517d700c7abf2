"""A linear model of a batch's images, in equations whose rounding is white and independent.

A network that narrows tells all layers above its narrowest one of an image by the few numbers that
this one gives.  Their equations, many more than such numbers, are brought to as many by orthogonal
factors: nothing is lost, and the rounding stays white.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_recon.functional.damped_least_squares import Sums, gram

_LOST = 1e-3  # of an equation's rounding, for a standard deviation of the prior
_SPARE = 8  # directions beyond the inner numbers


class WhiteModel:
    """A linear model of a batch, in equations whose rounding is white.

    What depends on images through ``width`` inner numbers of each alone is brought to so many
    equations an image, of the same information.

    Args:
        jacobians: of each image, CHW x (D + M).
        covariance: B B, of the rounding of one feature.
        above: M, of bool: the numbers that depend on inner ones, as all features do.
        width: of the inner numbers of one image.
    """

    def __init__(
        self, jacobians: list[Tensor], covariance: Tensor, above: Tensor, width: int
    ) -> None:
        self._white = torch.linalg.cholesky(torch.linalg.inv(covariance)).T  # W' W = N^-1
        self._above = above
        self._size = size = jacobians[0].shape[1] - len(above)
        upper = [
            torch.cat([_spread(self._white[:, place], rows[:, :size]), rows[:, size:][:, above]], 1)
            for place, rows in enumerate(jacobians)
        ]
        self._qr: tuple[Tensor, Tensor] | None = None
        if len(jacobians) * width < upper[0].shape[1]:
            spaces = [_space(rows, width) for rows in upper]
            inner = [rows.T @ space for rows, space in zip(upper, spaces, strict=True)]
            if all(
                float((rows.T - some @ space.T).square().mean()) < _LOST**2
                for rows, some, space in zip(upper, inner, spaces, strict=True)
            ):  # else a shortcut leads past the inner numbers
                self._qr = torch.geqrf(torch.cat(inner, dim=1))
                triangle = self._qr[0][: self._qr[0].shape[1]].triu()
                parts = torch.split(triangle, spaces[0].shape[1], dim=1)
                upper = [space @ part.T for space, part in zip(spaces, parts, strict=True)]
        self._rows = [
            torch.cat([some, rows[:, size:][:, ~above]], dim=1)
            for some, rows in zip(upper, jacobians, strict=True)
        ]
        self._factor: Tensor | None = None
        number = self._rows[0].shape[1]
        self.hessian = self._rows[0].new_zeros(number, number)
        for rows in self._rows:
            self.hessian += gram(rows.T.contiguous())

    def white(self, lacking: Tensor) -> Tensor:
        """Return B D + M numbers of the equations as the model's own."""
        first = len(self._white) * self._size
        own = self._white @ lacking[:first].view(-1, self._size)
        shared = lacking[first:]
        upper = torch.cat([own.flatten(), shared[self._above]])
        if self._qr is not None:
            number = self._qr[0].shape[1]
            upper = torch.ormqr(*self._qr, upper[:, None], transpose=True)[:number, 0]
        return torch.cat([upper, shared[~self._above]])

    def variances(self) -> Tensor:
        """Return that of every latent of the most probable images, B CHW."""
        told = [self._told(rows).square().sum(0) for rows in self._rows]
        return (1 - torch.stack(told)).clamp_min(0)

    def _told(self, rows: Tensor) -> Tensor:
        """Return the whitened equations' share of one image's latents."""
        if self._factor is None:
            noised = self.hessian.clone()
            noised.diagonal().add_(1)
            self._factor = torch.linalg.cholesky(noised)
        told: Tensor = torch.linalg.solve_triangular(self._factor, rows.T, upper=False)
        return told

    def covariance(self, moved: Callable[[Tensor], Tensor]) -> Tensor:
        """Return that of all pixels of the most probable images.

        Args:
            moved: makes pixels, K CHW, of K moves of one image's latents.
        """
        told = [moved(self._told(rows)) for rows in self._rows]
        prior = moved(torch.eye(len(self._rows[0])).to(self.hessian))
        covariance = gram(torch.cat(told, dim=1).T.contiguous()).neg_()
        for place in range(len(told)):
            own = slice(len(prior) * place, len(prior) * (place + 1))
            covariance[own, own] += prior.T @ prior
        return covariance

    def forward(self, latents: Tensor) -> Tensor:
        """Return what a move of the latents, B CHW, makes of the equations."""
        moves = [z @ rows for z, rows in zip(latents, self._rows, strict=True)]
        return torch.stack(moves).sum(0)

    def backward(self, numbers: Tensor) -> Tensor:
        """Return the transpose's product, B CHW."""
        return torch.stack([rows @ numbers for rows in self._rows])


def _spread(weights: Tensor, rows: Tensor) -> Tensor:
    """Return N x D rows by so many weights, N x (B D)."""
    return torch.cat([float(weight) * rows for weight in weights], dim=1)


def _space(rows: Tensor, width: int) -> Tensor:
    """Return orthonormal directions, N by about ``width``, that hold the N x M rows' columns."""
    generator = torch.Generator().manual_seed(0)
    number = min(width + _SPARE, *rows.shape)
    sums = Sums.draw(rows.shape[1], number, generator)
    space: Tensor = torch.linalg.qr(sums(rows))[0]
    return space
