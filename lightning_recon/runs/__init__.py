"""Runs of Lightning and sweeps: what is called when, what is written, how a run resumes."""
