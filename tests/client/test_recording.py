"""Recordings from files: those that libsndfile reads; for others it says how to convert them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen3_tts_client import Recording

OTHERS = {
    "me.m4a": b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom\0\0\0\0" + bytes(64),
    "me.mp4": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(64),
    "me.webm": b"\x1a\x45\xdf\xa3\x9fB\x86\x81\1B\xf7\x81\1B\xf2\x81\4" + bytes(64),
    "empty.wav": b"",
}


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_channels_are_averaged_and_the_rate_stays(suffix: str, tmp_path: Path) -> None:
    samples = np.full((16_000, 2), [0.2, 0.4], np.float32)
    soundfile.write(tmp_path / f"me.{suffix}", samples, 16_000)
    clip = Recording.read(tmp_path / f"me.{suffix}")
    assert clip.sample_rate == 16_000
    assert clip.audio.ndim == 1
    assert abs(float(np.median(clip.audio)) - 0.3) < 0.15


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_kind_is_told_what_is_read_and_how_to_convert_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(OTHERS[name])
    with pytest.raises(OSError, match=r"cannot be read as audio: .*; WAV, FLAC, OGG and MP3 are read; convert .* ffmpeg -i RECORDING"):
        Recording.read(tmp_path / name)


def test_a_recording_may_come_through_a_pipe(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "me.wav", np.linspace(-0.5, 0.5, 60_000), 24_000)
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        pool.submit((tmp_path / "pipe").write_bytes, (tmp_path / "me.wav").read_bytes())
        piped = Recording.read(tmp_path / "pipe")
    np.testing.assert_array_equal(piped.audio, Recording.read(tmp_path / "me.wav").audio)
