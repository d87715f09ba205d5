"""Voices to clone for tests: different random x-vectors and codes, and recordings for the encoders."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint_config import CheckpointConfig
from engine_lib.voices.clone_prompt import VoiceClonePromptItem


def random_voice(config: CheckpointConfig, seed: int, frames: int | None = None, text: str = "What is said.") -> VoiceClonePromptItem:
    """A different voice for each seed: in context of a reference of `frames` frames; None: x-vector only."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(config.talker.shape.hidden_size, generator=generator)
    if frames is None:
        return VoiceClonePromptItem(None, embedding, x_vector_only_mode=True, icl_mode=False, ref_text=text)
    codes = torch.randint(config.codec.codebook_size, (frames, config.talker.num_code_groups), generator=generator)
    return VoiceClonePromptItem(codes, embedding, x_vector_only_mode=False, icl_mode=True, ref_text=text)


def recording(seconds: float, rate: int, channels: int = 1) -> npt.NDArray[np.float32]:
    """Noise of changing loudness, [samples] or [samples, channels], neither silent nor clipped; it depends on all arguments."""
    rng = np.random.default_rng([int(seconds * 10), rate, channels])
    loudness = 0.1 * (1.2 + np.sin(np.arange(int(seconds * rate)) * (9 / rate)))
    noise: npt.NDArray[np.float32] = (rng.normal(size=(channels, len(loudness))) * 0.4 * loudness).T.astype(np.float32)
    return noise[:, 0] if channels == 1 else noise
