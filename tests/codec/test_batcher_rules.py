"""The batcher's rules hold in any order of events: a slow check of each rule on its plain state."""

from __future__ import annotations

import random
import secrets

import numpy as np

from engine_lib.codec.batcher import SAFE_SECONDS, Batcher, Cohort, Stream
from engine_lib.codec.request import CodecRequest

FRAME_SECONDS = 1 / 16  # a power of two, so that equal deadlines are equal in floating point too
MAX_PIECE = 16


class Model:
    """The facts that must be true of the batcher, kept apart from it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.now = rng, 0.0
        self.num_slots, self.max_batch_size = rng.randint(1, 6), rng.randint(1, 4)
        self.max_wait = rng.choice((0.0, 3 * FRAME_SECONDS))
        self.batcher = Batcher(
            self.num_slots, self.max_batch_size, FRAME_SECONDS, lambda frames: min(frames, MAX_PIECE), max_wait=self.max_wait
        )
        self.opened: list[str] = []
        self.sent: dict[str, list[int]] = {}  # number of each frame sent, by stream
        self.decoded: dict[str, list[int]] = {}
        self.first_audio_at: dict[str, float] = {}

    def send(self, stream_key: str) -> None:
        frames = self.rng.choice((1, 2, 4, 8, self.rng.randint(1, 3 * MAX_PIECE)))
        if stream_key not in self.sent:
            self.opened.append(stream_key)
            self.sent[stream_key], self.decoded[stream_key] = [], []
        numbers = list(range(len(self.sent[stream_key]), len(self.sent[stream_key]) + frames))
        self.sent[stream_key] += numbers
        self.batcher.add(CodecRequest(stream_key, 0, np.array(numbers)[:, None], False, lambda _: None), self.now)

    def waiting_frames(self, stream: Stream) -> int:
        """Frames of the stream's oldest chunk that one step may take; 0 if no chunk waits."""
        return min(stream.pending[0].frames_left, MAX_PIECE) if stream.pending else 0

    def deadline(self, stream_key: str) -> float:
        """The time at which the listener runs out of audio; long ago for a stream that has not been heard yet."""
        if stream_key not in self.first_audio_at:
            return -1.0
        return self.first_audio_at[stream_key] + len(self.decoded[stream_key]) * FRAME_SECONDS

    def may_wait(self, by_urgency: list[str], stream_key: str) -> bool:
        """Whether the cohort of the size of `stream_key`'s next piece may wait for more members."""
        streams = self.batcher.streams
        size = self.waiting_frames(streams[stream_key])
        members = [other for other in by_urgency if self.waiting_frames(streams[other]) == size][: self.max_batch_size]
        others = [stream for stream in streams.values() if stream.slot is not None and not self.waiting_frames(stream)]
        return (
            len(members) < self.max_batch_size
            and bool(others)
            and all(self.now < streams[member].pending[0].arrived + self.max_wait for member in members)
            and all(self.now < self.deadline(member) - SAFE_SECONDS for member in members)
        )

    def check(self, cohort: Cohort | None) -> None:
        streams = self.batcher.streams
        held = [stream.slot for stream in streams.values() if stream.slot is not None]
        assert sorted([*held, *self.batcher.free_slots]) == list(range(self.num_slots)), "a slot is lost or shared"
        ready = [stream_key for stream_key in self.opened if stream_key in streams and self.waiting_frames(streams[stream_key])]
        for i, stream_key in enumerate(ready):
            if streams[stream_key].slot is None:
                assert not self.batcher.free_slots, "a stream waits although a slot is free"
                assert all(streams[later].slot is None for later in ready[i + 1 :]), "a slot went to a later one"
        ready = [stream_key for stream_key in ready if streams[stream_key].slot is not None]
        by_urgency = sorted(ready, key=lambda stream_key: (self.deadline(stream_key), self.opened.index(stream_key)))
        if cohort is None:
            assert all(self.may_wait(by_urgency, stream_key) for stream_key in ready), "nothing was decoded although something was due"
            return
        members = [stream.stream_key for stream in cohort.streams]
        assert 1 <= len(members) == len(set(members)) <= self.max_batch_size
        assert set(members) <= set(ready)
        assert cohort.slots() == [streams[stream_key].slot for stream_key in members]
        size = len(cohort.pieces[0])
        assert all(self.waiting_frames(streams[stream_key]) == size for stream_key in members)
        assert not self.may_wait(by_urgency, members[0]), "a cohort that might have grown was decoded"
        more_urgent = by_urgency[: by_urgency.index(members[0])]
        assert all(self.may_wait(by_urgency, stream_key) for stream_key in more_urgent), "something that was due was more urgent"
        same_size = [stream_key for stream_key in by_urgency if self.waiting_frames(streams[stream_key]) == size]
        assert members == same_size[: self.max_batch_size], "the cohort is not full, or not the most urgent of its size"

    def decode(self, cohort: Cohort) -> None:
        for stream, codes in zip(cohort.streams, cohort.pieces, strict=True):
            self.decoded[stream.stream_key] += codes[:, 0].tolist()
            self.first_audio_at.setdefault(stream.stream_key, self.now)
            self.batcher.decoded(stream, len(codes), np.zeros(len(codes), np.float32), self.now)
            if not stream.pending[0].frames_left:
                chunk = self.batcher.pop(stream)
                assert sum(len(audio) for audio in chunk.audio) == len(chunk.request.codes)

    def close(self, stream_key: str) -> None:
        stream = self.batcher.streams.pop(stream_key)
        while stream.pending:
            self.batcher.pop(stream)
        self.batcher.free_slot(stream)


def test_every_cohort_obeys_the_rules_in_any_order_of_events() -> None:
    for _ in range(40):
        seed = secrets.randbits(32)
        print(f"seed = {seed}")
        model = Model(random.Random(seed))
        for _ in range(80):
            event = model.rng.random()
            if event < 0.15:
                model.send(f"stream {len(model.opened)}")
            elif event < 0.5 and model.batcher.streams:
                model.send(model.rng.choice(list(model.batcher.streams)))
            elif event < 0.55 and model.batcher.streams:
                model.close(model.rng.choice(list(model.batcher.streams)))
            elif event < 0.65:
                model.now += model.rng.randrange(20) * FRAME_SECONDS
            else:
                cohort = model.batcher.next_cohort(model.now)
                model.check(cohort)
                if cohort is not None:
                    model.decode(cohort)
        drain(model)


def drain(model: Model) -> None:
    """No more chunks come: all sent frames are decoded, in the order they were sent, and all slots become free."""
    for _ in range(10_000):
        cohort = model.batcher.next_cohort(model.now)
        model.check(cohort)
        if cohort is not None:
            model.decode(cohort)
        else:
            done = [stream_key for stream_key, stream in model.batcher.streams.items() if not stream.pending]
            if not done:
                break
            for stream_key in done:
                assert model.decoded[stream_key] == model.sent[stream_key]
                model.close(stream_key)
    assert not model.batcher.streams
    assert model.batcher.num_pending == 0
    assert sorted(model.batcher.free_slots) == list(range(model.num_slots))
