"""What a configuration of a federation really guarantees, beside what it claims.

A configuration names a mechanism of Flower, Opacus or NVIDIA FLARE, or a chain of this project's,
as its own programs write it.  :func:`~lightning_recon.lint.checking.check` answers with figures
that hold, and with what makes a claim fail.  No torch is imported unless a model is named or the
chain is this project's.
"""
