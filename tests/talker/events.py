"""Events that any engine must survive: streams that come and go at random, a KV pool that runs dry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engine_lib.sampling import SamplingParams
from engine_lib.talker.device.plan import DecodePlan, Plan
from engine_lib.talker.device.worker import FrameResult
from engine_lib.talker.engine import TalkerEngine
from talker.speaking import Stream, Utterance, assert_nothing_is_held, running_engine, speak, start

UTTERANCES = [
    Utterance("Good morning! " * n, voice, non_streaming_mode=layout) for n, voice, layout in ((1, "ryan", True), (2, "eric", False))
]
MAX_OPEN = 20


def join_leave_and_cancel(engine: TalkerEngine, rng: np.random.Generator, *, num_events: int, max_frames: int) -> None:
    """`num_events` arrivals, departures and cancellations; then each stream has ended as it should, and every block is free."""
    streams: list[Stream] = []
    for _ in range(num_events):
        still_open = [stream for stream in streams if not stream.has_ended]
        if not still_open or (rng.random() < 0.5 and len(still_open) < MAX_OPEN):
            sampling = SamplingParams(seed=int(rng.integers(2**62)))
            chunk_frames = tuple(rng.integers(1, 5, size=2).tolist())
            utterance = UTTERANCES[rng.integers(len(UTTERANCES))]
            frames = int(rng.integers(1, max_frames + 1))
            streams.append(start(engine, utterance, sampling, max_frames=frames, chunk_frames=chunk_frames))
        elif rng.random() < 0.6:
            engine.cancel(still_open[rng.integers(len(still_open))].request.stream_key)
        else:
            still_open[0].end()
    for stream in streams:
        final = stream.end()
        assert final.finish_reason in ("length", "cancelled"), final
        assert len(stream.codes) == stream.sequence.max_frames or final.finish_reason == "cancelled"
        assert stream.sequence.block_table == []
    assert len(streams) > num_events // 4
    assert engine.is_alive
    assert_nothing_is_held(engine)


def overflow_the_pool(path: Path, *, max_frames: int, num_kv_blocks: int, **options: Any) -> None:
    """More streams than the pool holds: some are preempted, all are spoken to their end, with the codes each has alone."""
    utterances = [Utterance("Good morning, everyone.", voice) for voice in ("ryan", "vivian", "aiden", "serena")]
    with running_engine(path, **options) as engine:
        expected = [speak(engine, utterance, max_frames=max_frames) for utterance in utterances]
    with running_engine(path, num_kv_blocks=num_kv_blocks, **options) as engine:
        streams = [start(engine, utterance, max_frames=max_frames) for utterance in utterances]
        for stream, codes in zip(streams, expected, strict=True):
            assert stream.end().error == ""
            np.testing.assert_array_equal(stream.codes, codes)
        assert engine.stats().num_preemptions > 0
        assert_nothing_is_held(engine)


def speak_among_mates(engine: TalkerEngine, rng: np.random.Generator, *, max_frames: int) -> list[int]:
    """Three greedy streams get the codes each has alone, while others join and leave at random; returns the batch sizes that occurred."""
    utterances = [
        Utterance("Wir fahren morgen.", "vivian", "german", non_streaming_mode=False),
        Utterance(),
        Utterance("今天很好。", "eric", "auto"),
    ]
    expected = [speak(engine, utterance, max_frames=max_frames) for utterance in utterances]
    execute, batches = engine.worker.execute, set[int]()
    mates: list[Stream] = []

    def counted(plan: Plan) -> FrameResult | None:
        if isinstance(plan, DecodePlan):
            batches.add(len(plan.slots))
        return execute(plan)

    def come_and_go(_: Stream) -> None:
        for mate in mates:
            if rng.random() < 0.02 and not mate.has_ended:
                engine.cancel(mate.request.stream_key)
        num_open = sum(not mate.has_ended for mate in mates)
        for _i in range(int(rng.integers(8)) if num_open < engine.config.max_num_seqs else 0):
            sampling = SamplingParams(seed=int(rng.integers(2**62)))
            mates.append(start(engine, UTTERANCES[rng.integers(len(UTTERANCES))], sampling, max_frames=int(rng.integers(1, max_frames))))

    engine.worker.execute = counted  # type: ignore[method-assign]
    moments = dict.fromkeys(range(1, max_frames), come_and_go)
    streams = [start(engine, utterance, max_frames=max_frames, at=moments if i == 0 else None) for i, utterance in enumerate(utterances)]
    for stream, codes in zip(streams, expected, strict=True):
        assert stream.end().error == ""
        np.testing.assert_array_equal(stream.codes, codes)
    for mate in mates:
        engine.cancel(mate.request.stream_key)
    for mate in mates:
        mate.end()
    assert_nothing_is_held(engine)
    return sorted(batches)
