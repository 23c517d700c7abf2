"""Layer by layer from the output back to the image, in closed form.

Zhu, Blaschko, "R-GAP: Recursive Gradient Attack on Privacy", ICLR 2021.

A layer z = W x is linear in its input x, and so is its gradient dL/dW = dL/dz x^T.  Where the
layers above have given z (through the inverse of the activation) and dL/dz (by back-propagation),
both are equations for x, the paper's weight and gradient constraints (section 3.2), and x is their
least squares.  If the equations have full rank the image is exact; the notes tell how many
dimensions are left open in the worst layer, the paper's rank analysis (section 4).

What differs: the paper starts from one logit and a loss that is known up to its argument.  Here the
last layer has a bias, whose gradient is dL/dz for any loss and number of classes, and its input is
a quotient of gradients.  The unknown scale of the update cancels in all that follows.  The rank is
that of the equations themselves, not a count of them; where it is full they are solved by
Cholesky's method with refinement, elsewhere by an eigendecomposition, with the least norm.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from lightning_recon.attacks.analytic import (
    AnalyticAttack,
    Normalisation,
    probe_images,
    read_normalisation,
    sign_of_gradient,
)
from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.targets import Target

MAX_UNKNOWNS = 2**14  # of one layer: a dense system of 2 GB and more
MAX_RESIDUAL = 0.5  # of the last layer's gradient, relative: above, the update is not one sample's
SATURATED = 1e-12  # distance from the ends of an activation's range
_LAYERS = (nn.Linear, nn.Conv2d, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Flatten, nn.Identity)


class Step(NamedTuple):
    """A layer on the way of the image."""

    name: str
    layer: nn.Module
    in_shape: torch.Size
    """C H W, or the number of features."""
    reads: Normalisation | None = None
    """Of the first layer: what it reads of the image."""


class RGAP(AnalyticAttack):
    """Recursive closed form through a chain of convolutions, linear layers and activations.

    Args:
        target: such a chain, whose activations have an inverse (LeakyReLU, Sigmoid, Tanh) and whose
            last layer is linear with a bias; no pooling, normalisation or shortcut.
        client: the clients' protocol; null: FedSGD.  Of federated averaging one local step is
            read exactly.
        defenses: the clients' defenses, in order.
        seed: of all randomness.
    """

    threat_model = "an honest server sees one update of a client with one sample"
    oracles = ("num_samples",)
    citation = "Zhu & Blaschko, R-GAP, ICLR 2021"

    def server_payload(self, model: Target) -> Target:
        """Return the model as it is.

        Raises:
            InputError: if it is no chain that can be inverted.
        """
        chain(model, self.known_shape)
        return model

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Solve for the input of one layer after the other.

        Raises:
            InputError: if the client has several samples.
        """
        if observation.num_samples not in (None, 1):
            raise InputError(
                f"RGAP reads updates of one sample, not of {observation.num_samples}; take "
                "batches of a single image"
            )
        steps = chain(observation.payload, self.known_shape)
        update = {name: tensor.double().cpu() for name, tensor in observation.update.items()}
        rcond = 10 * torch.finfo(next(iter(observation.update.values())).dtype).eps
        name = steps[-1].name
        slope = update[f"{name}.bias"]  # dL/dz
        scale = slope.abs().max()
        if scale == 0:
            return self._nothing({})
        notes = {"rank_deficit": 0.0}
        output: Tensor | None = None
        for step in reversed(steps):
            if isinstance(step.layer, nn.Linear | nn.Conv2d):
                gradient = update[f"{step.name}.weight"]
                if isinstance(step.layer, nn.Linear):
                    known, residual = _solve_linear(slope, gradient)
                    missing = 0
                else:
                    assert output is not None
                    known, residual, missing = _solve_conv(step, output, slope, gradient, rcond)
                if output is None and residual > MAX_RESIDUAL:
                    return self._nothing({"residual": residual})
                notes["rank_deficit"] = max(notes["rank_deficit"], missing)
                notes["residual"] = residual  # that of the first layer is kept
                slope = _propagate(step, slope)
                output = known
            elif output is not None and not isinstance(step.layer, nn.Flatten | nn.Identity):
                output, derivative = _invert(step.layer, output)
                slope = slope * derivative
            slope = slope.reshape(step.in_shape)
            output = None if output is None else output.reshape(step.in_shape)
        assert output is not None
        device = next(iter(observation.update.values())).device
        label = (sign_of_gradient(observation) * update[f"{name}.bias"]).argmin()
        reads = steps[0].reads
        assert reads is not None  # or there is no chain
        image = reads.undo(output)[None].to(device, torch.float32)
        return Reconstruction(
            images=image.nan_to_num().clamp(0, 1),
            labels=label[None].to(device),
            score=image.new_full((1,), notes["residual"]),
            notes=notes,
        )

    def _nothing(self, notes: dict[str, float]) -> Reconstruction:
        empty = torch.zeros(0, *self.known_shape, device=self.device)
        return Reconstruction(empty, None, empty[:, 0, 0, 0], notes)


def chain(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Step]:
    """Return the layers in the order in which the image passes them.

    Args:
        model: the payload.
        image_shape: C, H, W.

    Raises:
        InputError: if one cannot be inverted, or they do not form a chain.
    """
    probes = probe_images(model, image_shape)
    steps: list[Step] = []
    last = probes

    def look(name: str, layer: nn.Module, seen: Tensor, output: Tensor) -> None:
        nonlocal last
        refusal = _refuse(layer)
        reads = None if steps else read_normalisation(seen, probes)
        if refusal is None and reads is None and not torch.equal(seen.flatten(), last.flatten()):
            refusal = "does not read what the layer before it gives"
        if refusal is not None:
            raise InputError(
                f"RGAP: layer {name} ({type(layer).__name__}) {refusal}; choose a target such as "
                "PlainConvNet or LeNet"
            )
        steps.append(Step(name, layer, seen.shape[1:], reads))
        last = output

    with left_as_found(model, training=False, keeps_buffers=True) as hooks, torch.no_grad():
        hooks += [
            layer.register_forward_hook(lambda layer, x, y, name=name: look(name, layer, x[0], y))
            for name, layer in model.named_modules()
            if not list(layer.children())
        ]
        logits = model(probes)
    end = steps[-1].layer if steps else model
    if not isinstance(end, nn.Linear) or end.bias is None or not torch.equal(logits, last):
        raise InputError(
            f"RGAP: the last layer of {type(model).__name__} is not linear with a bias; choose a "
            "target such as PlainConvNet or LeNet"
        )
    return steps


def _refuse(layer: nn.Module) -> str | None:
    if not isinstance(layer, _LAYERS):
        return "cannot be inverted"
    if isinstance(layer, nn.LeakyReLU) and layer.negative_slope <= 0:
        return "has no negative slope"
    if isinstance(layer, nn.Conv2d) and (
        layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str)
    ):
        return "has groups or a padding that is not of so many zeros"
    return None


def _invert(layer: nn.Module, output: Tensor) -> tuple[Tensor, Tensor]:
    """Return what went into an activation, and its derivative there."""
    if isinstance(layer, nn.LeakyReLU):
        slope = torch.ones_like(output).masked_fill(output < 0, layer.negative_slope)
        return output / slope, slope
    if isinstance(layer, nn.Sigmoid):
        output = output.clamp(SATURATED, 1 - SATURATED)
        return output.logit(), output * (1 - output)
    output = output.clamp(SATURATED - 1, 1 - SATURATED)
    return output.atanh(), 1 - output.square()


def _solve_linear(slope: Tensor, gradient: Tensor) -> tuple[Tensor, float]:
    """Return x of dL/dW = slope x^T, and the share of dL/dW that is left."""
    known = slope @ gradient / slope.square().sum()
    left = gradient - torch.outer(slope, known)
    return known, float(left.norm() / gradient.norm().clamp_min(1e-300))


def _solve_conv(
    step: Step, output: Tensor, slope: Tensor, gradient: Tensor, rcond: float
) -> tuple[Tensor, float, int]:
    """Return the input, the share of the gradient that is left, and the dimensions left open."""
    layer = step.layer
    assert isinstance(layer, nn.Conv2d)
    channels, height, width = step.in_shape
    unknowns = step.in_shape.numel()
    if unknowns > MAX_UNKNOWNS:
        raise InputError(
            f"RGAP: layer {step.name} reads {unknowns} numbers, and {MAX_UNKNOWNS} are solved for "
            "at most; take smaller images"
        )
    weight = layer.weight.detach().double().cpu()
    assert not isinstance(layer.padding, str)
    how = (layer.stride, layer.padding, layer.dilation)
    if layer.bias is not None:
        output = output - layer.bias.detach().double().cpu()[:, None, None]

    def back(numbers: Tensor) -> Tensor:
        shape = torch.Size((len(numbers), *step.in_shape))
        found: Tensor = conv2d_input(shape, weight, numbers, *how)  # type: ignore[no-untyped-call]
        return found.flatten(1)

    # gradient constraints: the same for every channel that goes in
    pixels = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    kernel_size, (stride, padding, dilation) = layer.kernel_size, how
    patches = F.unfold(pixels, kernel_size, dilation, padding, stride)
    gradient_rows = torch.einsum("op,jup->ouj", slope.flatten(1), patches).flatten(0, 1)
    wanted = gradient.transpose(0, 1).flatten(1).T  # (out, kernel) x in
    # weight constraints: one for every number that comes out; both in normal equations
    basis = torch.eye(unknowns, dtype=torch.float64).view(-1, *step.in_shape)
    normal = back(F.conv2d(basis, weight, None, *how))
    share = normal.trace() / (channels * gradient_rows.square().sum()).clamp_min(1e-300)
    blocks = normal.view(channels, height * width, channels, height * width)
    for channel in range(channels):
        blocks[channel, :, channel] += share * (gradient_rows.T @ gradient_rows)

    def left_of_gradient(known: Tensor) -> Tensor:
        return wanted - gradient_rows @ known.view(channels, -1).T

    def right_side(known: Tensor) -> Tensor:
        missing = output - F.conv2d(known.view(1, *step.in_shape), weight, None, *how)[0]
        return (
            back(missing[None])[0] + share * (gradient_rows.T @ left_of_gradient(known)).T.flatten()
        )

    factor, failed = torch.linalg.cholesky_ex(normal)
    pivots = factor.diagonal()
    known = torch.zeros(unknowns, dtype=torch.float64)
    if not failed and pivots.min() > rcond * pivots.max():
        rank = unknowns
        for _ in range(3):  # the equations squared lose digits, which a second look brings back
            known = known + torch.cholesky_solve(right_side(known)[:, None], factor)[:, 0]
    else:
        values, vectors = torch.linalg.eigh(normal)
        kept = values > max(rcond, SATURATED**0.5) ** 2 * values[-1]
        rank = int(kept.sum())
        inverse = torch.where(kept, 1 / values, 0.0)
        known = vectors @ (inverse * (vectors.T @ right_side(known)))
    residual = float(left_of_gradient(known).norm() / wanted.norm().clamp_min(1e-300))
    return known, residual, unknowns - rank


def _propagate(step: Step, slope: Tensor) -> Tensor:
    """Return dL/dx from dL/dz."""
    layer = step.layer
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    weight = layer.weight.detach().double().cpu()
    if isinstance(layer, nn.Linear):
        return slope @ weight
    shape = (1, *step.in_shape)
    found: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
        shape, weight, slope[None], layer.stride, layer.padding, layer.dilation
    )
    return found[0]
