"""Client of the Qwen3-TTS Triton server: `Client`, `AsyncClient`, and the command line `qwen3-tts`.

It needs numpy and tritonclient, never the engine, torch or transformers. Names are loaded on first use, so that the command
line answers --help without loading gRPC.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen3_tts_client.client import AsyncClient, Client
    from qwen3_tts_client.errors import (
        InvalidRequest,
        NotFound,
        Qwen3TTSClientError,
        RequestTimeout,
        ServerOverloaded,
        ServerUnavailable,
        StreamFailed,
    )
    from qwen3_tts_client.protocol import AudioChunk, RequestOptions, Speech
    from qwen3_tts_client.recording import Recording
    from qwen3_tts_client.voices import ServedModel, Voice, VoiceList
    from qwen3_tts_client.words import TimedWord

__version__ = "0.1.0"  # as in pyproject.toml
DEFAULT_URL = "localhost:8001"
DEFAULT_MODEL = "qwen3_tts"

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_URL",
    "AsyncClient",
    "AudioChunk",
    "Client",
    "InvalidRequest",
    "NotFound",
    "Qwen3TTSClientError",
    "Recording",
    "RequestOptions",
    "RequestTimeout",
    "ServedModel",
    "ServerOverloaded",
    "ServerUnavailable",
    "Speech",
    "StreamFailed",
    "TimedWord",
    "Voice",
    "VoiceList",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in ("errors", "protocol", "client", "recording", "voices", "words"):
            found = vars(import_module(f"qwen3_tts_client.{module}")).get(name)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
