"""The tasks of a configuration: one file for each kind, and the union of all kinds."""
