"""The configuration: what may be in it, how it is read, and what is said of mistakes."""
