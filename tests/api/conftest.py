"""Models that the tests of the in-process API share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from api.loading import load
from engine_lib.api.qwen3_tts import Qwen3TTS
from make_checkpoint import make_checkpoint


@pytest.fixture(scope="package")
def tts(tiny_custom_voice: Path) -> Iterator[Qwen3TTS]:
    """Return a small 0.6B-type model that the tests of this module share."""
    with load(tiny_custom_voice) as model:
        yield model


@pytest.fixture(scope="package")
def tts_1b7(tiny_custom_voice_1b7: Path) -> Iterator[Qwen3TTS]:
    """Return a small 1.7B-type model, which takes instructions."""
    with load(tiny_custom_voice_1b7) as model:
        yield model


@pytest.fixture(scope="session")
def endless(checkpoints: Path) -> Path:
    """Return a checkpoint that never ends its speech, so that only limits and callers end it."""
    return make_checkpoint(checkpoints / "api_endless", eos_gain=0.0)
