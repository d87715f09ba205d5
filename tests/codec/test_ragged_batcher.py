"""The ragged batcher takes all that waits; what waits longer is only what a full step has no room for."""

from __future__ import annotations

import random
import secrets

import numpy as np
import pytest

from codec.test_batcher import FRAME_SECONDS, SAMPLES_PER_FRAME, add, keys, run
from engine_lib.codec.batcher import SAFE_SECONDS, Cohort, Stream
from engine_lib.codec.ragged_batcher import RaggedBatcher, StepLimits

LIMITS = StepLimits(full=40, express=6, piece=16)


def make_batcher(num_slots: int = 8, max_wait: float = 0.0) -> RaggedBatcher:
    return RaggedBatcher(num_slots, LIMITS, FRAME_SECONDS, max_wait)


def sizes(cohort: Cohort | None) -> dict[str, int]:
    return {stream.stream_key: len(piece) for stream, piece in zip(cohort.streams, cohort.pieces, strict=True)} if cohort else {}


def heard(batcher: RaggedBatcher, stream_key: str, frames: int, now: float = 0.0) -> Stream:
    """Open a stream and decode its first `frames` frames at `now`."""
    stream = add(batcher, stream_key, frames, now=now)
    assert sizes(run(batcher, now)) == {stream_key: frames}
    return stream


def test_all_that_waits_goes_with_the_next_step_whatever_its_size() -> None:
    batcher = make_batcher()
    for stream_key in "abc":
        heard(batcher, stream_key, 1)
    for stream_key, frames in {"a": 4, "b": 8, "c": 12}.items():
        add(batcher, stream_key, frames, index=1)
    assert sizes(run(batcher, 0.0)) == {"a": 4, "b": 8, "c": 12}
    assert run(batcher, 0.0) is None


def test_chunks_of_one_stream_go_together_and_each_gets_its_own_audio() -> None:
    batcher = make_batcher()
    stream = heard(batcher, "a", 1)
    for index, frames in enumerate((2, 0, 3, 4), start=1):
        add(batcher, "a", frames, index=index)
    cohort = batcher.next_cohort(0.0)
    assert cohort is not None
    assert cohort.pieces[0].tolist() == [[i, frame] for i, frames in ((1, 2), (3, 3), (4, 4)) for frame in range(frames)]
    audio = np.arange(9 * SAMPLES_PER_FRAME, dtype=np.float32)
    batcher.decoded(stream, 9, audio, 0.0)
    assert [chunk.frames_left for chunk in stream.pending] == [0, 0, 0, 0]
    parts = [np.concatenate(chunk.audio) if chunk.audio else audio[:0] for chunk in stream.pending]
    assert [len(part) for part in parts] == [2 * SAMPLES_PER_FRAME, 0, 3 * SAMPLES_PER_FRAME, 4 * SAMPLES_PER_FRAME]
    np.testing.assert_array_equal(np.concatenate(parts), audio)


def test_a_reference_goes_by_itself_because_its_state_is_kept() -> None:
    batcher = make_batcher()
    stream = add(batcher, "a", 5, is_reference=True)
    add(batcher, "a", 2)
    reference = batcher.next_cohort(0.0)
    assert sizes(reference) == {"a": 5}
    assert stream.seconds_taken == 0
    assert sizes(batcher.next_cohort(0.0)) == {"a": 2}  # the reference is on the device


def test_first_audio_goes_first_and_in_small_company_that_still_has_room_for_the_most_urgent() -> None:
    batcher = make_batcher()
    heard(batcher, "long lead", 6)
    heard(batcher, "short lead", 1)
    add(batcher, "long lead", 8, index=1)
    add(batcher, "short lead", 8, index=1)
    add(batcher, "clone", 8, is_reference=True)
    add(batcher, "new", 1)
    add(batcher, "newer", 2)
    assert sizes(run(batcher, 0.0)) == {"new": 1, "newer": 2, "clone": 3}
    assert sizes(run(batcher, 0.0)) == {"clone": 5, "short lead": 8, "long lead": 8}


def test_a_full_step_takes_those_who_run_out_of_audio_soonest() -> None:
    batcher = make_batcher()
    for lead in (5, 1, 3, 2, 4):
        heard(batcher, str(lead), lead)
    for lead in range(1, 6):
        add(batcher, str(lead), 20, index=1)
    assert sizes(run(batcher, 0.0)) == {"1": 16, "2": 16, "3": 8}
    # 1 and 2 have 17 and 18 frames now, 3 has 11
    assert sizes(run(batcher, 0.0)) == {"4": 16, "5": 16, "3": 8}
    assert sizes(run(batcher, 0.0)) == {"1": 4, "2": 4, "3": 4, "4": 4, "5": 4}


def test_a_step_waits_for_company_only_while_every_listener_has_audio_left() -> None:
    batcher = make_batcher(max_wait=0.01)
    heard(batcher, "a", 6)
    heard(batcher, "b", 6)
    add(batcher, "a", 4, index=1, now=0.1)
    assert run(batcher, 0.1) is None
    assert batcher.wait_until == pytest.approx(0.11)
    add(batcher, "b", 4, index=1, now=0.105)
    assert keys(run(batcher, 0.105)) == ["a", "b"]  # nobody else could join
    add(batcher, "a", 4, index=2, now=0.2)
    add(batcher, "new", 1, now=0.2)
    assert sizes(run(batcher, 0.2)) == {"new": 1, "a": 4}
    assert batcher.wait_until == float("inf")


def test_a_flood_of_new_streams_cannot_starve_one_that_plays() -> None:
    batcher = make_batcher(num_slots=12)
    playing = heard(batcher, "playing", 1)
    add(batcher, "playing", 8, index=1)
    num_new = 0
    for _ in range(5):  # a slot comes free for a new stream whenever it may
        while batcher.free_slots:
            add(batcher, f"new {num_new}", 1)
            num_new += 1
            batcher.open_slots()
        run(batcher, 0.0)
    assert not playing.pending


class Model:
    """Facts that must be true of a step in any order of events, kept apart from the batcher."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.now = rng, 0.0
        self.limits = StepLimits(full=rng.randint(8, 30), express=rng.randint(1, 8), piece=rng.randint(1, 8))
        self.max_wait = rng.choice((0.0, 0.2))
        self.batcher = RaggedBatcher(rng.randint(1, 6), self.limits, FRAME_SECONDS, self.max_wait)
        self.sent: dict[str, list[int]] = {}
        self.decoded: dict[str, list[int]] = {}

    def send(self, stream_key: str) -> None:
        numbers = self.sent.setdefault(stream_key, [])
        self.decoded.setdefault(stream_key, [])
        frames = self.rng.randint(0, 20)
        is_reference = not numbers and self.rng.random() < 0.3
        stream = add(self.batcher, stream_key, frames, now=self.now, is_reference=is_reference)
        stream.pending[-1].request.codes[:, 0] = range(len(numbers), len(numbers) + frames)
        numbers += range(len(numbers), len(numbers) + frames)

    def step(self) -> None:
        before = {key: sum(chunk.frames_to_take for chunk in stream.pending) for key, stream in self.batcher.streams.items()}
        unheard = {
            key
            for key, stream in self.batcher.streams.items()
            if not stream.seconds_taken and (chunk := stream.next_chunk) and not chunk.request.is_reference
        }
        cohort = self.batcher.next_cohort(self.now)
        ready = {key for key, frames in before.items() if frames and self.batcher.streams[key].slot is not None}
        if cohort is None:
            assert all(self.batcher.streams[key].deadline - SAFE_SECONDS > self.now for key in ready), "a listener was kept waiting"
            assert not ready or self.now < self.batcher.wait_until <= self.now + self.max_wait
            return
        taken = sizes(cohort)
        total, limit = sum(taken.values()), self.limits.express if unheard & ready else self.limits.full
        assert 0 < total <= limit
        assert all(0 < frames <= min(self.limits.piece, before[key]) for key, frames in taken.items())
        left_out = ready - set(taken)
        assert not left_out or total == limit, "there was room for more"
        assert unheard & ready <= set(taken) or set(taken) <= unheard, "first audio was not first"
        for stream, codes in zip(cohort.streams, cohort.pieces, strict=True):
            self.decoded[stream.stream_key] += codes[:, 0].tolist()
            self.batcher.decoded(stream, len(codes), np.zeros(len(codes), np.float32), self.now)
            while stream.pending and not stream.pending[0].frames_left:
                chunk = self.batcher.pop(stream)
                assert chunk.request.is_reference or sum(map(len, chunk.audio)) == len(chunk.request.codes)

    def close(self, stream_key: str) -> None:
        stream = self.batcher.streams.pop(stream_key)
        while stream.pending:
            self.batcher.pop(stream)
        self.batcher.free_slot(stream)
        del self.sent[stream_key], self.decoded[stream_key]


def test_every_step_obeys_the_rules_in_any_order_of_events_and_all_frames_come_in_order() -> None:
    seed = secrets.randbits(32)
    print(f"seed = {seed}")
    for case in range(40):
        model = Model(random.Random(seed + case))
        for event in range(80):
            chance = model.rng.random()
            if chance < 0.5:
                model.send(f"stream {model.rng.randrange(event + 1) if chance < 0.4 else event}")
            elif chance < 0.53 and model.batcher.streams:
                model.close(model.rng.choice(list(model.batcher.streams)))
            elif chance < 0.6:
                model.now += model.rng.random()
            else:
                model.step()
        for _ in range(10_000):
            if not model.batcher.streams:
                break
            model.now += model.max_wait
            model.step()
            for stream_key in [key for key, stream in model.batcher.streams.items() if not any(c.frames_left for c in stream.pending)]:
                assert model.decoded[stream_key] == model.sent[stream_key]
                model.close(stream_key)
        assert not model.batcher.streams
