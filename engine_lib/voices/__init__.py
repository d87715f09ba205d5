"""Voices to clone: from references to prompts, and the store that keeps them. Knows no engine."""
