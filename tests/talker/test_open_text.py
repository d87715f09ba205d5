"""Text that comes in pieces: the codes of the whole text, no step without text, and a clear end."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine_lib.errors import InvalidRequestError
from engine_lib.sampling import SamplingParams
from engine_lib.talker.device.plan import DecodePlan, Plan
from engine_lib.talker.device.worker import FrameResult
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import Request
from patience import eventually
from talker.speaking import (
    GREEDY,
    GREETING,
    ONE_FRAME,
    Stream,
    Utterance,
    assert_nothing_is_held,
    open_stream,
    prompt_builder,
    running_engine,
    running_process,
    speak,
    start,
    submit,
)

TEXT = "Good morning! I can't say 12 things. 今天很好，我们去公园。 Auf Wiedersehen"


def fed(voice: str = "ryan", text: str = "") -> Utterance:
    return Utterance(text, voice, non_streaming_mode=False)


def pieces_of(text: str, rng: random.Random) -> Iterator[str]:
    while text:
        size = rng.randint(1, 12)
        yield text[:size]
        text = text[size:]


def frames(count: int) -> SamplingParams:
    return replace(GREEDY, max_frames=count)


@pytest.mark.parametrize("pipelined", [False, True])
def test_any_split_with_any_pauses_gives_the_codes_of_the_whole_text(endless_voice: Path, pipelined: bool, fresh_seed: int):
    rng = random.Random(fresh_seed)
    voices, texts = ["ryan", "vivian", "eric"], [TEXT, TEXT[::-1], "Yes."]
    with running_engine(endless_voice, exact=True) as engine:
        expected = [speak(engine, fed(voice, text), frames(24)) for text, voice in zip(texts, voices, strict=True)]
    # Too few blocks for all: some are preempted, also while they wait for text. The mates alone need more at their ends, and so someone
    # is preempted even if they end before the others have got their text.
    with running_engine(endless_voice, exact=True, pipelined=pipelined, num_kv_blocks=33) as engine:
        mates = [start(engine, GREETING, max_frames=60) for _ in range(2)]
        opened = [open_stream(engine, fed(voice), frames(24)) for voice in voices]
        for (_, feed), text in zip(opened, texts, strict=True):
            feed.append("")
            for piece in pieces_of(text, rng):
                feed.append(piece)
                time.sleep(rng.choice([0, 0, 0.02]))
        for _, feed in opened:
            feed.append("", is_last=True)
        for (stream, _), codes in zip(opened, expected, strict=True):
            assert stream.end().error == ""
            np.testing.assert_array_equal(stream.codes, codes)
        assert {mate.end().finish_reason for mate in mates} == {"length"}
        assert engine.stats().num_preemptions > 0
        assert_nothing_is_held(engine)


def wait_for_pause(stream: Stream) -> None:
    """Wait until all frames that the text allows are there."""
    eventually(lambda: sum(len(chunk.codes) for chunk in stream.chunks) == stream.sequence.num_possible_frames > 0, "it waits for text")


def watch_steps(engine: TalkerEngine) -> list[list[int]]:
    """The slots of each decode step from now on."""
    steps: list[list[int]] = []
    execute = engine.worker.execute

    def watched(plan: Plan) -> FrameResult | None:
        if isinstance(plan, DecodePlan):
            steps.append(plan.slots.tolist())
        return execute(plan)

    engine.worker.execute = watched  # type: ignore[method-assign]
    return steps


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_stream_that_waits_for_text_costs_no_step(endless_voice: Path, pipelined: bool):
    with running_engine(endless_voice, pipelined=pipelined) as engine:
        steps = watch_steps(engine)
        stream, feed = open_stream(engine, fed(), frames(30))
        feed.append("Good morning, ")
        wait_for_pause(stream)
        num_frames, num_steps, num_engine_steps = len(stream.codes), len(steps), engine.stats().num_steps
        assert num_steps == num_frames - 1  # the prompt gave the first frame
        assert not engine.has_work

        mate = start(engine, GREETING, max_frames=20)
        mate.end()
        slot = stream.sequence.slot
        assert len(stream.codes) == num_frames
        assert len(steps) > num_steps
        assert not any(slot in slots for slots in steps[num_steps:])
        num_steps = len(steps)
        time.sleep(0.2)  # time for a step that should not be
        assert (len(steps), engine.stats().num_steps) == (num_steps, num_engine_steps + 20)

        feed.append("everyone.", is_last=True)
        assert stream.end().num_frames == 30
        assert len([slots for slots in steps if slot in slots]) >= 29
        np.testing.assert_array_equal(stream.codes, speak(engine, fed(text="Good morning, everyone."), frames(30)))
        assert_nothing_is_held(engine)


def test_gathered_frames_leave_when_the_text_pauses(endless_voice: Path):
    with running_engine(endless_voice) as engine:
        stream, feed = open_stream(engine, fed(), frames(30), chunk_frames=(8,))
        feed.append("Good day, ")
        eventually(lambda: len(stream.chunks) == 1, "the frames that there are come as a chunk")
        assert 0 < len(stream.chunks[0].codes) < 8
        feed.append("", is_last=True)
        assert stream.end().num_frames == 30


def test_a_text_that_never_ends_ends_with_an_error(endless_voice: Path):
    with running_engine(endless_voice, text_idle_seconds=2.0) as engine:  # enough for the first frame on a slow machine
        begun, feed = open_stream(engine, fed(), frames(40))
        silent, _ = open_stream(engine, fed(), frames(40))
        feed.append("Good ")
        for stream in (begun, silent):
            final = stream.end()
            assert final.finish_reason == "error"
            assert final.error.startswith("text: no more of it has come for 2 s")
        assert len(begun.codes) >= 1
        assert feed.append("morning.") is False
        assert_nothing_is_held(engine)


def test_a_cancel_ends_a_waiting_stream_at_once_and_says_how_much_was_sent(endless_voice: Path):
    with running_engine(endless_voice) as engine:
        stream, feed = open_stream(engine, fed(), frames(40))
        feed.append("Good morning, ")
        wait_for_pause(stream)
        engine.cancel(stream.request.stream_key)
        final = stream.end()
        assert (final.finish_reason, final.num_frames) == ("cancelled", len(stream.codes))
        assert_nothing_is_held(engine)


def test_a_stream_that_is_cancelled_when_its_time_is_over_ends_once(endless_voice: Path):
    with running_engine(endless_voice, text_idle_seconds=0.1) as engine:
        for _ in range(10):
            stream, _ = open_stream(engine, fed(), frames(40))
            time.sleep(0.1)
            engine.cancel(stream.request.stream_key)
            assert stream.end().finish_reason in ("cancelled", "error")
        assert_nothing_is_held(engine)


def test_a_request_has_a_deadline_while_it_waits_for_text(endless_voice: Path):
    with running_engine(endless_voice) as engine:
        prompt, _ = prompt_builder(endless_voice).open(voice="ryan")
        request = Request("late", prompt, GREEDY, ONE_FRAME, deadline=time.monotonic() + 0.2, text_is_open=True)
        assert submit(engine, request, Stream()).end().error.startswith("DEADLINE_EXCEEDED")


@pytest.mark.parametrize(("text", "problem"), [("\n", "text: is empty"), ("word " * 120, "text: takes ")])
def test_a_text_that_cannot_be_spoken_ends_its_stream(endless_voice: Path, text: str, problem: str):
    with running_engine(endless_voice) as engine:
        stream, feed = open_stream(engine, fed(), frames(40))
        feed.append(" ")
        with pytest.raises(InvalidRequestError, match=problem) as error:
            feed.append(text, is_last=True)
        assert feed.is_complete
        engine.cancel(stream.request.stream_key, str(error.value))
        assert stream.end().error.startswith(problem)
        assert_nothing_is_held(engine)


def test_all_pieces_together_have_the_length_of_one_text(endless_voice: Path):
    with running_engine(endless_voice, max_model_len=2048, max_num_seqs=1) as engine:
        stream, feed = open_stream(engine, fed(), frames(3))
        feed.append("a" * 600)
        with pytest.raises(InvalidRequestError, match="text: has 1001 characters; at most 1000"):
            feed.append("b" * 401)
        feed.append(" " * 400, is_last=True)  # the piece that was refused is not part of it
        assert stream.end().finish_reason == "length"


def test_the_budget_of_frames_grows_with_the_text(endless_voice: Path):
    with running_engine(endless_voice, max_model_len=512) as engine:
        stream, feed = open_stream(engine, fed())
        for piece in ("Good ", "morning", "."):
            feed.append(piece)
        feed.append("", is_last=True)
        request = Request("whole", fed(text="Good morning.").prompt(endless_voice), GREEDY, ONE_FRAME)
        eventually(lambda: stream.sequence.max_frames == engine.max_frames(request), "it is that of the whole text")
        engine.cancel(stream.request.stream_key)
        stream.end()


def test_an_engine_in_another_process_speaks_text_that_comes_in_pieces(endless_voice: Path):
    with running_process(endless_voice) as engine:
        expected = speak(engine, fed(text=TEXT), frames(40))
        stream, feed = open_stream(engine, fed(), frames(40))
        feed.append(TEXT[:20])
        eventually(lambda: engine.stats().starving == 1 and not engine.has_work, "it says that it waits for text")
        feed.append(TEXT[20:], is_last=True)
        assert stream.end().num_frames == 40
        np.testing.assert_array_equal(stream.codes, expected)
        stream, feed = open_stream(engine, fed(), frames(40))
        feed.append("Good ")
        engine.cancel(stream.request.stream_key, "text: is not nice")
        assert stream.end().error == "text: is not nice"
