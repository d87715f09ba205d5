"""The chain of one stream: neutral by default, any chunking, other settings from a line on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_lib.speech.audio.chain import AudioChain
from engine_lib.speech.audio.settings import AudioSettings
from engine_lib.speech.audio.stage import joined
from speech.audio.sounds import RATE, speech, through

ALL = AudioSettings(sample_rate=16000, speed=1.3, volume_db=-3.0, trim_silence=True, fade_ms=5)


def test_a_neutral_chain_passes_the_very_arrays() -> None:
    chain, piece = AudioChain(AudioSettings(), RATE), speech()[:1920]
    assert chain.process(piece) is piece
    assert chain.finish(is_cut=True).size == 0


@settings(max_examples=15, deadline=None)
@given(borders=st.lists(st.integers(0, 20000), max_size=10))
def test_every_chunking_gives_the_same_samples(borders: list[int]) -> None:
    source = speech()[:20000]
    whole = through(AudioChain(ALL, RATE), source, [])
    np.testing.assert_allclose(through(AudioChain(ALL, RATE), source, borders), whole, atol=2e-5)


def test_speed_and_rate_give_the_exact_number_of_samples() -> None:
    for rate, speed in ((8000, 0.5), (16000, 1.25), (48000, 2.0)):
        chain = AudioChain(AudioSettings(sample_rate=rate, speed=speed), RATE)
        assert through(chain, speech()).size == pytest.approx(speech().size / speed * rate / RATE, abs=1)
        assert chain.sample_rate == rate


def test_too_loud_samples_are_cut_off_and_counted() -> None:
    chain = AudioChain(AudioSettings(volume_db=20.0), RATE)
    louder = through(chain, speech())
    assert np.abs(louder).max() == 1
    assert chain.clipped_samples == np.count_nonzero(np.abs(speech() * np.float32(10)) > 1) > 0


def test_a_line_has_settings_of_its_own_and_no_speed_changes_a_pause() -> None:
    chain = AudioChain(AudioSettings(speed=2.0), RATE)
    pieces = [chain.process(speech()), chain.silence(0.5), chain.next_line(AudioSettings(volume_db=-6.0))]
    first = sum(piece.size for piece in pieces)
    assert first == speech().size // 2 + RATE // 2
    pieces += [chain.process(speech()), chain.next_line(AudioSettings(speed=0.5)), chain.process(speech()), chain.finish()]
    result = joined(pieces)
    assert result.size == first + speech().size + 2 * speech().size
    assert not result[first - RATE // 2 : first].any()
    np.testing.assert_allclose(result[first : first + speech().size], speech() * 10 ** (-6 / 20), rtol=1e-5)


def test_lines_share_one_resampler_so_that_no_border_clicks() -> None:
    chain, whole = AudioChain(AudioSettings(sample_rate=16000), RATE), AudioChain(AudioSettings(sample_rate=16000), RATE)
    half = speech().size // 2
    pieces = [chain.process(speech()[:half]), chain.next_line(AudioSettings()), chain.process(speech()[half:]), chain.finish()]
    np.testing.assert_allclose(joined(pieces), through(whole, speech(), []), atol=2e-5)


def test_a_chain_says_when_a_moment_is_heard() -> None:
    chain = AudioChain(AudioSettings(speed=2.0, trim_silence=True, sample_rate=16000), RATE)
    late = np.concatenate([np.zeros(RATE, np.float32), speech()])
    begin = int(np.argmax(np.abs(speech()) > 0.01)) / RATE  # of the sound
    pieces = [chain.process(late)]
    assert chain.heard_at(1.0 + begin) == pytest.approx(0.015, abs=0.01)
    assert chain.heard_at(2.0 + begin) == pytest.approx(0.515, abs=0.01)
    pieces += [chain.next_line(AudioSettings(sample_rate=16000)), chain.silence(0.5)]
    second = late.size / RATE + 0.5  # when the second line begins
    assert chain.heard_at(second) == pytest.approx((speech().size / RATE - begin + 0.03) / 2 + 0.5, abs=0.01)
    pieces += [chain.process(speech()), chain.finish()]
    assert joined(pieces).size / 16000 == pytest.approx(chain.heard_at(second + speech().size / RATE), abs=0.001)
    assert chain.heard_at(2.0 + begin) == pytest.approx(0.515, abs=0.01)  # of the first line, later


@pytest.mark.parametrize("is_cut", [True, False])
def test_only_a_cut_stream_fades(is_cut: bool) -> None:
    chain = AudioChain(AudioSettings(fade_ms=5), RATE)
    loud = np.full(RATE, 0.5, np.float32)
    result = joined([chain.process(loud), chain.finish(is_cut=is_cut)])
    assert result.size == loud.size
    assert (abs(result[-1]) < 0.001) == is_cut
