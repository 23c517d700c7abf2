"""Audit what the updates of federated learning give away about the training images."""

__version__ = "0.1.0"
