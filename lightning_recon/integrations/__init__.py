"""Captures from other frameworks, and defenses for them; each is imported by itself."""
