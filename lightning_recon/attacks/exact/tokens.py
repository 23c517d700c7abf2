"""Exact text from the gradient of a decoder: which tokens, in which order, by two subspaces.

Petrov, Dimitrov, Baader, Müller, Vechev, "DAGER: Exact Gradient Inversion for Large Language
Models", NeurIPS 2024, arXiv 2405.15586.

The gradient of a linear layer's weights is a sum over all tokens of the batch of slopes times what
the layer reads; so what is read lies in the span of its rows, as long as there are fewer tokens
than dimensions.  In front of a decoder's first attention that is the norm of a token's embedding
and its position's: every token of the vocabulary is tried at every position.  In front of the
second it depends on what came before, and on nothing else: so sequences grow token by token, of
those that passed at the position, as long as the second layer's span holds the last one.

This checks a theorem: random vectors of d dimensions lie in no span of fewer.  It needs no prior
and no words, and ends where the span fills the space that a layer norm leaves, d - 1 dimensions.

What differs: of the joint layer of queries, keys and values the whole gradient is read, for a first
token attends to itself alone, and its query has none; queries alone are what the paper writes
of.  What is found is held against the ranks of both gradients: as many dimensions as the tokens and
positions span, as many as there are beginnings of sequences.  Only where both accounts close is a
sequence certified.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.errors import InputError
from lightning_recon.observation import Mark
from lightning_recon.targets.gpt import Block, SmallGPT
from lightning_recon.updates import Update

TOLERANCE = 1e-3
"""Share of a vector outside a span, up to which it counts as inside: float32 leaves about 1e-5."""
_ROUNDING = (
    4.0  # times the precision of numbers: singular values below, beside the first, are noise
)
_COARSE = 0.05  # the same share, at a first look in float32
_MOST = 1000  # tokens that pass at one position, above which the span tells nothing
_PART = 2**12  # sequences that are tried together


class FoundText(NamedTuple):
    """What a gradient tells of a batch of sequences."""

    sequences: list[Tensor]
    """Of tokens, int64, in no order; one that is there twice shows once."""
    marks: list[Mark]
    """Certified: both accounts close; likely: one does not; guess: others are longer."""
    notes: dict[str, float]
    """``rank_1``, ``rank_2`` of the two gradients, ``tokens_1``, pairs of token and position that
    passed the first, ``tokens_2``, beginnings of sequences that passed both."""


def recover_text(
    model: SmallGPT, update: Update, *, max_length: int | None = None, tolerance: float = TOLERANCE
) -> FoundText:
    """Return the sequences of a batch, exactly, from its gradient.

    Args:
        model: that the server sent, with the names of its own parameters.
        update: the gradient, by parameter; two are read, the first two blocks' ``c_attn.weight``.
        max_length: tokens of a sequence, at the most; null: as the model's context.
        tolerance: see :data:`TOLERANCE`.

    Raises:
        InputError: if the batch holds too many tokens for the width, or a gradient is missing.
    """
    names = [f"blocks.{place}.c_attn.weight" for place in (0, 1)]
    missing = [name for name in names if name not in update]
    if missing:
        raise InputError(
            f"the update holds no gradient of {missing[0]}, from which text is read; found "
            f"{', '.join(list(update)[:4]) or 'nothing'}"
        )
    first, second = (span_of(update[name]) for name in names)
    width = first.shape[1]
    if len(first) >= width - 1:
        raise InputError(
            f"the first gradient has rank {len(first)}: a batch must hold fewer tokens than the "
            f"width, {width}, less one; take smaller batches or shorter sequences"
        )
    longest = min(max_length or model.wpe.num_embeddings, model.wpe.num_embeddings)
    with torch.no_grad():
        passed = _passed(model, first, longest, tolerance)
        levels = _grown(model, second, passed, tolerance)
    notes = {
        "rank_1": float(len(first)),
        "rank_2": float(len(second)),
        "tokens_1": float(sum(map(len, passed))),
        "tokens_2": float(sum(map(len, levels))),
    }
    closes = len(first) == rank_of_pairs(passed) and len(second) == notes["tokens_2"]
    sequences, marks = [], []
    for level, (these, those) in enumerate(zip(levels, [*levels, None][1:], strict=True)):
        for sequence in these:
            if those is not None and (those[:, :-1] == sequence).all(1).any():
                continue
            sequences.append(sequence)
            is_whole = level == len(levels) - 1
            mark = Mark.CERTIFIED if closes else Mark.LIKELY
            marks.append(mark if is_whole else Mark.GUESS)
    return FoundText(sequences, marks, notes)


def span_of(gradient: Tensor) -> Tensor:
    """Return an orthonormal basis of what a linear layer read, r d, float64.

    Args:
        gradient: of its weights, K d.
    """
    found = torch.linalg.svd(gradient.double(), full_matrices=False)
    least = _ROUNDING * torch.finfo(gradient.dtype).eps * found.S[0]
    rows: Tensor = found.Vh[least < found.S]
    return rows


def outside(vectors: Tensor, span: Tensor) -> Tensor:
    """Return the share of vectors, N d, that lies outside a span, r d, N in [0, 1]."""
    vectors = vectors.to(span)
    left = vectors - vectors @ span.T @ span
    share: Tensor = left.norm(dim=1) / vectors.norm(dim=1).clamp_min(1e-300)
    return share


def _passed(model: SmallGPT, span: Tensor, longest: int, tolerance: float) -> list[Tensor]:
    """Return the tokens whose first states lie in the span, for each position up to the last."""
    norm = model.blocks[0].ln_1
    assert isinstance(norm, torch.nn.LayerNorm)
    coarse = span.to(model.wte.weight)
    # a layer norm is linear but for its scale, so that squares are those of the vocabulary, of the
    # position, and a product of both: one look at all tokens for all positions
    words = model.wte.weight - model.wte.weight.mean(1, keepdim=True)
    places = model.wpe.weight - model.wpe.weight.mean(1, keepdim=True)
    heavy, turned = words * norm.weight, (words * norm.weight) @ coarse.T
    squares = [part.square().sum(1) for part in (words, heavy, turned)]
    passed: list[Tensor] = []
    for place in range(longest):
        position, shift = places[place], norm.bias
        variance = _sum_of_squares(squares[0], words, position) / len(position)
        scale = (variance + norm.eps).rsqrt()
        energy = _sum_of_squares(squares[1], heavy, position * norm.weight, shift, scale)
        added = coarse @ (position * norm.weight)
        inside = _sum_of_squares(squares[2], turned, added, coarse @ shift, scale)
        near = (inside >= (1 - _COARSE**2) * energy).nonzero()[:, 0]
        states = norm(model.wte.weight[near] + model.wpe.weight[place])
        tokens = near[outside(states, span) <= tolerance]
        if len(tokens) > _MOST:
            raise InputError(
                f"the first gradient has rank {len(span)}, and {len(tokens):,} tokens pass at "
                f"position {place}: a batch must hold fewer tokens than the width, "
                f"{span.shape[1]}, less one; take smaller batches or shorter sequences"
            )
        if not len(tokens):
            break
        passed.append(tokens)
    return passed


def _sum_of_squares(
    square: Tensor,
    vectors: Tensor,
    added: Tensor,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Return |(v + added) scale + shift|^2 for V vectors, of which |v|^2 is known."""
    total = square + 2 * (vectors @ added) + added @ added
    if shift is None or scale is None:
        return total
    along = vectors @ shift + added @ shift
    return total * scale.square() + 2 * along * scale + shift @ shift


def rank_of_pairs(passed: Sequence[Tensor]) -> int:
    """Return the rank that tokens at positions span, of which a token may come at several.

    A state is the sum of a token's and a position's vector, but for its scale: two positions that
    share a token share all their tokens, whichever of them came where.  So tokens and positions
    are a graph, whose parts span one dimension less than they have members.

    Args:
        passed: the tokens of each position.

    Examples:
        >>> rank_of_pairs([torch.tensor([1, 2]), torch.tensor([3])])
        3
        >>> rank_of_pairs([torch.tensor([1, 2]), torch.tensor([1, 2])])
        3
    """
    parts: list[tuple[set[int], int]] = []
    for tokens in passed:
        members, count = set(tokens.tolist()), 1
        for other in [part for part in parts if part[0] & members]:
            parts.remove(other)
            members, count = members | other[0], count + other[1]
        parts.append((members, count))
    return sum(len(members) + count - 1 for members, count in parts)


def _grown(model: SmallGPT, span: Tensor, passed: list[Tensor], tolerance: float) -> list[Tensor]:
    """Return the beginnings of sequences whose last states lie in the second span, by length."""
    block, norm = model.blocks[0], model.blocks[1].ln_1
    assert isinstance(block, Block)
    assert isinstance(norm, torch.nn.LayerNorm)
    levels: list[Tensor] = []
    for place, tokens in enumerate(passed):
        states = model.wte(tokens) + model.wpe.weight[place]
        query, key, value = block.heads(states)
        if place == 0:
            begun = tokens.new_zeros(1, 0)
            keys = values = key.new_zeros(1, 0, *key.shape[1:])
        kept = []
        pairs = torch.cartesian_prod(
            torch.arange(len(begun), device=tokens.device),
            torch.arange(len(tokens), device=tokens.device),
        )
        for part in torch.split(pairs, max(1, _PART // (place + 1))):
            old, new = part.unbind(1)
            attended = F.scaled_dot_product_attention(
                query[new][:, :, None],
                torch.cat([keys[old], key[new][:, None]], 1).transpose(1, 2),
                torch.cat([values[old], value[new][:, None]], 1).transpose(1, 2),
            )[:, :, 0]
            after = norm(block.behind(states[new], attended))
            kept.append(part[outside(after, span) <= tolerance])
        old, new = torch.cat(kept).unbind(1)
        if not len(old):
            break
        begun = torch.cat([begun[old], tokens[new][:, None]], 1)
        keys = torch.cat([keys[old], key[new][:, None]], 1)
        values = torch.cat([values[old], value[new][:, None]], 1)
        levels.append(begun)
    return levels
