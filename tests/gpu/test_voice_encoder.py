"""The voice encoders on a GPU: speaker embeddings and codes of the CPU, alone and in batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from voices.near_ties import assert_same_codes
from voices.recordings import fresh_seed, recordings
from voices.test_reference_encoder import load as load_reference_encoder

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.voices.encoder import Audio, EncodedVoice, VoiceEncoder
from engine_lib.voices.reference_audio import SAMPLE_RATE
from make_checkpoint import make_checkpoint
from patience import PATIENCE

pytestmark = pytest.mark.gpu

TEXT = "what is said"

# The encoders in their published sizes, with a tiny talker.
PUBLISHED = {
    "speaker_encoder_config.enc_channels": [512, 512, 512, 512, 1536],
    "speaker_encoder_config.enc_attention_channels": 128,
    "speaker_encoder_config.enc_se_channels": 128,
} | {
    f"speech_tokenizer.encoder_config.{name}": size
    for name, size in {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "codebook_dim": 256,
        "num_filters": 64,
        "upsample_groups": 512,
        "vector_quantization_hidden_dimension": 256,
    }.items()
}


@pytest.fixture(scope="module")
def published_encoders(checkpoints: Path) -> Path:
    """Return a base checkpoint with encoders of the published sizes."""
    return make_checkpoint(checkpoints / "published_encoders", kind="base", seed=4, overrides=PUBLISHED)


def voice_encoder(folder: Path, device: str) -> VoiceEncoder:
    return VoiceEncoder(Checkpoint(folder), EngineConfig(device=device, voice_cache_size=0))


def encode_all(encoder: VoiceEncoder, audio: list[Audio]) -> list[EncodedVoice]:
    """Encode all at once, so that they share batches on a GPU."""
    answers = [encoder.encode(clip, reference_text=TEXT) for clip in audio]
    return [EncodedVoice(item.ref_spk_embedding, item.ref_code) for item in (answer.result(PATIENCE) for answer in answers)]


@pytest.mark.parametrize("shapes", ["tiny_base", "published_encoders"])
def test_voices_equal_those_of_the_cpu_alone_and_in_batches(request: pytest.FixtureRequest, shapes: str) -> None:
    folder = request.getfixturevalue(shapes)
    seed = fresh_seed()
    longest = 12.0 if shapes == "published_encoders" else 30.0
    audio = recordings(seed, 1.0, 1.0 + 1 / SAMPLE_RATE, 10.04, longest, *np.random.default_rng(seed).uniform(1, 4, 12))
    on_cpu, on_gpu = voice_encoder(folder, "cpu"), voice_encoder(folder, "cuda")
    try:
        expected = encode_all(on_cpu, audio)
        alone = [encode_all(on_gpu, [clip])[0] for clip in audio]
        assert on_gpu.stats().num_batches == len(audio)
        together = encode_all(on_gpu, audio)
        assert on_gpu.stats().num_batches < 2 * len(audio), "nothing was batched"
    finally:
        on_cpu.shutdown()
        on_gpu.shutdown()
    reference = load_reference_encoder(folder)
    with torch.inference_mode():
        for clip, wanted, *voices in zip(audio, expected, alone, together, strict=True):
            for voice in voices:
                torch.testing.assert_close(voice.speaker_embedding, wanted.speaker_embedding, rtol=0, atol=1e-4)
                assert voice.codes is not None
                assert wanted.codes is not None
                assert_same_codes(reference, torch.from_numpy(clip), voice.codes, wanted.codes)


def test_the_encoders_run_on_a_stream_of_their_own_at_the_lowest_priority(tiny_base: Path) -> None:
    encoder = voice_encoder(tiny_base, "cuda")
    seen = []
    embed = encoder._speaker_encoder.forward

    def watched(clips: list[torch.Tensor]) -> torch.Tensor:
        seen.append(torch.cuda.current_stream())
        return embed(clips)

    encoder._speaker_encoder.forward = watched  # type: ignore[method-assign, assignment]
    try:
        encode_all(encoder, recordings(1, 1.0))
    finally:
        encoder.shutdown()
    assert seen == [encoder._stream]
    assert encoder._stream is not None
    assert encoder._stream != torch.cuda.default_stream()
    assert encoder._stream.priority == 0
