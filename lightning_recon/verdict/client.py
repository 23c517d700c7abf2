"""The audit of one client: preflight, attacks, and a verdict without any truth."""

import copy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_recon.attacks.exact.certificate import CERTAIN
from lightning_recon.captures import Reply
from lightning_recon.clients import FedSGD
from lightning_recon.clients.modes import mode_matters, modes_of
from lightning_recon.errors import InputError
from lightning_recon.observation import Mark, Reconstruction
from lightning_recon.targets import ModuleTarget, Target
from lightning_recon.updates import DataSpec, Update
from lightning_recon.verdict.confidence import LIKELY, SURE, confidence
from lightning_recon.verdict.evidence import (
    Features,
    Rehearsal,
    best_psnr,
    look,
    noise_of,
    rehearse,
    shuffled,
    weigh,
)
from lightning_recon.verdict.finding import Finding
from lightning_recon.verdict.numbers import Numbers, read_numbers
from lightning_recon.verdict.plan import Setting, Training, matching, plan_attacks, proving
from lightning_recon.verdict.preflight import (
    fingerprint,
    payload_finding,
    preflight,
    privacy_lines,
    read_declared,
)
from lightning_recon.verdict.scan import scan
from lightning_recon.verdict.sent import Sent, read_reply

Verdict = Literal["leaked", "not shown", "cannot tell"]
_PROVING = "ExactInversion"
_SAME = 25.0  # dB between two reconstructions that show the same image
_HOPELESS = -4.0  # dB that rehearsed images lack, in the median, from which an attack is left out
_MODE_ASSUMED = (
    "the model computes otherwise in training than in evaluation (batch norm, dropout): the client "
    "is assumed to have computed in train mode; if it did in eval mode, add --mode eval"
)
_MAX_RANK = 64  # samples that are told from a rank


class Picture(NamedTuple):
    """One image that came back."""

    image: Tensor
    """C H W in [0, 1]."""
    label: int | None
    attack: str
    confidence: float
    """That it is right, in (0, 1), without the truth."""
    features: Features
    """What speaks for it."""
    mark: Mark | None = None
    """What the attack itself says; None: it has no test."""


class ClientAudit(NamedTuple):
    """What an audit says of one client."""

    name: str
    """Of the client and the round."""
    verdict: Verdict
    reason: str
    """Of the verdict, one sentence."""
    findings: list[Finding]
    privacy: dict[str, str]
    pictures: list[Picture]
    """The surest first, at most as many as samples, each image once."""
    controls: Tensor
    """N C H W: what the attacks make of the shuffled update."""
    num_samples: int | None
    attacks: dict[str, str]
    """By name: what came of it, or why it was not tried."""
    numbers: Numbers | None
    fingerprint: str
    """Of the update, to find those that are equal."""


class Auditor:
    """Audits the clients of one federation, one after the other.

    What holds for several clients is rehearsed once, and a payload is looked at once.

    Args:
        model: the federation's, of any weights; it is copied.
        num_classes: of its logits.
        mean: by which images in [0, 1] are normalised before the model sees them, a number or one
            a channel; null: 0.
        std: the same; null: 1.
        setting: of the audit.
        learning_rate: of the clients' SGD where the capture does not say; null: not known.
        batch_size: samples of a client where the capture does not say; null: not known.
        steps: local steps where the capture does not say; null: not known.
        mode: in which clients compute; null: not known, train is assumed.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        setting: Setting,
        *,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        steps: int | None = None,
        mode: Literal["train", "eval"] | None = None,
    ) -> None:
        self.setting = setting
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.steps = steps
        self.mode = mode
        self.target: Target = (
            copy.deepcopy(model)
            if isinstance(model, Target)
            else ModuleTarget(model, num_classes=num_classes, mean=mean, std=std)
        )
        self.target.requires_grad_(True)
        self.target.check_input(setting.image_shape)
        in_eval = dict.fromkeys(modes_of(self.target), False)
        self._mode_matters = mode_matters(self.target, FedSGD(), in_eval, setting.image_shape)
        self._rehearsals: dict[tuple[object, ...], Rehearsal] = {}
        self._payloads: dict[str, list[Finding]] = {}

    def audit(self, reply: Reply) -> ClientAudit:
        """Return what is to be said of one client.

        Args:
            reply: of the client.
        """
        declared = read_declared(reply.facts.get("mods"))
        try:
            sent = read_reply(reply, self.target, self.setting.image_shape)
        except InputError as error:
            return _unread(reply, error)
        numbers = sent.numbers
        findings = [*sent.findings, *preflight(reply, declared, numbers)]
        findings += self._payload_findings(sent.state)
        privacy = privacy_lines(declared, numbers)
        training = self.training(reply, sent)
        if not reply.facts.get("batch_size") and self.batch_size is None:
            told = "is not known: one is assumed"
            if not training.is_assumed:
                told = f"is told by the rank of a linear layer's change: {training.num_samples}"
            findings.append(Finding("note", f"how many samples there are {told}"))
        if self.mode is None and self._mode_matters:
            findings.append(Finding("note", _MODE_ASSUMED))
        is_simulated = training.is_known or sent.protocol == "fedsgd"
        if not is_simulated and self.setting.effort == "thorough" and numbers.norm:
            self.target.load_state_dict(sent.state, strict=False)
            scanned = scan(self.target, sent, training, self.setting)
            training = scanned.training
            findings.append(Finding("note", scanned.text))
        pictures, controls, attacks = self._attack(sent, training)
        verdict, reason = _verdict(pictures, numbers)
        return ClientAudit(
            reply.name,
            verdict,
            reason,
            findings,
            privacy,
            pictures,
            controls,
            training.num_samples,
            attacks,
            numbers,
            fingerprint(sent.update),
        )

    def _payload_findings(self, state: Update) -> list[Finding]:
        """Return what is strange about a payload; what several clients were sent is known."""
        key = fingerprint(state)
        if key not in self._payloads:
            self._payloads[key] = payload_finding(state)
        return self._payloads[key]

    def training(self, reply: Reply, sent: Sent) -> Training:
        """Return what is known, or assumed, of how a client trained.

        Args:
            reply: of the client.
            sent: what was read of it.
        """
        facts, rank = reply.facts, sent.numbers.rank
        size = self.batch_size or facts.get("batch_size")
        if not size and rank and rank <= _MAX_RANK:
            size = rank
        return Training(
            int(size or 1),
            not size,
            self.learning_rate or facts.get("learning_rate"),
            self.steps or facts.get("steps"),
            float(facts.get("momentum") or 0.0),
            self.mode or "train",
        )

    def _attack(
        self, sent: Sent, training: Training
    ) -> tuple[list[Picture], Tensor, dict[str, str]]:
        """Return the images, what the attacks make of the control, and what came of each."""
        nothing = torch.empty(0, *self.setting.image_shape)
        if sent.numbers.norm == 0:
            return [], nothing, {}
        self.target.load_state_dict(sent.state, strict=False)
        labels = self._labels(sent, training)
        plans, attacks = plan_attacks(self.target, sent, training, self.setting)
        seed = self.setting.seed
        mixed = shuffled(sent.update, seed)
        proven, attacks[_PROVING] = self._proven(sent, training)
        if len(proven) == training.num_samples:
            others = {plan.name: f"not tried: {_PROVING} certifies every image" for plan in plans}
            control = look(
                proving(self.target, sent, training, seed), mixed, training, self.setting
            )
            return proven, control.images, attacks | others
        setting = self._shared(sent, labels, training)
        looks: list[tuple[str, Reconstruction]] = []
        controls: dict[str, Reconstruction] = {}
        rehearsals: dict[str, Rehearsal] = {}
        is_quick = self.setting.effort == "quick"
        succeeded: str | None = None
        for plan in plans:
            if succeeded and is_quick:
                attacks[plan.name] = f"not tried: {succeeded} succeeds on public images"
                continue
            key = (plan.name, *setting)
            if key not in self._rehearsals:
                self._rehearsals[key] = rehearse(plan, sent, labels, training, self.setting)
            rehearsal = rehearsals[plan.name] = self._rehearsals[key]
            rehearsed = f"on public images in this setting it gets {_of(rehearsal)} right"
            is_hopeless = rehearsal.right == 0 and rehearsal.margin < _HOPELESS
            if is_quick and is_hopeless and not plan.is_instant:
                attacks[plan.name] = f"not tried: {rehearsed}"
                continue
            for again in range(1 + plan.is_random):
                found = look(plan.make(seed + again), sent.update, training, self.setting)
                looks.append((plan.name, found))
            controls[plan.name] = look(plan.make(seed), mixed, training, self.setting)
            attacks[plan.name] = f"{_outcome(looks[-1][1])}; {rehearsed}"
            if 2 * rehearsal.right >= rehearsal.num_images:
                succeeded = plan.name
        pictures = [
            Picture(
                one.found.images[index],
                None if one.found.labels is None else int(one.found.labels[index]),
                one.attack,
                confidence(features),
                features,
            )
            for one in weigh(looks, controls, rehearsals)
            for index, features in enumerate(one.features)
        ]
        pictures = [*proven, *sorted(pictures, key=lambda picture: -picture.confidence)]
        images = [found.images for found in controls.values()]
        return _distinct(pictures, training.num_samples), torch.cat([nothing, *images]), attacks

    def _proven(self, sent: Sent, training: Training) -> tuple[list[Picture], str]:
        """Return the images that are certified to be exact, and what came of looking for them."""
        attack = proving(self.target, sent, training, self.setting.seed)
        found = look(attack, sent.update, training, self.setting)
        if found.marks is None or found.p_values is None or found.labels is None:
            return [], _outcome(found)
        pictures = [
            Picture(image, label, _PROVING, 1 - CERTAIN, {"p_value": p_value}, mark)
            for image, label, p_value, mark in zip(
                found.images, found.labels.tolist(), found.p_values.tolist(), found.marks,
                strict=True,
            )
            if mark == Mark.CERTIFIED
        ]  # fmt: skip
        return pictures, f"certified {len(pictures)} of {training.num_samples} images"

    def _labels(self, sent: Sent, training: Training) -> Tensor | None:
        """Return the labels of the batch as the update tells them, sorted; None: it does not."""
        attack = matching(self.target, sent, training, self.setting, self.setting.seed)
        try:
            attack.bind(
                DataSpec(self.setting.image_shape, None, training.num_samples), self.setting.public
            )
            captured = {"update": sent.update, "num_samples": training.num_samples}
            found, _ = attack.reader.labels(attack.federation.receive(captured, 0))
        except (InputError, RuntimeError, ValueError):  # torch raises the last two
            return None
        return found.cpu().sort().values

    def _shared(self, sent: Sent, labels: Tensor | None, training: Training) -> tuple[object, ...]:
        """Return the setting of a rehearsal: clients that have it in common share one."""
        payload = fingerprint({name: sent.state[name] for name in sent.update})
        # what quantisers and sparsifiers do depends on the update itself
        own = "" if sent.numbers.reading.kind == "exact" else fingerprint(sent.update)
        repeats = [] if labels is None else sorted(labels.bincount().tolist())
        return (payload, training, noise_of(sent, training), sent.protocol, *repeats, own)


def _distinct(pictures: list[Picture], number: int) -> list[Picture]:
    """Return the surest pictures, each image once."""
    kept: list[Picture] = []
    for picture in pictures:
        if len(kept) == number:
            break
        others = torch.stack([other.image for other in kept]) if kept else picture.image[None][:0]
        if float(best_psnr(picture.image[None], others)) < _SAME:
            kept.append(picture)
    return kept


def _outcome(found: Reconstruction) -> str:
    failed = [note for note in found.notes if note.startswith("failed: ")]
    if failed:
        return failed[0]
    return "returned 1 image" if len(found.images) == 1 else f"returned {len(found.images)} images"


def _of(rehearsal: Rehearsal) -> str:
    return f"{rehearsal.right} of {rehearsal.num_images}"


def _verdict(pictures: list[Picture], numbers: Numbers) -> tuple[Verdict, str]:
    if numbers.norm == 0:
        return "not shown", "the update is zero, and tells nothing of any image"
    if proven := sum(picture.mark == Mark.CERTIFIED for picture in pictures):
        images = "1 image" if proven == 1 else f"{proven} images"
        return "leaked", (
            f"{images} came back with a certificate: every pixel is exact, by a test that a "
            f"mixture passes with a probability of at most {CERTAIN:g}"
        )
    sure = [picture for picture in pictures if picture.confidence >= SURE]
    if sure:
        most = max(picture.confidence for picture in sure)
        images = "1 image" if len(sure) == 1 else f"{len(sure)} images"
        return "leaked", (
            f"{images} came back with a confidence of at least {_percent(SURE)} (the surest "
            f"{_percent(most)}), by {sure[0].attack}"
        )
    best = max((picture.confidence for picture in pictures), default=0.0)
    is_hidden = bool(numbers.noise_std) or numbers.reading.kind != "exact"
    if best < LIKELY and is_hidden:
        return "not shown", (
            f"the update is obfuscated, and the surest of what came back has {_percent(best)}; "
            "stronger attacks may do better"
        )
    rest = "and nothing that shows protects the update: another attack may read it"
    if is_hidden:
        rest = "from an obfuscated update: too little to be sure, too much to dismiss"
    return "cannot tell", (
        f"the surest of what came back has a confidence of {_percent(best)}, {rest}"
    )


def _percent(value: float) -> str:
    """Return a probability for people, never 100 %."""
    return f"{100 * min(value, 0.999):.3g} %"


def _unread(reply: Reply, error: InputError) -> ClientAudit:
    declared = read_declared(reply.facts.get("mods"))
    zero = read_numbers({}, {})
    return ClientAudit(
        reply.name,
        "cannot tell",
        str(error),
        [Finding("warning", str(error))],
        {**privacy_lines(declared, zero), "Noise on the update": "not read"},
        [],
        torch.empty(0),
        None,
        {},
        None,
        "",
    )
