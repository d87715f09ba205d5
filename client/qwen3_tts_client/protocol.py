"""Triton's wire messages of one stream: a request from its options, an AudioChunk from each response.

The names are those of the ensemble's inputs and outputs (model_repository/qwen3_tts/config.pbtxt). Both clients build and parse
messages here and nowhere else, directly with the protobuf classes that tritonclient ships.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from qwen3_tts_client.decoding import FORMATS, decoded
from qwen3_tts_client.errors import InvalidRequest, Qwen3TTSClientError, error_from_message, nearest
from qwen3_tts_client.wire import add_parameter, add_reference, add_string, add_timeout, checked_timeout, read_int, read_string, utf8
from qwen3_tts_client.words import TimedWord, words_of

if TYPE_CHECKING:
    from typing_extensions import Unpack


# Options that have the same name in the input `sampling_parameters`.
AUDIO_OPTIONS = ("speed", "sample_rate", "volume_db", "trim_silence", "loudness", "fade_ms", "audio_format")
SAMPLING_NAMES = (
    *("temperature", "top_k", "top_p", "repetition_penalty", "do_sample", "seed", "max_frames", "non_streaming_mode", "chunk_policy"),
    *("subtalker_temperature", "subtalker_top_k", "subtalker_top_p", "subtalker_dosample"),
)
TEXT_OPTIONS = ("text_format", "long_form", "lexicon", "normalize_text", "sentence_pause_ms", "paragraph_pause_ms")


class RequestOptions(TypedDict, total=False):
    """Options of one request; each may be left out or None. The server checks the values against its checkpoint.

    Attributes:
        voice: a speaker of a CustomVoice checkpoint, such as "vivian"; for Base checkpoints a stored voice of the server. Or a blend of
            them, such as "anna:0.7+ben:0.3".
        language: such as "english"; if left out, the model infers it from the text.
        instruct: how to speak, in words; for VoiceDesign checkpoints a description of the voice.
        sampling: any of temperature, top_k, top_p, repetition_penalty, do_sample, subtalker_temperature, subtalker_top_k,
            subtalker_top_p, subtalker_dosample, seed, max_frames, non_streaming_mode, chunk_policy.
        chunk_frames: frames (80 ms each) in the first, second, ... chunk; the last number repeats.
        speed: 0.25 (slow) to 4 (fast), at the same pitch.
        sample_rate: of the audio, 8000 to 48000 Hz; if left out, that of the codec, 24000.
        volume_db: gain, -40 to 20; what is too loud is cut off.
        trim_silence: leave out the silence before the first sound.
        loudness: "voice", or a number of LUFS: one gain for each voice, once the server has heard a whole utterance of it.
        fade_ms: 0 to 100, the fade at the end of a stream that is cut.
        audio_format: "float32" (default), or less to send: "pcm16", "mulaw" or "alaw". AudioChunk has the bytes as well as the samples.
        text_format: "plain" (default), "ssml", or "dialogue": a JSON list of entries with a text and a voice each.
        long_form: cut the text into pieces of whole sentences, spoken one after the other as one stream; for texts of any length.
        lexicon: words and their spellings, for words that are said wrong.
        normalize_text: write numbers, dates, times, amounts, units and addresses as words.
        sentence_pause_ms, paragraph_pause_ms: silence between pieces, 0 to 60,000, with long_form, SSML and dialogues.
        timestamps: "word": chunks have the times of words, if the checkpoint can tell them; "none" (default).
        on_runaway: "stop", "retry" or "off": what becomes of speech that does not end, but stays silent or repeats itself.
        reference_audio: voice to clone, for Base checkpoints: mono, floats from -1 to 1, shape [samples].
        reference_sample_rate: of `reference_audio`, in Hz.
        reference_text: the words of `reference_audio`.
        x_vector_only: clone only the timbre of the reference; needs no `reference_text`.
        request_id: name of the request in the server's log and metrics; need not be unique.
        request_priority: "interactive" (default) or "batch", which waits while interactive requests wait.
        client: a name of 1 to 64 characters; clients that wait take turns. If left out, the request is a client of its own.
    """

    voice: str | None
    language: str | None
    instruct: str | None
    sampling: Mapping[str, Any] | None
    chunk_frames: Sequence[int] | None
    speed: float | None
    sample_rate: int | None
    volume_db: float | None
    trim_silence: bool | None
    loudness: float | str | None
    fade_ms: int | None
    audio_format: str | None
    text_format: str | None
    long_form: bool | None
    lexicon: Mapping[str, str] | None
    normalize_text: bool | None
    sentence_pause_ms: int | None
    paragraph_pause_ms: int | None
    timestamps: str | None
    on_runaway: str | None
    reference_audio: npt.NDArray[np.floating[Any]] | None
    reference_sample_rate: int | None
    reference_text: str | None
    x_vector_only: bool | None
    request_id: str
    request_priority: str | None
    client: str | None


@dataclass(frozen=True, eq=False)
class AudioChunk:
    """One piece of a stream. Two are equal only if they are the same object.

    Attributes:
        audio: float32 [samples], mono, -1 to 1; empty in the last chunk.
        sample_rate: in Hz.
        index: 0, 1, 2, ... within the stream.
        is_final: nothing follows.
        finish_reason: why the stream ended: "stop" (the speech is complete), "length" (cut at max_frames), "cancelled" or
            "runaway" (it did not end, but stayed silent or repeated itself, and was stopped); "" before the last chunk.
        samples_sent: of the last chunk: samples of all chunks of the stream.
        encoded: `audio` as it came, in the `audio_format` of the request; empty for float32.
        metadata: what the server says beside the audio: of a text that is spoken as several lines `line`, `begin`, `speaker`, and in the
            last chunk `cut_lines`, those that were cut.
        words: with timestamps: the words whose times are known now. A word comes with the chunk that was made 0.3 s after its end, or with
            a later one, the rest with the last chunk; its times count from the beginning of the stream.
    """

    audio: npt.NDArray[np.float32] = field(repr=False)
    sample_rate: int
    index: int
    is_final: bool
    finish_reason: str
    samples_sent: int = 0
    encoded: bytes = field(default=b"", repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[TimedWord, ...] = ()

    @property
    def line(self) -> int | None:
        """The line that it belongs to, 1, 2, 3, ...; None if the text is spoken at once."""
        return self.metadata.get("line")

    @property
    def speaker(self) -> str | None:
        """Name of the voice of that line, if it has one."""
        return self.metadata.get("speaker")

    @property
    def seconds(self) -> float:
        """Playing time of this chunk."""
        return self.audio.size / self.sample_rate


@dataclass(frozen=True, eq=False)
class Speech:
    """A whole utterance. Two are equal only if they are the same object.

    Attributes:
        audio: float32 [samples], mono, -1 to 1.
        sample_rate: in Hz.
        finish_reason: as in AudioChunk.
        metadata: as in AudioChunk, of the last one.
        words: with timestamps.
    """

    audio: npt.NDArray[np.float32] = field(repr=False)
    sample_rate: int
    finish_reason: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[TimedWord, ...] = ()

    @classmethod
    def from_chunks(cls, chunks: Sequence[AudioChunk]) -> Speech:
        """Join all the chunks of one stream."""
        last = chunks[-1]
        words = tuple(word for chunk in chunks for word in chunk.words)
        return cls(np.concatenate([chunk.audio for chunk in chunks]), last.sample_rate, last.finish_reason, last.metadata, words)

    @property
    def seconds(self) -> float:
        """Playing time."""
        return self.audio.size / self.sample_rate

    def save(self, path: str | Path) -> None:
        """Write an audio file in the format of its suffix: .wav, .flac, .ogg, .mp3; 16 bits a sample if the format has them.

        Raises:
            ValueError: the suffix is not known, or the folder does not exist.
            OSError: the file cannot be written.
        """
        from qwen3_tts_client.audio_file import AudioFile

        with AudioFile(Path(path)) as file:
            file.write(self.audio, self.sample_rate)


def build_request(
    model: str, text: str | None, timeout: float | None = None, **options: Unpack[RequestOptions]
) -> service_pb2.ModelInferRequest:
    """The wire message that asks `model` to speak `text`; after `timeout` seconds the server ends it, waiting or speaking.

    Args:
        text: None leaves it to the caller to add it.

    Raises:
        InvalidRequest: a value cannot be encoded.
        TypeError: an unknown option.
    """
    unknown = sorted(set(options) - set(RequestOptions.__annotations__))
    if unknown:
        if unknown[0] in SAMPLING_NAMES:
            raise TypeError(f"unknown option {unknown[0]}; it belongs into sampling, as sampling={{{unknown[0]!r}: ...}}")
        allowed = f"{', '.join(RequestOptions.__annotations__)}{nearest(unknown[0], RequestOptions.__annotations__)}"
        raise TypeError(f"unknown option {', '.join(unknown)}; allowed: {allowed}")
    request_id = options.get("request_id", "")
    utf8("request_id", request_id)
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    add_timeout(request, checked_timeout(timeout))
    for name, value in (("request_priority", options.get("request_priority")), ("client", options.get("client"))):
        if value is not None:
            add_parameter(request, name, value)
    request.parameters["sparse_answers"].bool_param = True  # less work for everyone; an older server ignores it and sends whole answers
    if text is not None:
        add_string(request, "text", text)
    for name, value in (("voice", options.get("voice")), ("language", options.get("language")), ("instruct", options.get("instruct"))):
        if value is not None:
            add_string(request, name, value)
    add_reference(
        request,
        options.get("reference_audio"),
        options.get("reference_sample_rate"),
        options.get("reference_text"),
        options.get("x_vector_only"),
    )
    sampling = _sampling_parameters(options.get("sampling"), options.get("chunk_frames"))
    names = (*AUDIO_OPTIONS, *TEXT_OPTIONS, "timestamps", "on_runaway")
    sampling.update((name, asked) for name in names if (asked := options.get(name)) is not None)
    if sampling:
        try:
            add_string(request, "sampling_parameters", json.dumps(sampling, allow_nan=False, default=_python_value))
        except (TypeError, ValueError) as error:
            wrong = next((name for name, value in sampling.items() if not _is_json(value)), "sampling")
            raise InvalidRequest(f"{wrong}: {error}; give finite numbers, true, false or None", field=wrong) from None
    return request


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False, default=_python_value)
    except (TypeError, ValueError):
        return False
    return True


def _sampling_parameters(sampling: object, chunk_frames: object) -> dict[str, Any]:
    """The values of the input `sampling_parameters`."""
    if sampling is not None and not isinstance(sampling, Mapping):
        raise InvalidRequest(f"sampling: {type(sampling).__name__} is not allowed; give names and values, as a dict", field="sampling")
    parameters = dict(sampling or {})
    if chunk_frames is not None:
        if not isinstance(chunk_frames, (list, tuple, np.ndarray)):
            message = f"chunk_frames: {chunk_frames!r:.100} is not allowed; give a list of whole numbers"
            raise InvalidRequest(message, field="chunk_frames")
        parameters["chunk_frames"] = list(chunk_frames)
    return parameters


def _python_value(value: object) -> Any:
    """The Python value of a numpy scalar."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def format_of(options: RequestOptions) -> str:
    """The audio format that a request asks for, which may also stand in `sampling`."""
    sampling = options.get("sampling")
    asked = options.get("audio_format") or (sampling.get("audio_format") if isinstance(sampling, Mapping) else None)
    return next((name for name in FORMATS if name == asked), "pcm16")  # pcm16_base64 is its older name; the server refuses others


def parse_response(
    response: service_pb2.ModelStreamInferResponse, chunks_received: int, audio_format: str = "pcm16", sample_rate: int = 0
) -> AudioChunk:
    """The chunk in one response, which may leave out what the chunks before it tell, and what is empty or false.

    Args:
        chunks_received: number of chunks before it.
        audio_format: from `format_of`.
        sample_rate: of the chunk before it; 0: there was none.

    Raises:
        Qwen3TTSClientError: the response is an error, or cannot be read; one of the classes of qwen3_tts_client.errors.
    """
    if response.error_message:
        raise error_from_message(response.error_message, chunks_received)
    result = response.infer_response
    hint = "is it the ensemble qwen3_tts of this project, of the same version?"
    try:
        raw = dict(zip((output.name for output in result.outputs), result.raw_output_contents, strict=True))
        error, finish_reason = (read_string(raw.get(name, b"")) for name in ("error", "finish_reason"))
        if finish_reason == "error":
            raise error_from_message(error or "the server ended the stream with an error and no reason", chunks_received)
        encoded = base64.b64decode(read_string(raw.get("audio_base64", b"")))
        metadata = json.loads(read_string(raw["metadata"])) if "metadata" in raw else {}
        return AudioChunk(
            # A copy of some 60 kB, because frombuffer gives a read-only view of the message and callers may want to write.
            audio=decoded(encoded, audio_format) if encoded else np.frombuffer(raw["audio"], "<f4").astype(np.float32),
            sample_rate=sample_rate if sample_rate and "sample_rate" not in raw else read_int(raw["sample_rate"]),
            index=read_int(raw["chunk_index"]) if "chunk_index" in raw else chunks_received,
            is_final=raw.get("is_final") == b"\1",
            finish_reason=finish_reason,
            encoded=encoded,
            metadata=metadata,
            words=words_of(metadata),
        )
    except Qwen3TTSClientError:
        raise  # some are a ValueError, too
    except KeyError as missing:
        raise Qwen3TTSClientError(f"model {result.model_name!r} gave no output {missing}", hint=hint) from None
    except (AttributeError, TypeError, ValueError) as reason:
        raise Qwen3TTSClientError(f"model {result.model_name!r} gave an answer that cannot be read: {reason}", hint=hint) from None
