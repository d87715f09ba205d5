"""From float32 samples to the bytes of a response, in every format, while the speech is being made.

    encoder = make_encoder("mp3", sample_rate=24000)
    for chunk in stream:
        send(encoder.encode(chunk.audio))
    send(encoder.finish())

See formats.py for what each format can say about its own length.
"""

from __future__ import annotations

from qwen3_tts_gateway.audio.encoders import Encoder, Encoding, checked_encoding, make_encoder
from qwen3_tts_gateway.audio.formats import FORMATS, Format

__all__ = ["FORMATS", "Encoder", "Encoding", "Format", "checked_encoding", "make_encoder"]
