"""Reference audio equals the input of the official encoders; unusable recordings are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from engine_lib.errors import InvalidRequestError
from engine_lib.voices.reference_audio import SAMPLE_RATE, checked_reference_audio
from oracle import load_official


def checked(samples: Any, rate: Any = SAMPLE_RATE, min_seconds: float = 1.0, max_seconds: float = 30.0) -> npt.NDArray[np.float32]:
    return checked_reference_audio(samples, rate, min_seconds=min_seconds, max_seconds=max_seconds)


def speechlike(seconds: float, rate: int, channels: int = 1) -> npt.NDArray[np.float32]:
    """Noise and a tone, of another phase and level in each channel: [samples] or [samples, channels]."""
    time = np.arange(round(seconds * rate)) / rate
    rng = np.random.default_rng(round(seconds * 1000) + rate + channels)
    waves = [0.3 * np.sin(2 * np.pi * 220 * time + i) + 0.1 * rng.standard_normal(len(time)) for i in range(channels)]
    return np.stack(waves, axis=-1).squeeze().astype(np.float32).clip(-1, 1)


def refusal(samples: Any, rate: Any = SAMPLE_RATE, **limits: Any) -> str:
    """Return the message with which a recording is refused; it must name the field."""
    with pytest.raises(InvalidRequestError) as refused:
        checked(samples, rate, **limits)
    assert refused.value.field == "reference_audio"
    return str(refused.value)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [1.0, 2.34567, 20.0])
def test_audio_equals_that_of_the_official_package(tiny_base: Path, tmp_path: Path, seconds: float, rate: int, channels: int):
    audio = speechlike(seconds, rate, channels)
    soundfile.write(tmp_path / "reference.wav", audio, rate, subtype="FLOAT")
    official = load_official(tiny_base)
    [(loaded, loaded_rate)] = official._normalize_audio_inputs(str(tmp_path / "reference.wav"))
    [expected] = official.model.speech_tokenizer._normalize_audio_inputs(loaded, sr=loaded_rate)

    actual = checked(audio, rate)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 32_000, 96_000, 192_000])
def test_every_rate_gives_the_duration_it_had(rate: int):
    # half a sample of the recording is up to 1.5 samples of the result, which is rounded up
    assert abs(len(checked(speechlike(1.5, rate), rate)) - 1.5 * SAMPLE_RATE) <= 2


def test_sample_formats_of_one_recording_agree():
    audio = speechlike(1.0, SAMPLE_RATE)
    for given, tolerance in (
        (audio.astype(np.float64), 0),
        (audio[:, None], 0),
        (audio.tolist(), 0),
        (audio.astype(np.float16), 1e-3),
        ((audio * 2**15).astype(np.int16), 2**-15),
        ((audio * 2.0**31).astype(np.int32), 1e-7),
    ):
        actual = checked(given)
        assert actual.flags.c_contiguous
        np.testing.assert_allclose(actual, audio, rtol=0, atol=tolerance)


def test_the_callers_samples_are_left_alone():
    audio = speechlike(1.0, SAMPLE_RATE)
    checked(audio)[:] = 0
    assert audio.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_sample_that_is_no_number_is_refused(value: float):
    audio = speechlike(1.0, 16_000)
    audio[777] = value
    assert "NaN or infinite" in refusal(audio, 16_000)


def test_a_float64_sample_beyond_float32_is_refused():
    audio = speechlike(1.0, 16_000).astype(np.float64)
    audio[777] = 1e300
    assert "NaN or infinite" in refusal(audio, 16_000)


def test_silence_is_refused():
    audio = speechlike(1.0, 16_000)
    assert "silent" in refusal(np.zeros_like(audio), 16_000)
    assert "silent" in refusal(audio * 1e-3, 16_000)
    assert "silent" in refusal(np.stack([audio, -audio], 1), 16_000)  # channels that cancel


def test_a_clipped_recording_is_refused_and_a_loud_one_is_not():
    tone = np.sin(np.arange(SAMPLE_RATE) * 0.05)
    assert "is clipped: " in refusal((2 * tone).clip(-1, 1))
    assert "is clipped: " in refusal((3 * tone * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16))
    assert "is clipped: " in refusal(np.stack([(4 * tone).clip(-1, 1), 0.1 * tone], 1))
    checked(tone)
    checked(1.2 * tone)


def test_floats_on_the_scale_of_integers_are_refused():
    message = refusal(speechlike(1.0, SAMPLE_RATE) * 2**16)
    assert "reaches " in message
    assert "give floats in -1..1" in message


@pytest.mark.parametrize("shape", [(), (1, 24_000), (24_000, 9), (24_000, 0), (2, 12_000, 2)])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]):
    assert f"has shape {shape}" in refusal(np.full(shape, 0.5, np.float32))


@pytest.mark.parametrize("samples", [["a", "b"], [0.5 + 1j] * 24_000, np.full(24_000, 128, np.uint8), [True] * 24_000, None])
def test_what_holds_no_samples_is_refused(samples: Any):
    assert "has dtype" in refusal(samples)


def test_rows_of_different_lengths_are_refused():
    assert "is not an array" in refusal([[0.5], [0.5, 0.5]])


def test_durations_outside_the_limits_are_refused():
    assert "lasts 0.00 s" in refusal(np.zeros(0, np.float32))
    assert "lasts 0.99 s (15840 samples at 16000 Hz); give 1 to 30 s" in refusal(speechlike(0.99, 16_000), 16_000)
    assert "lasts 30.01 s" in refusal(np.broadcast_to(np.float32(0.5), 480_160), 16_000)
    assert "give 2 to 3.5 s" in refusal(speechlike(1.0, SAMPLE_RATE), min_seconds=2.0, max_seconds=3.5)


@pytest.mark.parametrize("rate", [0, -24_000, 7_999, 192_001, 24_000.0, "24000", None, True, np.nan])
def test_a_bad_rate_is_refused(rate: Any):
    assert "sample rate" in refusal(speechlike(1.0, SAMPLE_RATE), rate)


def test_errors_use_the_field_name_of_the_caller():
    with pytest.raises(InvalidRequestError, match=r"^ref_audio: is silent"):
        checked_reference_audio(np.zeros(48_000, np.int16), 48_000, min_seconds=1, max_seconds=30, field="ref_audio")
