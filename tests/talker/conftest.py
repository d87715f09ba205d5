"""Fixtures of the talker's tests."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from make_checkpoint import make_checkpoint


@pytest.fixture(params=["tiny_custom_voice", "tiny_custom_voice_1b7"])
def voice(request: pytest.FixtureRequest) -> Path:
    """Return each of the custom_voice checkpoints in turn."""
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="session")
def endless_voice(checkpoints: Path) -> Path:
    """Return a checkpoint that never says end-of-speech, so that a test decides how long a stream is."""
    return make_checkpoint(checkpoints / "endless", eos_gain=0.0)


@pytest.fixture
def fresh_seed() -> int:
    """Return a new seed for this run; pytest prints it when the test fails."""
    seed = secrets.randbits(32)
    print(f"fresh_seed = {seed}")
    return seed
