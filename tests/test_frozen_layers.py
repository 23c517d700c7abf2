"""Frozen layers leave what their names say, also behind the prefix of a malicious payload."""

import pytest
import torch

from lightning_recon.defenses import FrozenLayers, apply_chain, num_update_bits
from lightning_recon.errors import InputError

NAMES = ("model.conv1.weight", "model.conv1.bias", "model.conv10.weight", "rows.weight")


def sent(layers):
    update = {name: torch.ones(2, 3) for name in NAMES}
    return apply_chain([FrozenLayers(layers)], update, generator=torch.Generator())


@pytest.mark.parametrize(
    ("layers", "frozen"),
    [
        (["conv1"], NAMES[:2]),
        (["conv1.bias", "rows"], (NAMES[1], NAMES[3])),
        (["model"], NAMES[:3]),
    ],
)
def test_a_name_freezes_what_is_below_it(layers, frozen):
    found = sent(layers)
    assert {name for name, part in found.items() if not part.any()} == set(frozen)
    update = {name: torch.rand(2, 3) for name in NAMES}
    stood_in = FrozenLayers(layers).stand_in(update, found)
    for name, part in stood_in.items():
        assert (part == (0 if name in frozen else update[name])).all()
    shapes = {name: part.shape for name, part in found.items()}
    assert num_update_bits([FrozenLayers(layers)], shapes) == 32 * 6 * (4 - len(frozen))


def test_a_misspelt_name_protects_nothing_and_says_so():
    with pytest.raises(InputError, match=r"no layer conv; there are model\.conv1\.weight"):
        sent(["conv"])
    with pytest.raises(InputError, match="name at least one layer"):
        FrozenLayers([])
