"""Qwen3-TTS as a library: `from engine_lib import Qwen3TTS`.

Names are imported when they are first used, so that a process that needs one part does not load the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine_lib.api.qwen3_tts import Qwen3TTS, SpeechChunk, SpeechStream
    from engine_lib.errors import (
        CheckpointError,
        ConfigError,
        EngineDeadError,
        InvalidRequestError,
        NotFoundError,
        OverloadedError,
        Qwen3TTSError,
    )
    from engine_lib.voices.clone_prompt import VoiceClonePromptItem

__version__ = "0.1.0"  # as in pyproject.toml

__all__ = [
    "CheckpointError",
    "ConfigError",
    "EngineDeadError",
    "InvalidRequestError",
    "NotFoundError",
    "OverloadedError",
    "Qwen3TTS",
    "Qwen3TTSError",
    "SpeechChunk",
    "SpeechStream",
    "VoiceClonePromptItem",
]

_HOMES = {
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "EngineDeadError": "errors",
    "InvalidRequestError": "errors",
    "NotFoundError": "errors",
    "OverloadedError": "errors",
    "Qwen3TTS": "api.qwen3_tts",
    "Qwen3TTSError": "errors",
    "SpeechChunk": "api.speech_stream",
    "SpeechStream": "api.speech_stream",
    "VoiceClonePromptItem": "voices.clone_prompt",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
