"""Trainers that resolve conflicts, and what every one of them shares."""
