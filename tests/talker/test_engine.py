"""The life of a request: chunks, limits, cancellation, overload, shutdown. Every accepted request gets one final chunk."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_lib.errors import EngineDeadError, InvalidRequestError, OverloadedError
from engine_lib.prompt import Prompt
from engine_lib.sampling import SamplingParams
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import FRAME_BUDGET_BASE, FRAME_BUDGET_PER_TOKEN, CodesChunk, Request, RequestStatus
from talker.support import GREEDY, PATIENCE, Codes, Stream, Utterance, assert_nothing_is_held, make_engine, running_engine, speak, start

UTTERANCE = Utterance("Good morning!")


@pytest.fixture(name="engine")
def engine_of_an_endless_voice(endless_voice: Path) -> Iterator[TalkerEngine]:
    with running_engine(endless_voice) as engine:
        yield engine
        assert engine.is_alive
        assert_nothing_is_held(engine)


@pytest.fixture(scope="module")
def codes(endless_voice: Path) -> Codes:
    """Twenty greedy frames of UTTERANCE."""
    with running_engine(endless_voice) as engine:
        return speak(engine, UTTERANCE, max_frames=20)


def padded(prompt: Prompt, num_rows: int) -> Prompt:
    """`prompt` with its first row repeated in front, to make it `num_rows` long."""
    repeats = [num_rows - len(prompt) + 1] + [1] * (len(prompt) - 1)
    return replace(prompt, text_ids=np.repeat(prompt.text_ids, repeats), codes=np.repeat(prompt.codes, repeats, axis=0))


# chunks


@pytest.mark.parametrize("chunk_frames", [(1, 2, 4, 8), (1,), (3,), (5, 1), (2, 7, 3), (64,)])
@pytest.mark.parametrize("max_frames", [1, 20])
def test_chunks_follow_the_ramp_whose_last_size_repeats(engine: TalkerEngine, codes: Codes, chunk_frames: tuple[int, ...], max_frames: int):
    stream = start(engine, UTTERANCE, max_frames=max_frames, chunk_frames=chunk_frames)
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
    prompt = replace(UTTERANCE, non_streaming_mode=non_streaming_mode).prompt(endless_voice)
    with running_engine(endless_voice, max_model_len=32) as engine:
        stream = start(engine, prompt)
        assert stream.end().finish_reason == "length"
        # The last frame is not fed back, so it needs no row.
        assert len(stream.codes) == 32 - len(prompt) + 1 == engine.max_frames_behind(prompt)


@pytest.mark.parametrize("num_kv_blocks", [0, 8])
def test_a_prompt_that_fills_the_model_length_still_gives_its_one_frame(endless_voice: Path, num_kv_blocks: int):
    prompt = padded(UTTERANCE.prompt(endless_voice), 32)
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
    room = engine.max_frames_behind(UTTERANCE.prompt(engine.checkpoint.path))
    with pytest.raises(InvalidRequestError, match=rf"max_frames: {room + 1} is not allowed; at most {room}") as refused:
        start(engine, UTTERANCE, max_frames=room + 1)
    assert refused.value.field == "max_frames"


def test_an_id_that_is_open_is_refused_and_its_stream_goes_on(engine: TalkerEngine, codes: Codes):
    refusals: list[Exception] = []

    def submit_again(stream: Stream) -> None:
        try:
            engine.submit(Request(stream.request.request_id, stream.request.prompt, GREEDY, (1,), Stream()))
        except InvalidRequestError as error:
            refusals.append(error)

    first = start(engine, UTTERANCE, max_frames=6, at={2: submit_again})
    assert first.end().finish_reason == "length"
    assert [str(error).partition(":")[0] for error in refusals] == ["request_id"]
    np.testing.assert_array_equal(first.codes, codes[:6])


# overload


@pytest.mark.parametrize("max_waiting_requests", [0, 1])
def test_one_waiting_request_too_many_is_refused_while_the_others_go_on(endless_voice: Path, codes: Codes, max_waiting_requests: int):
    streams: list[Stream] = []
    refusals: list[Exception] = []

    def crowd(_first: Stream) -> None:
        for _ in range(4):
            try:
                streams.append(start(engine, UTTERANCE, max_frames=5))
            except OverloadedError as error:
                refusals.append(error)

    with running_engine(endless_voice, max_num_seqs=2, max_waiting_requests=max_waiting_requests) as engine:
        streams.append(start(engine, UTTERANCE, max_frames=5, at={1: crowd}))
        assert streams[0].end().finish_reason == "length"
        assert len(streams) == 2 + max_waiting_requests
        assert len(refusals) == 3 - max_waiting_requests
        assert "try again later" in str(refusals[0])
        for stream in streams:
            assert stream.end().finish_reason == "length"
            np.testing.assert_array_equal(stream.codes, codes[:5])
        np.testing.assert_array_equal(speak(engine, UTTERANCE, max_frames=5), codes[:5])


# cancellation


def test_cancelling_a_running_request_ends_it_before_its_next_frame(engine: TalkerEngine, codes: Codes):
    victim = start(engine, UTTERANCE, max_frames=100, at={3: lambda stream: engine.cancel(stream.request.request_id)})
    mate = start(engine, UTTERANCE, max_frames=9)
    assert victim.end().finish_reason == "cancelled"
    assert mate.end().finish_reason == "length"
    np.testing.assert_array_equal(victim.codes, codes[:3])
    np.testing.assert_array_equal(mate.codes, codes[:9])


def test_cancelling_a_waiting_request_ends_it_without_frames(endless_voice: Path, codes: Codes):
    victims: list[Stream] = []

    def submit_and_cancel(_: Stream) -> None:
        victims.append(start(engine, UTTERANCE, max_frames=5))
        victims.append(start(engine, UTTERANCE, max_frames=5))
        engine.cancel(victims[0].request.request_id)  # still in the inbox

    def cancel_the_other(_: Stream) -> None:
        assert victims[1].request.status is RequestStatus.WAITING
        engine.cancel(victims[1].request.request_id)

    with running_engine(endless_voice, max_num_seqs=1) as engine:
        first = start(engine, UTTERANCE, max_frames=8, at={2: submit_and_cancel, 5: cancel_the_other})
        assert first.end().finish_reason == "length"
        np.testing.assert_array_equal(first.codes, codes[:8])
        for victim in victims:
            assert victim.end().finish_reason == "cancelled"
            assert len(victim.codes) == 0
        assert_nothing_is_held(engine)


def test_cancelling_a_request_in_the_middle_of_its_prefill_frees_its_blocks(endless_voice: Path, codes: Codes):
    victims: list[Stream] = []

    def join(_: Stream) -> None:
        victims.append(start(engine, UTTERANCE, max_frames=9))

    def cancel(_: Stream) -> None:
        assert victims[0].request.status is RequestStatus.PREFILLING
        assert 0 < victims[0].request.num_prefilled_rows < victims[0].request.num_rows
        engine.cancel(victims[0].request.request_id)

    with running_engine(endless_voice, max_num_batched_tokens=2) as engine:
        running = start(engine, UTTERANCE, max_frames=10, at={1: join, 5: cancel})
        assert running.end().finish_reason == "length"
        assert victims[0].end().finish_reason == "cancelled"
        np.testing.assert_array_equal(running.codes, codes[:10])
        assert_nothing_is_held(engine)


def test_cancelling_what_is_unknown_or_over_or_cancelled_already_does_nothing(engine: TalkerEngine, codes: Codes):
    engine.cancel("nobody")
    over = start(engine, UTTERANCE, max_frames=2)
    over.end()
    engine.cancel(over.request.request_id)

    def cancel_twice(stream: Stream) -> None:
        engine.cancel(stream.request.request_id)
        engine.cancel(stream.request.request_id)

    twice = start(engine, UTTERANCE, max_frames=50, at={2: cancel_twice})
    assert twice.end().finish_reason == "cancelled"
    np.testing.assert_array_equal(speak(engine, UTTERANCE, max_frames=4), codes[:4])
    assert over.end().finish_reason == "length"


# listeners


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_listener_that_raises_loses_its_own_stream_only(
    engine: TalkerEngine, codes: Codes, caplog: pytest.LogCaptureFixture, fails_at: int
):
    received: list[CodesChunk] = []

    def listener(chunk: CodesChunk) -> None:
        received.append(chunk)
        if chunk.index >= fails_at:
            raise RuntimeError("what a user said")

    prompt = UTTERANCE.prompt(engine.checkpoint.path)
    mate = start(engine, UTTERANCE, max_frames=12)
    with caplog.at_level(logging.ERROR):
        engine.submit(Request("deaf", prompt, GREEDY, (1,), listener))
        assert mate.end().finish_reason == "length"
    np.testing.assert_array_equal(mate.codes, codes[:12])
    assert [chunk.is_final for chunk in received] == [False] * (fails_at + 1) + [True]
    assert received[-1].finish_reason == "cancelled"
    assert "deaf" in caplog.text
    assert "what a user said" not in caplog.text


def test_a_listener_that_raises_on_the_rest_or_on_the_end_harms_nobody(engine: TalkerEngine, codes: Codes):
    received: list[CodesChunk] = []

    def listener(chunk: CodesChunk) -> None:
        received.append(chunk)
        raise RuntimeError

    prompt = UTTERANCE.prompt(engine.checkpoint.path)
    engine.submit(Request("deaf", prompt, replace(GREEDY, max_frames=3), (2, 8), listener))
    engine.submit(Request("deaf at the end", prompt, replace(GREEDY, max_frames=3), (8,), listener))
    np.testing.assert_array_equal(speak(engine, UTTERANCE, max_frames=12), codes[:12])
    assert sum(chunk.is_final for chunk in received) == 2
    assert {chunk.finish_reason for chunk in received if chunk.is_final} == {"cancelled"}


# the end of the engine


def test_shutdown_ends_running_and_waiting_streams_with_an_error(endless_voice: Path):
    enough = threading.Event()
    with running_engine(endless_voice, max_num_seqs=2) as engine:
        streams = [start(engine, UTTERANCE, max_frames=100, at={3: lambda _: enough.set()}) for _ in range(5)]
        assert enough.wait(PATIENCE)
        engine.shutdown()
        assert all(stream.has_ended for stream in streams)
        for stream in streams:
            assert stream.end().finish_reason == "error"
            assert stream.end().error == "the server is shutting down"
        assert not engine.is_alive
        assert_nothing_is_held(engine)
        with pytest.raises(EngineDeadError):
            start(engine, UTTERANCE)
        engine.shutdown()


def test_an_engine_that_was_never_started_takes_nothing_and_shuts_down(endless_voice: Path):
    engine = make_engine(endless_voice)
    with pytest.raises(EngineDeadError):
        start(engine, UTTERANCE)
    engine.shutdown()
    assert not engine.is_alive


@pytest.mark.parametrize("pipelined", [False, True])
def test_any_joining_leaving_and_cancelling_leaves_nothing_behind(endless_voice: Path, pipelined: bool, fresh_seed: int):
    rng = np.random.default_rng(fresh_seed)
    utterances = [Utterance("Good morning! " * n, non_streaming_mode=layout) for n in (1, 2) for layout in (True, False)]
    streams: list[Stream] = []
    options: dict[str, Any] = {"max_model_len": 64, "num_kv_blocks": 24, "max_num_batched_tokens": 16, "max_num_seqs": 6}
    with running_engine(endless_voice, pipelined=pipelined, **options) as engine:
        for event in range(300):
            if rng.random() < 0.5 or not streams:
                sampling = SamplingParams(seed=int(rng.integers(2**62)))
                chunk_frames = tuple(rng.integers(1, 5, size=2).tolist())
                utterance = utterances[rng.integers(len(utterances))]
                streams.append(start(engine, utterance, sampling, max_frames=int(rng.integers(1, 12)), chunk_frames=chunk_frames))
            else:
                engine.cancel(streams[rng.integers(max(len(streams) - 12, 0), len(streams))].request.request_id)
            if event % 10 == 0:
                streams[rng.integers(len(streams))].end()
        for stream in streams:
            final = stream.end()
            assert final.finish_reason in ("length", "cancelled")
            assert len(stream.codes) == stream.request.max_frames or final.finish_reason == "cancelled"
        assert len(streams) > 100
        assert_nothing_is_held(engine)
        assert [stream.request.block_table for stream in streams if stream.request.block_table] == []
