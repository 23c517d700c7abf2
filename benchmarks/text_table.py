"""The table of docs/exact.md on text: whole batches of tokens from the gradient of a decoder.

    python -m benchmarks.text_table [--lengths 16 32] [--batches N] [--cache FILE]

Batches of random tokens of GPT-2's vocabulary, 50,257, a random model of its width, 768, and three
blocks, one gradient in float32.  ``tokens`` is the share at its place in a sequence that came back
whole or in part, ``whole`` that of whole sequences, ``certified`` counts sequences, ``wrong`` those
of them that are none of the batch's; ``noise`` counts sequences of any mark where the gradient is
noise of its size.  Near the width the theorem ends: the norm leaves 767 dimensions.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.attacks.exact.tokens import FoundText, recover_text
from lightning_recon.errors import InputError
from lightning_recon.observation import Mark
from lightning_recon.randomness import make_generator
from lightning_recon.targets.gpt import SmallGPT
from lightning_recon.updates import Update

SIZES = ((4, 16), (16, 16), (32, 16), (40, 16), (45, 16), (47, 16), (48, 16), (8, 64))
"""Sequences, and tokens of each."""
NUM_NULLS = 1
NAMES = tuple(f"blocks.{place}.c_attn.weight" for place in (0, 1))
Record = dict[str, float]


def gradient_of(model: SmallGPT, tokens: Tensor, labels: Tensor) -> Update:
    """Return the two gradients that are read."""
    parameters = dict(model.named_parameters())
    read = [parameters[name] for name in NAMES]
    loss = F.cross_entropy(model(tokens), labels)
    return dict(zip(NAMES, torch.autograd.grad(loss, read), strict=True))


def measure(model: SmallGPT, size: tuple[int, int], seed: int) -> Record:
    """Attack one batch."""
    generator = make_generator(seed, "text table", *size)
    tokens = torch.randint(model.wte.num_embeddings, size, generator=generator)
    labels = torch.randint(2, size[:1], generator=generator)
    update = gradient_of(model, tokens, labels)
    started = time.perf_counter()
    try:
        found = recover_text(model, update)
    except InputError:
        found = FoundText([], [], {})  # told in one line: more tokens than the width tells apart
    seconds = time.perf_counter() - started
    true = {tuple(one) for one in tokens.tolist()}
    whole = {tuple(one.tolist()) for one in found.sequences} & true
    certified = [
        tuple(one.tolist())
        for one, mark in zip(found.sequences, found.marks, strict=True)
        if mark == Mark.CERTIFIED
    ]
    record = {
        "tokens": mean(best_share(one, found.sequences) for one in tokens),
        "whole": len(whole) / len(true),
        "certified": float(len(certified)),
        "wrong": float(sum(one not in true for one in certified)),
        "seconds": seconds,
    }
    if seed < NUM_NULLS:
        noise = {
            name: part.std() * torch.randn(part.shape, generator=generator)
            for name, part in update.items()
        }
        try:
            record["noise"] = float(len(recover_text(model, noise).sequences))
        except InputError:
            record["noise"] = 0.0
    return record


def best_share(tokens: Tensor, found: list[Tensor]) -> float:
    """Return the share of a sequence's tokens that the best of what was found has at its place."""
    shares = [
        float((one == tokens[: len(one)]).sum()) / len(tokens)
        for one in found
        if len(one) <= len(tokens)
    ]
    return max(shares, default=0.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens of a sequence; null: all")
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="file that keeps what is done, a line a batch")
    arguments = parser.parse_args()
    done: dict[str, Record] = {}
    if arguments.cache and arguments.cache.is_file():
        done = dict(json.loads(one) for one in arguments.cache.read_text().splitlines())
    model = SmallGPT()
    heads = ("sequences", "length", "tokens", "batches", "exact", "whole", "certified", "wrong")
    print("| " + " | ".join((*heads, "noise", "seconds")) + " |\n|" + " --- |" * 10, flush=True)
    for size in SIZES:
        if arguments.lengths and size[1] not in arguments.lengths:
            continue
        records = []
        for seed in range(arguments.batches):
            key = f"{size}/{seed}"
            if key not in done:
                done[key] = measure(model, size, seed)
                if arguments.cache:
                    with arguments.cache.open("a") as file:
                        file.write(json.dumps([key, done[key]]) + "\n")
            records.append(done[key])
        means = {name: mean(one[name] for one in records) for name in ("tokens", "whole")}
        cells = [str(size[0]), str(size[1]), str(size[0] * size[1]), str(len(records))]
        cells += [f"{means['tokens']:.3f}", f"{means['whole']:.3f}"]
        cells += [f"{sum(one[name] for one in records):.0f}" for name in ("certified", "wrong")]
        cells += [f"{sum(one.get('noise', 0.0) for one in records):.0f}"]
        cells += [f"{mean(one['seconds'] for one in records):.1f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
