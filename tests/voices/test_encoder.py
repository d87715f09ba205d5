"""A voice does not depend on its batch, costs nothing the second time, and fails alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.errors import CheckpointError, EngineDeadError, InvalidRequestError, OverloadedError, Qwen3TTSError
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.encoder import Audio, EncodedVoice, VoiceEncoder
from engine_lib.voices.reference_audio import SAMPLE_RATE
from oracle import load_official
from patience import PATIENCE
from voices.recordings import recordings

TEXT = "what is said"


@contextmanager
def running_encoder(folder: Path, **options: Any) -> Iterator[VoiceEncoder]:
    encoder = VoiceEncoder(Checkpoint(folder), EngineConfig(device="cpu", **options))
    try:
        yield encoder
    finally:
        encoder.shutdown()


@contextmanager
def held(encoder: VoiceEncoder) -> Iterator[None]:
    """Within, the encoders do not start; the first batch has been taken before the block begins."""
    entered, gate, run = threading.Event(), threading.Event(), encoder._run_encoders

    def waiting(clips: list[Audio], with_codes: list[bool]) -> list[EncodedVoice]:
        entered.set()
        assert gate.wait(PATIENCE)
        return run(clips, with_codes)

    encoder._run_encoders = waiting  # type: ignore[method-assign, assignment]
    first = encoder.encode(recordings(99, 1.0)[0], x_vector_only=True)
    try:
        assert entered.wait(PATIENCE)
        yield
    finally:
        encoder._run_encoders = run  # type: ignore[method-assign]
        gate.set()
        first.result(PATIENCE)


def assert_same_voice(actual: VoiceClonePromptItem, expected: VoiceClonePromptItem) -> None:
    torch.testing.assert_close(actual.ref_spk_embedding, expected.ref_spk_embedding, rtol=0, atol=1e-5)
    assert (actual.ref_code is None) == (expected.ref_code is None)
    if actual.ref_code is not None and expected.ref_code is not None:
        assert actual.ref_code.equal(expected.ref_code)


@pytest.mark.parametrize("x_vector_only", [False, True])
def test_a_prompt_is_that_of_the_official_package(tiny_base: Path, x_vector_only: bool):
    [audio] = recordings(5, 3.21)
    [expected] = load_official(tiny_base).create_voice_clone_prompt((audio, SAMPLE_RATE), TEXT, x_vector_only)
    with running_encoder(tiny_base) as encoder:
        actual = encoder.encode(audio, x_vector_only=x_vector_only, reference_text=TEXT).result(PATIENCE)
    assert_same_voice(actual, expected)
    for name in ("x_vector_only_mode", "icl_mode", "ref_text"):
        assert getattr(actual, name) == getattr(expected, name)
    actual.checked(Checkpoint(tiny_base).config)


@pytest.mark.parametrize("max_batch_clips", [1, 32])
def test_voices_that_wait_together_are_encoded_as_if_alone(tiny_base: Path, max_batch_clips: int):
    """One by one, as on the CPU, and in batches, as on a GPU. (With another seed, a batch may decide a near tie differently.)"""
    rng = np.random.default_rng(15)
    audio = recordings(15, *rng.uniform(1, 3, 32))
    x_vector_only = [bool(rng.integers(2)) for _ in audio]
    with running_encoder(tiny_base, voice_cache_size=0) as encoder:
        assert encoder._max_batch_clips == 1

        def encode(i: int) -> Future[VoiceClonePromptItem]:
            return encoder.encode(audio[i], x_vector_only=x_vector_only[i], reference_text=TEXT)

        alone = [encode(i).result(PATIENCE) for i in range(32)]
        before = encoder.stats().num_batches
        assert before == 32
        encoder._max_batch_clips = max_batch_clips
        with held(encoder):
            answers = [encode(i) for i in range(32)]
        for answer, expected in zip(answers, alone, strict=True):
            assert_same_voice(answer.result(PATIENCE), expected)
        batches = encoder.stats().num_batches - before - 1  # one was held
        assert batches == 32 if max_batch_clips == 1 else batches <= 3


def test_a_recording_is_encoded_once(tiny_base: Path):
    first, second = recordings(6, 1.2, 1.3)
    with running_encoder(tiny_base) as encoder:
        with held(encoder):  # this encodes a recording of its own
            answers = [encoder.encode(first, x_vector_only=only, reference_text=TEXT) for only in (True, False, True, False)]
        items = [answer.result(PATIENCE) for answer in answers]
        assert encoder.stats().num_encoded == 2
        for item in items[1:]:
            assert item.ref_spk_embedding.equal(items[0].ref_spk_embedding)

        again = encoder.encode(first.copy(), reference_text="other words")
        assert again.done()
        assert again.result().ref_text == "other words"
        assert_same_voice(again.result(), items[1])
        assert encoder.encode(first, x_vector_only=True).result().ref_code is None

        encoder.encode(second, x_vector_only=True).result(PATIENCE)
        codes = encoder.encode(second, reference_text=TEXT).result(PATIENCE).ref_code  # encoding the speaker embedding alone gave no codes
        assert codes is not None
        assert encoder.stats().num_encoded == 4


def test_the_voice_used_longest_ago_is_forgotten(tiny_base: Path):
    a, b, c = recordings(7, 1.0, 1.0, 1.0)
    with running_encoder(tiny_base, voice_cache_size=2) as encoder:
        for clip in (a, b, a, c):
            encoder.encode(clip, x_vector_only=True).result(PATIENCE)
        assert encoder.encode(a, x_vector_only=True).done()
        assert encoder.encode(c, x_vector_only=True).done()
        assert encoder.stats().cached == 2
        assert encoder.stats().num_encoded == 3
        encoder.encode(b, x_vector_only=True).result(PATIENCE)
        assert encoder.stats().num_encoded == 4


def test_what_a_caller_does_to_a_prompt_stays_with_that_caller(tiny_base: Path):
    [audio] = recordings(8, 1.0)
    with running_encoder(tiny_base) as encoder:
        item = encoder.encode(audio, reference_text=TEXT).result(PATIENCE)
        assert item.ref_code is not None
        kept = item.ref_spk_embedding.clone(), item.ref_code.clone()
        item.ref_spk_embedding.zero_()
        item.ref_code.zero_()
        again = encoder.encode(audio, reference_text=TEXT).result(PATIENCE)
        assert again.ref_code is not None
        assert again.ref_spk_embedding.equal(kept[0])
        assert again.ref_code.equal(kept[1])


def test_a_recording_that_fails_fails_alone(tiny_base: Path):
    good, broken = recordings(9, 1.5, 1.5)
    broken[1234] = np.nan
    with running_encoder(tiny_base) as encoder:
        expected = encoder.encode(good, reference_text=TEXT).result(PATIENCE)
    with running_encoder(tiny_base) as encoder:
        encoder._max_batch_clips = 3
        with held(encoder):
            answers = [encoder.encode(clip, reference_text=TEXT) for clip in (broken, good, good[:100])]
        with pytest.raises(Qwen3TTSError, match="x-vector is not finite"):
            answers[0].result(PATIENCE)
        assert_same_voice(answers[1].result(PATIENCE), expected)
        with pytest.raises(Qwen3TTSError, match="could not be encoded"):
            answers[2].result(PATIENCE)
        assert encoder.stats().cached == 2  # the good one, and the one that was held


def test_a_cancelled_recording_is_not_encoded(tiny_base: Path):
    with running_encoder(tiny_base) as encoder:
        with held(encoder):
            answer = encoder.encode(recordings(10, 1.0)[0], x_vector_only=True)
            assert answer.cancel()
        with pytest.raises(CancelledError):
            answer.result(PATIENCE)
        encoder.encode(recordings(11, 1.0)[0], x_vector_only=True).result(PATIENCE)
        assert encoder.stats().num_encoded == 2


def test_cloning_in_context_needs_a_text(tiny_base: Path):
    with running_encoder(tiny_base) as encoder:
        for text in (None, "", " \n"):
            with pytest.raises(InvalidRequestError, match="reference_text: is empty"):
                encoder.encode(recordings(12, 1.0)[0], reference_text=text)


def test_one_recording_too_many_is_refused(tiny_base: Path):
    [audio] = recordings(13, 1.0)
    with running_encoder(tiny_base, max_num_seqs=1, max_waiting_requests=1) as encoder, held(encoder):
        waiting = [encoder.encode(audio, x_vector_only=True) for _ in range(2)]
        with pytest.raises(OverloadedError, match="2 reference recordings are waiting"):
            encoder.encode(audio, x_vector_only=True)
        assert not any(answer.done() for answer in waiting)


def test_shutdown_answers_what_waits_and_ends_the_thread(tiny_base: Path):
    [audio] = recordings(14, 1.0)
    with running_encoder(tiny_base) as encoder:
        with held(encoder):
            answer = encoder.encode(audio, x_vector_only=True)
            stopping = threading.Thread(target=encoder.shutdown)
            stopping.start()
            while encoder._alive:
                time.sleep(0.001)
        stopping.join(PATIENCE)
        with pytest.raises(EngineDeadError, match="has stopped"):
            answer.result(PATIENCE)
        with pytest.raises(EngineDeadError, match="has stopped"):
            encoder.encode(audio, x_vector_only=True)
        assert not encoder._thread.is_alive()


def test_a_checkpoint_without_encoders_is_refused(tiny_custom_voice: Path):
    with pytest.raises(CheckpointError, match="kind custom_voice clones no voices"):
        VoiceEncoder(Checkpoint(tiny_custom_voice), EngineConfig(device="cpu"))
