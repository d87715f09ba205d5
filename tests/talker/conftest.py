"""Fixtures of the talker's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_lib.talker.engine import TalkerEngine
from make_checkpoint import make_checkpoint
from talker.speaking import GREETING, Codes, assert_nothing_is_held, running_engine, speak


@pytest.fixture(params=["tiny_custom_voice", "tiny_custom_voice_1b7"])
def voice(request: pytest.FixtureRequest) -> Path:
    """Return each of the custom_voice checkpoints in turn."""
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="session")
def endless_voice(checkpoints: Path) -> Path:
    """Return a checkpoint that never says end-of-speech, so that a test decides the length of a stream."""
    return make_checkpoint(checkpoints / "endless", eos_gain=0.0)


@pytest.fixture(name="engine")
def engine_of_the_endless_voice(endless_voice: Path) -> Iterator[TalkerEngine]:
    """Yield a running engine that must be alive, with nothing in use, when the test ends."""
    with running_engine(endless_voice) as engine:
        yield engine
        assert engine.is_alive
        assert_nothing_is_held(engine)


@pytest.fixture(scope="module")
def codes(endless_voice: Path) -> Codes:
    """Return twenty greedy frames of GREETING."""
    with running_engine(endless_voice) as engine:
        return speak(engine, GREETING, max_frames=20)
