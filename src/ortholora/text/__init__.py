"""Rows as they are read, and their tokens: texts, completions, chats; cutting, marking answers, padding."""
