"""Recordings for the tests of the two encoders."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine_lib.voices.reference_audio import SAMPLE_RATE


def recordings(seed: int, *seconds: float) -> list[npt.NDArray[np.float32]]:
    """Noise under a random envelope, with a silent start, so that quiet and loud frames both count; 24 kHz."""
    rng = np.random.default_rng(seed)
    made = []
    for duration in seconds:
        samples = round(duration * SAMPLE_RATE)
        envelope = np.interp(np.arange(samples), np.linspace(0, samples, 12), rng.uniform(0, 0.3, 12))
        audio = rng.standard_normal(samples) * envelope
        audio[: samples // 10] = 0
        made.append(audio.clip(-1, 1).astype(np.float32))
    return made


def fresh_seed() -> int:
    """A new seed for each run, printed so that a failure can be repeated."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return seed
