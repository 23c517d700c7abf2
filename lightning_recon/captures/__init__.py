"""What a real federation sent, as files: ``docs/update-format.md``.

Imports neither Lightning nor matplotlib, for the writing side runs inside of someone's server.
"""

from lightning_recon.captures.format import (
    FORMAT,
    VERSION,
    FederationJson,
    Kind,
    ModJson,
    ReplyJson,
    truth_file,
)
from lightning_recon.captures.reader import Capture, Reply, Truth, read_truth
from lightning_recon.captures.writer import CaptureWriter, write_truth

__all__ = [
    "FORMAT",
    "VERSION",
    "Capture",
    "CaptureWriter",
    "FederationJson",
    "Kind",
    "ModJson",
    "Reply",
    "ReplyJson",
    "Truth",
    "read_truth",
    "truth_file",
    "write_truth",
]
