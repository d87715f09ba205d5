"""What the OpenAPI schema says of answers that are not one JSON model."""

from __future__ import annotations

from typing import Any

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
MEANINGS = {
    400: "A value is not allowed; `param` names the field",
    401: "A known API key is needed",
    404: "There is no such thing",
    408: "The body did not come in time",
    413: "The body is too long",
    415: "The body is compressed",
    422: "The body does not fit the schema; `param` names the field",
    429: "This caller has reached its limit; Retry-After says when to try again",
    502: "The Triton server ended the request with an error",
    503: "No Triton server is ready, or all are full; Retry-After says when to try again",
    504: "The time limit passed",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": meaning, "content": {"application/json": {"schema": ERROR_SCHEMA}}} for status, meaning in MEANINGS.items()
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
AUDIO_TYPES = ("audio/mpeg", "audio/ogg", "audio/aac", "audio/flac", "audio/wav", "audio/pcm", "audio/PCMU", "audio/PCMA")
AUDIO: dict[str, Any] = {
    "description": "The audio, or events with it",
    "content": dict.fromkeys(AUDIO_TYPES, BINARY) | {"text/event-stream": {"schema": {"type": "string"}}},
}
