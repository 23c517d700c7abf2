"""Text from a decoder's gradient: exact below the width, nothing above it, nothing of noise."""

import pytest
import torch
import torch.nn.functional as F

from lightning_recon.attacks.exact.tokens import recover_text
from lightning_recon.errors import InputError
from lightning_recon.observation import Mark
from lightning_recon.targets.gpt import SmallGPT

NAMES = tuple(f"blocks.{place}.c_attn.weight" for place in (0, 1))


@pytest.fixture(scope="module")
def model():
    return SmallGPT(vocabulary=500, width=64, num_heads=4, depth=2, context=12)


def gradient_of(model, tokens):
    parameters = dict(model.named_parameters())
    loss = F.cross_entropy(model(tokens), torch.arange(len(tokens)) % 2)
    return dict(zip(NAMES, torch.autograd.grad(loss, [parameters[n] for n in NAMES]), strict=True))


def some(*shape, seed=0):
    return torch.randint(500, shape, generator=torch.Generator().manual_seed(seed))


def found_in(model, tokens):
    found = recover_text(model, gradient_of(model, tokens))
    return {tuple(one.tolist()): mark for one, mark in zip(*found[:2], strict=True)}


@pytest.mark.parametrize("shape", [(1, 4), (4, 8), (6, 8)])
def test_sequences_come_back_whole_and_certified(model, shape):
    tokens = some(*shape)
    expected = {tuple(one): Mark.CERTIFIED for one in tokens.tolist()}
    assert found_in(model, tokens) == expected


def test_a_sequence_that_is_there_twice_shows_once(model):
    tokens = some(2, 6)
    found = found_in(model, torch.cat([tokens, tokens[:1]]))
    assert set(found) == {tuple(one) for one in tokens.tolist()}


def test_sequences_that_begin_alike_are_told_apart(model):
    tokens = some(2, 6)
    tokens[1, :4] = tokens[0, :4]
    assert set(found_in(model, tokens)) == {tuple(one) for one in tokens.tolist()}


def test_as_many_tokens_as_dimensions_are_refused(model):
    with pytest.raises(InputError, match="a batch must hold fewer tokens than the width"):
        recover_text(model, gradient_of(model, some(10, 12)))


def test_noise_holds_no_text(model):
    update = gradient_of(model, some(2, 6))
    generator = torch.Generator().manual_seed(1)
    span = torch.randn(12, 64, generator=generator)
    noise = {
        name: torch.randn(len(part), 12, generator=generator) @ span
        for name, part in update.items()
    }
    assert recover_text(model, noise).sequences == []


def test_an_update_without_these_layers_is_told(model):
    with pytest.raises(InputError, match=r"no gradient of blocks.0.c_attn.weight.*found x"):
        recover_text(model, {"x": torch.zeros(1)})
