"""Tensors by name, as other programs write them: names found, matched to names wanted."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recon.captures.tensors import as_tensors
from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import sent_buffers

Tensors = Mapping[str, Any] | Sequence[Any]
"""Tensors or arrays, by name or in the order of a model's parameters or ``state_dict``."""
_KEYS = ("state_dict", "model_state_dict", "gen_state_dict", "model", "net", "network", "weights")
"""Under which trainers keep the weights in a checkpoint, the first that is there."""
_WRAPPERS = {"module", "_module", "_orig_mod", "_fsdp_wrapped_module"}
"""What DataParallel, Opacus, torch.compile and FSDP put into every name."""


def named_as(model: nn.Module, given: Tensors, what: str) -> dict[str, Tensor]:
    """Return tensors under a model's own names, on its device and of its types of number.

    All parameters are there, and those of the stored buffers that were given: a whole
    ``state_dict`` has them, counters such as ``num_batches_tracked`` included.

    Args:
        model: whose names are wanted.
        given: by name (see :func:`under_wanted_names`) or in the order of the model's parameters
            or ``state_dict``, of any type of number; None in an order: zeros.
        what: they are, for the message.

    Raises:
        InputError: if they do not fit the model.
    """
    parameters = dict(model.named_parameters())
    known = {**parameters, **sent_buffers(model)}
    if not isinstance(given, Mapping):
        given = {
            name: torch.zeros_like(known[name]) if value is None else value  # it plays no part
            for name, value in in_order(model, given, what).items()
        }
    found = _tensors(under_wanted_names(given, known.keys()), what)
    wanted = {name: tensor for name, tensor in known.items() if name in parameters or name in found}
    if problem := misfit(found, wanted):
        raise InputError(f"{what} does not fit the model: {problem}")
    return {name: _alike(tensor, known[name]) for name, tensor in found.items()}


def in_order(model: nn.Module, given: Sequence[Any], what: str) -> dict[str, Any]:
    """Return by name what stands in the order of a model's ``state_dict``, or its parameters.

    Args:
        model: that has the names.
        given: as many as one of both has.
        what: they are, for the message.

    Raises:
        InputError: if they are as many as neither has.
    """
    stored = list(model.state_dict())
    parameters = [name for name, _ in model.named_parameters()]
    for names in (stored, parameters):
        if len(given) == len(names):
            return dict(zip(names, given, strict=True))
    raise InputError(
        f"{what} holds {len(given)} tensors, but the model has {len(parameters)} parameters and "
        f"{len(stored)} entries in its state_dict; give them by name"
    )


def buffers_as(model: nn.Module, given: Mapping[str, Any], what: str) -> dict[str, Tensor]:
    """Return the buffers that a model stores, as :func:`named_as` does; but for counters, all.

    Args:
        model: whose names are wanted.
        given: by name.
        what: they are, for the message.

    Raises:
        InputError: if they do not fit the model.
    """
    wanted = sent_buffers(model)
    found = _tensors(under_wanted_names(given, wanted.keys()), what)
    if problem := misfit(found, wanted):
        raise InputError(f"{what} does not fit the model: {problem}")
    return {name: _alike(tensor, wanted[name]) for name, tensor in found.items()}


def _tensors(given: Mapping[str, Any], what: str) -> dict[str, Tensor]:
    """Return tensors as they are, and what numpy takes for arrays as tensors."""
    found = {}
    for name, value in given.items():
        if isinstance(value, Tensor):
            found[name] = value.detach() if value.requires_grad else value
            continue
        try:
            found |= as_tensors({name: value})
        except InputError as error:
            raise InputError(f"{what}: {error}") from error
    return found


def _alike(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a tensor of another one's device and type; itself if it is of both."""
    if tensor.layout != other.layout:
        tensor = tensor.to_dense()
    if (tensor.device, tensor.dtype) == (other.device, other.dtype):
        return tensor
    return tensor.to(other.device, other.dtype)


def weights_in(content: Any) -> dict[str, Any] | None:
    """Return the tensors or arrays by name that a checkpoint holds; None if it holds none.

    They lie at the top, or under one of the keys that trainers use.

    Args:
        content: of the file.
    """
    while isinstance(content, dict):
        inner = [content[key] for key in _KEYS if isinstance(content.get(key), dict)]
        if not inner:
            is_named = all(isinstance(name, str) for name in content)
            has_tensors = any(hasattr(part, "shape") for part in content.values())
            return content if is_named and (has_tensors or not content) else None
        content = inner[0]
    return None


def under_wanted_names(found: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Any]:
    """Return what was found under the names that are wanted, as far as it can be told.

    ``module.``, ``_module.`` and ``_orig_mod.`` are left out wherever they stand.  What stands in
    front of all names on one side only (Lightning's ``model.``) is left out or put there.  What
    does not get a wanted name keeps its own.

    Args:
        found: by name.
        wanted: names.
    """
    best = dict(found)
    for rename in _renamings(found, wanted):
        renamed = {rename(name): value for name, value in found.items()}
        is_one_to_one = len(renamed) == len(found)
        if is_one_to_one and len(renamed.keys() & wanted) > len(best.keys() & wanted):
            best = renamed
    return best


def _renamings(found: Iterable[str], wanted: Collection[str]) -> Iterator[Callable[[str], str]]:
    names = {name: unwrapped(name) for name in found}
    yield names.__getitem__
    for prefix in _prefixes(names.values(), wanted):
        yield lambda name, prefix=prefix: names[name].removeprefix(prefix)  # type: ignore[misc]
    for prefix in _prefixes(wanted, set(names.values())):
        yield lambda name, prefix=prefix: prefix + names[name]  # type: ignore[misc]


def unwrapped(name: str) -> str:
    """Return a name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _prefixes(names: Iterable[str], ends: Collection[str]) -> list[str]:
    """Return what stands in front of names that end as others are, the most frequent first."""
    dots = ((name, place + 1) for name in names for place, sign in enumerate(name) if sign == ".")
    counts = Counter(name[:place] for name, place in dots if name[place:] in ends)
    return [prefix for prefix, _ in counts.most_common()]


def misfit(found: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> str | None:
    """Return in words why tensors do not fit those that are wanted; None if they do.

    Args:
        found: by name.
        wanted: by name.
    """
    missing = [name for name in wanted if name not in found and not _may_lack(name)]
    more = [name for name in found if name not in wanted]
    wrong = [name for name in wanted if name in found and _size(found[name]) != _size(wanted[name])]
    words = []
    if missing:
        words.append(f"{len(missing)} of {len(wanted)} names are missing, such as {missing[0]}")
        if more:
            nearest = _nearest(missing[0], more, found, wanted)
            words[0] += f", and the nearest found is {nearest}"
    if more:
        words.append(f"nothing takes {', '.join(more[:3])}{' ...' if len(more) > 3 else ''}")
    words += [f"{name} is {_size(found[name])}, not {_size(wanted[name])}" for name in wrong[:3]]
    return "; ".join(words) or None


def partial_misfit(found: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> str | None:
    """Return :func:`misfit` where some names may be missing, but not all.

    Args:
        found: by name.
        wanted: by name.
    """
    return misfit(found, {name: wanted[name] for name in wanted if name in found} or wanted)


def _may_lack(name: str) -> bool:
    """Whether a name is one that old files lack, and torch fills in."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _nearest(
    name: str, among: list[str], found: Mapping[str, Any], wanted: Mapping[str, Tensor]
) -> str:
    """Return the name most like another one, of the same shape if there is one."""

    def likeness(other: str) -> tuple[bool, float]:
        is_alike = _size(found[other]) == _size(wanted[name])
        return is_alike, SequenceMatcher(None, name, other).ratio()

    return max(among, key=likeness)


def _size(tensor: Any) -> str:
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}"
    return "x".join(str(length) for length in tensor.shape) or "a number"
