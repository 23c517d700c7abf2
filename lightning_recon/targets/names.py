"""Tensors by name, as other programs write them: names found, matched to names wanted."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any

from torch import Tensor

_KEYS = ("state_dict", "model_state_dict", "gen_state_dict", "model", "net", "network", "weights")
"""Under which trainers keep the weights in a checkpoint, the first that is there."""
_WRAPPERS = {"module", "_module", "_orig_mod", "_fsdp_wrapped_module"}
"""What DataParallel, Opacus, torch.compile and FSDP put into every name."""


def weights_in(content: Any) -> dict[str, Any] | None:
    """Return the tensors by name that a checkpoint holds; None if it holds none.

    They lie at the top, or under one of the keys that trainers use.

    Args:
        content: of the file.
    """
    while isinstance(content, dict):
        inner = [content[key] for key in _KEYS if isinstance(content.get(key), dict)]
        if not inner:
            is_named = all(isinstance(name, str) for name in content)
            has_tensors = any(isinstance(part, Tensor) for part in content.values())
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
