"""Streams of the shipped voice that run away: what is heard of them; and good speech gives no alarm."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from api.loading import GREEDY, load

from count_runaways import speak
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.api.speech_stream import SpeechChunk, SpeechStream
from engine_lib.errors import InvalidRequestError
from engine_lib.speech.runaway import REPEATS_IN_SPEECH, RUNAWAY_FRAMES, SILENCE_IN_SPEECH
from engine_lib.talker.engine import LaunchedFrames
from engine_lib.talker.output.runaway import RUNAWAYS
from engine_lib.talker.request import FinishReason
from engine_lib.talker.scheduler import Schedule
from engine_lib.talker.sequence import Sequence
from patience import eventually
from voice_in_the_box import VOICE_IN_THE_BOX

SAMPLES = 1920
TEXT, OTHER = "There is a small penguin in the window.", "Nice to meet you."
ONSET = 12  # the frame from which on a stream is bad
CHUNK = 4  # frames
LONG: dict[str, Any] = {"seed": 3, "max_frames": 80, "chunk_frames": [CHUNK]}

Audio = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int16]
BadFrame = Callable[[int], Codes]  # the codes of the bad frame with this number


@pytest.fixture(scope="module")
def tts() -> Iterator[Qwen3TTS]:
    with load(VOICE_IN_THE_BOX, max_num_seqs=4, max_model_len=300) as model:
        yield model


@pytest.fixture(scope="module")
def good(tts: Qwen3TTS) -> Audio:
    """The audio of TEXT."""
    return heard(tts.stream_custom_voice(TEXT, "ada", **LONG))[0]


@pytest.fixture(scope="module")
def silent_codes(tts: Qwen3TTS) -> Codes:
    """Codes of many frames that are silent in good speech."""
    codes = tts.generate_codes([TEXT, OTHER] * 2, ["ada", "ben"] * 2, seed=1)
    waves, _ = tts.decode(list(codes))
    silent = [one[np.abs(audio).reshape(len(one), -1).max(1) < 0.002] for one, audio in zip(codes, waves, strict=True)]
    return np.concatenate(silent)


def noise(period: int) -> BadFrame:
    rng = np.random.default_rng(period)
    pattern = rng.integers(0, 128, (period, 16)).astype(np.int16)
    pattern[:, 0] = np.arange(period)  # different from each other
    return lambda number: pattern[number % period]


def silence(codes: Codes) -> BadFrame:
    """Silent frames in an order that is no pattern."""
    rng = np.random.default_rng(0)
    order: list[int] = []
    while len(order) < 200:
        i = int(rng.integers(len(codes)))
        if codes[i, 0] not in codes[order[-3:], 0]:
            order.append(i)
    return lambda number: codes[order[number]]


@contextmanager
def running_away(tts: Qwen3TTS, bad: BadFrame, *, times: int = 1000, of: str = "") -> Iterator[None]:
    """From frame ONSET on, the streams of TEXT have bad frames instead of their own; until they have been spoken anew `times` times.

    `of`: only those with a key that ends so.

    The codec keeps up with the talker.
    """
    engine, launch, victims = tts._talker, tts._talker.launch, dict[Sequence, int]()

    def faulty(schedule: Schedule) -> Iterator[LaunchedFrames]:
        eventually(lambda: not tts._codec.stats().queued_chunks, "the codec has caught up")
        for frames in launch(schedule):
            for row, sequence in enumerate(frames.sequences):
                if sequence.request.sampling.max_frames == LONG["max_frames"] and sequence.request.stream_key.endswith(of):
                    victims.setdefault(sequence, sequence.num_preemptions)
                    if len(sequence.frames) >= ONSET and sequence.num_preemptions - victims[sequence] < times:
                        frames.result._codes[row] = torch.from_numpy(bad(len(sequence.frames) - ONSET))
            yield frames

    engine.launch = faulty  # type: ignore[method-assign]
    try:
        yield
    finally:
        engine.launch = launch  # type: ignore[method-assign]


def heard(stream: SpeechStream) -> tuple[Audio, str]:
    """The samples of a stream, which must be well formed, and its finish reason."""
    chunks = list(stream)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    audio = np.concatenate([chunk.audio for chunk in chunks])
    assert chunks[-1].samples_sent == len(audio)
    return audio, chunks[-1].finish_reason


def counts(tts: Qwen3TTS) -> dict[tuple[str, str], int]:
    return {(cause.value, outcome.value): n for (cause, outcome), n in zip(RUNAWAYS, tts._talker.stats().num_runaways, strict=True) if n}


def added(tts: Qwen3TTS, before: dict[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    return {key: n - before.get(key, 0) for key, n in counts(tts).items() if n > before.get(key, 0)}


DIALOGUE = [
    {"voice": "ada", "text": OTHER, "pause_ms": 0},
    {"voice": "ben", "text": TEXT, "pause_ms": 300},
    {"voice": "ada", "text": OTHER, "pause_ms": 300},
]
SCRIPT: dict[str, Any] = LONG | {"text_format": "dialogue", "timestamps": "word"}


def dialogue(tts: Qwen3TTS, **options: Any) -> list[SpeechChunk]:
    """The chunks of a script, which must be well formed: numbered, with words in their order and within the audio of their lines."""
    chunks = list(tts.stream_custom_voice(json.dumps(DIALOGUE), "ada", **SCRIPT, **options))
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert chunks[-1].samples_sent == sum(len(chunk.audio) for chunk in chunks)
    words = [word for chunk in chunks for word in chunk.words]
    times = [time for word in words for time in (word.start, word.end)]
    assert [word.start for word in words] == sorted(word.start for word in words)
    assert max(times) <= chunks[-1].samples_sent / 24000 + 1e-3
    return chunks


@pytest.fixture(scope="module")
def well(tts: Qwen3TTS) -> list[SpeechChunk]:
    """The chunks of a script in which nothing goes wrong."""
    return dialogue(tts)


def of_line(chunks: list[SpeechChunk], line: int) -> Audio:
    """Its audio, without pauses."""
    return np.concatenate([chunk.audio for chunk in chunks if chunk.line == line and not chunk.is_pause])


def said(chunks: list[SpeechChunk]) -> list[str]:
    return [word.word for chunk in chunks for word in chunk.words]


def test_a_line_of_a_script_that_stays_silent_ends_alone(tts: Qwen3TTS, well: list[SpeechChunk], silent_codes: Codes) -> None:
    before = counts(tts)
    with running_away(tts, silence(silent_codes), of=".2"):
        chunks = dialogue(tts, on_runaway="stop")
    assert (chunks[-1].finish_reason, chunks[-1].metadata["cut_lines"]) == ("runaway", [2])
    assert added(tts, before) == {("silence", "stopped"): 1}
    for line in (1, 3):
        heard, alone = of_line(chunks, line), of_line(well, line)
        np.testing.assert_allclose(heard[-len(alone) :], alone, atol=1e-5, rtol=0)
    cut, whole = of_line(chunks, 2), of_line(well, 2)
    assert len(cut) <= (ONSET + 2 + SILENCE_IN_SPEECH) * SAMPLES
    np.testing.assert_allclose(cut[: ONSET * SAMPLES], whole[: ONSET * SAMPLES], atol=1e-5, rtol=0)
    # The words of the last line count from where it is heard.
    ends = [[word for chunk in spoken for word in chunk.words][-1] for spoken in (chunks, well)]
    assert ends[0].word == ends[1].word == "you"
    seconds_less = (well[-1].samples_sent - chunks[-1].samples_sent) / 24000
    assert ends[0].start == pytest.approx(ends[1].start - seconds_less, abs=0.01)


def test_a_line_of_a_script_is_spoken_anew_and_every_word_comes_once(tts: Qwen3TTS, well: list[SpeechChunk], silent_codes: Codes) -> None:
    before = counts(tts)
    with running_away(tts, silence(silent_codes), times=1, of=".2"):
        chunks = dialogue(tts, on_runaway="retry")
    assert chunks[-1].finish_reason == "stop"
    assert added(tts, before) == {("silence", "retried"): 1}
    assert said(chunks) == said(well) == f"{OTHER} {TEXT} {OTHER}".replace(".", "").split()
    for line in (1, 3):
        heard, alone = of_line(chunks, line), of_line(well, line)
        np.testing.assert_allclose(heard[-len(alone) :], alone, atol=1e-5, rtol=0)
    assert np.sqrt((of_line(chunks, 2)[(ONSET + 2 + SILENCE_IN_SPEECH) * SAMPLES :] ** 2).mean()) > 0.02


def test_silence_of_a_script_is_heard_whole_if_that_is_wanted(tts: Qwen3TTS, silent_codes: Codes) -> None:
    before = counts(tts)
    with running_away(tts, silence(silent_codes), of=".2"):
        chunks = dialogue(tts, on_runaway="off")
    assert (chunks[-1].finish_reason, chunks[-1].metadata["cut_lines"]) == ("length", [2])
    assert len(of_line(chunks, 2)) == LONG["max_frames"] * SAMPLES
    assert added(tts, before) == {}


@pytest.mark.parametrize("on_runaway", ["stop", "retry"])
def test_words_are_those_of_the_speech_that_is_heard(tts: Qwen3TTS, silent_codes: Codes, on_runaway: str) -> None:
    with running_away(tts, silence(silent_codes), times=1):
        chunks = list(tts.stream_custom_voice(TEXT, "ada", on_runaway=on_runaway, timestamps="word", **LONG))
    words = [word for chunk in chunks for word in chunk.words]
    everything = TEXT.removesuffix(".").split()
    if on_runaway == "retry":
        assert (chunks[-1].finish_reason, [word.word for word in words]) == ("stop", everything)
    else:
        assert chunks[-1].finish_reason == "runaway"
        assert 3 < len(words) <= len(everything)
        assert [word.word for word in words] == everything[: len(words)]
    assert [word.start for word in words] == sorted(word.start for word in words)
    assert max(word.end for word in words) <= sum(len(chunk.audio) for chunk in chunks) / 24000 + 1e-3


@pytest.mark.parametrize("period", [1, 8])
def test_noise_that_repeats_ends_within_two_seconds_and_others_do_not_notice(tts: Qwen3TTS, good: Audio, period: int) -> None:
    before = counts(tts)
    alone, _ = heard(tts.stream_custom_voice(OTHER, "ben", seed=5))
    with running_away(tts, noise(period)):
        other = tts.stream_custom_voice(OTHER, "ben", seed=5)
        audio, reason = heard(tts.stream_custom_voice(TEXT, "ada", on_runaway="stop", **LONG))
        np.testing.assert_allclose(heard(other)[0], alone, atol=1e-5, rtol=0)
    assert reason == "runaway"
    assert ONSET * SAMPLES <= len(audio) <= (ONSET + period + REPEATS_IN_SPEECH) * SAMPLES
    np.testing.assert_allclose(audio[: ONSET * SAMPLES], good[: ONSET * SAMPLES], atol=1e-5, rtol=0)
    assert added(tts, before) == {("repetition", "stopped"): 1}


def test_of_silence_only_a_short_pause_is_heard(tts: Qwen3TTS, good: Audio, silent_codes: Codes) -> None:
    before = counts(tts)
    with running_away(tts, silence(silent_codes)):
        audio, reason = heard(tts.stream_custom_voice(TEXT, "ada", on_runaway="stop", **LONG))
    assert reason == "runaway"
    assert len(audio) <= (ONSET + 2 + SILENCE_IN_SPEECH) * SAMPLES  # two frames in which the sound dies away
    np.testing.assert_allclose(audio[: ONSET * SAMPLES], good[: ONSET * SAMPLES], atol=1e-5, rtol=0)
    assert added(tts, before) == {("silence", "stopped"): 1}


@pytest.mark.parametrize("kind", ["noise", "silence"])
def test_a_retry_goes_on_behind_what_was_heard(tts: Qwen3TTS, good: Audio, silent_codes: Codes, kind: str) -> None:
    before = counts(tts)
    bad, cause = (noise(1), "repetition") if kind == "noise" else (silence(silent_codes), "silence")
    with running_away(tts, bad, times=1):
        audio, reason = heard(tts.stream_custom_voice(TEXT, "ada", on_runaway="retry", **LONG))
    assert reason == "stop"
    assert added(tts, before) == {(cause, "retried"): 1}
    np.testing.assert_allclose(audio[: ONSET * SAMPLES], good[: ONSET * SAMPLES], atol=1e-5, rtol=0)
    rest = audio[(ONSET + 2 + SILENCE_IN_SPEECH) * SAMPLES :]
    assert np.sqrt((rest**2).mean()) > 0.02  # speech, and it came to its end


def test_a_retry_is_the_audio_of_its_codes(tts: Qwen3TTS, silent_codes: Codes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The codec goes on behind the good frames, as if there had been no others."""
    kept: list[Codes] = []
    finish = Sequence.finish

    def keeping(sequence: Sequence, reason: FinishReason, error: str = "") -> None:
        kept.append(np.array(sequence.frames))
        finish(sequence, reason, error)

    monkeypatch.setattr(Sequence, "finish", keeping)
    with running_away(tts, silence(silent_codes), times=1):
        audio, _ = heard(tts.stream_custom_voice(TEXT, "ada", on_runaway="retry", **LONG))
    [[whole], _] = tts.decode(kept[-1])
    np.testing.assert_allclose(audio, whole, atol=1e-5, rtol=0)


def test_after_two_retries_it_is_stopped(tts: Qwen3TTS, silent_codes: Codes) -> None:
    before = counts(tts)
    for bad in (noise(2), silence(silent_codes)):
        with running_away(tts, bad):
            audio, reason = heard(tts.stream_custom_voice(TEXT, "ada", on_runaway="retry", **LONG))
        assert reason == "runaway"
        assert len(audio) < (ONSET + 3 * (REPEATS_IN_SPEECH + 2)) * SAMPLES
    stopped = {("repetition", "retried"): 2, ("repetition", "stopped"): 1, ("silence", "retried"): 2, ("silence", "stopped"): 1}
    assert added(tts, before) == stopped


def test_greedy_speech_is_not_spoken_anew_because_it_would_be_the_same(tts: Qwen3TTS) -> None:
    before = counts(tts)
    with running_away(tts, noise(1)):
        assert heard(tts.stream_custom_voice(TEXT, "ada", on_runaway="retry", **LONG, **GREEDY))[1] == "runaway"
    assert added(tts, before) == {("repetition", "stopped"): 1}


def test_in_a_process_nothing_is_stopped_unless_asked_for(tts: Qwen3TTS, silent_codes: Codes) -> None:
    before, chosen = counts(tts), {"seed": LONG["seed"], "max_frames": LONG["max_frames"]}
    with running_away(tts, noise(1)):
        [codes] = tts.generate_codes(TEXT, "ada", **chosen)
    with running_away(tts, silence(silent_codes)):
        [audio], _ = tts.generate_custom_voice(TEXT, "ada", **chosen)
    assert len(codes) * SAMPLES == len(audio) == LONG["max_frames"] * SAMPLES
    assert added(tts, before) == {}
    with pytest.raises(InvalidRequestError, match="on_runaway: 'perhaps' is not allowed; choose one of stop, retry, off"):
        tts.generate_custom_voice(TEXT, "ada", on_runaway="perhaps")


def test_good_speech_gives_no_alarm_and_keeps_far_from_one(tts: Qwen3TTS) -> None:
    """As scripts/count_runaways.py does with 2,000 streams."""
    streams = list(speak(tts, 4, 0))
    assert all(stream.has_ended for stream in streams)
    assert not any(stream.has_run_away for stream in streams)
    assert max(stream.repeats for stream in streams) <= REPEATS_IN_SPEECH
    assert max(stream.silence for stream in streams) <= SILENCE_IN_SPEECH < RUNAWAY_FRAMES / 2
