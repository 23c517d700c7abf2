"""Captures from other frameworks, and defenses for them; each is imported by itself.

What captures runs inside of someone's server: it imports neither Lightning nor matplotlib.
"""
