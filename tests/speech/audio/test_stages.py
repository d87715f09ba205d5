"""Trim, gain, resampling, fades, encodings: exact, and the same for every chunking."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_lib.speech.audio.encoding import alaw, mulaw, pcm16
from engine_lib.speech.audio.fade import CutFade
from engine_lib.speech.audio.gain import Gain, clipped
from engine_lib.speech.audio.rate import Resampler
from engine_lib.speech.audio.stage import Samples
from engine_lib.speech.audio.trim import TrimSilence
from speech.audio.sounds import RATE, buzz, speech, through


@settings(max_examples=40, deadline=None)
@given(silence=st.integers(0, 12000), borders=st.lists(st.integers(0, 16000), max_size=10))
def test_leading_silence_goes_and_nothing_of_the_sound_with_any_chunking(silence: int, borders: list[int]) -> None:
    hiss = np.random.default_rng(0).standard_normal(silence).astype(np.float32) * 1e-4
    sound = np.concatenate([hiss, buzz(150.0, 0.1), np.zeros(1000, np.float32)])
    trimmed = through(TrimSilence(RATE), sound, borders)
    removed = sound.size - trimmed.size
    assert max(0, silence - 0.045 * RATE) <= removed <= max(0, silence - 0.015 * RATE)
    np.testing.assert_array_equal(trimmed, sound[removed:])


def test_silence_alone_leaves_nothing_and_a_short_sound_at_the_end_stays() -> None:
    assert through(TrimSilence(RATE), np.zeros(RATE, np.float32)).size == 0
    blip = np.zeros(RATE + 100, np.float32)
    blip[-50:] = 0.3
    np.testing.assert_array_equal(through(TrimSilence(RATE), blip)[-50:], blip[-50:])


@pytest.mark.parametrize("decibels", [-40, -6, 3, 20])
def test_a_gain_is_so_many_decibels_and_what_is_too_loud_is_cut_off_and_counted(decibels: float) -> None:
    louder = through(Gain(decibels), speech())
    np.testing.assert_allclose(louder, speech() * 10 ** (decibels / 20), rtol=1e-6)
    limited, outside = clipped(louder)
    assert np.abs(limited).max() <= 1
    assert outside == np.count_nonzero(np.abs(louder) > 1)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_a_resampled_stream_equals_the_whole_resampled(rate: int) -> None:
    whole = soxr.resample(speech(), RATE, rate)
    assert whole.size == round(speech().size * rate / RATE)
    for borders in ([777, 20000], None):
        np.testing.assert_allclose(through(Resampler(RATE, rate), speech(), borders), whole, atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(borders=st.lists(st.integers(0, 2000), max_size=8), is_cut=st.booleans(), length=st.integers(0, 2000))
def test_only_the_end_of_a_cut_stream_fades(borders: list[int], is_cut: bool, length: int) -> None:
    fade, source = CutFade(RATE, 5), speech()[10000 : 10000 + length]
    fade.is_cut = is_cut
    result = through(fade, source, borders)
    assert result.size == length
    np.testing.assert_array_equal(result[:-120] if is_cut else result, source[:-120] if is_cut else source)
    if is_cut and length > 120:
        assert abs(result[-1]) <= 0.001 * abs(source[-1])
        assert (np.abs(result[-120:]) <= np.abs(source[-120:])).all()


EVERY_SAMPLE = (np.arange(-32768, 32768) / 32767).astype(np.float32)


@pytest.mark.parametrize(("encode", "subtype"), [(pcm16, "PCM_16"), (mulaw, "ULAW"), (alaw, "ALAW")])
def test_every_sample_is_encoded_as_libsndfile_hears_it(encode: object, subtype: str) -> None:
    """Decoded by libsndfile, every sample is next to what it was, within half a step of G.711."""
    data = encode(EVERY_SAMPLE)  # type: ignore[operator]
    heard, _ = soundfile.read(io.BytesIO(data), dtype="float32", format="RAW", subtype=subtype, channels=1, samplerate=8000)
    steps = np.maximum(np.abs(EVERY_SAMPLE) / 16, 16 / 32768) if subtype != "PCM_16" else np.full(EVERY_SAMPLE.size, 2.1 / 32768)
    assert (np.abs(heard - EVERY_SAMPLE) <= steps).all()


def test_the_laws_of_telephony_are_exact() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        audioop = pytest.importorskip("audioop")  # Python has it up to 3.12
    integers = pcm16(EVERY_SAMPLE)
    assert mulaw(EVERY_SAMPLE) == audioop.lin2ulaw(integers, 2)
    assert alaw(EVERY_SAMPLE) == audioop.lin2alaw(integers, 2)


def test_no_samples_are_no_bytes() -> None:
    nothing: Samples = np.zeros(0, np.float32)
    assert pcm16(nothing) == mulaw(nothing) == alaw(nothing) == b""
