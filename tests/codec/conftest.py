"""Codec engines for tests, and a check against the official audio."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codec.listening import TOLERANCE, AssertOfficial, Audio, Codes, MakeEngine
from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.engine import CodecEngine
from engine_lib.config import EngineConfig
from oracle import official_decode


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator with a new seed for this run; pytest prints it when the test fails."""
    seed = secrets.randbits(32)
    print(f"seed = {seed}")
    return np.random.default_rng(seed)


@pytest.fixture
def make_engine(tiny_custom_voice: Path) -> Iterator[MakeEngine]:
    """Return a function that starts an engine with the given codec options; the fixture stops all of them.

    Every other one, by chance, answers a step after it has launched the next one, as on a GPU.
    """
    engines: list[CodecEngine] = []
    is_pipelined = bool(secrets.randbits(1))
    print(f"pipelined: {is_pipelined}")

    def make(slots: int = 4, start: bool = True, on_idle: Callable[[str], None] | None = None, **options: Any) -> CodecEngine:
        config = EngineConfig(device="cpu", max_num_seqs=1, codec_slots=slots, **options)
        engines.append(CodecEngine(Checkpoint(tiny_custom_voice), config, on_idle=on_idle))
        engines[-1]._pipelined = is_pipelined
        if start:
            engines[-1].start()
        return engines[-1]

    yield make
    for engine in engines:
        engine.shutdown()


@pytest.fixture
def assert_official(tiny_custom_voice: Path) -> AssertOfficial:
    """Return a check that audio equals one official un-chunked decode."""

    def check(audio: Audio, codes: Codes) -> None:
        expected = official_decode(tiny_custom_voice, torch.from_numpy(codes.astype(np.int64))).numpy()
        np.testing.assert_allclose(audio, expected, rtol=0, atol=TOLERANCE)

    return check
