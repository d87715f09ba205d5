"""Voices to clone: references in, prompts out, and the store that keeps them. Knows no engine."""
