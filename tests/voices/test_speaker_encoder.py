"""Speaker embeddings equal the official ones, in any batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from librosa.filters import mel

from engine_lib.checkpoint import Checkpoint
from engine_lib.errors import CheckpointError
from engine_lib.voices.speaker_encoder import HOP, MAX_FREQUENCY, N_FFT, SAMPLE_RATE, LogMel, SpeakerEncoder
from make_checkpoint import make_checkpoint
from oracle import load_official
from voices.recordings import fresh_seed, recordings

TOLERANCE = 1e-4
CPU = torch.device("cpu")


def load(folder: Path) -> SpeakerEncoder:
    checkpoint = Checkpoint(folder)
    assert checkpoint.config.speaker_encoder is not None
    return SpeakerEncoder(checkpoint.weights(), checkpoint.config.speaker_encoder, device=CPU)


@torch.inference_mode()
def embed(encoder: SpeakerEncoder, audio: list[npt.NDArray[np.float32]]) -> torch.Tensor:
    return encoder([torch.from_numpy(clip) for clip in audio])


def official(folder: Path, audio: list[npt.NDArray[np.float32]]) -> torch.Tensor:
    model = load_official(folder).model
    return torch.stack([model.extract_speaker_embedding(audio=clip, sr=SAMPLE_RATE) for clip in audio])


@pytest.fixture(scope="module")
def other_shapes(checkpoints: Path) -> Path:
    """Return a checkpoint whose speaker encoder differs from the tiny one in every size, and has more blocks."""
    sizes = {
        "talker_config.hidden_size": 96,
        "speaker_encoder_config.mel_dim": 128,
        "speaker_encoder_config.enc_channels": [24, 24, 24, 24, 24, 96],
        "speaker_encoder_config.enc_kernel_sizes": [7, 5, 3, 3, 1, 3],
        "speaker_encoder_config.enc_dilations": [2, 1, 3, 5, 1, 2],
        "speaker_encoder_config.enc_attention_channels": 12,
        "speaker_encoder_config.enc_res2net_scale": 4,
        "speaker_encoder_config.enc_se_channels": 20,
    }
    return make_checkpoint(checkpoints / "other_speaker_encoder", kind="base", seed=11, overrides=sizes)


def test_the_mel_filters_are_those_of_librosa():
    expected = mel(sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=128, fmin=0, fmax=MAX_FREQUENCY)
    np.testing.assert_allclose(LogMel(128, CPU).filters.T, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shapes", ["tiny_base", "other_shapes"])
@pytest.mark.parametrize("seconds", [1.0, 1.00001, 3.3, 20.0])
def test_x_vectors_equal_the_official_ones(request: pytest.FixtureRequest, shapes: str, seconds: float):
    folder = request.getfixturevalue(shapes)
    audio = recordings(3, seconds)
    expected = official(folder, audio)
    assert expected.std() > 0.1, "the comparison would say nothing"
    torch.testing.assert_close(embed(load(folder), audio), expected, rtol=0, atol=TOLERANCE)


def test_batch_mates_of_other_lengths_change_nothing(other_shapes: Path):
    seed = fresh_seed()
    rng = np.random.default_rng(seed)
    audio = recordings(seed, *rng.uniform(1, 6, 5), 1.0, 1.0 + 1 / SAMPLE_RATE, 1.0 + HOP / SAMPLE_RATE)
    encoder = load(other_shapes)
    together = embed(encoder, audio)
    torch.testing.assert_close(together, torch.cat([embed(encoder, [clip]) for clip in audio]), rtol=0, atol=1e-5)
    torch.testing.assert_close(together, official(other_shapes, audio), rtol=0, atol=TOLERANCE)


def test_a_speaker_encoder_that_does_not_fit_is_refused_by_field(checkpoints: Path):
    for field, value, message in (
        ("sample_rate", 16000, "sample_rate is 16000; only 24000"),
        ("enc_kernel_sizes", [5, 3], "need one length"),
        ("enc_dilations", [1, 2, 3, 4, "1"], "whole numbers from 1 to"),
    ):
        folder = make_checkpoint(checkpoints / f"bad_{field}", kind="base")
        config = folder / "config.json"
        values = json.loads(config.read_text())
        values["speaker_encoder_config"][field] = value
        config.write_text(json.dumps(values))
        with pytest.raises(CheckpointError, match=message):
            Checkpoint(folder)
