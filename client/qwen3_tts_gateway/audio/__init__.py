"""Encoders: samples in, bytes of an audio format out, while the samples come."""

from qwen3_tts_gateway.audio.encoders import Encoder, make_encoder

__all__ = ["Encoder", "make_encoder"]
