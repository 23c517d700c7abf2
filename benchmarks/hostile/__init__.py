"""What hostile or careless input does: counted, seeded, bounded; see docs/reliability.md."""
