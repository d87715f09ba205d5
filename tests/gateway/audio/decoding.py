"""Two independent decoders of every format: FFmpeg through PyAV, and libsndfile."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from qwen3_tts_gateway.audio import FORMATS, make_encoder
from qwen3_tts_gateway.audio.encoders import Samples

SPEECH = Path(__file__).parents[3] / "docs" / "voice_in_the_box.wav"
RATE = 24000
DEMUXERS = {"aac": "aac", "opus": "ogg", "pcm": "s16le"}
RAW = {"pcm": "PCM_16", "mulaw": "ULAW", "alaw": "ALAW"}
SNDFILE_HAS_NO = ("aac",)


def speech() -> Samples:
    """3.6 s of real speech: float32 [86400] at 24 kHz."""
    return soundfile.read(SPEECH, dtype="float32")[0]


def chord(seconds: float = 1.0) -> Samples:
    """Three steady tones, float32 [n] at 24 kHz."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.2 * sum(np.sin(2 * np.pi * hertz * time) for hertz in (220.0, 660.0, 1760.0))).astype(np.float32)


def encoded(response_format: str, chunks: Iterable[Samples], sample_rate: int | None = None) -> bytes:
    """The whole response for these chunks at 24 kHz, which come at the encoder's rate, as the server gives them."""
    encoder = make_encoder(response_format, sample_rate or FORMATS[response_format].default_rate)
    parts = list(chunks)
    borders = np.cumsum([part.size for part in parts])[:-1] * encoder.sample_rate // RATE
    pieces = np.split(at_rate(np.concatenate(parts), encoder.sample_rate), borders)
    return b"".join([encoder.encode(piece) for piece in pieces]) + encoder.finish()


def at_rate(source: Samples, rate: int) -> Samples:
    """A source at 24 kHz at another rate."""
    return source if rate == RATE else soxr.resample(source, RATE, rate)


def decoded(response_format: str, data: bytes, sample_rate: int | None = None) -> tuple[Samples, int]:
    """What FFmpeg makes of a response: float32 [n] and its rate in Hz. Nothing decodes to nothing."""
    if not data:
        return np.zeros(0, np.float32), 0
    rate = sample_rate or FORMATS[response_format].default_rate
    options = {"sample_rate": str(rate)} if response_format in RAW else {}
    try:
        with av.open(io.BytesIO(data), format=DEMUXERS.get(response_format, response_format), options=options) as container:
            stream = container.streams.audio[0]
            pieces = [frame.to_ndarray()[0] for frame in container.decode(stream)]
            rate = stream.rate
    except av.EOFError:  # an Ogg without packets
        pieces = []
    joined = np.concatenate(pieces) if pieces else np.zeros(0, np.int16)
    return (joined / 32768 if joined.dtype == np.int16 else joined).astype(np.float32), rate


def decoded_by_sndfile(response_format: str, data: bytes, sample_rate: int | None = None) -> tuple[Samples, int]:
    """What libsndfile makes of a response: float32 [n] and its rate in Hz. The response is shorter than a minute."""
    rate = sample_rate or FORMATS[response_format].default_rate
    raw = {"format": "RAW", "subtype": RAW[response_format], "channels": 1, "samplerate": rate} if response_format in RAW else {}
    with soundfile.SoundFile(io.BytesIO(data), **raw) as file:
        file.seekable = lambda: False  # or it seeks after reading, which fails at the end of a flac that has no total
        return file.read(60 * RATE, dtype="float32"), file.samplerate


def signal_to_noise(source: Samples, result: Samples) -> float:
    """In dB, float32 [n] each."""
    noise = float(np.square(source.astype(np.float64) - result).sum())
    return 10 * float(np.log10(np.square(source.astype(np.float64)).sum() / max(noise, 1e-30)))
