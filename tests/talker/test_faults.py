"""What goes wrong in one row stays in that row; what ends the engine ends every stream with an error, and nothing hangs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine_lib.errors import EngineDeadError
from engine_lib.prompt import Prompt
from engine_lib.sampling import SamplingParams
from engine_lib.talker.device.worker import FrameResult
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import Request
from engine_lib.talker.scheduler import PrefillChunk
from talker.speaking import PATIENCE, Codes, Stream, Utterance, assert_nothing_is_held, running_engine, speak, start

UTTERANCES = [
    Utterance("Good morning!"),
    Utterance("Thank you, and see you tomorrow.", "eric", "auto"),
    Utterance("今天天气很好。", "serena", None),
]
MAX_FRAMES = 12
# Few enough that the blocks of a failed stream are the next ones to be given out.
OPTIONS: dict[str, Any] = {"exact": True, "max_model_len": 64, "num_kv_blocks": 32}

Fault = Callable[[TalkerEngine, Request, FrameResult | None], None]


def nan_in_the_cache(engine: TalkerEngine, request: Request, result: FrameResult | None) -> None:
    if result is None:  # the first blocks may be shared, and then others would read it too
        engine.runner.kv_cache[:, :, request.block_table[-1]] = torch.nan


def code_out_of_range(engine: TalkerEngine, request: Request, result: FrameResult | None) -> None:
    if result is not None:
        result.codes[result.requests.index(request), 7] = 2048


def code_below_zero(engine: TalkerEngine, request: Request, result: FrameResult | None) -> None:
    if result is not None:
        result.codes[result.requests.index(request), 15] = -1


def inject(engine: TalkerEngine, fault: Fault, prompt: Prompt, frame: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `fault` before (result None) and after the decode step in which the request of `prompt` draws that frame."""
    decode = engine.runner.decode

    def faulty(requests: Sequence[Request]) -> FrameResult:
        victims = [request for request in requests if request.prompt is prompt and request.num_launched_frames == frame]
        for victim in victims:
            fault(engine, victim, None)
        result = decode(requests)
        for victim in victims:
            fault(engine, victim, result)
        return result

    monkeypatch.setattr(engine.runner, "decode", faulty)


def assert_blocks_are_given_out_clean(engine: TalkerEngine) -> None:
    """Take every block of an idle engine: none holds NaN any more."""
    manager = engine.scheduler.block_manager
    table: list[int] = []
    with torch.inference_mode():
        assert manager.grow(table, manager.num_usable_blocks * manager.block_size)
    assert not engine.runner.kv_cache.isnan().any()
    manager.free(table)


@pytest.fixture(scope="module")
def sampled_codes(endless_voice: Path) -> list[Codes]:
    """Codes of UTTERANCES, each spoken alone with its own seed."""
    with running_engine(endless_voice, **OPTIONS) as engine:
        return [speak(engine, utterance, SamplingParams(seed=i), max_frames=MAX_FRAMES) for i, utterance in enumerate(UTTERANCES)]


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("fault", [nan_in_the_cache, code_out_of_range, code_below_zero])
def test_a_row_that_goes_wrong_fails_alone_and_leaves_clean_blocks(
    endless_voice: Path, sampled_codes: list[Codes], fault: Fault, pipelined: bool, monkeypatch: pytest.MonkeyPatch
):
    victim = UTTERANCES[0].prompt(endless_voice)
    with running_engine(endless_voice, pipelined=pipelined, **OPTIONS) as engine:
        inject(engine, fault, victim, 5, monkeypatch)
        prompts = [victim, *(utterance.prompt(endless_voice) for utterance in UTTERANCES[1:])]
        streams = [start(engine, prompt, SamplingParams(seed=i), max_frames=MAX_FRAMES) for i, prompt in enumerate(prompts)]
        final = streams[0].end()
        assert (final.finish_reason, final.error) == ("error", "the talker computed a value that is not a number or not a code")
        np.testing.assert_array_equal(streams[0].codes, sampled_codes[0][:5])
        for stream, codes in zip(streams[1:], sampled_codes[1:], strict=True):
            assert stream.end().finish_reason == "length"
            np.testing.assert_array_equal(stream.codes, codes)
        assert_nothing_is_held(engine)
        for i, utterance in enumerate(UTTERANCES):
            np.testing.assert_array_equal(speak(engine, utterance, SamplingParams(seed=i), max_frames=MAX_FRAMES), sampled_codes[i])
        assert_blocks_are_given_out_clean(engine)


def test_a_request_whose_first_frame_goes_wrong_gets_no_frames(endless_voice: Path, monkeypatch: pytest.MonkeyPatch):
    with running_engine(endless_voice, **OPTIONS) as engine:
        prefill = engine.runner.prefill

        def faulty(chunks: Sequence[PrefillChunk]) -> None:
            for chunk in chunks:  # the rows before the fourth are not written again
                engine.runner.kv_cache[:, :, chunk.request.block_table[0]] = torch.nan
            prefill([replace(chunk, start=max(chunk.start, 4)) for chunk in chunks])

        monkeypatch.setattr(engine.runner, "prefill", faulty)
        stream = start(engine, UTTERANCES[0], max_frames=5)
        assert stream.end().finish_reason == "error"
        assert len(stream.codes) == 0
        assert_blocks_are_given_out_clean(engine)


@pytest.mark.parametrize("broken", ["decode", "prefill", "admit"])
def test_when_the_engine_thread_dies_every_open_stream_ends_with_an_error(
    endless_voice: Path, broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with running_engine(endless_voice, max_num_seqs=2) as engine:
        work = getattr(engine.runner, broken)
        num_calls = 0

        def failing(*arguments: object) -> object:
            nonlocal num_calls
            num_calls += 1
            if num_calls == 2:
                raise RuntimeError("CUDA error: unspecified launch failure")
            return work(*arguments)

        monkeypatch.setattr(engine.runner, broken, failing)
        streams: list[Stream] = []

        def crowd(_first: Stream) -> None:
            streams.extend(start(engine, utterance, max_frames=50) for utterance in UTTERANCES)

        with caplog.at_level(logging.ERROR):
            streams.append(start(engine, UTTERANCES[0], max_frames=50, at={1: crowd}))
            for stream in streams:
                final = stream.end()
                assert (final.finish_reason, final.error) == ("error", "the talker engine failed: RuntimeError")
        assert len(streams) == 4
        assert "unspecified launch failure" in caplog.text
        assert not engine.is_alive
        assert_nothing_is_held(engine)
        with pytest.raises(EngineDeadError, match="restart"):
            start(engine, UTTERANCES[0])
        engine.cancel(streams[0].request.request_id)
        engine.shutdown(PATIENCE)
