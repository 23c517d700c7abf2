"""A reply as an attack reads it: an update by the model's own names, and what was odd about it.

Wrong inputs look safe: of weights that are taken for an update, or of an update with the wrong
sign, no attack makes an image.  So nothing that a capture declares is believed before the numbers
agree, and what is set right is said.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_recon.captures import Reply
from lightning_recon.errors import InputError
from lightning_recon.functional.labels.last_layer import last_linear_layer
from lightning_recon.functional.stateless import sent_buffers
from lightning_recon.rowsparse import is_finite
from lightning_recon.targets.names import in_order, misfit, under_wanted_names
from lightning_recon.updates import Buffers, Update
from lightning_recon.verdict.finding import Finding
from lightning_recon.verdict.numbers import Numbers, read_numbers

_SAME = 0.9  # cosine between weights and those that they began with
_OTHER = 0.5  # the same, below which they began elsewhere
_SKEWED = 1.0  # of the last bias' change, from which its sign is told
_BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
_TYPES = (torch.float16, torch.bfloat16)


class Sent(NamedTuple):
    """What a client sent, as an attack reads it."""

    state: dict[str, Tensor]
    """The payload's tensors by the model's names."""
    update: Update
    """By the model's parameters' names, float32; a parameter that was not sent is 0."""
    protocol: Literal["fedsgd", "fedavg"]
    """Whether the update is a gradient or a change of weights."""
    buffers: Buffers | None
    """As the client returned them."""
    missing: tuple[str, ...]
    """Parameters that were not sent."""
    rounding: dict[str, float]
    """Standard deviation of the rounding of each parameter's update."""
    numbers: Numbers
    """What the update shows."""
    findings: list[Finding]


def read_reply(reply: Reply, model: nn.Module, image_shape: tuple[int, int, int]) -> Sent:
    """Return what a client sent, by the names of the model.

    Args:
        reply: of the client.
        model: the federation's, of any weights.
        image_shape: C, H, W.

    Raises:
        InputError: if the reply does not belong to the model, or cannot be an update.
    """
    findings: list[Finding] = []
    parameters = dict(model.named_parameters())
    known = {**parameters, **sent_buffers(model)}
    found = _by_name(reply.tensors, model, known, findings, may_lack=True)
    state = {name: tensor.detach() for name, tensor in known.items()}
    if reply.payload is not None:
        sent = _by_name(reply.payload, model, known, [], may_lack=False)
        state |= {name: tensor.to(known[name].dtype) for name, tensor in sent.items()}
    _check_numbers(found, reply)
    kind = _kind_by_size(reply, found, state, parameters, findings)
    if kind == "weights" and reply.payload is None:
        raise InputError(
            f"{reply.name}: weights, but the payload that they answer was not captured, so that "
            "there is no difference to read"
        )
    missing = tuple(name for name in parameters if name not in found)
    if missing:
        count = f"{len(missing)} of {len(parameters)}"
        findings.append(Finding("note", f"{count} parameters not sent: {_some(missing)}"))
    update, rounding = {}, {}
    for name, parameter in parameters.items():
        if name not in found:
            update[name], rounding[name] = torch.zeros_like(parameter.detach()), 0.0
            continue
        value = found[name].double()
        change = value - state[name].double() if kind == "weights" else value
        update[name] = change.to(parameter.dtype)
        rounding[name] = _rounding(state[name] if kind == "weights" else change, found[name].dtype)
    returned = {name: found[name].to(known[name]) for name in found if name not in parameters}
    protocol = "fedsgd" if kind == "gradient" else "fedavg"
    numbers = read_numbers(update, rounding)
    size = reply.facts.get("batch_size") or numbers.rank
    sign = _sign(model, update, image_shape, size) if size and not missing else None
    if sign is not None and (sign > 0) != (protocol == "fedavg"):
        now = "a gradient" if protocol == "fedavg" else "a change of weights"
        was = "a change of weights" if protocol == "fedavg" else "a gradient"
        if kind != "weights":
            protocol = "fedsgd" if protocol == "fedavg" else "fedavg"
            findings.append(
                Finding(
                    "contradiction",
                    f"declared as {was}, but the last layer's bias has the sign of {now} (skewness "
                    f"{sign:+.1f}): it is read as {now}",
                )
            )
    return Sent(
        state,
        update,
        protocol,  # type: ignore[arg-type]
        returned or None,
        missing,
        rounding,
        numbers,
        findings,
    )


def _by_name(
    given: Mapping[str, Tensor],
    model: nn.Module,
    known: Mapping[str, Tensor],
    findings: list[Finding],
    *,
    may_lack: bool,
) -> dict[str, Tensor]:
    """Return what of the tensors the model knows, by its names."""
    stored = [name for name in model.state_dict() if name in known]
    if all(name.isdecimal() for name in given):  # a list, in the order of the state_dict
        given = in_order(model, [given[place] for place in sorted(given, key=int)], "the reply")
    renamed = under_wanted_names(given, stored)
    found = {name: tensor for name, tensor in renamed.items() if name in known}
    wrong = {name: known[name] for name in found if found[name].shape != known[name].shape}
    lacking = [] if may_lack and found else [name for name in known if name not in found]
    lacking = [name for name in lacking if not name.endswith("num_batches_tracked")]
    if wrong or lacking:
        reason = misfit(renamed, {name: known[name] for name in [*found, *lacking]})
        raise InputError(f"it is of another model than the one given: {reason}")
    more = [name for name in renamed if name not in known]
    counters = [name for name in more if not renamed[name].ndim]
    if rest := [name for name in more if name not in counters]:
        more_words = f"sent beside what the model knows: {_some(rest)}; left out"
        findings.append(Finding("note", more_words))
    types = sorted({str(found[name].dtype).removeprefix("torch.") for name in found})
    short = [name for name in found if found[name].dtype in _TYPES]
    if short:
        findings.append(
            Finding(
                "note",
                f"numbers were sent as {', '.join(types)}: their rounding hides small changes",
            )
        )
    return found


def _some(names: Sequence[str]) -> str:
    """Return the first names in a line."""
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _check_numbers(found: Mapping[str, Tensor], reply: Reply) -> None:
    for name, tensor in found.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise InputError(f"{reply.name}: {name} holds NaN or infinity; nothing can be read")


def _kind_by_size(
    reply: Reply,
    found: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    findings: list[Finding],
) -> str:
    """Return what the tensors are, which need not be what is declared."""
    kind: str = reply.facts["kind"]
    if reply.payload is None:
        return kind
    names = [name for name in parameters if name in found]
    ours = torch.cat([found[name].double().flatten() for name in names])
    began = torch.cat([state[name].double().flatten() for name in names])
    norm, other = float(ours.norm()), float(began.norm())
    if not norm or not other:
        return kind
    cosine, ratio = float(ours @ began) / (norm * other), norm / other
    evidence = f"cosine with the payload {cosine:.2f}, norm {ratio:.2g} of its"
    if kind != "weights" and cosine > _SAME and 0.5 < ratio < 2:
        findings.append(
            Finding(
                "contradiction",
                f"declared as a {kind}, but these are weights ({evidence}): they are read as "
                "weights, and their change is audited",
            )
        )
        return "weights"
    if kind == "weights" and cosine < _OTHER:
        if ratio < 0.5:
            findings.append(
                Finding(
                    "contradiction",
                    f"declared as weights, but they do not resemble the payload ({evidence}): they "
                    "are read as a change of weights",
                )
            )
            return "delta"
        findings.append(
            Finding(
                "warning",
                f"these weights do not resemble the payload ({evidence}): they began from another "
                "model, or noise as large as the model was added",
            )
        )
    return kind


def _rounding(numbers: Tensor, kind: torch.dtype) -> float:
    """Return the standard deviation of the rounding of numbers of this size to a type."""
    size = float(numbers.double().square().mean() ** 0.5) if numbers.numel() else 0.0
    return float(size * 2.0 ** -_BITS.get(kind, 24))


def _sign(
    model: nn.Module, update: Update, image_shape: tuple[int, int, int], num_samples: int
) -> float | None:
    """Return the skewness of the last bias' change; None where it does not tell the sign.

    Under the cross-entropy the gradient of the last bias is p_c - n_c / B: the classes that are
    there lie far below 0, the others a little above, and with fewer samples than half the classes
    the others are more.
    """
    parameter = next(iter(model.parameters()))
    try:
        _, bias = last_linear_layer(model, torch.zeros(1, *image_shape).to(parameter))
    except InputError:
        return None
    if bias is None or 2 * num_samples >= len(update[bias]):
        return None
    values = update[bias].double()
    centred = values - values.mean()
    spread = centred.square().mean() ** 0.5
    if spread == 0 or abs(float(values.mean())) > 0.1 * float(spread):
        return None  # noise, or another loss
    skewness = float((centred / spread).pow(3).mean())
    return skewness if abs(skewness) > _SKEWED else None
