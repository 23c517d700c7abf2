"""Text from the gradient of a decoder: exact below the width, nothing at it, nothing of noise."""

import pytest
import torch
import torch.nn.functional as F

from lightning_recon.attacks.exact.tokens import outside, recover_text, span_of
from lightning_recon.errors import InputError
from lightning_recon.observation import Mark
from lightning_recon.randomness import make_generator
from lightning_recon.targets.gpt import SmallGPT

WIDTH = 48
NAMES = ("blocks.0.c_attn.weight", "blocks.1.c_attn.weight")


def tiny(**options):
    sizes = {"vocabulary": 300, "width": WIDTH, "num_heads": 4, "depth": 2, "context": 8}
    return SmallGPT(**{**sizes, **options}).double()


def sent(model, *size, seed=0):
    """Tokens and the two gradients that are read of them."""
    generator = make_generator(seed, "tokens")
    tokens = torch.randint(model.wte.num_embeddings, size, generator=generator)
    labels = torch.randint(2, size[:1], generator=generator)
    read = [dict(model.named_parameters())[name] for name in NAMES]
    loss = F.cross_entropy(model(tokens), labels)
    return tokens, dict(zip(NAMES, torch.autograd.grad(loss, read), strict=True))


def as_set(sequences):
    return {tuple(one.tolist()) for one in sequences}


@pytest.mark.parametrize("size", [(1, 6), (5, 8)])
def test_below_the_width_every_sequence_is_certified_and_one_of_the_batch(size):
    model = tiny()
    tokens, update = sent(model, *size)
    found = recover_text(model, update)
    assert as_set(found.sequences) == as_set(tokens)
    assert found.marks == [Mark.CERTIFIED] * len(tokens)
    assert found.notes["rank_2"] == found.notes["tokens_2"]


def test_a_sequence_that_comes_twice_shows_once():
    model = tiny()
    tokens, _ = sent(model, 2, 5)
    twice = torch.cat([tokens, tokens[:1]])
    read = [dict(model.named_parameters())[name] for name in NAMES]
    loss = F.cross_entropy(model(twice), torch.tensor([0, 1, 1]))
    found = recover_text(model, dict(zip(NAMES, torch.autograd.grad(loss, read), strict=True)))
    assert as_set(found.sequences) == as_set(tokens)
    assert len(found.sequences) == 2


def test_as_many_tokens_as_dimensions_are_told_nothing_of():
    model = tiny(vocabulary=1500)
    _, update = sent(model, WIDTH // 8, 8)
    with pytest.raises(InputError, match=f"a batch must hold fewer tokens than the width, {WIDTH}"):
        recover_text(model, update)


def test_noise_gives_nothing():
    model = tiny(vocabulary=1500)
    _, update = sent(model, 2, 6)
    generator = make_generator(1, "noise")
    # of the update's rank, so that the span is as small as a true one's
    noise = {
        name: torch.randn(len(part), 12, generator=generator, dtype=part.dtype)
        @ torch.randn(12, WIDTH, generator=generator, dtype=part.dtype)
        for name, part in update.items()
    }
    assert recover_text(model, noise).sequences == []


def test_another_model_reads_nothing():
    _, update = sent(tiny(), 2, 6)
    assert recover_text(tiny(seed=1), update).sequences == []


def test_a_missing_gradient_is_one_line():
    model = tiny()
    _, update = sent(model, 2, 6)
    del update[NAMES[1]]
    with pytest.raises(InputError, match=f"no gradient of {NAMES[1]}.*found {NAMES[0]}"):
        recover_text(model, update)


def test_a_span_holds_what_was_read_and_no_other_vector():
    generator = make_generator(2, "span")
    read = torch.randn(4, 20, generator=generator)
    span = span_of(torch.randn(30, 4, generator=generator) @ read)
    assert span.shape == (4, 20)
    assert outside(read, span).max() < 1e-5
    assert outside(torch.randn(5, 20, generator=generator), span).min() > 0.5


@pytest.mark.parametrize("options", [{"num_heads": 5}, {"depth": 1}])
def test_a_decoder_that_cannot_be_is_refused(options):
    with pytest.raises(InputError, match="SmallGPT: the heads divide the width"):
        tiny(**options)
