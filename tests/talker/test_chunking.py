"""The places at which chunks are cut, for times and loads that the tests give."""

from __future__ import annotations

import random
import secrets

import pytest

from engine_lib.talker.output.chunking import ChunkCutter, ChunkGrowth

FRAME = 0.08
GROWTH = ChunkGrowth(frame_seconds=FRAME, max_frames=32, min_streams=16)
RAMP = (1, 2, 4, 8)


def chunks(cutter: ChunkCutter, num_frames: int, *, seconds_a_frame: float, num_running: int) -> list[int]:
    """Frames of each chunk of a stream with frames so many seconds apart."""
    cut, gathered = [], 0
    for i in range(num_frames):
        gathered += 1
        now = 100.0 + i * seconds_a_frame
        if cutter.is_due(gathered, now, num_running):
            cutter.sent(gathered, now)
            cut.append(gathered)
            gathered = 0
    return cut


def test_a_fixed_ramp_repeats_its_last_entry_whatever_the_load() -> None:
    assert chunks(ChunkCutter(RAMP), 31, seconds_a_frame=0.001, num_running=64) == [1, 2, 4, 8, 8, 8]


def test_chunks_grow_while_many_streams_run_and_the_client_has_enough() -> None:
    # After the ramp 15 frames are out: half of them pay for 4; then 19, 27, 35 and 51 frames are out, and so on.
    assert chunks(ChunkCutter(RAMP, GROWTH), 131, seconds_a_frame=0.0, num_running=16) == [1, 2, 4, 8, 4, 8, 8, 16, 16, 32, 32]


def test_chunks_do_not_grow_while_few_streams_run() -> None:
    assert chunks(ChunkCutter(RAMP, GROWTH), 51, seconds_a_frame=0.0, num_running=15) == [1, 2, 4, 8, 4, 8, 8, 8, 8]


def test_a_client_with_little_left_gets_small_chunks() -> None:
    # Frames come as they are heard: after the ramp the client has one frame left, and never more.
    assert chunks(ChunkCutter(RAMP, GROWTH), 25, seconds_a_frame=FRAME, num_running=64) == [1, 2, 4, 8, 2, 2, 2, 2, 2]


def test_a_stream_that_stalls_is_cut_as_soon_as_its_client_needs_it() -> None:
    cutter = ChunkCutter((8,), GROWTH)
    cutter.sent(64, 0.0)
    assert not cutter.is_due(9, 0.1, num_running=64)
    assert cutter.is_due(9, 64 * FRAME - 1.0, num_running=64)


@pytest.mark.parametrize(("ramp", "smallest", "largest"), [((1,), 1, 4), ((3,), 1, 8), ((64,), 16, 32)])
def test_sizes_stay_between_a_quarter_and_four_times_the_last_entry(ramp: tuple[int, ...], smallest: int, largest: int) -> None:
    assert min(chunks(ChunkCutter(ramp, GROWTH), 200, seconds_a_frame=2 * FRAME, num_running=64)[1:]) == smallest
    assert max(chunks(ChunkCutter(ramp, GROWTH), 2000, seconds_a_frame=0.0, num_running=64)[1:]) == largest


def test_gathering_a_chunk_never_lets_a_client_run_dry_that_is_fed_in_time() -> None:
    seed = secrets.randbits(32)
    print(f"seed = {seed}")
    rng = random.Random(seed)
    for _ in range(200):
        cutter, now, sent, gathered = ChunkCutter((4,), GROWTH), 0.0, 20, 0
        cutter.sent(sent, now)
        for _ in range(300):
            now += rng.uniform(0, FRAME)
            gathered += 1
            if cutter.is_due(gathered, now, num_running=rng.choice((1, 64))):
                left = sent * FRAME - now
                assert left > 0, f"{gathered} frames gathered"
                cutter.sent(gathered, now)
                sent, gathered = sent + gathered, 0
