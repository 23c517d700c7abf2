"""Random numbers that depend on their purpose alone, never on the order of the calls.

One, two and three processes then draw the same noise for the same client.
"""

import hashlib

import torch


def derive_seed(*path: int | str) -> int:
    """Return a seed in [0, 2**63) that is a function of ``path`` alone.

    Args:
        *path: what the numbers are for, such as ``(seed, client, "noise")``.
    """
    digest = hashlib.sha256("/".join(str(part) for part in path).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_generator(*path: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator on ``device``, seeded by :func:`derive_seed`."""
    return torch.Generator(device).manual_seed(derive_seed(*path))
