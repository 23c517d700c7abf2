"""Parts of the attacks that match gradients; an attack holds them, and each is tested alone."""
