"""The message from the talker to the codec for every chunk, and the client's answer for it.

A step of a Triton ensemble cannot take an input of the ensemble next to an output of the step before it. So the message carries
everything that the codec needs of a request. Both ends pack and unpack plain numpy dicts, tensor name to array, with the names
and types of the config.pbtxt files. The message has two tensors because each further one costs a tenth of a millisecond a
chunk, and an engine's thread may wait for that. The answer's tensors are the client's interface.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import MsgspecError, Struct, structs

from engine_lib.codec.request import NO_AUDIO
from engine_lib.delivery import MAX_CHUNK_FRAMES, AudioFormat, Delivery
from engine_lib.process.wire import Message, Wire
from engine_lib.serving.backend import Tensors
from engine_lib.serving.secret import SIGNATURE_BYTES, ServerSecret
from engine_lib.speech.alignment_file import MAX_TEXT_ROWS
from engine_lib.speech.audio.encoding import alaw, mulaw, pcm16
from engine_lib.talker.request import CodesChunk, FinishReason
from engine_lib.talker.script.lines import MAX_SILENCE_MS, LinePart

MAX_CODEBOOKS = 64
MAX_STREAM_KEY_LENGTH = 300  # of a model's name, which is a folder's, and 33 characters
MAX_ERROR_LENGTH = 1000
# Room for all of these at four bytes a character, and for a delivery; and for the words that one chunk may bring, at most those of a text.
MAX_HEADER_BYTES = 8192 + 256 * MAX_TEXT_ROWS
MAX_INDEX = 2**31 - 1  # of `chunk_index` in the answer, and of lines
FINISH_REASONS = frozenset(("", *(reason.value for reason in FinishReason)))


class CodesMessage(Message, frozen=True):
    """One chunk of one stream on its way from the talker to the codec.

    Attributes:
        chunk: its `stream_key` is the server's own, from `new_stream_key`. Clients choose request ids, so those may be empty
            or repeat.
        delivery: as the client asked for it.
        sent_at: time.monotonic() of `pack`. All processes of a machine read the same clock.
        is_question: no chunk: the codec looks whether the client is still there, and keeps the stream open. Up to Triton 26.04 only a
            model further down the ensemble can see that.
        part: of a script; None for any other stream.
        place: 0, 1, 2.. among the messages of the stream that are no questions. Those that go past Triton may overtake others.
        channel: address of the talker's CodesOutlet; "": it has none.
    """

    chunk: CodesChunk
    delivery: Delivery
    sent_at: float = 0.0
    is_question: bool = False
    part: LinePart | None = None
    place: int = 0
    channel: str = ""

    def pack(self, secret: ServerSecret, sent_at: float | None = None) -> Tensors:
        """Return the message as tensors: the talker's outputs, the codec's inputs. The header begins with their signature.

        Args:
            sent_at: default: now.
        """
        chunk = structs.replace(self.chunk, codes=_NO_CODES, scores=None, error=self.chunk.error[:MAX_ERROR_LENGTH])
        header = _WIRE.pack(structs.replace(self, chunk=chunk, sent_at=time.monotonic() if sent_at is None else sent_at))
        signature = secret.sign(header + self.chunk.codes.tobytes())
        return {"codes": self.chunk.codes, "header": np.frombuffer(signature + header, np.uint8)}

    @classmethod
    def unpack(
        cls, tensors: Mapping[str, npt.NDArray[Any]], secret: ServerSecret, max_reference_frames: int = MAX_CHUNK_FRAMES
    ) -> CodesMessage:
        """Read a message. The codes are copied: a tensor's memory is gone once its request has been answered.

        Args:
            max_reference_frames: the longest reference; other messages have at most MAX_CHUNK_FRAMES.

        Raises:
            ValueError: the tensors are too large, are not a message, or not one of this server.
        """
        _check_sizes(tensors, max_reference_frames)
        signed = tensors["header"].tobytes()
        signature, header = signed[:SIGNATURE_BYTES], signed[SIGNATURE_BYTES:]
        if not secret.has_signed(header + tensors["codes"].tobytes(), signature):
            raise ValueError("header: has no signature of this server")
        try:
            message = _WIRE.unpack(header)
        except (MsgspecError, ValueError, TypeError, RecursionError, SyntaxError) as error:  # numpy parses a dtype in it
            raise ValueError(f"header: {error}") from None
        _check_chunk(message.chunk, tensors["codes"])
        if message.part is not None:
            _check_part(message.part, tensors["codes"])
        return structs.replace(message, chunk=structs.replace(message.chunk, codes=np.array(tensors["codes"], np.int16)))


_WIRE: Wire[CodesMessage] = Wire(CodesMessage)
_NO_CODES = np.empty((0, 0), np.int16)


class AudioAnswer(Struct, frozen=True, eq=False):
    """The client's answer for one message.

    Attributes:
        audio: [samples] float32 in -1..1; none in the last answer of a stream.
        sample_rate: in Hz.
        index, is_final, finish_reason, error: as in CodesChunk.
        audio_format: as in Delivery.
        metadata: as in CodesChunk. Without any the answer has no such tensor, which costs time.
    """

    audio: npt.NDArray[np.float32]
    sample_rate: int
    index: int
    is_final: bool
    finish_reason: str
    error: str
    audio_format: AudioFormat
    metadata: str = ""

    def pack(self, known_rate: int | None = None) -> Tensors:
        """Return the answer as tensors: the outputs of the codec and of the ensemble.

        Args:
            known_rate: None: with all tensors. Else sparse, because each tensor costs time in four processes: until the last answer without
                those that tell the client nothing. It counts the answers, and knows this sample rate from those before; 0: none.
        """
        encode = _ENCODERS.get(self.audio_format)
        encoded = "" if encode is None else base64.b64encode(encode(self.audio)).decode()
        is_whole = known_rate is None or self.is_final
        tensors: Tensors = {"audio": self.audio if encode is None else NO_AUDIO}
        if is_whole or self.sample_rate != known_rate:
            tensors["sample_rate"] = np.array([self.sample_rate], np.int32)
        if is_whole:
            tensors["chunk_index"] = np.array([self.index], np.int32)
            tensors["is_final"] = np.array([self.is_final], np.bool_)
        for name, text in (("finish_reason", self.finish_reason), ("error", self.error), ("audio_base64", encoded)):
            if is_whole or text:
                tensors[name] = _strings(text)
        if self.metadata:
            tensors["metadata"] = _strings(self.metadata)
        return tensors


_ENCODERS: dict[AudioFormat, Callable[[npt.NDArray[np.float32]], bytes]] = {
    AudioFormat.PCM16_BASE64: pcm16,
    AudioFormat.PCM16: pcm16,
    AudioFormat.MULAW: mulaw,
    AudioFormat.ALAW: alaw,
}


def new_stream_key(talker: str) -> str:
    """A key that no other stream has. It names the stream's talker, because one codec may serve several talkers."""
    return f"{talker}/{secrets.token_hex(16)}"


def talker_of(stream_key: str) -> str:
    """The model that a stream comes from."""
    return stream_key.rpartition("/")[0]


def _check_sizes(tensors: Mapping[str, npt.NDArray[Any]], max_reference_frames: int) -> None:
    """Refuse what is too large, before a byte of it is read."""
    codes, header = tensors["codes"], tensors["header"]
    max_frames = max(MAX_CHUNK_FRAMES, max_reference_frames)
    if codes.ndim != 2 or len(codes) > max_frames or codes.shape[1] > MAX_CODEBOOKS:
        raise ValueError(f"codes: has shape {list(codes.shape)}; at most {max_frames} frames of {MAX_CODEBOOKS} codes are allowed")
    if header.ndim != 1 or not SIGNATURE_BYTES < len(header) <= MAX_HEADER_BYTES:
        raise ValueError(f"header: has shape {list(header.shape)}; {SIGNATURE_BYTES + 1} to {MAX_HEADER_BYTES} bytes are allowed")


def _check_chunk(chunk: CodesChunk, codes: npt.NDArray[Any]) -> None:
    if not 0 < len(chunk.stream_key) <= MAX_STREAM_KEY_LENGTH:
        raise ValueError(f"stream_key: has {len(chunk.stream_key)} characters; 1 to {MAX_STREAM_KEY_LENGTH} are allowed")
    if not 0 <= chunk.index <= MAX_INDEX:
        raise ValueError(f"index: {chunk.index} is not allowed; 0 to {MAX_INDEX} are")
    if chunk.finish_reason not in FINISH_REASONS or len(chunk.error) > MAX_ERROR_LENGTH:
        raise ValueError(f"finish_reason, error: {chunk.finish_reason!r:.20} with {len(chunk.error)} characters is not allowed")
    if not chunk.is_reference and len(codes) > MAX_CHUNK_FRAMES:
        raise ValueError(f"codes: has {len(codes)} frames; a chunk has at most {MAX_CHUNK_FRAMES}")


def _check_part(part: LinePart, codes: npt.NDArray[Any]) -> None:
    if not (0 <= part.line <= MAX_INDEX and 0 <= part.index <= MAX_INDEX):
        raise ValueError(f"line, index: {part.line}, {part.index} are not allowed; 0 to {MAX_INDEX} are")
    if not 0 <= part.silence_ms <= (0 if len(codes) else MAX_SILENCE_MS):
        raise ValueError(f"silence_ms: {part.silence_ms} is not allowed with {len(codes)} frames; 0 to {MAX_SILENCE_MS} are without any")


def _strings(value: str) -> npt.NDArray[np.object_]:
    return np.array([value.encode()], np.object_)
