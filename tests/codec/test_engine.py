"""The codec engine answers every chunk once and in order, with exact audio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from codec.listening import (
    SAMPLES_PER_FRAME,
    TOLERANCE,
    AssertOfficial,
    Gate,
    Listener,
    MakeEngine,
    random_codes,
    random_cut,
    send_from_many_threads,
)
from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.engine import CodecEngine
from engine_lib.config import EngineConfig
from engine_lib.errors import ConfigError, InvalidRequestError
from oracle import official_decode
from patience import PATIENCE


def test_streams_in_random_chunks_from_many_threads_give_the_official_audio(
    make_engine: MakeEngine, rng: np.random.Generator, assert_official: AssertOfficial
) -> None:
    engine = make_engine(slots=4, codec_max_batch_size=3)
    streams = [(random_codes(rng, int(frames)), Listener(engine)) for frames in (350, *rng.integers(1, 100, 8))]
    send_from_many_threads(streams, rng)
    for codes, listener in streams:
        assert_official(listener.audio(), codes)
    assert (engine.stats().open_streams, engine.stats().free_slots, engine.stats().queued_chunks) == (0, 4, 0)


def test_chunks_that_wait_together_are_decoded_together(
    make_engine: MakeEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(slots=8)
    gate = Gate(engine, monkeypatch)
    listeners = [Listener(engine) for _ in range(8)]
    listeners[0].send_all(random_codes(rng, 2), [1, 1])
    assert gate.reached.wait(PATIENCE)
    for listener in listeners[1:]:
        listener.send_all(random_codes(rng, 2), [1, 1])
    gate.open()
    for listener in listeners:
        assert len(listener.audio()) == 2 * SAMPLES_PER_FRAME
    assert 4 <= engine.stats().num_steps <= 1 + 4  # both chunks of two new streams at a time
    assert engine.stats().num_frames == 16


def test_more_streams_than_slots_all_complete(make_engine: MakeEngine, rng: np.random.Generator, assert_official: AssertOfficial) -> None:
    engine = make_engine(slots=2)
    streams = [(random_codes(rng, 6), Listener(engine)) for _ in range(7)]
    for start in (0, 2, 4):  # all of them are open before the first can end
        for codes, listener in streams:
            listener.send(codes[start : start + 2])
    for codes, listener in streams:
        listener.send(codes[:0], is_final=True)
    for codes, listener in streams:
        assert_official(listener.audio(), codes)


def test_a_final_chunk_may_bring_frames(make_engine: MakeEngine, rng: np.random.Generator, assert_official: AssertOfficial) -> None:
    engine, codes = make_engine(), random_codes(rng, 5)
    listener = Listener(engine)
    listener.send(codes[:3])
    listener.send(codes[3:], is_final=True)
    assert_official(listener.audio(), codes)
    assert engine.stats().free_slots == 4


def test_a_stream_without_frames_needs_no_slot(make_engine: MakeEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(slots=1)
    gate = Gate(engine, monkeypatch)
    holder, empty = Listener(engine), Listener(engine)
    holder.send(random_codes(rng, 1))
    assert gate.reached.wait(PATIENCE)
    empty.send(random_codes(rng, 0), is_final=True)
    gate.open()
    assert len(empty.audio()) == 0
    assert engine.stats().free_slots == 0


def test_a_reference_gives_no_audio_and_the_audio_after_it_is_the_tail_of_the_whole(
    make_engine: MakeEngine, rng: np.random.Generator, tiny_custom_voice: Path
) -> None:
    engine = make_engine()
    reference, codes = random_codes(rng, int(rng.integers(65, 200))), random_codes(rng, 20)
    listener = Listener(engine)
    listener.send(reference, is_reference=True)
    listener.send_all(codes, [1, 2, 4, 8, 5])
    whole = official_decode(tiny_custom_voice, torch.from_numpy(np.concatenate([reference, codes]).astype(np.int64))).numpy()
    answers = listener.rest()
    assert len(answers[0].audio) == 0
    np.testing.assert_allclose(
        np.concatenate([answer.audio for answer in answers]), whole[len(reference) * SAMPLES_PER_FRAME :], rtol=0, atol=TOLERANCE
    )


def test_decode_gives_the_whole_utterance_while_streams_run(
    make_engine: MakeEngine, rng: np.random.Generator, assert_official: AssertOfficial
) -> None:
    engine = make_engine()
    streamed, codes = random_codes(rng, 30), random_codes(rng, 140)
    listener = Listener(engine)
    listener.send_all(streamed, random_cut(rng, 30))
    audio = engine.decode(codes)
    assert audio.dtype == np.float32
    assert_official(audio, codes)
    assert_official(listener.audio(), streamed)


def test_decode_of_no_frames_is_no_audio(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    assert len(make_engine().decode(random_codes(rng, 0))) == 0


def test_decode_names_the_code_that_is_out_of_range(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    codes = random_codes(rng, 3)
    codes[1, 7] = 2150
    with pytest.raises(InvalidRequestError, match=r"codes: values \d+ to 2150; only 0 to 2047"):
        make_engine().decode(codes)


def test_the_codec_runs_on_a_device_of_its_own(tiny_custom_voice: Path) -> None:
    engine = CodecEngine(Checkpoint(tiny_custom_voice), EngineConfig(device="cuda:99", codec_device="cpu"))
    assert engine.runner.device.type == "cpu"
    with pytest.raises(ConfigError, match="codec_device: 'cuda:99'"):
        CodecEngine(Checkpoint(tiny_custom_voice), EngineConfig(device="cpu", codec_device="cuda:99"))
