"""The batcher decides which frames are decoded next. The tests give the times, in seconds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from engine_lib.codec.batcher import SAFE_SECONDS, Batcher, Cohort, Stream
from engine_lib.codec.request import CodecRequest

FRAME_SECONDS = 0.08
SAMPLES_PER_FRAME = 2
MAX_PIECE = 64


def make_batcher(num_slots: int = 8, max_batch_size: int = 8, max_wait: float = 0.0) -> Batcher:
    return Batcher(num_slots, max_batch_size, FRAME_SECONDS, piece_frames=lambda frames: min(frames, MAX_PIECE), max_wait=max_wait)


def add(batcher: Batcher, stream_key: str, frames: int, *, index: int = 0, now: float = 0.0, is_reference: bool = False) -> Stream:
    # Each frame has the index of its chunk and its place there.
    codes = np.stack([np.full(frames, index), np.arange(frames)], axis=1)
    return batcher.add(CodecRequest(stream_key, index, codes, False, lambda _chunk: None, is_reference), now)


def run(batcher: Batcher, now: float) -> Cohort | None:
    """Decode the next cohort at `now`, as the engine does."""
    cohort = batcher.next_cohort(now)
    if cohort is not None:
        for stream, piece in zip(cohort.streams, cohort.pieces, strict=True):
            batcher.decoded(stream, len(piece), np.zeros(len(piece) * SAMPLES_PER_FRAME, np.float32), now)
            while stream.pending and not stream.pending[0].frames_left:
                batcher.pop(stream)
    return cohort


def keys(cohort: Cohort | None) -> Sequence[str]:
    return [stream.stream_key for stream in cohort.streams] if cohort is not None else []


def heard(batcher: Batcher, stream_key: str, frames: int, now: float) -> Stream:
    """Open a stream and decode its first `frames` frames at `now`."""
    stream = add(batcher, stream_key, frames, now=now)
    assert keys(run(batcher, now)) == [stream_key]
    return stream


def test_nothing_is_decoded_when_nothing_waits() -> None:
    batcher = make_batcher()
    assert batcher.next_cohort(0.0) is None
    heard(batcher, "a", 1, now=0.0)
    assert batcher.next_cohort(0.0) is None


def test_a_first_chunk_comes_before_a_stream_that_is_about_to_run_dry() -> None:
    batcher = make_batcher()
    heard(batcher, "playing", 1, now=0.0)
    add(batcher, "playing", 2, index=1, now=1.0)  # silent for a second already
    add(batcher, "new", 1, now=2.0)
    assert keys(run(batcher, 2.0)) == ["new"]
    assert keys(run(batcher, 2.0)) == ["playing"]


def test_first_chunks_come_in_the_order_their_streams_opened() -> None:
    batcher = make_batcher(max_batch_size=2)
    for stream_key in "abc":
        add(batcher, stream_key, 1)
    assert keys(run(batcher, 0.0)) == ["a", "b"]
    assert keys(run(batcher, 0.0)) == ["c"]


def test_streams_that_play_come_in_the_order_they_run_out_of_audio() -> None:
    batcher = make_batcher(max_batch_size=1)
    heard(batcher, "long lead", 8, now=0.0)  # until 0.64
    heard(batcher, "short lead", 2, now=0.3)  # until 0.46
    heard(batcher, "late start", 4, now=0.5)  # until 0.82
    for stream_key in ("late start", "long lead", "short lead"):
        add(batcher, stream_key, 2, index=1, now=0.6)
    assert [keys(run(batcher, 0.6)) for _ in range(3)] == [["short lead"], ["long lead"], ["late start"]]


def test_the_deadline_moves_with_every_chunk_decoded() -> None:
    batcher = make_batcher(max_batch_size=1)
    heard(batcher, "a", 1, now=0.0)  # until 0.08
    heard(batcher, "b", 2, now=0.0)  # until 0.16
    for index in (1, 2):
        add(batcher, "a", 2, index=index)
        add(batcher, "b", 2, index=index)
    # a: 0.08, then 0.24, then 0.40; b: 0.16, then 0.32
    assert [keys(run(batcher, 0.0)) for _ in range(4)] == [["a"], ["b"], ["a"], ["b"]]


def test_a_cohort_holds_only_pieces_of_the_most_urgent_size() -> None:
    batcher = make_batcher()
    for stream_key, frames in {"a": 2, "b": 1, "c": 2, "d": 1}.items():
        add(batcher, stream_key, frames)
    cohort = run(batcher, 0.0)
    assert cohort is not None
    assert [len(piece) for piece in cohort.pieces] == [2, 2]
    assert keys(cohort) == ["a", "c"]
    assert keys(run(batcher, 0.0)) == ["b", "d"]


def test_a_stream_that_plays_joins_a_cohort_of_first_chunks_of_its_size() -> None:
    batcher = make_batcher()
    heard(batcher, "playing", 1, now=0.0)
    add(batcher, "new", 1)
    add(batcher, "playing", 1, index=1)
    assert keys(run(batcher, 0.0)) == ["new", "playing"]


def test_a_cohort_is_never_larger_than_the_maximum_and_takes_the_most_urgent() -> None:
    batcher = make_batcher(num_slots=20, max_batch_size=3)
    for i in range(7):
        add(batcher, str(i), 1)
    assert [keys(run(batcher, 0.0)) for _ in range(3)] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]


@pytest.mark.parametrize("sizes", [(1, 2, 4), (4, 1, 2), (8, 8, 8)])
def test_chunks_of_one_stream_are_decoded_in_order_one_a_cohort(sizes: tuple[int, ...]) -> None:
    batcher = make_batcher()
    for index, frames in enumerate(sizes):
        add(batcher, "a", frames, index=index)
    for index, frames in enumerate(sizes):
        cohort = run(batcher, 0.0)
        assert cohort is not None
        assert (cohort.pieces[0] == [[index, frame] for frame in range(frames)]).all()


def test_a_long_chunk_is_decoded_in_pieces() -> None:
    batcher = make_batcher()
    stream = add(batcher, "a", 150)
    frames = []
    while stream.pending:
        cohort = run(batcher, 0.0)
        assert cohort is not None
        frames.append(cohort.pieces[0][:, 1])
    assert [len(piece) for piece in frames] == [64, 64, 22]
    assert (np.concatenate(frames) == np.arange(150)).all()


def test_frames_on_the_device_are_not_taken_twice() -> None:
    batcher = make_batcher()
    for stream_key in ("a", "b"):
        add(batcher, stream_key, 70)
        add(batcher, stream_key, 3, index=1)
    cohorts = []
    while (cohort := batcher.next_cohort(0.0)) is not None:  # nothing is decoded meanwhile
        cohorts.append(cohort)
    assert [keys(cohort) for cohort in cohorts] == [["a", "b"]] * 3
    expected = [[0, frame] for frame in range(70)] + [[1, frame] for frame in range(3)]
    for row in (0, 1):
        assert np.concatenate([cohort.pieces[row] for cohort in cohorts]).tolist() == expected


def test_audio_on_the_device_counts_towards_the_deadline() -> None:
    batcher = make_batcher(max_batch_size=1)
    heard(batcher, "a", 1, now=0.0)
    heard(batcher, "b", 2, now=0.0)
    for index in (1, 2):
        add(batcher, "a", 2, index=index)
        add(batcher, "b", 2, index=index)
    # a: 0.08, then 0.24, then 0.40; b: 0.16, then 0.32
    assert [keys(batcher.next_cohort(0.0)) for _ in range(4)] == [["a"], ["b"], ["a"], ["b"]]


def test_a_stream_whose_first_audio_is_on_the_device_comes_after_the_unheard_and_before_the_others() -> None:
    batcher = make_batcher(max_batch_size=1)
    heard(batcher, "playing", 1, now=0.0)
    for index in (0, 1):
        add(batcher, "new", 1, index=index)
    add(batcher, "newer", 1)
    add(batcher, "playing", 1, index=1)
    assert [keys(batcher.next_cohort(0.0)) for _ in range(4)] == [["new"], ["newer"], ["new"], ["playing"]]


def test_a_whole_utterance_gives_way_to_streams_that_play_once_it_has_begun() -> None:
    batcher = make_batcher()
    heard(batcher, "playing", 8, now=0.0)
    add(batcher, "utterance", 700)
    assert keys(run(batcher, 0.0)) == ["utterance"]
    add(batcher, "playing", 8, index=1)
    assert keys(run(batcher, 0.0)) == ["playing"]


def test_a_reference_is_not_audio_so_its_stream_still_comes_first() -> None:
    batcher = make_batcher()
    heard(batcher, "playing", 1, now=0.0)
    add(batcher, "clone", 100, is_reference=True)
    add(batcher, "clone", 1)
    add(batcher, "playing", 2, index=1)
    assert [keys(run(batcher, 9.0)) for _ in range(4)] == [["clone"], ["clone"], ["clone"], ["playing"]]


def test_a_stream_waits_for_a_slot_while_others_go_on_and_slots_go_to_the_first_that_came() -> None:
    batcher = make_batcher(num_slots=2)
    a, b = add(batcher, "a", 1), add(batcher, "b", 1)
    add(batcher, "waits", 2)
    add(batcher, "waits longer", 1)
    assert keys(run(batcher, 0.0)) == ["a", "b"]
    assert {a.slot, b.slot} == {0, 1}
    assert run(batcher, 0.0) is None

    add(batcher, "b", 4, index=1)
    assert keys(run(batcher, 0.0)) == ["b"]

    batcher.free_slot(a)
    assert keys(run(batcher, 0.0)) == ["waits"]
    batcher.free_slot(b)
    assert keys(run(batcher, 0.0)) == ["waits longer"]


def test_a_failed_stream_is_not_decoded() -> None:
    batcher = make_batcher()
    add(batcher, "a", 1).error = "broken"
    assert batcher.next_cohort(0.0) is None


def test_only_streams_that_nothing_waits_for_expire() -> None:
    batcher = make_batcher(num_slots=1)
    silent = heard(batcher, "silent", 1, now=0.0)
    add(batcher, "waits for a slot", 1, now=0.0)
    assert batcher.expired(now=4.9, idle_timeout=5.0) == []
    assert batcher.expired(now=5.0, idle_timeout=5.0) == [silent]

    add(batcher, "silent", 0, index=1, now=4.0)
    batcher.pop(silent)
    assert batcher.expired(now=5.0, idle_timeout=5.0) == []


def two_that_play(*, frames: int = 8) -> Batcher:
    """Two streams with `frames` frames for their listeners from 0.0 on; chunks may wait 2 ms."""
    batcher = make_batcher(max_batch_size=2, max_wait=0.002)
    for stream_key in "ab":
        heard(batcher, stream_key, frames, now=0.0)
    return batcher


def test_a_chunk_with_time_to_spare_waits_for_company_but_not_for_long() -> None:
    batcher = two_that_play()
    add(batcher, "a", 8, index=1, now=0.1)
    assert run(batcher, 0.1) is None
    assert batcher.wait_until == pytest.approx(0.102)
    assert run(batcher, 0.101) is None
    assert keys(run(batcher, 0.1021)) == ["a"]
    assert run(batcher, 0.103) is None
    assert batcher.wait_until == float("inf")


def test_company_that_fills_the_cohort_ends_the_wait() -> None:
    batcher = two_that_play()
    add(batcher, "a", 8, index=1, now=0.1)
    assert run(batcher, 0.1) is None
    add(batcher, "b", 8, index=1, now=0.101)
    assert keys(run(batcher, 0.101)) == ["a", "b"]


def test_nobody_waits_when_no_open_stream_could_join() -> None:
    batcher = two_that_play()
    batcher.max_batch_size = 8
    add(batcher, "a", 8, index=1, now=0.1)
    add(batcher, "b", 4, index=1, now=0.1)
    assert keys(run(batcher, 0.1)) == ["a"]


def test_a_first_chunk_never_waits_and_takes_with_it_what_has_its_size() -> None:
    batcher = two_that_play()
    add(batcher, "a", 1, index=1, now=0.1)
    assert run(batcher, 0.1) is None
    add(batcher, "new", 1, now=0.1)
    assert keys(run(batcher, 0.1)) == ["new", "a"]


def test_a_listener_about_to_run_dry_is_not_kept_waiting() -> None:
    batcher = two_that_play(frames=1)  # until 0.08
    add(batcher, "a", 8, index=1, now=0.029)
    assert run(batcher, 0.029) is None
    assert batcher.wait_until == pytest.approx(0.08 - SAFE_SECONDS)
    assert keys(run(batcher, 0.0301)) == ["a"]


def test_others_are_decoded_while_a_chunk_waits() -> None:
    batcher = two_that_play()
    add(batcher, "a", 8, index=1, now=0.1)
    add(batcher, "new", 2, now=0.1)
    assert keys(run(batcher, 0.1)) == ["new"]
    assert run(batcher, 0.1) is None
