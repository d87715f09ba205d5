"""The encoders of one process: a stream finds its codec open."""

from __future__ import annotations

import json
from dataclasses import asdict

import av
import numpy as np
import pytest

from gateway.audio.decoding import decoded, speech
from qwen3_tts_gateway import encoder_process
from qwen3_tts_gateway.audio import Encoder, Encoding, checked_encoding, make_encoder
from qwen3_tts_gateway.encoder_process import MOST_SPARES, _Encoders

SPEECH = speech()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Encoding]:
    """The encodings of all encoders that are opened."""
    made: list[Encoding] = []

    def open_encoder(encoding: Encoding) -> Encoder:
        made.append(encoding)
        return Encoder(encoding)

    monkeypatch.setattr(encoder_process, "Encoder", open_encoder)
    return made


def spoken(encoders: _Encoders, number: int, encoding: Encoding) -> bytes:
    encoders.open(number, json.dumps(asdict(encoding)).encode())
    parts = [encoders.encode(number, piece.tobytes(), is_last=False) for piece in np.array_split(SPEECH, 4)]
    parts.append(encoders.encode(number, b"", is_last=True))
    encoders.close(number)
    return b"".join(parts)


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac"])
def test_a_stream_finds_an_encoder_that_was_opened_when_the_one_before_was_closed(opened: list[Encoding], name: str) -> None:
    encoding, encoders = checked_encoding(name, 24000), _Encoders()
    encoder = make_encoder(name, 24000)
    wanted = decoded(name, encoder.encode(SPEECH) + encoder.finish())[0]
    for number in range(3):
        assert np.array_equal(decoded(name, spoken(encoders, number, encoding))[0], wanted)
        assert opened == [encoding] * (number + 2)  # the first, and a spare behind each


def test_spares_of_few_encodings_are_kept(opened: list[Encoding]) -> None:
    encoders = _Encoders()
    encodings = [checked_encoding("mp3", 24000, rate) for rate in (32000, 40000, 48000, 56000, 64000)]
    assert len(encodings) == MOST_SPARES + 1
    for number, encoding in enumerate([*encodings, encodings[-1], encodings[0]]):
        spoken(encoders, number, encoding)
        assert len(encoders._spares) <= MOST_SPARES
    twice = [one for encoding in encodings for one in (encoding, encoding)]
    assert opened == [*twice, encodings[-1], encodings[0], encodings[0]]  # the first one's spare had to go


def test_a_codec_that_cannot_be_opened_fails_its_own_stream_alone(opened: list[Encoding]) -> None:
    encoders, bad = _Encoders(), Encoding("mp3", 12345, 64000, is_whole=False)
    with pytest.raises(av.FFmpegError):
        spoken(encoders, 0, bad)
    encoders.close(0)
    assert spoken(encoders, 1, checked_encoding("mp3", 24000))
    assert opened.count(bad) == 1
