"""The one place that plays a round: server payload -> client -> defenses -> observation."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_recon.clients import Client
from lightning_recon.clients.modes import check_mode, modes_of
from lightning_recon.defenses import ClipL2, Defense, GaussianNoise, apply_chain, bind_chain
from lightning_recon.errors import InputError
from lightning_recon.functional.labels.given import given_labels
from lightning_recon.functional.stateless import sent_buffers
from lightning_recon.observation import Channel, Grant, Observation
from lightning_recon.randomness import derive_seed, make_generator
from lightning_recon.rowsparse import is_finite, zeros_for
from lightning_recon.targets import Target
from lightning_recon.targets.names import buffers_as, named_as
from lightning_recon.updates import Buffers, PrivateBatch, Update


class Federation:
    """A server, and clients of which one after the other answers it.

    Not a module: the attack that plays the server registers target, client and defenses.

    Args:
        target: the model that the federation trains.
        client: the protocol that the clients follow.
        defenses: what a client does to its update before it sends it, in order.
        seed: of the clients', the defenses' and the attacker's randomness.
    """

    def __init__(
        self, target: Target, client: Client, defenses: Sequence[Defense] = (), seed: int = 0
    ) -> None:
        self.target = target
        self.client = client
        self.defenses = tuple(defenses)
        self.seed = seed
        self.grants: tuple[Grant, ...] = ()
        """What the attacker is told beside the update."""
        self._modes = modes_of(target)
        """As the target was handed over, and not as a Trainer sets them."""
        self.num_rounds = 1
        """In which every client takes part, with the same data."""
        self._payload: nn.Module | None = None
        self._make_payload: Callable[[], nn.Module] | None = None
        self._next_payload: Callable[[Observation], nn.Module] | None = None
        bind_chain(list(defenses), client.clip_norm or client.update_clip_norm)

    # --- the server ----------------------------------------------------------------------------

    def start(
        self,
        make_payload: Callable[[], nn.Module],
        grants: Sequence[str],
        num_rounds: int = 1,
        next_payload: Callable[[Observation], nn.Module] | None = None,
    ) -> None:
        """Begin anew, with another payload.

        Args:
            make_payload: called once, when the first client is to be sent something.
            grants: what the attacker is told beside the update, values of :class:`Grant`.
            num_rounds: in which every client takes part, at least 1.
            next_payload: gives what a client is sent after a round of it; null: the same again.
        """
        self.grants = tuple(Grant(grant) for grant in grants)
        self._payload, self._make_payload = None, make_payload
        self.num_rounds, self._next_payload = num_rounds, next_payload

    @property
    def payload(self) -> nn.Module:
        """The model that the server sends; the same one to every client in its first round."""
        if self._payload is None:
            if self._make_payload is None:
                raise RuntimeError("Attack.bind() with public images comes before the payload")
            self._payload = self._make_payload()
        return self._payload

    @property
    def has_payload(self) -> bool:
        """Whether the server has made the model that it sends."""
        return self._payload is not None

    @property
    def channel(self) -> Channel:
        """What the update passes, as it is."""
        clips = [defense.clip_norm for defense in self.defenses if isinstance(defense, ClipL2)]
        if self.client.clip_norm is not None:
            clips.append(self.client.clip_norm)
        noises = [defense.std for defense in self.defenses if isinstance(defense, GaussianNoise)]
        number, own = 1, self.client.update_clip_norm
        if own is not None:
            number = self.client.num_clients
            clips = [own, *(number * clip for clip in clips)]
        return Channel(
            clip_norm=min(clips, default=None),
            clips_samples=self.client.clip_norm is not None,
            noise_std=number * math.hypot(*noises),
            num_clients=number,
        )

    # --- rounds --------------------------------------------------------------------------------

    def play(
        self, batch: PrivateBatch, client: int, later: Sequence[PrivateBatch] = ()
    ) -> Observation:
        """Play all rounds of one client and return what the server sees in the last one.

        Args:
            batch: the client's data, on any device.
            client: its number, from which its randomness is derived, anew in every round.
            later: the client's data in the second round, the third and so on, if they are others;
                what is last of all stays.

        Raises:
            InputError: if the update is not finite.
        """
        parameter = next(self.target.parameters())
        batches = [batch, *later]

        def answer(payload: nn.Module, round_: int) -> _Answer:
            own = batches[min(round_, len(batches) - 1)]
            own = PrivateBatch(*(field.to(parameter.device) for field in own))
            own = own._replace(images=own.images.to(parameter.dtype))
            seed = derive_seed(self.seed, client, "client", *_later(round_))
            with sdpa_kernel(SDPBackend.MATH):
                update, buffers = self.client.run(payload, own, seed=seed)
            return update, {name: buffers[name] for name in sent_buffers(payload)}, own.labels

        return self._play(answer, client, "defenses")

    def play_noise(self, labels: Tensor, client: int) -> Observation:
        """Return what the server sees of a client whose update is zero before the defenses.

        Its buffers are the payload's own.

        The null control: what the attack makes of it is its prior and not a leak.

        Args:
            labels: B, of the client's batch, for an attack to which they are granted.
            client: its number.
        """

        def answer(payload: nn.Module, round_: int) -> _Answer:
            update = {name: zeros_for(part) for name, part in payload.named_parameters()}
            return update, sent_buffers(payload), labels.to(self._device)

        return self._play(answer, client, "noise only")

    def receive(
        self, captured: Mapping[str, Any], client: int, what: str | None = None
    ) -> Observation:
        """Return the observation of an update that was captured outside this program.

        Numbers of other types are brought to the payload's, names to its names.  Buffers among
        the update are left out: nobody says whether they are values or changes.

        Args:
            captured: ``update`` (tensors by name, or in the order of the payload's parameters or
                ``state_dict``), ``num_samples`` (missing: as many as labels), ``labels`` and, if
                the client sent them, ``buffers`` (tensors by name, as its training left them);
                with ``image_shape`` (C, H, W) the mode of the target is held against the client's.
            client: its number.
            what: names the update in messages; null: its client's number.

        Raises:
            InputError: if the update, the buffers or the labels do not fit the payload, if the
                target was handed over in another mode than the client simulates, or if the attack
                wants several rounds.
        """
        what = what or f"captured update {client}"
        if self.num_rounds > 1:
            raise InputError(
                f"{what} is of one round, and the attack sends a client another payload in each of "
                f"{self.num_rounds} rounds; set num_rounds to 1"
            )
        self._check_mode(captured.get("image_shape"))
        found = named_as(self.payload, captured["update"], what)
        update = {name: found[name] for name, _ in self.payload.named_parameters()}
        _check_finite(update, what)
        buffers = captured.get("buffers")
        if buffers is None and Grant.BUFFERS in self.grants:
            raise InputError(
                f"{what} holds no buffers, which are granted to the attacker; give them as the "
                "client's training left them, or take buffers out of known"
            )
        if buffers is not None:
            buffers = buffers_as(self.payload, buffers, f"{what}: what it holds as buffers")
        labels, num_samples = captured.get("labels"), captured.get("num_samples")
        if labels is not None:
            labels = given_labels(labels, what, num_samples, self.target.num_classes)
            labels, num_samples = labels.to(self._device), len(labels)
        return self._observation(self.payload, update, buffers, client, labels, num_samples)

    def _check_mode(self, image_shape: tuple[int, int, int] | None) -> None:
        """Raise InputError if the client simulates another mode than the target was left in.

        A module that was made here is in training mode, which is nobody's word.
        """
        is_word = self.target.is_handed_over or not all(self._modes.values())
        if image_shape is None or not is_word or self.payload is not self.target:
            return
        check_mode(self.target, self.client, self._modes, image_shape)
        self._modes = {}  # once is enough

    @property
    def _device(self) -> torch.device:
        return next(self.target.parameters()).device

    def _play(
        self, answer: Callable[[nn.Module, int], "_Answer"], client: int, purpose: str
    ) -> Observation:
        """Have a client answer in every round, from 0 on, and pass its updates on."""
        payload = self.payload
        for round_ in range(self.num_rounds):
            update, buffers, labels = answer(payload, round_)
            generator = make_generator(
                self.seed, client, purpose, *_later(round_), device=self._device
            )
            update = apply_chain(self.defenses, update, generator=generator)
            _check_finite(update, f"the update of client {client}")
            observation = self._observation(payload, update, buffers, client, labels, len(labels))
            observation = observation._replace(rounds=round_ + 1)
            if self._next_payload is not None and round_ + 1 < self.num_rounds:
                payload = self._next_payload(observation)
        return observation

    def _observation(
        self,
        payload: nn.Module,
        update: Update,
        buffers: Buffers | None,
        client: int,
        labels: Tensor | None,
        num_samples: int | None,
    ) -> Observation:
        """Leave out what is not granted to the attacker."""
        return Observation(
            payload=payload,
            update=update,
            protocol=self.client.protocol,
            labels=labels if Grant.LABELS in self.grants else None,
            num_samples=num_samples if Grant.NUM_SAMPLES in self.grants else None,
            seed=derive_seed(self.seed, client, "attack"),
            client=self.client if Grant.CLIENT in self.grants else None,
            defenses=self.defenses if Grant.DEFENSES in self.grants else None,
            buffers=buffers if Grant.BUFFERS in self.grants else None,
        )


_Answer = tuple[Update, Buffers, Tensor]
"""A client's update, its buffers and its labels, B."""


def _later(round_: int) -> tuple[int, ...]:
    """Return what sets the randomness of a later round apart from that of the first one."""
    return (round_,) if round_ else ()


def _check_finite(update: Update, what: str) -> None:
    for name, tensor in update.items():
        if not is_finite(tensor):
            raise InputError(
                f"{what} holds NaN or infinity in parameter {name}; check the target's weights, or "
                "leave this client out"
            )
