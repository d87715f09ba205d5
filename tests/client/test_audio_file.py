"""The file, or the content of the pipe, after the chunks of a stream."""

from __future__ import annotations

import io
import wave
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen3_tts_client.audio_file import AudioFile, WavPipe
from qwen3_tts_client.decoding import decoded

QUANTISATION = 1 / 32768


@pytest.fixture
def chunks() -> list[np.ndarray]:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    generator = np.random.default_rng(seed)
    return [generator.uniform(-1, 1, size).astype(np.float32) for size in (1920, 3840, 1)] + [np.zeros(0, np.float32)]


@pytest.mark.parametrize("suffix", ["wav", "flac", "WAV"])
def test_a_file_holds_the_chunks_in_sixteen_bits(chunks: list[np.ndarray], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"speech.{suffix}"
    with AudioFile(path) as file:
        for chunk in chunks:
            file.write(chunk, 24000)
    assert soundfile.info(path).subtype == "PCM_16"
    audio, sample_rate = soundfile.read(path, dtype="float32")
    assert sample_rate == 24000
    np.testing.assert_allclose(audio, np.concatenate(chunks), atol=QUANTISATION)


def test_a_full_disk_is_told(chunks: list[np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "full.wav").symlink_to("/dev/full")
    with AudioFile(tmp_path / "full.wav") as file, pytest.raises(OSError, match="cannot be written: the disk is full"):
        file.write(chunks[1], 24000)


def test_what_was_written_before_an_error_can_be_played(chunks: list[np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    with suppress(RuntimeError), AudioFile(path) as file:
        file.write(chunks[0], 24000)
        raise RuntimeError
    assert soundfile.info(path).frames == 1920


def test_a_request_without_chunks_leaves_an_older_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    path.write_text("older")
    with AudioFile(path):
        pass
    assert path.read_text() == "older"


@pytest.mark.parametrize("name", ["speech", "speech.txt", "speech.raw.", "missing/speech.wav", "speech_folder.wav"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_spoken(name: str, tmp_path: Path) -> None:
    (tmp_path / "speech_folder.wav").mkdir()
    with pytest.raises(ValueError, match="speech"):
        AudioFile(tmp_path / name)


def test_a_pipe_gets_the_samples_a_file_would_hold(chunks: list[np.ndarray], tmp_path: Path) -> None:
    stream, path = io.BytesIO(), tmp_path / "speech.wav"
    with WavPipe(stream) as pipe, AudioFile(path) as file:
        for chunk in chunks:
            pipe.write(chunk, 24000)
            file.write(chunk, 24000)
    stream.seek(0)
    expected, _ = soundfile.read(path, dtype="int16")
    read, sample_rate = soundfile.read(stream, dtype="int16")
    assert sample_rate == 24000
    np.testing.assert_array_equal(read, expected)
    stream.seek(0)
    with wave.open(stream) as header:
        assert (header.getnchannels(), header.getsampwidth(), header.getframerate()) == (1, 2, 24000)


def test_a_pipe_gets_each_chunk_at_once(chunks: list[np.ndarray]) -> None:
    stream = io.BytesIO()
    with WavPipe(stream) as pipe:
        pipe.write(chunks[0], 24000)
        assert len(stream.getvalue()) == 44 + 2 * 1920


@pytest.mark.parametrize(("audio_format", "subtype"), [("float32", "FLOAT"), ("pcm16", "PCM_16"), ("mulaw", "ULAW"), ("alaw", "ALAW")])
def test_file_and_pipe_hold_the_samples_in_the_format_of_the_request(audio_format: str, subtype: str, tmp_path: Path) -> None:
    stream, path = io.BytesIO(), tmp_path / "speech.wav"
    samples = decoded(bytes(range(256)), audio_format) if audio_format != "float32" else np.linspace(-1, 1, 256, dtype=np.float32)
    with WavPipe(stream, audio_format) as pipe, AudioFile(path, audio_format) as file:
        pipe.write(samples, 8000)
        file.write(samples, 8000)
    stream.seek(0)
    assert soundfile.info(path).subtype == soundfile.info(stream).subtype == subtype
    stream.seek(0)
    for source in (path, stream):
        written, sample_rate = soundfile.read(source, dtype="int16" if subtype != "FLOAT" else "float32")
        np.testing.assert_array_equal(written, samples if subtype == "FLOAT" else np.rint(samples * 32768))
        assert sample_rate == 8000


def test_a_file_that_cannot_have_the_format_of_the_request_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot hold mulaw"):
        AudioFile(tmp_path / "speech.flac", "mulaw")
