"""How far a release can move when the data change, for each meaning of "change" (adjacency).

``replace``
    the data of one client (or one record) become any other data; the batch size is public.  The
    adjacency of local differential privacy, and the one that this project states.
``add_remove``
    they are there or not; with a mean, the divisor must be a public constant.

A figure is comparable to another of the same adjacency only: epsilon under ``replace`` at noise s
is epsilon under ``add_remove`` at s / 2.
"""

from typing import Literal

from lightning_recon.errors import InputError

Adjacency = Literal["replace", "add_remove"]


def client_sensitivity(clip_norm: float, adjacency: Adjacency = "replace") -> float:
    """Return the L2 sensitivity of one client's update: 2C or C.

    Args:
        clip_norm: the L2 norm C that no update exceeds, above 0.
        adjacency: what happens to all the data of one client.

    >>> client_sensitivity(10.0), client_sensitivity(10.0, "add_remove")
    (20.0, 10.0)
    """
    if not 0 < clip_norm < float("inf"):
        raise InputError(f"clip_norm must be a number above 0, not {clip_norm}")
    if adjacency not in ("replace", "add_remove"):
        raise InputError(f"adjacency must be replace or add_remove, not {adjacency!r}")
    return 2.0 * clip_norm if adjacency == "replace" else float(clip_norm)


def record_sensitivity(
    clip_norm: float, num_samples: int, adjacency: Adjacency = "replace"
) -> float:
    """Return the L2 sensitivity of a mean of per-sample clipped gradients: 2C/B or C/B.

    It bounds what one record does to the update, and says nothing for a client as a whole.  An
    update that is clipped only after the mean over the batch has no such bound: there one record
    can move it by 2C.

    Args:
        clip_norm: the L2 norm C that no sample's gradient exceeds, above 0.
        num_samples: the divisor B of the mean, at least 1.
        adjacency: what happens to one record.

    >>> record_sensitivity(1.0, 16)
    0.125
    """
    if not num_samples >= 1:
        raise InputError(f"num_samples must be at least 1, not {num_samples}")
    return client_sensitivity(clip_norm, adjacency) / num_samples
