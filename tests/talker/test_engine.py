"""The life of a request: chunks, limits, overload, shutdown. Each accepted one gets one final chunk."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engine_lib.errors import EngineDeadError, InvalidRequestError, OverloadedError
from engine_lib.prompt import Prompt
from engine_lib.talker import engine as engine_module
from engine_lib.talker.base_engine import FRAME_BUDGET_BASE, FRAME_BUDGET_PER_TOKEN
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import Request
from patience import PATIENCE
from talker.speaking import (
    GREEDY,
    GREETING,
    ONE_FRAME,
    Codes,
    Stream,
    Utterance,
    assert_nothing_is_held,
    make_engine,
    running_engine,
    speak,
    start,
)


def padded(prompt: Prompt, num_rows: int) -> Prompt:
    """`prompt` with its first row repeated in front, to make it `num_rows` long."""
    repeats = [num_rows - len(prompt) + 1] + [1] * (len(prompt) - 1)
    return replace(prompt, text_ids=np.repeat(prompt.text_ids, repeats), codes=np.repeat(prompt.codes, repeats, axis=0))


# chunks


def test_adaptive_chunks_grow_for_a_client_with_enough_and_carry_the_same_codes(
    endless_voice: Path, codes: Codes, monkeypatch: pytest.MonkeyPatch
):
    # No time passes, so the client has all the audio that was sent.
    monkeypatch.setattr(engine_module, "time", SimpleNamespace(perf_counter=lambda: 1.0, monotonic=lambda: 1.0))
    with running_engine(endless_voice, chunk_policy="adaptive", adaptive_chunk_streams=1) as engine:
        stream = start(engine, GREETING, max_frames=20, chunk_frames=(1, 2))
        assert stream.end().finish_reason == "length"
    assert [len(chunk.codes) for chunk in stream.chunks] == [1, 2, 1, 2, 2, 4, 4, 4, 0]
    np.testing.assert_array_equal(stream.codes, codes[:20])


@pytest.mark.parametrize("chunk_frames", [(1, 2, 4, 8), (1,), (3,), (5, 1), (2, 7, 3), (64,)])
@pytest.mark.parametrize("max_frames", [1, 20])
def test_chunks_follow_the_ramp_whose_last_size_repeats(engine: TalkerEngine, codes: Codes, chunk_frames: tuple[int, ...], max_frames: int):
    stream = start(engine, GREETING, max_frames=max_frames, chunk_frames=chunk_frames)
    assert stream.end().finish_reason == "length"
    sizes, left = [], max_frames
    for wanted in itertools.chain(chunk_frames, itertools.repeat(chunk_frames[-1])):
        if left == 0:
            break
        sizes.append(min(wanted, left))
        left -= sizes[-1]
    assert [len(chunk.codes) for chunk in stream.chunks] == [*sizes, 0]
    assert all(chunk.codes.dtype == np.int16 and chunk.codes.shape[1] == 16 for chunk in stream.chunks)
    np.testing.assert_array_equal(stream.codes, codes[:max_frames])


def test_what_is_left_of_a_chunk_is_sent_when_speech_ends(tiny_custom_voice: Path):
    with running_engine(tiny_custom_voice) as engine:
        stream = start(engine, Utterance("Yes."), max_frames=60, chunk_frames=(64,))
        assert stream.end().finish_reason == "stop"
        assert [len(chunk.codes) > 0 for chunk in stream.chunks] == [True, False]


# limits


def test_a_request_without_max_frames_ends_at_a_budget_from_its_text(endless_voice: Path):
    prompt = Utterance("a").prompt(endless_voice)
    with running_engine(endless_voice, max_model_len=256) as engine:
        stream = start(engine, prompt, chunk_frames=(64,))
        assert stream.end().finish_reason == "length"
        assert len(stream.codes) == FRAME_BUDGET_BASE + FRAME_BUDGET_PER_TOKEN * prompt.num_text_tokens


@pytest.mark.parametrize("non_streaming_mode", [True, False])
def test_the_budget_shrinks_to_the_room_behind_the_prompt(endless_voice: Path, non_streaming_mode: bool):
    prompt = replace(GREETING, non_streaming_mode=non_streaming_mode).prompt(endless_voice)
    with running_engine(endless_voice, max_model_len=32) as engine:
        stream = start(engine, prompt)
        assert stream.end().finish_reason == "length"
        # The last frame is not fed back, so it needs no row.
        assert len(stream.codes) == 32 - len(prompt) + 1 == engine.max_frames_behind(prompt)


@pytest.mark.parametrize("num_kv_blocks", [0, 8])
def test_a_prompt_that_fills_the_model_length_still_gives_its_one_frame(endless_voice: Path, num_kv_blocks: int):
    prompt = padded(GREETING.prompt(endless_voice), 32)
    with running_engine(endless_voice, max_model_len=32, kv_block_size=4, num_kv_blocks=num_kv_blocks) as engine:
        streams = [start(engine, prompt) for _ in range(3)]
        for stream in streams:
            assert stream.end().finish_reason == "length"
            assert len(stream.codes) == 1
        assert_nothing_is_held(engine)


@pytest.mark.parametrize("non_streaming_mode", [True, False])
def test_a_text_that_does_not_fit_is_refused_by_name_in_both_layouts(engine: TalkerEngine, non_streaming_mode: bool):
    with pytest.raises(InvalidRequestError, match=r"text: takes \d+ rows; at most 128") as refused:
        start(engine, Utterance("one two three " * 40, non_streaming_mode=non_streaming_mode), max_frames=2)
    assert refused.value.field == "text"


def test_the_longest_fed_text_that_fits_is_spoken(endless_voice: Path):
    prompt = Utterance("one two three " * 5, non_streaming_mode=False).prompt(endless_voice)
    num_rows = len(prompt) + len(prompt.trailing_text_ids)
    with running_engine(endless_voice, max_model_len=num_rows) as engine:
        stream = start(engine, prompt)
        stream.end()
        assert len(stream.codes) == len(prompt.trailing_text_ids) + 1
    with running_engine(endless_voice, max_model_len=num_rows - 1) as engine, pytest.raises(InvalidRequestError, match="text"):
        start(engine, prompt)


def test_more_frames_than_fit_are_refused_by_name(engine: TalkerEngine):
    room = engine.max_frames_behind(GREETING.prompt(engine.checkpoint.path))
    with pytest.raises(InvalidRequestError, match=rf"max_frames: {room + 1} is not allowed; at most {room}") as refused:
        start(engine, GREETING, max_frames=room + 1)
    assert refused.value.field == "max_frames"


def test_an_id_that_is_open_is_refused_and_its_stream_goes_on(engine: TalkerEngine, codes: Codes):
    refusals: list[Exception] = []

    def submit_again(stream: Stream) -> None:
        try:
            engine.submit(Request(stream.request.stream_key, stream.request.prompt, GREEDY, ONE_FRAME), Stream())
        except InvalidRequestError as error:
            refusals.append(error)

    first = start(engine, GREETING, max_frames=6, at={2: submit_again})
    assert first.end().finish_reason == "length"
    assert [str(error).partition(":")[0] for error in refusals] == ["stream_key"]
    np.testing.assert_array_equal(first.codes, codes[:6])


# overload


@pytest.mark.parametrize("max_waiting_requests", [0, 1])
def test_one_waiting_request_too_many_is_refused_while_the_others_go_on(endless_voice: Path, codes: Codes, max_waiting_requests: int):
    streams: list[Stream] = []
    refusals: list[Exception] = []

    def crowd(_first: Stream) -> None:
        for _ in range(4):
            try:
                streams.append(start(engine, GREETING, max_frames=5))
            except OverloadedError as error:
                refusals.append(error)

    with running_engine(endless_voice, max_num_seqs=2, max_waiting_requests=max_waiting_requests) as engine:
        streams.append(start(engine, GREETING, max_frames=5, at={1: crowd}))
        assert streams[0].end().finish_reason == "length"
        assert len(streams) == 2 + max_waiting_requests
        assert len(refusals) == 3 - max_waiting_requests
        assert "try again later" in str(refusals[0])
        for stream in streams:
            assert stream.end().finish_reason == "length"
            np.testing.assert_array_equal(stream.codes, codes[:5])
        np.testing.assert_array_equal(speak(engine, GREETING, max_frames=5), codes[:5])


# the end of the engine


def test_shutdown_ends_running_and_waiting_streams_with_an_error(endless_voice: Path):
    enough = threading.Event()
    with running_engine(endless_voice, max_num_seqs=2, max_model_len=2048) as engine:
        streams = [start(engine, GREETING, max_frames=2000, at={3: lambda _: enough.set()}) for _ in range(5)]
        assert enough.wait(PATIENCE)
        engine.shutdown()
        assert all(stream.has_ended for stream in streams)
        for stream in streams:
            assert stream.end().finish_reason == "error"
            assert stream.end().error == "the server is shutting down"
        assert not engine.is_alive
        assert_nothing_is_held(engine)
        with pytest.raises(EngineDeadError):
            start(engine, GREETING)
        engine.shutdown()


def test_an_engine_that_was_never_started_takes_nothing_and_shuts_down(endless_voice: Path):
    engine = make_engine(endless_voice)
    with pytest.raises(EngineDeadError):
        start(engine, GREETING)
    engine.shutdown()
    assert not engine.is_alive
