"""The version: a leaf, so that nobody imports the package's root for it."""

__version__ = "0.2.0"
