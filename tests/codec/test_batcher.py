"""The batcher decides which frames are decoded next. The tests give the times, in seconds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from engine_lib.codec.batcher import SAFE_SECONDS, Batcher, Cohort, Stream
from engine_lib.codec.request import CodecRequest
from engine_lib.codec.step_limits import StepLimits

FRAME_SECONDS = 0.08
SAMPLES_PER_FRAME = 2
LIMITS = StepLimits(full=40, express=6, piece=16)
PAIRS = StepLimits(full=2, express=2, piece=2)  # one chunk of two frames, or two of one


def make_batcher(num_slots: int = 8, limits: StepLimits = LIMITS, max_wait: float = 0.0) -> Batcher:
    return Batcher(num_slots, limits, FRAME_SECONDS, max_wait)


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


def sizes(cohort: Cohort | None) -> dict[str, int]:
    return {stream.stream_key: len(piece) for stream, piece in zip(cohort.streams, cohort.pieces, strict=True)} if cohort else {}


def heard(batcher: Batcher, stream_key: str, frames: int, now: float = 0.0) -> Stream:
    """Open a stream and decode its first `frames` frames at `now`."""
    stream = add(batcher, stream_key, frames, now=now)
    while stream.pending:
        assert keys(run(batcher, now)) == [stream_key]
    return stream


def test_nothing_is_decoded_when_nothing_waits() -> None:
    batcher = make_batcher()
    assert batcher.next_cohort(0.0) is None
    heard(batcher, "a", 1, now=0.0)
    assert batcher.next_cohort(0.0) is None


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


def test_first_chunks_come_in_the_order_their_streams_opened() -> None:
    batcher = make_batcher(limits=PAIRS)
    for stream_key in "abc":
        add(batcher, stream_key, 1)
    assert keys(run(batcher, 0.0)) == ["a", "b"]
    assert keys(run(batcher, 0.0)) == ["c"]


def test_streams_that_play_come_in_the_order_they_run_out_of_audio() -> None:
    batcher = make_batcher(limits=PAIRS)
    heard(batcher, "long lead", 8, now=0.0)  # until 0.64
    heard(batcher, "short lead", 2, now=0.3)  # until 0.46
    heard(batcher, "late start", 4, now=0.5)  # until 0.82
    for stream_key in ("late start", "long lead", "short lead"):
        add(batcher, stream_key, 2, index=1, now=0.6)
    assert [keys(run(batcher, 0.6)) for _ in range(3)] == [["short lead"], ["long lead"], ["late start"]]


def test_audio_decoded_or_on_the_device_counts_towards_the_deadline() -> None:
    for is_decoded in (True, False):
        batcher = make_batcher(limits=PAIRS)
        heard(batcher, "a", 1, now=0.0)
        heard(batcher, "b", 2, now=0.0)
        for index in (1, 2):
            add(batcher, "a", 2, index=index)
            add(batcher, "b", 2, index=index)
        # a: 0.08, then 0.24, then 0.40; b: 0.16, then 0.32
        cohorts = [run(batcher, 0.0) if is_decoded else batcher.next_cohort(0.0) for _ in range(4)]
        assert [keys(cohort) for cohort in cohorts] == [["a"], ["b"], ["a"], ["b"]]


def test_a_stream_whose_first_audio_is_on_the_device_comes_after_the_unheard_and_before_the_others() -> None:
    batcher = make_batcher(limits=PAIRS)
    heard(batcher, "playing", 1, now=0.0)
    add(batcher, "new", 4)
    add(batcher, "newer", 2)
    add(batcher, "playing", 2, index=1)
    assert [keys(batcher.next_cohort(0.0)) for _ in range(4)] == [["new"], ["newer"], ["new"], ["playing"]]


def test_a_long_chunk_is_decoded_in_pieces() -> None:
    batcher = make_batcher()
    heard(batcher, "a", 1)
    stream = add(batcher, "a", 50, index=1)
    frames = []
    while stream.pending:
        cohort = run(batcher, 0.0)
        assert cohort is not None
        frames.append(cohort.pieces[0][:, 1])
    assert [len(piece) for piece in frames] == [16, 16, 16, 2]
    assert (np.concatenate(frames) == np.arange(50)).all()


def test_frames_on_the_device_are_not_taken_twice() -> None:
    batcher = make_batcher()
    for stream_key in ("a", "b"):
        add(batcher, stream_key, 70)
        add(batcher, stream_key, 3, index=1)
    taken: dict[str, list[list[int]]] = {"a": [], "b": []}
    while (cohort := batcher.next_cohort(0.0)) is not None:  # nothing is decoded meanwhile
        for stream, piece in zip(cohort.streams, cohort.pieces, strict=True):
            taken[stream.stream_key] += piece.tolist()
    expected = [[0, frame] for frame in range(70)] + [[1, frame] for frame in range(3)]
    assert taken == {"a": expected, "b": expected}


def test_a_whole_utterance_gives_way_to_streams_that_play_once_it_has_begun() -> None:
    batcher = make_batcher(limits=StepLimits(full=8, express=8, piece=8))
    heard(batcher, "playing", 8, now=0.0)
    add(batcher, "utterance", 700)
    for _ in range(2):
        assert keys(run(batcher, 0.0)) == ["utterance"]
    add(batcher, "playing", 8, index=1)
    assert keys(run(batcher, 0.0)) == ["playing"]


def test_a_reference_is_not_audio_so_its_stream_still_comes_first() -> None:
    batcher = make_batcher(limits=StepLimits(full=64, express=64, piece=64))
    heard(batcher, "playing", 1, now=0.0)
    add(batcher, "clone", 128, is_reference=True)
    add(batcher, "clone", 64)
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


def test_a_stream_that_failed_waits_for_no_slot() -> None:
    batcher = make_batcher(num_slots=1)
    add(batcher, "a", 1)
    add(batcher, "b", 1)
    assert batcher.num_without_slot == 2
    assert keys(run(batcher, 0.0)) == ["a"]
    assert batcher.num_without_slot == 1
    batcher.streams["b"].error = "broken"
    assert batcher.num_without_slot == 0
    add(batcher, "c", 1)
    assert batcher.num_without_slot == 1


def test_only_streams_that_nothing_waits_for_expire() -> None:
    batcher = make_batcher(num_slots=1)
    silent = heard(batcher, "silent", 1, now=0.0)
    add(batcher, "waits for a slot", 1, now=0.0)
    assert batcher.expired(now=4.9, idle_timeout=5.0) == []
    assert batcher.expired(now=5.0, idle_timeout=5.0) == [silent]

    add(batcher, "silent", 0, index=1, now=4.0)
    batcher.pop(silent)
    assert batcher.expired(now=5.0, idle_timeout=5.0) == []


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


def two_that_play(*, frames: int = 8) -> Batcher:
    """Two streams with `frames` frames for their listeners from 0.0 on; chunks may wait 2 ms."""
    batcher = make_batcher(limits=StepLimits(full=40, express=8, piece=16), max_wait=0.002)
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


def test_nobody_waits_when_no_open_stream_could_join() -> None:
    batcher = two_that_play()
    add(batcher, "a", 8, index=1, now=0.1)
    assert run(batcher, 0.1) is None
    add(batcher, "b", 4, index=1, now=0.101)
    assert sizes(run(batcher, 0.101)) == {"a": 8, "b": 4}


def test_a_full_step_ends_the_wait() -> None:
    batcher = two_that_play()
    add(batcher, "a", 39, index=1, now=0.1)
    assert run(batcher, 0.1) is None
    add(batcher, "a", 1, index=2, now=0.101)
    assert sizes(run(batcher, 0.101)) == {"a": 16}


def test_a_client_that_waits_for_the_end_is_not_kept_waiting() -> None:
    batcher = two_that_play()
    batcher.add(CodecRequest("a", 1, np.zeros((4, 2), int), True, lambda _chunk: None), 0.1)
    assert keys(run(batcher, 0.1)) == ["a"]


def test_a_first_chunk_never_waits_and_takes_with_it_what_it_has_room_for() -> None:
    batcher = two_that_play()
    add(batcher, "a", 8, index=1, now=0.1)
    assert run(batcher, 0.1) is None
    add(batcher, "new", 1, now=0.1)
    assert sizes(run(batcher, 0.1)) == {"new": 1, "a": 7}


def test_a_listener_about_to_run_dry_is_not_kept_waiting() -> None:
    batcher = two_that_play(frames=1)  # until 0.08
    add(batcher, "a", 8, index=1, now=0.029)
    assert run(batcher, 0.029) is None
    assert batcher.wait_until == pytest.approx(0.08 - SAFE_SECONDS)
    assert keys(run(batcher, 0.0301)) == ["a"]
