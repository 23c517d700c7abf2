#!/usr/bin/env python
"""The command line, without installing the package; see :mod:`lightning_recon.__main__`."""

import sys

from lightning_recon.__main__ import command, main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(command())
