"""Backbone, LoRA adapter and task heads; saving and loading."""
