"""One spoken text as Triton's wire messages: a request from its options, an AudioChunk from each response.

The names are those of the ensemble's inputs and outputs (model_repository/qwen3_tts/config.pbtxt). Both clients build and parse
here and nowhere else. The messages are written directly, from the protobuf classes that tritonclient ships.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from qwen3_tts_client.errors import InvalidRequest, Qwen3TTSClientError, StreamFailed, error_from_message

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RequestOptions(TypedDict, total=False):
    """Options of one request; every one may be left out or None. The server checks the values against its checkpoint.

    Attributes:
        voice: a speaker of a CustomVoice checkpoint, such as "vivian".
        language: such as "english"; left out, the server finds it from the text.
        instruct: how to speak, in words; for VoiceDesign checkpoints a description of the voice.
        sampling: any of temperature, top_k, top_p, repetition_penalty, do_sample, subtalker_temperature, subtalker_top_k,
            subtalker_top_p, subtalker_dosample, seed, max_frames, non_streaming_mode.
        chunk_frames: frames (80 ms each) in the first, second, ... chunk; the last number repeats.
        reference_audio: voice to clone, for Base checkpoints: mono, floats from -1 to 1, shape [samples].
        reference_sample_rate: of `reference_audio`, in Hz.
        reference_text: what `reference_audio` says.
        x_vector_only: take only the timbre of the reference, and no `reference_text`.
        request_id: name of the request in the server's log and metrics; need not be unique.
    """

    voice: str | None
    language: str | None
    instruct: str | None
    sampling: Mapping[str, Any] | None
    chunk_frames: Sequence[int] | None
    reference_audio: npt.NDArray[np.floating[Any]] | None
    reference_sample_rate: int | None
    reference_text: str | None
    x_vector_only: bool | None
    request_id: str


@dataclass(frozen=True)
class AudioChunk:
    """One piece of a stream.

    Attributes:
        audio: float32 [samples], mono, -1 to 1; empty in the last chunk.
        sample_rate: in Hz.
        index: 0, 1, 2, ... within the stream.
        is_final: nothing follows.
        finish_reason: why the stream ended: "stop" (the speech is complete), "length" (cut at max_frames) or "cancelled";
            "" before the last chunk.
    """

    audio: npt.NDArray[np.float32]
    sample_rate: int
    index: int
    is_final: bool
    finish_reason: str

    @property
    def seconds(self) -> float:
        """Playing time of this chunk."""
        return self.audio.size / self.sample_rate


@dataclass(frozen=True)
class Speech:
    """A whole utterance.

    Attributes:
        audio: float32 [samples], mono, -1 to 1.
        sample_rate: in Hz.
        finish_reason: as in AudioChunk.
    """

    audio: npt.NDArray[np.float32]
    sample_rate: int
    finish_reason: str

    @classmethod
    def from_chunks(cls, chunks: Sequence[AudioChunk]) -> Speech:
        """Join all the chunks of one stream."""
        last = chunks[-1]
        return cls(np.concatenate([chunk.audio for chunk in chunks]), last.sample_rate, last.finish_reason)

    @property
    def seconds(self) -> float:
        """Playing time."""
        return self.audio.size / self.sample_rate


def build_request(model: str, text: str, **options: Unpack[RequestOptions]) -> service_pb2.ModelInferRequest:
    """The wire message that asks `model` to speak `text`.

    Raises:
        InvalidRequest: a value that cannot be put on the wire.
        TypeError: an unknown option.
    """
    unknown = sorted(set(options) - set(RequestOptions.__annotations__))
    if unknown:
        raise TypeError(f"unknown option {', '.join(unknown)}; allowed: {', '.join(RequestOptions.__annotations__)}")
    request = service_pb2.ModelInferRequest(model_name=model, id=options.get("request_id", ""))
    _add_string(request, "text", text)
    for name, value in (
        ("voice", options.get("voice")),
        ("language", options.get("language")),
        ("instruct", options.get("instruct")),
        ("reference_text", options.get("reference_text")),
    ):
        if value is not None:
            _add_string(request, name, value)
    reference_audio = options.get("reference_audio")
    if reference_audio is not None:
        _add_input(request, "reference_audio", "FP32", _mono_float32(reference_audio))
    if options.get("reference_sample_rate") is not None:
        _add_input(request, "reference_sample_rate", "INT32", np.array([options["reference_sample_rate"]], np.int32))
    if options.get("x_vector_only") is not None:
        _add_input(request, "x_vector_only", "BOOL", np.array([options["x_vector_only"]], np.bool_))
    sampling = dict(options.get("sampling") or {})
    chunk_frames = options.get("chunk_frames")
    if chunk_frames is not None:
        sampling["chunk_frames"] = list(chunk_frames)
    if sampling:
        try:
            _add_string(request, "sampling_parameters", json.dumps(sampling, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"sampling: {error}; give finite numbers, true, false or None", field="sampling") from None
    return request


def parse_response(response: service_pb2.ModelStreamInferResponse, chunks_received: int) -> AudioChunk:
    """The chunk in one response; `chunks_received` came before it.

    Raises:
        Qwen3TTSClientError: the response is an error, by one of the classes of qwen3_tts_client.errors.
    """
    if response.error_message:
        raise error_from_message(response.error_message, chunks_received)
    result = response.infer_response
    raw = dict(zip((output.name for output in result.outputs), result.raw_output_contents, strict=True))
    try:
        error, finish_reason = _string(raw["error"]), _string(raw["finish_reason"])
        if finish_reason == "error":
            raise StreamFailed(error or "the server ended the stream with an error and no reason", chunks_received=chunks_received)
        return AudioChunk(
            # frombuffer gives a read-only view of the message; callers may want to write, and the copy is some 60 kB
            audio=np.frombuffer(raw["audio"], "<f4").astype(np.float32),
            sample_rate=int(np.frombuffer(raw["sample_rate"], "<i4")[0]),
            index=int(np.frombuffer(raw["chunk_index"], "<i4")[0]),
            is_final=bool(np.frombuffer(raw["is_final"], np.bool_)[0]),
            finish_reason=finish_reason,
        )
    except KeyError as missing:
        raise Qwen3TTSClientError(
            f"model {result.model_name!r} gave no output {missing}",
            hint="is it the ensemble qwen3_tts of this project, of the same version?",
        ) from None


def _add_input(request: service_pb2.ModelInferRequest, name: str, datatype: str, values: npt.NDArray[Any]) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=values.shape)
    request.raw_input_contents.append(values.tobytes())


def _add_string(request: service_pb2.ModelInferRequest, name: str, value: str) -> None:
    """Append a BYTES input of shape [1]: on the wire, 4 bytes of length and the UTF-8 text."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}: {type(value).__name__} is not allowed; give a str", field=name)
    try:
        encoded = value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name}: is not valid Unicode (a lone surrogate); give text that UTF-8 can hold", field=name) from None
    request.inputs.add(name=name, datatype="BYTES", shape=[1])
    request.raw_input_contents.append(len(encoded).to_bytes(4, "little") + encoded)


def _mono_float32(audio: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    audio = np.asarray(audio)
    if audio.ndim != 1 or audio.dtype.kind != "f":
        raise InvalidRequest(
            f"reference_audio: {audio.dtype} of shape {audio.shape} is not allowed; give floats of shape [samples] (mono, -1 to 1)",
            field="reference_audio",
        )
    return audio.astype("<f4")


def _string(raw: bytes) -> str:
    return raw[4:].decode("utf-8")
