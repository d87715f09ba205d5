"""The batcher's rules hold in any order of events: a slow check of each rule on its plain state."""

from __future__ import annotations

import random
import secrets

import numpy as np

from codec.test_batcher import FRAME_SECONDS, add, sizes
from engine_lib.codec.batcher import SAFE_SECONDS, Batcher
from engine_lib.codec.step_limits import StepLimits


class Model:
    """Facts that must be true of a step in any order of events, kept apart from the batcher."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.now = rng, 0.0
        self.limits = StepLimits(full=rng.randint(8, 30), express=rng.randint(1, 8), piece=rng.randint(1, 8))
        self.max_wait = rng.choice((0.0, 0.2))
        self.num_slots = rng.randint(1, 6)
        self.batcher = Batcher(self.num_slots, self.limits, FRAME_SECONDS, self.max_wait)
        self.opened: list[str] = []
        self.sent: dict[str, list[int]] = {}
        self.decoded: dict[str, list[int]] = {}

    def send(self, stream_key: str) -> None:
        if stream_key not in self.sent:
            self.opened.append(stream_key)
        numbers = self.sent.setdefault(stream_key, [])
        self.decoded.setdefault(stream_key, [])
        frames = self.rng.randint(0, 20)
        is_reference = not numbers and self.rng.random() < 0.3
        stream = add(self.batcher, stream_key, frames, now=self.now, is_reference=is_reference)
        stream.pending[-1].request.codes[:, 0] = range(len(numbers), len(numbers) + frames)
        numbers += range(len(numbers), len(numbers) + frames)

    def open_slots(self) -> None:
        streams, num_free = self.batcher.streams, len(self.batcher.free_slots)
        waiting = [stream for key in self.opened if (stream := streams[key]).slot is None and stream.next_chunk]
        assert self.batcher.open_slots() == waiting[:num_free], "free slots are for the streams that opened first"
        held = [stream.slot for stream in streams.values() if stream.slot is not None]
        assert sorted([*held, *self.batcher.free_slots]) == list(range(self.num_slots)), "a slot is lost or shared"

    def rank(self, stream_key: str, unheard: set[str]) -> tuple[bool, bool, float, int]:
        """Smaller is sooner."""
        stream = self.batcher.streams[stream_key]
        has_no_audio = not stream.seconds_taken
        deadline = -1.0 if has_no_audio or stream.heard_since is None else stream.heard_since + stream.seconds_taken
        return stream_key not in unheard, not has_no_audio, deadline, self.opened.index(stream_key)

    def step(self) -> None:
        before = {key: sum(chunk.frames_to_take for chunk in stream.pending) for key, stream in self.batcher.streams.items()}
        unheard = {
            key
            for key, stream in self.batcher.streams.items()
            if not stream.seconds_taken and (chunk := stream.next_chunk) and not chunk.request.is_reference
        }
        self.open_slots()
        by_urgency = sorted(before, key=lambda key: self.rank(key, unheard))
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
        assert list(taken) == [key for key in by_urgency if key in ready][: len(taken)], "a less urgent stream was taken"
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
        self.opened.remove(stream_key)
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
        assert model.batcher.num_pending == 0
        assert sorted(model.batcher.free_slots) == list(range(model.num_slots))
