"""Rows of text and tokens: prompts, tokens, padding."""
