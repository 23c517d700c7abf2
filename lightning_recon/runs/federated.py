"""Training of the federation under audit: what a setting costs in accuracy.

Every round each client plays with a batch of its own shard, by the protocol and the defenses of the
audit (:class:`~lightning_recon.federation.Federation` plays), and the server steps along the mean
of what it received: SGD with momentum on the pseudo-gradient, an update times the client's
``gradient_scale`` (Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 1), at a
rate that falls to 0 by a cosine.  All of one seed share the initial weights, the shards and the
order of the images.

Batch norm's running statistics are no part of an update: the server takes them from its public
images, for every evaluation, and before every round where the clients read them.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_recon.clients import Client
from lightning_recon.clients.base import randomness
from lightning_recon.data import ClientDataModule
from lightning_recon.defenses import Defense
from lightning_recon.errors import InputError
from lightning_recon.federation import Federation
from lightning_recon.functional.stateless import left_as_found
from lightning_recon.randomness import derive_seed, make_generator
from lightning_recon.targets import Target
from lightning_recon.updates import PrivateBatch, Update

_CHUNK = 1024  # images that are evaluated at once


class Setting(NamedTuple):
    """What a federation trains, and how its clients protect what they send."""

    target: Target
    """With the initial weights; not changed."""
    client: Client
    defenses: Sequence[Defense]
    batch_size: int
    """Images of one client's round; of a secure sum, of all its clients together."""


class Dealt(NamedTuple):
    """All data of a federation."""

    shards: list[PrivateBatch]
    """What each client holds."""
    public: Tensor
    """The server's own images, N C H W."""
    public_labels: Tensor
    """N, int64; -1: of none of the clients' classes."""
    test: PrivateBatch


class Trained(NamedTuple):
    """What one training came to."""

    curve: list[tuple[int, float]]
    """(round, accuracy on the test images); round 0 is the untrained model."""
    loss: float
    """Mean cross-entropy on the test images, at the end."""
    learning_rate: float
    """The server's, at the beginning."""


class FederatedTraining:
    """How the federation is trained that a setting's accuracy is measured on.

    Args:
        rounds: of the whole training, at least 1; every client takes part in each.
        num_clients: that train; null: as many as are attacked.
        images_per_client: that each client holds; null: all images, shared out equally.
        num_test: test images, the first that the seed draws; null: as many as a client holds,
            or all of ``test``.
        test: options of the data that make it those of the test images, such as
            ``{split: test}``; null: one more share is dealt, and held out.
        learning_rates: of the server, each above 0.  Of several, each is tried for
            ``trial_rounds``, and the one with which the server's own labelled images are told best
            trains on; no test image takes part in the choice.
        trial_rounds: of each trial, at least 1; null: a fifth of the rounds.
        momentum: of the server, in [0, 1).
        eval_every: rounds between two points of the curve, at least 1.

    Raises:
        InputError: if an argument is out of its range.
    """

    def __init__(
        self,
        rounds: int = 100,
        num_clients: int | None = None,
        images_per_client: int | None = None,
        num_test: int | None = None,
        test: dict[str, Any] | None = None,
        learning_rates: list[float] | None = None,
        trial_rounds: int | None = None,
        momentum: float = 0.9,
        eval_every: int = 20,
    ) -> None:
        self.learning_rates = [0.1] if learning_rates is None else list(learning_rates)
        self.trial_rounds = max(1, rounds // 5) if trial_rounds is None else trial_rounds
        counts = {
            "rounds": rounds,
            "num_clients": num_clients,
            "images_per_client": images_per_client,
            "num_test": num_test,
            "trial_rounds": self.trial_rounds,
            "eval_every": eval_every,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise InputError(f"training.{name} must be at least 1, not {value}")
        if not self.learning_rates or not all(0 < r < math.inf for r in self.learning_rates):
            raise InputError(
                f"training.learning_rates must be numbers above 0, not {self.learning_rates}"
            )
        if not 0 <= momentum < 1:
            raise InputError(f"training.momentum must be in [0, 1), not {momentum}")
        self.rounds = rounds
        self.num_clients = num_clients
        self.images_per_client = images_per_client
        self.num_test = num_test
        self.test = test
        self.momentum = momentum
        self.eval_every = eval_every

    @property
    def num_rounds(self) -> int:
        """Rounds of the training and of all trials together."""
        trials = len(self.learning_rates) if len(self.learning_rates) > 1 else 0
        return self.rounds + trials * self.trial_rounds

    def deal(self, train: ClientDataModule, test: ClientDataModule | None) -> Dealt:
        """Deal a data set to the clients and the server.

        Args:
            train: not set up yet; its clients are given larger shares.
            test: of the test images, not set up yet; null: they are held out of ``train``.

        Raises:
            InputError: if the data are missing, or too few.
        """
        num_clients = self.num_clients or train.num_clients
        train.indices = None
        train.num_clients = num_clients + (test is None)
        size = self.images_per_client or (
            (len(train.source) - train.num_public) // train.num_clients
        )
        train.batch_size = max(1, size)
        shards = [train.client(client) for client in range(num_clients)]
        if test is None:
            held = train.client(num_clients)
        else:
            test.indices, test.num_clients, test.num_public = None, 1, 0
            test.batch_size = min(self.num_test or len(test.source), len(test.source))
            held = test.client(0)
        held = PrivateBatch(*(field[: self.num_test] for field in held))
        return Dealt(shards, train.public_images(), train.public_labels(), held)

    def run(
        self,
        setting: Setting,
        dealt: Dealt,
        seed: int,
        watch: Callable[[int, int], None] | None = None,
    ) -> Trained:
        """Train a federation from the initial weights, at the best of the server's rates.

        Args:
            setting: of the federation.
            dealt: its data.
            seed: of all randomness.
            watch: told how many rounds are done, of how many.

        Raises:
            InputError: if a client cannot work so, or the training diverges at every rate.
        """
        done = 0

        def tell(_: int) -> None:
            nonlocal done
            done += 1
            if watch is not None:
                watch(done, self.num_rounds)

        rate = self._best_rate(setting, dealt, seed, tell)
        server = Server(setting, dealt, seed, rate, self.momentum, self.rounds)
        curve = [(0, server.score(dealt.test)["accuracy"])]
        for round_ in range(self.rounds):
            server.play(round_)
            tell(round_)
            if (round_ + 1) % self.eval_every == 0 and round_ + 1 < self.rounds:
                curve.append((round_ + 1, server.score(dealt.test)["accuracy"]))
        scores = server.score(dealt.test)
        return Trained([*curve, (self.rounds, scores["accuracy"])], scores["loss"], rate)

    def _best_rate(
        self, setting: Setting, dealt: Dealt, seed: int, tell: Callable[[int], None]
    ) -> float:
        """Return the rate with which short trainings tell the server's own images best."""
        if len(self.learning_rates) == 1:
            return self.learning_rates[0]
        is_known = dealt.public_labels >= 0
        if not is_known.any():
            raise InputError(
                "training.learning_rates: the server has no labelled images of the clients' "
                "classes to choose by; give one rate, or raise num_public"
            )
        own = PrivateBatch(
            dealt.public[is_known],
            dealt.public_labels[is_known],
            torch.ones_like(dealt.public[is_known][:, :1], dtype=torch.bool),
            torch.arange(int(is_known.sum())),
        )
        found: list[tuple[float, float]] = []
        refusal: InputError | None = None
        for rate in self.learning_rates:
            server = Server(setting, dealt, seed, rate, self.momentum, self.trial_rounds)
            try:
                for round_ in range(self.trial_rounds):
                    server.play(round_)
                    tell(round_)
                found.append((server.score(own)["accuracy"], rate))
            except InputError as error:  # an update that is not finite: the rate is too high
                refusal = error
        if not found:
            assert refusal is not None
            raise refusal
        return max(found, key=lambda one: (one[0], -one[1]))[1]


class Server:
    """Steps along the mean update of its clients, round after round.

    Args:
        setting: of the federation; its target is copied.
        dealt: its data.
        seed: of all randomness.
        learning_rate: at the beginning.
        momentum: of its SGD.
        rounds: after which the rate is 0.
    """

    def __init__(
        self,
        setting: Setting,
        dealt: Dealt,
        seed: int,
        learning_rate: float,
        momentum: float,
        rounds: int,
    ) -> None:
        self.setting, self.dealt, self.seed = setting, dealt, seed
        self.model = copy.deepcopy(setting.target)
        self.optimizer = torch.optim.SGD(self.model.parameters(), learning_rate, momentum)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, rounds)
        client = setting.client
        self.group = client.num_clients
        """Clients of whom the server sees the sum alone."""
        if len(dealt.shards) % self.group:
            raise InputError(
                f"Aggregate: {len(dealt.shards)} clients cannot be summed in groups of "
                f"{self.group}; let data.num_clients be a multiple"
            )
        size = setting.batch_size // self.group
        held = min(len(shard.images) for shard in dealt.shards)
        if not 1 <= size <= held:
            raise InputError(
                f"each client holds {held} images, and a round takes {size} of them; change "
                "data.batch_size or training.images_per_client"
            )
        self.batch_size = size
        self.reads_statistics = client.mode == "eval" or client.clip_norm is not None

    def play(self, round_: int) -> None:
        """Play one round with every client, and step.

        Raises:
            InputError: if an update is not finite.
        """
        if self.reads_statistics:
            settle(self.model, self.dealt.public, self.seed)
        setting = self.setting
        seed = derive_seed(self.seed, round_)
        federation = Federation(self.model, setting.client, setting.defenses, seed)
        federation.start(lambda: self.model, ())
        updates: list[Update] = []
        clients = range(len(self.dealt.shards))
        for first in clients[:: self.group]:
            batches = [
                batch_of(self.dealt.shards[client], self.batch_size, round_, self.seed, client)
                for client in clients[first : first + self.group]
            ]
            together = PrivateBatch(*map(torch.cat, zip(*batches, strict=True)))
            updates.append(federation.play(together, first).update)
        scale = setting.client.gradient_scale
        for name, parameter in self.model.named_parameters():
            mean = torch.stack([update[name] for update in updates]).mean(0)
            parameter.grad = mean * scale
        self.optimizer.step()
        self.schedule.step()

    def score(self, batch: PrivateBatch) -> Mapping[str, float]:
        """Return accuracy and mean cross-entropy of the model as it stands."""
        with randomness(self.seed, batch.images.device):
            return evaluate(calibrated(self.model, self.dealt.public, self.seed), batch)


def batch_of(shard: PrivateBatch, size: int, round_: int, *order: int | str) -> PrivateBatch:
    """Return the batch of one round: epoch after epoch over the shard, shuffled anew in each.

    Args:
        shard: what the client holds.
        size: of the batch; what is left of an epoch's images is dropped.
        round_: the round, from 0.
        *order: what the order of the images depends on, beside the epoch.
    """
    epoch, step = divmod(round_, len(shard.images) // size)
    permutation = torch.randperm(
        len(shard.images), generator=make_generator(*order, epoch, "order")
    )
    places = permutation[step * size : (step + 1) * size]
    return PrivateBatch(*(field[places] for field in shard))


def calibrated(model: Target, public: Tensor, seed: int = 0) -> Target:
    """Return a copy in evaluation mode, batch norm's statistics taken from the public images."""
    model = copy.deepcopy(model)
    settle(model, public, seed)
    return model.eval()


@torch.no_grad()
def settle(model: nn.Module, public: Tensor, seed: int = 0) -> None:
    """Take batch norm's running statistics from the public images, in place.

    Raises:
        InputError: if there are none.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return
    if not len(public):
        raise InputError(
            "the server needs images of its own for batch norm's statistics; raise num_public"
        )
    momenta = [module.momentum for module in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # plain mean over all batches: here one
    with left_as_found(model, training=True), randomness(seed, public.device):  # of dropout
        model(public)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def evaluate(model: nn.Module, batch: PrivateBatch) -> dict[str, float]:
    """Return accuracy and mean cross-entropy of a model in evaluation mode."""
    logits = torch.cat([model(images) for images in torch.split(batch.images, _CHUNK)])
    return scores(logits, batch.labels)


def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy and mean cross-entropy.

    Args:
        logits: B x classes.
        labels: B, int64.
    """
    return {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "loss": float(F.cross_entropy(logits, labels)),
    }
