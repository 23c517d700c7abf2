"""Is this payload honest?  What a client can tell of a model before it trains on it.

A malicious server that wants images sends a model that is made for that: rows that all measure the
same, weights that few samples pass, zeros that wait for a gradient.  :func:`detect` looks for what
such models have and others have not, names left aside.
"""

from lightning_recon.detect.checking import Detection, Finding, detect
from lightning_recon.detect.declared import detect_sent

__all__ = ["Detection", "Finding", "detect", "detect_sent"]
