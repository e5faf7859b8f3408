"""Before training: which tasks help and which hurt each other, how surely, and what to try."""
