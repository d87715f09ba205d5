"""An error in one row stays in that row; the end of the engine ends every stream with an error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine_lib.errors import EngineDeadError
from engine_lib.prompt import Prompt
from engine_lib.sampling import SamplingParams
from engine_lib.talker.device.plan import DecodePlan, ErasePlan, Plan, PrefillPlan, SlotPlan
from engine_lib.talker.device.worker import FrameResult
from engine_lib.talker.engine import LaunchedFrames, TalkerEngine
from engine_lib.talker.scheduler import Schedule
from engine_lib.talker.sequence import Sequence
from patience import PATIENCE
from talker.speaking import Codes, Stream, Utterance, assert_nothing_is_held, running_engine, speak, start

UTTERANCES = [
    Utterance("Good morning!"),
    Utterance("Thank you, and see you tomorrow.", "eric", "auto"),
    Utterance("今天天气很好。", "serena", None),
]
MAX_FRAMES = 12
# Few enough that the blocks of a failed stream are the next ones to be given out.
OPTIONS: dict[str, Any] = {"exact": True, "max_model_len": 64, "num_kv_blocks": 32}

Fault = Callable[[TalkerEngine, Sequence, LaunchedFrames | None], None]


def nan_in_the_cache(engine: TalkerEngine, sequence: Sequence, frames: LaunchedFrames | None) -> None:
    if frames is None:  # the first blocks may be shared, and then others would read it too
        engine.worker.kv_cache[:, :, sequence.block_table[-1]] = torch.nan


def code_out_of_range(engine: TalkerEngine, sequence: Sequence, frames: LaunchedFrames | None) -> None:
    if frames is not None:
        frames.result._codes[frames.sequences.index(sequence), 7] = 2048


def code_below_zero(engine: TalkerEngine, sequence: Sequence, frames: LaunchedFrames | None) -> None:
    if frames is not None:
        frames.result._codes[frames.sequences.index(sequence), 15] = -1


def inject(engine: TalkerEngine, fault: Fault, prompt: Prompt, frame: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `fault` before (frames None) and after the decode step in which the sequence of `prompt` samples that frame."""
    launch = engine.launch

    def faulty(schedule: Schedule) -> Iterator[LaunchedFrames]:
        victims = [sequence for sequence in schedule.decode if sequence.prompt is prompt and sequence.num_launched_frames == frame]
        for victim in victims:
            fault(engine, victim, None)
        for frames in launch(schedule):
            for victim in victims:
                if victim in frames.sequences:
                    fault(engine, victim, frames)
            yield frames

    monkeypatch.setattr(engine, "launch", faulty)


def assert_blocks_are_given_out_clean(engine: TalkerEngine) -> None:
    """Take every block of an idle engine: none holds NaN any more."""
    manager = engine.scheduler.block_manager
    table: list[int] = []
    assert manager.grow(table, manager.num_usable_blocks * manager.block_size)
    with torch.inference_mode():
        if unclean := manager.take_unclean():
            engine.worker.execute(ErasePlan(np.array(unclean)))
    assert not engine.worker.kv_cache.isnan().any()
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
        launch = engine.launch

        def faulty(schedule: Schedule) -> Iterator[LaunchedFrames]:
            for chunk in schedule.prefill:  # the rows before the fourth are not written again
                engine.worker.kv_cache[:, :, chunk.sequence.block_table[0]] = torch.nan
            schedule.prefill = [replace(chunk, start=max(chunk.start, 4)) for chunk in schedule.prefill]
            yield from launch(schedule)

        monkeypatch.setattr(engine, "launch", faulty)
        stream = start(engine, UTTERANCES[0], max_frames=5)
        assert stream.end().finish_reason == "error"
        assert len(stream.codes) == 0
        assert_blocks_are_given_out_clean(engine)


def test_a_request_that_goes_wrong_and_is_cancelled_before_its_first_frame_leaves_clean_blocks(
    endless_voice: Path, sampled_codes: list[Codes], monkeypatch: pytest.MonkeyPatch
):
    victim, late = UTTERANCES[1].prompt(endless_voice), list[Stream]()
    with running_engine(endless_voice, max_num_batched_tokens=8, **OPTIONS) as engine:
        launch = engine.launch

        def faulty(schedule: Schedule) -> Iterator[LaunchedFrames]:
            yield from launch(schedule)
            for chunk in schedule.prefill:
                if chunk.sequence.prompt is victim:  # its first rows are there, others are to come
                    engine.worker.kv_cache[:, :, chunk.sequence.block_table[(chunk.stop - 1) // engine.config.kv_block_size]] = torch.nan
                    engine.cancel(chunk.sequence.request.stream_key)

        monkeypatch.setattr(engine, "launch", faulty)
        second_frame = {2: lambda _: late.append(start(engine, victim))}
        first = start(engine, UTTERANCES[0], SamplingParams(seed=0), max_frames=MAX_FRAMES, at=second_frame)
        assert first.end().finish_reason == "length"
        assert late[0].end().finish_reason == "cancelled"
        np.testing.assert_array_equal(first.codes, sampled_codes[0])
        assert_blocks_are_given_out_clean(engine)


@pytest.mark.parametrize("broken", ["decode", "prefill", "admit"])
def test_when_the_engine_thread_dies_every_open_stream_ends_with_an_error(
    endless_voice: Path, broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with running_engine(endless_voice, max_num_seqs=2, prompts_in_steps_from=int(broken != "prefill")) as engine:
        execute, num_plans = engine.worker.execute, 0
        kind = {"decode": DecodePlan, "prefill": PrefillPlan, "admit": SlotPlan}[broken]

        def failing(plan: Plan) -> FrameResult | None:
            nonlocal num_plans
            num_plans += isinstance(plan, kind)
            if num_plans == 2:
                raise RuntimeError("CUDA error: unspecified launch failure")
            return execute(plan)

        monkeypatch.setattr(engine.worker, "execute", failing)
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
        engine.cancel(streams[0].request.stream_key)
        engine.shutdown(PATIENCE)
