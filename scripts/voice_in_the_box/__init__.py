"""The voice in the box: a small checkpoint that speaks, and its training and evaluation."""

from pathlib import Path

VOICE_IN_THE_BOX = Path(__file__).resolve().parent / "checkpoint"
