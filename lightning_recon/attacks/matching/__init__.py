"""Parts of the attacks that match gradients, each held by an attack and tested alone."""
