"""One request as Triton hands it over -> a checked SpeechRequest.

Every field may come as an input tensor or as a request parameter of the same name (generate_stream and perf_analyzer can set
only those); the tensor wins. Each error names the field as the client wrote it and says what is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from engine_lib.errors import InvalidRequestError
from engine_lib.sampling import SamplingParams
from engine_lib.serving.message import AudioFormat
from engine_lib.talker.request import checked_chunk_frames

REFERENCE_FIELDS = ("reference_audio", "reference_text", "reference_sample_rate", "x_vector_only")
SAMPLING_NAMES = tuple(spec.name for spec in fields(SamplingParams))
# Keys of sampling_parameters that say how a stream is served rather than how its codes are drawn.
SERVING_NAMES = ("chunk_frames", "audio_format", "non_streaming_mode")


@dataclass(frozen=True, kw_only=True)
class SpeechRequest:
    """What a client asked for. Text, voice, language and instruct are checked by PromptBuilder, against the checkpoint."""

    text: str
    voice: str | None = None
    language: str | None = None
    instruct: str | None = None
    non_streaming_mode: bool | None = None
    sampling: SamplingParams
    chunk_frames: tuple[int, ...]
    audio_format: AudioFormat = AudioFormat.FLOAT32


@dataclass(frozen=True, kw_only=True)
class RequestParser:
    """Parses requests for one checkpoint.

    Attributes:
        kind: kind of the checkpoint: custom_voice, base or voice_design.
        sampling: sampling of a request that sets none.
        chunk_frames: frames in the first, second, .. chunk of a request that sets none.
    """

    kind: str
    sampling: SamplingParams
    chunk_frames: tuple[int, ...]

    def parse(self, tensors: Mapping[str, npt.NDArray[Any]], parameters: str) -> SpeechRequest:
        """Check one request.

        Args:
            tensors: the inputs the request has; strings as objects of bytes.
            parameters: its request parameters, a JSON object; "" for none.

        Raises:
            InvalidRequestError: a field is missing or has a value that is not allowed.
        """
        values = _Values(tensors, parameters)
        text = values.string("text")
        if text is None:
            raise InvalidRequestError("text", "is missing; give the text to speak")
        if self.kind != "base":
            for name in REFERENCE_FIELDS:
                if values.has(name):
                    raise InvalidRequestError(
                        name, f"only a checkpoint of kind base clones a voice, and this one is of kind {self.kind}; leave {name} out"
                    )
        options = values.json_object("sampling_parameters")
        serving = {name: options.pop(name) for name in SERVING_NAMES if name in options}
        for name in options:
            if name not in SAMPLING_NAMES:
                allowed = ", ".join(SAMPLING_NAMES + SERVING_NAMES)
                raise InvalidRequestError("sampling_parameters", f"{name[:100]!r} is unknown; allowed: {allowed}")
        return SpeechRequest(
            text=text,
            voice=values.string("voice"),
            language=values.string("language"),
            instruct=values.string("instruct"),
            non_streaming_mode=_non_streaming_mode(serving.get("non_streaming_mode")),
            sampling=self.sampling.updated(options),
            chunk_frames=self.chunk_frames if serving.get("chunk_frames") is None else checked_chunk_frames(serving["chunk_frames"]),
            audio_format=_audio_format(serving.get("audio_format")),
        )


class _Values:
    """Fields of one request by name: its tensors, and its parameters where there is no tensor."""

    def __init__(self, tensors: Mapping[str, npt.NDArray[Any]], parameters: str) -> None:
        self._tensors = tensors
        self._parameters: dict[str, Any] = json.loads(parameters) if parameters else {}
        for name in self._parameters:
            if name in SAMPLING_NAMES + SERVING_NAMES:
                raise InvalidRequestError(
                    name, f"is not a request parameter; put it into sampling_parameters, as {{{json.dumps(name)}: ...}}"
                )

    def has(self, name: str) -> bool:
        return name in self._tensors or name in self._parameters

    def string(self, name: str) -> str | None:
        """The field as text; None where it is absent."""
        if name not in self._tensors:
            value = self._parameters.get(name)
            if value is not None and not isinstance(value, str):
                raise InvalidRequestError(name, f"{value!r} is not allowed; give a string")
            return value
        tensor = self._tensors[name]
        if tensor.shape != (1,) or tensor.dtype != np.object_:
            raise InvalidRequestError(name, f"has shape {list(tensor.shape)} and type {tensor.dtype}; give one string, shape [1]")
        try:
            text: str = tensor[0].decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequestError(name, f"is not UTF-8 (byte {error.start}); give UTF-8 text") from None
        return text

    def json_object(self, name: str) -> dict[str, Any]:
        """The field as a JSON object; empty where it is absent or an empty string."""
        text = self.string(name)
        if not text:
            return {}
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(name, f"is not valid JSON ({error}); give a JSON object") from None
        if not isinstance(value, dict):
            raise InvalidRequestError(name, f"is a JSON {type(value).__name__}; give a JSON object")
        return value


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _non_streaming_mode(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise InvalidRequestError("non_streaming_mode", f"{value!r:.100} is not allowed; give true or false")


def _audio_format(value: Any) -> AudioFormat:
    if value is None:
        return AudioFormat.FLOAT32
    try:
        return AudioFormat(value)
    except ValueError:
        allowed = ", ".join(known.value for known in AudioFormat)
        raise InvalidRequestError("audio_format", f"{value!r:.100} is not allowed; choose one of {allowed}") from None
