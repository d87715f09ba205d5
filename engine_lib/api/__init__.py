"""Qwen3-TTS inside a Python process: `from engine_lib import Qwen3TTS`."""
