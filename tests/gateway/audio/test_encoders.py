"""Every format against its source: length, quality, the first bytes, any chunking; with two decoders."""

from __future__ import annotations

import gc
import io
import os
import threading

import numpy as np
import psutil
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audio.decoding import (
    RATE,
    SNDFILE_HAS_NO,
    at_rate,
    chord,
    decoded,
    decoded_by_sndfile,
    encoded,
    signal_to_noise,
    speech,
)
from qwen3_tts_gateway.audio import FORMATS, make_encoder
from qwen3_tts_gateway.audio.encoders import Samples
from qwen3_tts_gateway.audio.formats import bit_rates

NAMES = sorted(FORMATS)
LOSSY = ("mp3", "opus", "aac")
DECLARE_THEIR_LENGTH = [name for name in NAMES if name not in ("mp3", "aac")]
LOWEST_DB = {"mp3": 20.0, "opus": 20.0, "aac": 20.0, "mulaw": 30.0, "alaw": 30.0, "flac": 80.0, "wav": 80.0, "pcm": 80.0}
SPEECH = speech()
QUARTER = SPEECH[: RATE // 4]
EMPTY = SPEECH[:0]


def expected(source: Samples, name: str, sample_rate: int, decoded_rate: int) -> Samples:
    """The source as the decoder should give it: through the encoder's rate, at the decoder's."""
    rate = make_encoder(name, sample_rate).sample_rate
    at_encoder = at_rate(source, rate)
    return soxr.resample(at_encoder, rate, decoded_rate) if decoded_rate != rate else at_encoder


@pytest.mark.parametrize("source", [SPEECH, chord()], ids=["speech", "chord"])
@pytest.mark.parametrize(("name", "sample_rate"), [(name, rate) for name in NAMES for rate in sorted({FORMATS[name].default_rate, 8000})])
def test_decoded_speech_has_the_length_and_the_sound_of_the_source(name: str, sample_rate: int, source: Samples) -> None:
    data = encoded(name, [source], sample_rate)
    audio, rate = decoded(name, data, sample_rate)
    wanted = expected(source, name, sample_rate, rate)
    behind = audio.size - wanted.size - FORMATS[name].priming
    assert behind == 0 if name in DECLARE_THEIR_LENGTH else 0 <= behind < 1152
    spoken = audio[FORMATS[name].priming :][: wanted.size]
    assert signal_to_noise(wanted, spoken) > LOWEST_DB[name]


@pytest.mark.parametrize("name", ["mp3", "aac"])
def test_every_legal_rate_encodes_with_the_stated_priming(name: str) -> None:
    for rate in FORMATS[name].rates:
        audio, _ = decoded(name, encoded(name, [SPEECH], rate))
        wanted = expected(SPEECH, name, rate, rate)
        assert signal_to_noise(wanted, audio[FORMATS[name].priming :][: wanted.size]) > LOWEST_DB[name]


@pytest.mark.parametrize("rate", [11025, 22050, 44100, 48000])
@pytest.mark.parametrize("name", ["opus", "wav", "flac"])
def test_other_rates_keep_the_length_to_the_sample(name: str, rate: int) -> None:
    audio, decoded_rate = decoded(name, encoded(name, [SPEECH], rate))
    assert audio.size == SPEECH.size * decoded_rate / RATE
    assert decoded_rate == (48000 if name == "opus" else rate)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SNDFILE_HAS_NO])
def test_a_second_decoder_agrees(name: str) -> None:
    data = encoded(name, [SPEECH])
    wanted = expected(SPEECH, name, FORMATS[name].default_rate, FORMATS[name].default_rate)
    audio, rate = decoded_by_sndfile(name, data)
    assert rate == FORMATS[name].default_rate
    assert audio.size == wanted.size or name == "mp3"
    assert signal_to_noise(wanted, audio[FORMATS[name].priming :][: wanted.size]) > LOWEST_DB[name]


@pytest.mark.parametrize("name", LOSSY)
def test_a_bit_rate_changes_the_size_as_it_says(name: str) -> None:
    rate = FORMATS[name].default_rate
    sizes = []
    for bits in (32_000, 96_000):
        assert bits in bit_rates(name, rate)
        encoder = make_encoder(name, rate, bit_rate=bits)
        sizes.append(len(encoder.encode(SPEECH) + encoder.finish()) * 8 / (SPEECH.size / RATE))
    # Opus varies its rate and has 11 kbit/s of page headers.
    assert 0.8 * 32_000 < sizes[0] < 1.8 * 32_000
    assert 0.8 * 96_000 < sizes[1] < 1.5 * 96_000


@pytest.mark.parametrize("name", NAMES)
def test_audio_leaves_after_100_ms_of_speech_and_goes_on_leaving(name: str) -> None:
    encoder = make_encoder(name, FORMATS[name].default_rate)
    header = encoder.encode(EMPTY)
    source = at_rate(SPEECH, encoder.sample_rate)
    first = encoder.encode(source[: encoder.sample_rate // 10])
    assert len(first) > 0
    before_the_end = header + first + encoder.encode(source[encoder.sample_rate // 10 :])
    audio, rate = decoded(name, before_the_end)
    assert audio.size / rate > SPEECH.size / RATE - 0.15
    encoder.finish()


chunkings = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 4000)), min_size=1, max_size=12)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(sizes=chunkings, sample_rate=st.sampled_from([8000, 22050, 24000, 48000]))
def test_any_chunking_gives_the_same(name: str, sizes: list[int], sample_rate: int) -> None:
    rate = sample_rate if sample_rate in FORMATS[name].rates else FORMATS[name].default_rate
    source = SPEECH[RATE : RATE + sum(sizes)]
    chunks = np.split(source, np.cumsum(sizes)[:-1])
    whole, parts = encoded(name, [source], rate), encoded(name, chunks, rate)
    if name == "opus":  # each Ogg stream has a serial number of its own
        assert np.array_equal(decoded(name, whole)[0], decoded(name, parts)[0])
    else:
        assert whole == parts


@pytest.mark.parametrize("name", NAMES)
def test_single_samples_give_the_same_as_one_chunk(name: str) -> None:
    source = SPEECH[RATE : RATE + 3000]
    whole, singles = encoded(name, [source]), encoded(name, np.split(source, source.size))
    assert len(whole) == len(singles)
    assert np.array_equal(decoded(name, whole)[0], decoded(name, singles)[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [0, 1, 2, 959, 961])
def test_the_shortest_utterances_are_whole_files(name: str, length: int) -> None:
    data = encoded(name, [SPEECH[RATE : RATE + length]], RATE if RATE in FORMATS[name].rates else None)
    audio, rate = decoded(name, data)
    if name in DECLARE_THEIR_LENGTH:
        assert audio.size == round(length * rate / RATE)
    else:
        assert (audio.size >= FORMATS[name].priming + length) if length else data == b""


@pytest.mark.parametrize("name", NAMES)
def test_a_minute_in_one_chunk_is_taken(name: str) -> None:
    minute = np.tile(SPEECH, 17)
    audio, rate = decoded(name, encoded(name, [minute]))
    assert abs(audio.size / rate - minute.size / RATE) < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_samples_that_are_no_sound_are_clipped_or_silent(name: str) -> None:
    bad = QUARTER.copy()
    bad[::7], bad[1::7], bad[2::7], bad[3::7] = np.nan, np.inf, -np.inf, 5.0
    good = QUARTER.copy()
    good[::7], good[1::7], good[2::7], good[3::7] = 0.0, 1.0, -1.0, 1.0
    responses = []
    for samples in (bad, good):
        encoder = make_encoder(name, FORMATS[name].default_rate)
        responses.append(encoder.encode(samples) + encoder.finish())
    of_bad, of_good = (decoded(name, response)[0] for response in responses)
    assert np.array_equal(of_bad, of_good)


def test_loud_speech_that_swings_over_when_resampled_is_clipped_not_wrapped() -> None:
    square = np.sign(np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)
    audio, _ = decoded("pcm", encoded("pcm", [square], 44100), 44100)
    steps = np.abs(np.diff(np.sign(audio)))
    assert 2 * 440 - 4 <= np.count_nonzero(steps > 1) <= 2 * 440 + 4  # a sample that wraps would change its sign


def test_encoders_of_many_threads_do_not_disturb_each_other() -> None:
    wanted = {name: decoded(name, encoded(name, [QUARTER]))[0] for name in NAMES}
    found: list[tuple[str, Samples]] = []

    def encode_all() -> None:
        found.extend((name, decoded(name, encoded(name, np.array_split(QUARTER, 9)))[0]) for name in NAMES)

    threads = [threading.Thread(target=encode_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 * len(NAMES)
    assert all(np.array_equal(audio, wanted[name]) for name, audio in found)


def test_encoders_that_are_dropped_leave_no_memory_behind() -> None:
    def drop(count: int) -> None:
        for _ in range(count):
            for name in NAMES:
                make_encoder(name, 8000).encode(QUARTER[:1000])
        gc.collect()

    drop(5)
    before = psutil.Process().memory_info().rss
    drop(40)
    assert psutil.Process().memory_info().rss - before < 40e6  # 320 encoders; one of mp3 has 0.3 MB


def thread_ids() -> set[int]:
    return {thread.id for thread in psutil.Process().threads()}


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_starts_no_threads_and_leaves_the_processors_as_they_are(name: str) -> None:
    allowed, threads = os.sched_getaffinity(0), thread_ids()
    encoder = make_encoder(name, FORMATS[name].default_rate)
    encoder.encode(QUARTER)
    assert os.sched_getaffinity(0) == allowed
    assert thread_ids() <= threads  # one of another test may end meanwhile


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_encoder_takes_no_more(name: str) -> None:
    encoder = make_encoder(name, FORMATS[name].default_rate)
    encoder.encode(QUARTER)
    encoder.finish()
    assert encoder.finish() == b""
    with pytest.raises(ValueError, match="finished"):
        encoder.encode(QUARTER)


def test_samples_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[2, 5\] is not allowed"):
        make_encoder("pcm", RATE).encode(np.zeros((2, 5), np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_file_declares_its_length_and_leaves_at_the_end(name: str) -> None:
    encoder = make_encoder(name, FORMATS[name].default_rate, is_whole=True)
    assert [encoder.encode(part) for part in np.array_split(at_rate(SPEECH, encoder.sample_rate), 5)] == [b""] * 5
    data = encoder.finish()
    assert encoder.finish() == b""
    audio, rate = decoded(name, data)
    wanted = expected(SPEECH, name, FORMATS[name].default_rate, rate)
    if name == "aac":  # ADTS has no header
        assert audio.size >= wanted.size + encoder.priming
    else:
        assert (audio.size, encoder.priming) == (wanted.size, 0)
    if name in ("wav", "flac", "mp3"):
        assert soundfile.info(io.BytesIO(data)).frames == SPEECH.size
