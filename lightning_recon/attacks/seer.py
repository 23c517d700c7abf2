"""One sample out of a sum, by a secret direction of the gradient in which all others cancel.

Garov, Dimitrov, Jovanović, Vechev, "Hiding in Plain Sight: Disguising Data Stealing Attacks in
Federated Learning", ICLR 2024, arXiv 2306.03013.

The server trains the shared model together with a secret decoder on public images, so that of the
samples' gradients only the one of a rare property survives what the decoder does first, a linear
map of the gradient (the disaggregator), and the image is made of what is left (the reconstructor).
The property is here brightness above a threshold that one image in a batch exceeds on average; as
in the paper, positive examples are public images whose brightness is shifted beyond it.  Nothing
in the model or in the update shows what the server looks for: gradients of all samples stay there,
and neither rows nor biases are repeated.

What differs: the paper trains a ResNet-18 and a dense disaggregator for a million steps.  Here the
linear layers at the end of a model are trained for a thousand, and the disaggregator is one number
for every row of the first of them: r_k, with sum_k r_k dL/dz_k = 0 for a sample without the
property and +1 or -1 with it, z being the layer's output.  The labels decide about the sign, for
no model is wrong in the same direction for all of them; it falls out of the quotient
(sum_k r_k dL/dW_k) / (sum_k r_k dL/db_k), which is the layer's input for that sample.  ReLUs are
smooth at first in training, and harden.  The reconstructor is Scale-MIA's decoder of latent
vectors (:mod:`.scale_mia`), learned apart; the convolutions stay as they are.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.attacks.analytic import AnalyticAttack
from lightning_recon.attacks.base import check_counts
from lightning_recon.attacks.features.latent_decoder import LatentDecoder, check_decoder
from lightning_recon.attacks.features.linear_stack import LinearStack, find_stack, run_all_features
from lightning_recon.clients import Client
from lightning_recon.clients.base import randomness
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.randomness import derive_seed
from lightning_recon.targets import Target
from lightning_recon.updates import Update

MIN_PUBLIC = 8  # images
LEAST_STEPS = 20  # two of which the rate rises
NUM_SHIFTED = 1000  # images that are made bright
MOST_BEYOND = 0.02  # by which their brightness exceeds that of a bright public image, at most
SHARPNESS = (1.0, 30.0)  # of the smooth ReLUs, first and last, in units of the features' spread
_BATCH = 128  # samples with the property, and as many without it, of one step


class Secret(NamedTuple):
    """What is trained."""

    head: Update
    """The stack's weights and biases, by name."""
    rows: Tensor
    """K: the number of every row of its first layer."""


class Seer(AnalyticAttack):
    """A malicious server's trained head and secret direction, which show a batch's bright sample.

    A round shows something if one of its samples has the property: by brightness and threshold
    about 37 % of rounds do.  Other rounds give a mixture; the score tells how far what came back
    lies from public features, 1 on average.

    Args:
        target: a model that ends in at least two linear layers with biases, ReLUs between them.
        client: the clients' protocol; null: FedSGD.
        defenses: the clients' defenses, in order.
        num_samples: of a round, of which one is to have the property; null: the data's.
        steps: of the training of head and direction, at least 20.
        learning_rate: the highest of that training, above 0.
        kernel_size: of the linear decoder's convolution on feature maps; odd.
        decoder_steps: in which a small network is trained to correct the linear decoder; 0: the
            linear decoder alone.
        seed: of all randomness.

    Raises:
        InputError: if an argument is out of its range.
    """

    threat_model = (
        "a malicious server trains the linear layers behind the convolutions on public images, and "
        "sees one update"
    )
    oracles = ("num_samples",)
    protocols = ("fedsgd",)
    citation = "Garov et al., ICLR 2024, arXiv 2306.03013"

    def __init__(
        self,
        target: Target,
        client: Client | None = None,
        defenses: Sequence[Defense] = (),
        num_samples: int | None = None,
        steps: int = 1000,
        learning_rate: float = 5e-4,
        kernel_size: int = 5,
        decoder_steps: int = 960,
        seed: int = 0,
    ) -> None:
        super().__init__(target, client, defenses, seed)
        check_counts(
            "Seer",
            num_samples=(num_samples, 2),
            steps=(steps, LEAST_STEPS),
        )
        check_decoder("Seer", kernel_size, decoder_steps)
        if not 0 < learning_rate < float("inf"):
            raise InputError(f"Seer: learning_rate must be above 0, not {learning_rate}")
        self.num_samples = num_samples
        self.steps = steps
        self.learning_rate = learning_rate
        self.kernel_size = kernel_size
        self.decoder_steps = decoder_steps
        self._secret: tuple[Secret, ...] = ()  # a tuple hides it from Lightning

    def learn_public(self, images: Tensor) -> None:
        """Train the head, the secret direction and the decoder.

        Raises:
            InputError: if there are too few public images, or the model has no such layers.
        """
        size = max(2, self.num_samples or self.spec.max_batch_size)
        if len(images) < max(MIN_PUBLIC, size):
            raise InputError(
                f"Seer has {len(images)} public images, and needs at least "
                f"{max(MIN_PUBLIC, size)} to tell what one image in {size} exceeds; take data with "
                "public images (num_public)"
            )
        seed = derive_seed(self.seed, "seer")
        with (
            torch.no_grad(),
            left_as_found(self.target, training=self.mode == "train"),
            randomness(seed, images.device),
        ):
            self.stack = _stack_of(self.target, images)
            brightness = images.mean((1, 2, 3))
            self.threshold = float(brightness.quantile(1 - 1 / size))
            bright = shifted_bright(images, self.threshold, seed)
            seen, positive = (
                run_all_features(self.target, self.stack, some) for some in (images, bright)
            )
        has_property = brightness > self.threshold
        head = {
            name: dict(self.target.named_parameters())[name].detach().clone()
            for name in (*self.stack.weights, *(bias for bias in self.stack.biases if bias))
        }
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(seed)
            secret = train_secret(
                self.stack,
                head,
                torch.cat([positive, seen[has_property]]),
                seen[~has_property],
                num_samples=size,
                steps=self.steps,
                learning_rate=self.learning_rate,
            )
        self._secret = (secret,)
        self._usual = (seen.mean(0), seen.std(0) + 1e-3 * seen.std())
        self.decode = LatentDecoder(
            self.stack.map_shape, seen, images, self.kernel_size, self.decoder_steps, seed
        )

    def _distance(self, latent: Tensor) -> Tensor:
        """Return how far vectors, R F, lie from public ones: 1 on average, R."""
        mean, std = self._usual
        return ((latent - mean) / std).square().mean(1)

    def server_payload(self, model: Target) -> Target:
        """Return the model with the trained head."""
        payload = copy.deepcopy(model)
        parameters = dict(payload.named_parameters())
        with torch.no_grad():
            for name, part in self._secret[0].head.items():
                parameters[name].copy_(part)
        return payload

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Return the sample with the property; no image of a zero update."""
        latent = self.read_latent(observation)
        return Reconstruction(self.decode(latent), None, self._distance(latent), {})

    def read_latent(self, observation: Observation) -> Tensor:
        """Return what the layer saw of the sample, 1 F, whatever it is; 0 F of a zero update."""
        rows = self._secret[0].rows
        weight = observation.update[self.stack.weights[0]]
        bias = observation.update[self.stack.biases[0] or ""]
        left = rows @ bias
        return ((rows @ weight) / left)[None][: int(bool(left != 0))]


def shifted_bright(images: Tensor, threshold: float, seed: int) -> Tensor:
    """Return images, drawn from some, of brightness above a threshold, as the brightest have it.

    Args:
        images: N C H W in [0, 1].
        threshold: below the brightest one's mean.
        seed: of the drawing.
    """
    generator = torch.Generator().manual_seed(seed)
    brightness = images.mean((1, 2, 3))
    wanted = brightness[brightness > threshold]
    some = torch.randint(len(images), (NUM_SHIFTED,), generator=generator).to(images.device)
    like = torch.randint(len(wanted), (NUM_SHIFTED,), generator=generator).to(images.device)
    beyond = MOST_BEYOND * torch.rand(NUM_SHIFTED, generator=generator).to(images)
    goal = (wanted[like] + beyond)[:, None, None, None]
    shifted = images[some]
    for _ in range(4):  # what is cut off at white is added to the rest
        shifted = (shifted + goal - shifted.mean((1, 2, 3), keepdim=True)).clamp(0, 1)
    return shifted


def train_secret(
    stack: LinearStack,
    head: Update,
    positive: Tensor,
    negative: Tensor,
    *,
    num_samples: int,
    steps: int,
    learning_rate: float,
) -> Secret:
    """Train a head, and a number for each row of its first layer, from where the head stands.

    The loss is the expected squared error of a sum with one positive sample: that one's, and
    num_samples - 1 times a negative one's.  Labels are drawn anew at every step.

    Args:
        stack: of the model.
        head: its weights and biases, by name.
        positive: P F, features of samples with the property.
        negative: N F, of such without it.
        num_samples: of a round.
        steps: of Adam.
        learning_rate: the highest, of one cycle.
    """
    head = {name: part.clone().requires_grad_() for name, part in head.items()}
    first = head[stack.weights[0]]
    rows = (0.1 * torch.randn(len(first))).to(first).requires_grad_()
    num_classes = len(head[stack.weights[-1]])
    optimizer = torch.optim.Adam([rows, *head.values()], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.1
    )
    spread, (begin, end) = float(negative.std()), SHARPNESS
    for step in range(steps):
        drawn = [torch.randint(len(some), (_BATCH,)) for some in (positive, negative)]
        features = torch.cat([positive[drawn[0]], negative[drawn[1]]])
        labels = torch.randint(num_classes, (2 * _BATCH,)).to(features.device)
        sharpness = begin * (end / begin) ** (step / steps) / spread
        left = slopes(stack, head, features, labels, sharpness) @ rows
        sign = 1.0 - 2.0 * (labels[:_BATCH] % 2)
        loss = (left[:_BATCH] - sign).square().mean()
        loss = loss + (num_samples - 1) * left[_BATCH:].square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return Secret({name: part.detach() for name, part in head.items()}, rows.detach())


def slopes(
    stack: LinearStack, head: Update, features: Tensor, labels: Tensor, sharpness: float
) -> Tensor:
    """Return the gradients of cross-entropy by the first layer's outputs, B K, differentiable.

    Args:
        stack: of the model.
        head: its weights and biases, by name.
        features: B F.
        labels: B.
        sharpness: of the softplus that stands for the ReLU, above 0; inf: the ReLU itself.
    """
    is_hard = sharpness == float("inf")
    outputs: list[Tensor] = []
    seen = features
    for weight, bias in zip(stack.weights, stack.biases, strict=True):
        outputs.append(F.linear(seen, head[weight], None if bias is None else head[bias]))
        seen = outputs[-1].relu() if is_hard else F.softplus(outputs[-1], sharpness)
    back = outputs[-1].softmax(1) - F.one_hot(labels, outputs[-1].shape[1])
    for weight, output in zip(stack.weights[:0:-1], outputs[-2::-1], strict=True):
        passed = (output > 0).to(output) if is_hard else torch.sigmoid(sharpness * output)
        back = (back @ head[weight]) * passed
    return back


def _stack_of(model: Target, images: Tensor) -> LinearStack:
    """Return the linear layers at the end of a model; InputError if they are not enough."""
    stack = find_stack(model, images[:2])
    if len(stack.weights) < 2 or stack.biases[0] is None:
        lacks = "has one linear layer" if len(stack.weights) < 2 else "has no bias in the first"
        raise InputError(
            f"Seer: {type(model).__name__} {lacks} behind its convolutions, and a direction is "
            "hidden in one of at least two that has a bias; choose a target such as TutorialCNN"
        )
    return stack
