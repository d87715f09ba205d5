"""Each recording has one future, from the resampling pool to the encoder; stored voices are loaded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_voices import random_voice, recording

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.errors import EngineDeadError, InvalidRequestError
from engine_lib.voices import library as module
from engine_lib.voices.library import RESAMPLING_THREADS, VoiceLibrary
from engine_lib.voices.reference_audio import checked_reference_audio
from patience import PATIENCE

TEXT = "what is said"
NO_STORE = "there is no store; name a folder"


@contextmanager
def running_library(folder: Path, **options: Any) -> Iterator[VoiceLibrary]:
    library = VoiceLibrary(Checkpoint(folder), EngineConfig(device="cpu", **options), no_store=NO_STORE)
    try:
        yield library
    finally:
        library.shutdown()


@contextmanager
def busy_pool(library: VoiceLibrary) -> Iterator[None]:
    """Within, every resampling thread waits."""
    gate = threading.Event()
    waiting = [library._pool.submit(gate.wait, PATIENCE) for _ in range(RESAMPLING_THREADS)]
    try:
        yield
    finally:
        gate.set()
        assert all(one.result(PATIENCE) for one in waiting)


def test_a_recording_of_any_rate_gives_the_voice_of_its_resampled_samples(tiny_base: Path):
    samples = recording(1.7, 44_100, 2)
    audio = checked_reference_audio(samples, 44_100, min_seconds=1, max_seconds=30)
    with running_library(tiny_base) as library:
        assert library._encoder is not None
        voice = library.encode(samples, 44_100, reference_text=TEXT).result(PATIENCE)
        assert voice.content_key == library._encoder.encode(audio, reference_text=TEXT).result(PATIENCE).content_key
        assert (library.stats().num_requests, library.stats().num_encoded) == (2, 1)
        alone = library.encode(samples, 44_100, x_vector_only=True).result(PATIENCE)
        assert (alone.ref_code, alone.x_vector_only_mode) == (None, True)


def test_a_refused_recording_is_named_by_the_future_and_the_others_are_encoded(tiny_base: Path):
    with running_library(tiny_base, reference_min_seconds=1.2, reference_max_seconds=2.0) as library:
        good = library.encode(recording(1.3, 24_000), 24_000, reference_text=TEXT)
        short = library.encode(recording(1.1, 24_000), 24_000, reference_text=TEXT)
        long = library.encode(recording(2.1, 24_000), 24_000, reference_text=TEXT)
        silent = library.encode(np.zeros(36_000, np.float32), 24_000, reference_text=TEXT, field="ref_audio")
        wordless = library.encode(recording(1.4, 24_000), 24_000)
        for answer, message in (
            (short, r"^reference_audio: lasts 1\.10 s .* give 1\.2 to 2 s"),
            (long, r"^reference_audio: lasts 2\.10 s"),
            (silent, "^ref_audio: is silent"),
            (wordless, "^reference_text: is empty"),
        ):
            with pytest.raises(InvalidRequestError, match=message):
                answer.result(PATIENCE)
        assert good.result(PATIENCE).ref_text == TEXT


def test_a_recording_cancelled_before_its_turn_is_neither_resampled_nor_encoded(tiny_base: Path, monkeypatch: pytest.MonkeyPatch):
    checked = []

    def watched(samples: Any, *arguments: Any, **limits: Any) -> Any:
        checked.append(len(samples))
        return checked_reference_audio(samples, *arguments, **limits)

    monkeypatch.setattr(module, "checked_reference_audio", watched)
    with running_library(tiny_base) as library:
        with busy_pool(library):
            cancelled, kept = (library.encode(recording(seconds, 24_000), 24_000, x_vector_only=True) for seconds in (1.5, 1.6))
            assert cancelled.cancel()
        with pytest.raises(CancelledError):
            cancelled.result(PATIENCE)
        kept.result(PATIENCE)
        assert checked == [len(recording(1.6, 24_000))]
        assert library.stats().num_requests == 1


def test_after_shutdown_a_recording_that_waits_and_a_new_one_say_that_the_encoder_has_stopped(tiny_base: Path):
    with running_library(tiny_base) as library:
        with busy_pool(library):
            waiting = library.encode(recording(1.0, 24_000), 24_000, x_vector_only=True)
            library.shutdown()
            with pytest.raises(EngineDeadError, match="has stopped"):
                library.encode(recording(1.0, 24_000), 24_000, x_vector_only=True)
        with pytest.raises(EngineDeadError, match="has stopped"):
            waiting.result(PATIENCE)


def test_a_stored_voice_is_loaded_for_the_checkpoint(tiny_base: Path, tmp_path: Path):
    with running_library(tiny_base, voice_store=str(tmp_path)) as library:
        voice = random_voice(library._config, 1, 9)
        library.store.add("Anna", voice, consent="a test", reference_seconds=1.0, reference_sample_rate=24_000, made_by="tests")
        assert library.names() == ["anna"]
        assert library.load("ANNA").content_key == voice.content_key
        with pytest.raises(InvalidRequestError, match=r"^voice: 'ben' is not a stored voice; stored: anna"):
            library.load("ben")


def test_a_checkpoint_without_encoders_still_reads_the_store(tiny_custom_voice: Path, tmp_path: Path):
    with running_library(tiny_custom_voice, voice_store=str(tmp_path)) as library:
        assert library.names() == []
        for call in (lambda: library.encode(recording(1.0, 24_000), 24_000), library.stats):
            with pytest.raises(InvalidRequestError, match=r"^reference_audio: a custom_voice checkpoint clones no voice"):
                call()


def test_without_a_store_there_are_no_names_and_the_error_is_that_of_the_owner(tiny_custom_voice: Path):
    with running_library(tiny_custom_voice) as library:
        assert library.names() == []
        for call in (lambda: library.store, lambda: library.load("anna")):
            with pytest.raises(InvalidRequestError, match=f"^voice: {NO_STORE}"):
                call()
