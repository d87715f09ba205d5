"""An engine in a process gives the codes of one on a thread, and leaves no stream or process behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from engine_lib.delivery import Delivery
from engine_lib.errors import DEADLINE_ERROR, ConfigError, EngineDeadError, InvalidRequestError, OverloadedError, Qwen3TTSError
from engine_lib.process import remote
from engine_lib.talker.isolation.remote_engine import RemoteTalkerEngine
from engine_lib.talker.output.emitter import Emitter
from engine_lib.talker.request import CodesChunk, Request, RequestListener, StreamTimes
from make_checkpoint import make_checkpoint
from patience import PATIENCE, eventually, has_ended
from talker.speaking import (
    GREEDY,
    GREETING,
    ONE_FRAME,
    Stream,
    Utterance,
    assert_nothing_is_held,
    running_engine,
    running_process,
    speak,
    start,
    submit,
)
from talker.test_batching import FED, SMALL_POOL, WHOLE, speak_together
from talker.test_oracle_voices import clone

UTTERANCES = (WHOLE[0], FED[1], WHOLE[2], FED[3], WHOLE[1])


@pytest.fixture(scope="module")
def endless(checkpoints: Path) -> Path:
    """Return a checkpoint with speech that never ends."""
    return make_checkpoint(checkpoints / "endless_process", eos_gain=0.0)


def until_nothing_is_held(engine: RemoteTalkerEngine) -> None:
    eventually(lambda: engine.stats().free_slots == engine.config.max_num_seqs and engine.stats().running == 0, "all slots are free")
    assert_nothing_is_held(engine)


# the same codes


def test_a_process_gives_the_codes_of_a_thread_while_requests_join_leave_and_are_preempted(endless: Path):
    sampling = replace(GREEDY, max_frames=14)
    with running_engine(endless) as thread:
        expected = [speak(thread, utterance, sampling) for utterance in UTTERANCES]
    with running_process(endless, **SMALL_POOL, max_num_batched_tokens=7) as engine:
        doomed = start(engine, Utterance("Never mind."), at={4: lambda stream: engine.cancel(stream.request.stream_key)})
        streams = speak_together(engine, UTTERANCES, [sampling] * len(UTTERANCES))
        assert doomed.end().finish_reason == "cancelled"
        for stream, codes in zip(streams, expected, strict=True):
            np.testing.assert_array_equal(stream.codes, codes)
        until_nothing_is_held(engine)
        stats = engine.stats()
        assert stats.num_preemptions > 0
        assert stats.num_frames >= 14 * len(UTTERANCES)
        assert len(engine.step_times.host) > len(engine.step_times.interval) > 10


def test_a_cloned_voice_keeps_its_x_vector_and_its_listener_hears_of_the_start_and_the_times(
    tiny_base_1b7: Path, monkeypatch: pytest.MonkeyPatch
):
    utterance = clone(tiny_base_1b7, "Good morning!", 1, 3)
    with running_engine(tiny_base_1b7) as thread:
        expected = speak(thread, utterance, max_frames=8)
    happened: list[object] = []
    all_times: list[StreamTimes] = []
    with running_process(tiny_base_1b7) as engine:

        class WatchedStream(Stream):
            def on_start(self) -> None:
                happened.append("start")

            def on_times(self, times: StreamTimes) -> None:
                happened.append("times")
                all_times.append(times)

            def on_chunk(self, chunk: CodesChunk) -> None:
                happened.append(chunk.index)
                super().on_chunk(chunk)

        prompt, sampling = utterance.prompt(tiny_base_1b7), replace(GREEDY, max_frames=8)
        announced = Request("one", prompt, sampling, Delivery((1, 2)), announce_start=True, announce_times=True)
        submitted_at = time.monotonic()
        stream = submit(engine, announced, WatchedStream())
        stream.end()
        np.testing.assert_array_equal(stream.codes, expected)
        assert [len(chunk.codes) for chunk in stream.chunks] == [1, 2, 2, 2, 1, 0]
        assert happened == ["start", "times", 0, 1, 2, 3, 4, 5]
        [times] = all_times
        assert submitted_at < times.begun_at < times.prefilled_at < times.first_frames_at < time.monotonic()

        def accept_slowly(request: Request, listener: RequestListener) -> Emitter:
            emitter = accept(request, listener)
            time.sleep(0.5)  # meanwhile the process speaks, and `submit` has not yet written down that the stream is open
            return emitter

        accept = engine._accept
        monkeypatch.setattr(engine, "_accept", accept_slowly)
        happened.clear()
        submit(engine, structs.replace(announced, stream_key="two", announce_start=False), WatchedStream()).end()
    assert happened == ["times", 0, 1, 2, 3, 4, 5]


def test_chunks_grow_as_the_policy_says(checkpoints: Path):
    # Frames of 80 s, so that a client has enough audio left however slow this machine is.
    path = make_checkpoint(checkpoints / "long_frames", overrides={"speech_tokenizer.output_sample_rate": 24}, eos_gain=0.0)
    with running_process(path, chunk_policy="adaptive", adaptive_chunk_streams=1, adaptive_chunk_frames=9) as engine:
        stream = start(engine, GREETING, max_frames=60, chunk_frames=(1, 2))
        stream.end()
    assert 2 < max(len(chunk.codes) for chunk in stream.chunks) <= 9


# refusals and ends of single requests


def test_what_cannot_be_accepted_is_refused_at_once(endless: Path):
    all_refused = threading.Event()
    with running_process(endless, max_num_seqs=1, max_waiting_requests=1, max_model_len=64) as engine:
        with pytest.raises(InvalidRequestError, match="max_frames: 100 is not allowed"):
            start(engine, GREETING, max_frames=100)
        first = start(engine, GREETING, max_frames=40, at={1: lambda _: all_refused.wait(PATIENCE)})  # open until then
        engine.reserve("later")
        with pytest.raises(OverloadedError, match="2 requests are open and at most 2 are allowed"):
            start(engine, GREETING)
        engine.release("later")
        with pytest.raises(InvalidRequestError, match="is already open"):
            engine.submit(first.request, RequestListener())
        second = start(engine, GREETING, max_frames=5)
        assert engine.stats().waiting >= 1
        all_refused.set()
        assert first.end().finish_reason == second.end().finish_reason == "length"
        until_nothing_is_held(engine)
    with pytest.raises(EngineDeadError):
        start(engine, GREETING)


def test_a_deadline_and_a_failing_listener_end_their_own_streams_alone(endless: Path):
    with running_process(endless) as engine:
        healthy = start(engine, GREETING, max_frames=60)
        late = submit(engine, Request("late", GREETING.prompt(endless), GREEDY, ONE_FRAME, time.monotonic() + 0.05), Stream())
        received: list[CodesChunk] = []

        class Failing(RequestListener):
            def on_chunk(self, chunk: CodesChunk) -> None:
                received.append(chunk)
                if chunk.index == 1:
                    raise RuntimeError("nobody is there")

        engine.submit(Request("failing", GREETING.prompt(endless), GREEDY, ONE_FRAME), Failing())
        assert late.end().error == DEADLINE_ERROR
        assert healthy.end().finish_reason == "length"
        eventually(lambda: bool(received) and received[-1].is_final, "the failing listener's stream ends")
        assert [(chunk.index, chunk.finish_reason) for chunk in received] == [(0, ""), (1, ""), (2, "cancelled")]
        until_nothing_is_held(engine)


# the end of processes

LONG: dict[str, Any] = {"max_model_len": 2048, "max_num_seqs": 4}


def streams_under_way(engine: RemoteTalkerEngine) -> list[Stream]:
    """Three streams of an engine of LONG that would take long, each of which has begun."""
    begun = threading.Semaphore(0)
    streams = [start(engine, GREETING, max_frames=2000, at={1: lambda _: begun.release()}) for _ in range(3)]
    assert all(begun.acquire(timeout=PATIENCE) for _ in streams)
    return streams


def test_a_killed_process_ends_every_stream_with_an_error_that_says_so(endless: Path):
    with running_process(endless, **LONG) as engine:
        streams = streams_under_way(engine)
        os.kill(engine.pid, signal.SIGKILL)
        for stream in streams:
            assert stream.end().error == f"the talker engine failed: the talker's process {engine.pid} ended with signal 9"
        assert not engine.is_alive
        with pytest.raises(EngineDeadError):
            start(engine, GREETING)


def test_an_engine_that_fails_in_its_process_ends_the_process(checkpoints: Path):
    heads = {"talker_config.num_attention_heads": 4, "talker_config.num_key_value_heads": 2}
    path = make_checkpoint(checkpoints / "endless_two_heads", overrides=heads, eos_gain=0.0)
    with running_process(path, tensor_parallel_size=2, **LONG) as engine:
        streams = streams_under_way(engine)
        [rank] = subprocess.run(["pgrep", "-P", str(engine.pid)], capture_output=True, text=True, check=True).stdout.split()
        os.kill(int(rank), signal.SIGKILL)
        for stream in streams:
            assert stream.end().error.startswith("the talker engine failed: R")  # RankError, or the RuntimeError of a broken sum
        eventually(lambda: not engine.is_alive, "the end of the process is noticed")
        eventually(lambda: has_ended(int(rank)), "the rank is gone")


def test_a_shutdown_ends_streams_under_way_and_the_process_whose_log_is_its_parents(endless: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "engine_lib"), running_process(endless, **LONG) as engine:
        streams = streams_under_way(engine)
        engine.shutdown()
        assert [stream.end().error for stream in streams] == ["the server is shutting down"] * 3
        assert not engine.is_alive
    assert any("KV cache" in record.getMessage() for record in caplog.records)


def test_no_caller_waits_for_a_process_that_is_stopped_which_goes_on_or_is_killed_by_a_shutdown(endless: Path):
    with running_process(endless) as engine:
        for goes_on in (True, False):
            os.kill(engine.pid, signal.SIGSTOP)
            while not engine._process._sender.is_behind:  # until its pipe is full
                engine.apply_backpressure(0.0)
            spoken, cancelled = (start(engine, GREETING, max_frames=2) for _ in range(2))
            engine.cancel(cancelled.request.stream_key)
            assert engine.has_work
            assert engine.stats().waiting == 2
            if goes_on:
                os.kill(engine.pid, signal.SIGCONT)
                assert spoken.end().finish_reason == "length"
                assert cancelled.end().finish_reason == "cancelled"
                until_nothing_is_held(engine)
        engine.shutdown(timeout=0.5)
        assert {stream.end().error for stream in (spoken, cancelled)} == {"the server is shutting down"}


# Without speaking.py, because its oracle takes seconds to import.
PARENT = """
import sys, time
from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.talker.isolation.remote_engine import RemoteTalkerEngine
engine = RemoteTalkerEngine(Checkpoint(sys.argv[1]), EngineConfig(device="cpu", max_model_len=128, max_num_seqs=2))
engine.start()
print(engine.pid, flush=True)
time.sleep(600)
"""


def test_a_killed_parent_leaves_no_process_behind(endless: Path):
    with subprocess.Popen([sys.executable, "-c", PARENT, str(endless)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    eventually(lambda: has_ended(child), "the engine's process ends")


def test_what_the_process_finds_wrong_is_what_the_load_says(endless: Path):
    with (
        pytest.raises(ConfigError, match="num_kv_blocks: 3 blocks of 4 rows cannot hold one request"),
        running_process(endless, num_kv_blocks=3),
    ):
        pass


def test_a_process_that_dies_while_loading_ends_the_load(endless: Path, monkeypatch: pytest.MonkeyPatch):
    def dying(*_: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(3)"])

    monkeypatch.setattr(remote, "start_child", dying)
    with (
        pytest.raises(Qwen3TTSError, match=r"the talker's process \d+ ended with exit code 3 while it was loading"),
        running_process(endless),
    ):
        pass
