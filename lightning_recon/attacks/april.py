"""The input of a vision transformer, from the gradient of its position embedding.

Lu, Zhang, Zhao, He, Cheng, "APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers",
CVPR 2022, the closed form (section 3).

Let Z = X E^T + P, N D, be the tokens that the first block reads: N patches X, the patch embedding
E, and P, the position embedding and the bias.  The position embedding is added to the tokens of
every image, so its gradient is G = dL/dZ, and by the chain rule, with the layers W_q, W_k, W_v of
the first attention,

    G^T Z = W_q^T dL/dW_q + W_k^T dL/dW_k + W_v^T dL/dW_v,

whose right side is known (``equation: attention``, the paper's).  It needs that nothing else reads
the tokens: no layer norm before the first attention and no shortcut past it, as usual transformers
have; for those the paper optimises instead.  But the patch embedding's own gradient is

    G^T X = dL/dE,

whatever the transformer does with its tokens (``equation: embedding``, ours).  If G has full rank,
D being at least N, either gives the patches of one sample.  A common factor cancels, so the change
of weights by one local step serves as well.

Where tokens are alike, as in an untrained transformer, G is so ill-conditioned that the rounding of
float32 drowns its small singular values.  The equations are more than the unknowns; what they leave
unexplained tells the noise, and the patches are the estimate of least expected squared error under
it, for pixels of mean and standard deviation as below.  Without noise that is the plain solution.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from lightning_recon.attacks.analytic import AnalyticAttack
from lightning_recon.clients import Client
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.targets import Target, TinyViT, TorchvisionClassifier

PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
MIN_EVIDENCE = 1.5  # energy that the tokens explain, over that of noise, per equation


class _Embedding(NamedTuple):
    """Where a transformer keeps what the equations need."""

    patches: str
    """Name of the convolution that embeds the patches."""
    positions: str
    """Name of the position embedding, (1) (1 +) N D."""


class APRIL(AnalyticAttack):
    """Closed form from the position embedding of a vision transformer, one sample.

    Args:
        target: a :class:`~lightning_recon.targets.TinyViT`, whose first block must be plain for
            ``attention``, or torchvision's vision transformers with ``embedding``.
        client: the clients' protocol; null: FedSGD.  Of federated averaging one local step is
            read exactly.
        defenses: the clients' defenses, in order.
        equation: that of the paper, on the first attention, or that of the patch embedding.
        seed: of all randomness.
    """

    threat_model = "an honest server sees one update of a client with one sample"
    oracles = ("num_samples",)
    citation = "Lu et al., APRIL, CVPR 2022"

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        equation: Literal["attention", "embedding"] = "attention",
        seed: int = 0,
    ) -> None:
        super().__init__(target, client, defenses, seed)
        self.equation = equation

    def server_payload(self, model: Target) -> Target:
        """Return the model as it is.

        Raises:
            InputError: if the closed form cannot read it.
        """
        place = _embedding(model)
        if self.equation == "attention" and not (isinstance(model, TinyViT) and model.is_plain):
            raise InputError(
                "APRIL: the target's first block has a layer norm and a shortcut, which the "
                "paper's equation does not allow; set equation to embedding, or choose TinyViT "
                "with is_plain: true"
            )
        num_tokens, width = model.get_parameter(place.positions).shape[-2:]
        if width <= num_tokens:
            raise InputError(
                f"APRIL: tokens of width {width} do not determine {num_tokens} of them; choose a "
                "target with wider tokens or larger patches"
            )
        size = _convolution(model, place).weight[0].numel()
        if self.equation == "attention" and width < size:
            raise InputError(
                f"APRIL: tokens of width {width} do not determine patches of {size} values; set "
                "equation to embedding, or choose wider tokens"
            )
        return model

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Solve for the patches.

        Raises:
            InputError: if the client has several samples.
        """
        if observation.num_samples not in (None, 1):
            raise InputError(
                f"APRIL reads updates of one sample, not of {observation.num_samples}; take "
                "batches of a single image"
            )
        payload, update = observation.payload, observation.update
        place = _embedding(payload)
        convolution = _convolution(payload, place)
        patch_height, patch_width = convolution.weight.shape[2:]
        channels, height, width = self.known_shape
        num_patches = (height // patch_height) * (width // patch_width)
        # a class token stands before the patches
        slope = update[place.positions].double().flatten(0, -2)[-num_patches:]
        if self.equation == "embedding":
            observed = right = update[f"{place.patches}.weight"].double().flatten(1)
        else:
            observed = _attention_side(payload, update)
            right = _without_offset(payload, convolution, observed, slope)
        patches, notes = _solve(slope.T, right, *_pixel_scale(payload, convolution))
        image = patches.view(
            height // patch_height, width // patch_width, channels, patch_height, patch_width
        )
        image = image.permute(2, 0, 3, 1, 4).reshape(1, channels, height, width)
        if isinstance(payload, TorchvisionClassifier) and payload.normalize:
            image = image * payload.std + payload.mean
        image = image[: int(_is_signal(slope.T, observed))].to(convolution.weight)
        return Reconstruction(
            images=image.clamp(0, 1),
            labels=None,
            score=image.new_full((len(image),), notes["residual"]),
            notes=notes,
        )


def _embedding(model: nn.Module) -> _Embedding:
    if isinstance(model, TinyViT):
        return _Embedding("patch_embedding", "position_embedding")
    if isinstance(model, TorchvisionClassifier) and isinstance(model.model, VisionTransformer):
        return _Embedding("model.conv_proj", "model.encoder.pos_embedding")
    raise InputError(
        f"APRIL reads a vision transformer, not {model.name}; set the target to TinyViT"
    )


def _convolution(model: nn.Module, place: _Embedding) -> nn.Conv2d:
    convolution = model.get_submodule(place.patches)
    assert isinstance(convolution, nn.Conv2d)
    return convolution


def _attention_side(payload: nn.Module, update: dict[str, Tensor]) -> Tensor:
    """Return G^T Z, D D, from the first attention's gradients."""
    parts = [
        payload.get_parameter(name).detach().double().T @ update[name].double()
        for name in (f"blocks.0.attention.{layer}.weight" for layer in ("query", "key", "value"))
    ]
    return torch.stack(parts).sum(0)


def _without_offset(
    payload: nn.Module, convolution: nn.Conv2d, observed: Tensor, slope: Tensor
) -> Tensor:
    """Return G^T X from G^T Z."""
    offset = payload.get_parameter("position_embedding").detach().double()
    if convolution.bias is not None:
        offset = offset + convolution.bias.detach().double()
    embedding = convolution.weight.detach().double().flatten(1)
    right: Tensor = (observed - slope.T @ offset) @ torch.linalg.pinv(embedding).T
    return right


def _is_signal(matrix: Tensor, observed: Tensor) -> bool:
    """Whether the equations matrix, D N, times anything = observed hold better than by chance."""
    basis = torch.linalg.qr(matrix).Q
    explained = (basis.T @ observed).square().sum() / matrix.shape[1]
    total = observed.square().sum()
    left = (total - explained * matrix.shape[1]) / (matrix.shape[0] - matrix.shape[1])
    return bool(total > 0) and bool(explained > MIN_EVIDENCE * left)


def _pixel_scale(payload: nn.Module, convolution: nn.Conv2d) -> tuple[Tensor, float]:
    """Return the mean, one for each value of a patch, and the spread of what is embedded."""
    mean = torch.full(convolution.weight.shape[1:], PIXEL_MEAN, dtype=torch.float64)
    mean, std = mean.to(convolution.weight.device), PIXEL_STD
    if isinstance(payload, TorchvisionClassifier) and payload.normalize:
        mean = (mean - payload.mean) / payload.std
        std = std / float(payload.std.mean())
    return mean.flatten(), std


def _solve(
    matrix: Tensor, right: Tensor, mean: Tensor, std: float
) -> tuple[Tensor, dict[str, float]]:
    """Return the solution of least expected error, N S, of matrix, D N, times it = right, D S."""
    left, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    offset = right - matrix.sum(1, keepdim=True) * mean
    inside = left.T @ offset
    unexplained = offset - left @ inside
    num_free = max((len(matrix) - len(values)) * right.shape[1], 1)
    noise = unexplained.square().sum() / num_free
    shrunk = values / (values.square() + noise / std**2).clamp_min(1e-300)
    notes = {
        "residual": float(unexplained.norm() / offset.norm().clamp_min(1e-300)),
        "condition": float(values[0] / values[-1].clamp_min(1e-300)),
        "dimensions_lost": float((values.square() * std**2 < noise).sum()),
    }
    return vectors.T @ (shrunk[:, None] * inside) + mean, notes
