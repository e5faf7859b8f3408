"""Several processes that do one run: who is there, what the first does alone, what all must know, how they end."""
