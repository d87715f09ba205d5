"""The message the talker sends to the codec for every chunk, and the answer the client gets for it.

A step of a Triton ensemble sees no input of the ensemble beside an output of the step before it, so whatever the codec needs
to know of a request rides in this message. Both ends pack and unpack plain numpy dicts, tensor name to array; the names and
types are those of the config.pbtxt files. The message has two tensors, because each one more costs a tenth of a
millisecond a chunk, which an engine's thread may have to wait for; the answer's are the client's interface.
"""

from __future__ import annotations

import base64
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = dict[str, npt.NDArray[Any]]

# chunk index; whether it is final, to be answered in base64, a reference; bytes of the stream key and of the finish reason, which
# follow, then the error
_HEADER = struct.Struct("<i???xHH")


class AudioFormat(str, Enum):
    """How a client wants its samples: as the FP32 tensor `audio`, or as text in `audio_base64`."""

    FLOAT32 = "float32"
    PCM16_BASE64 = "pcm16_base64"


@dataclass(frozen=True)
class CodesMessage:
    """One chunk of one stream on its way from the talker to the codec.

    Attributes:
        codes: [frames, num_code_groups] int16; no frames in a stream's last message.
        stream_key: the server's own key of the stream, from `new_stream_key`. Clients choose request ids, so those may be
            empty or repeat.
        chunk_index: 0, 1, 2.. within the stream.
        is_final: True in the stream's last message.
        finish_reason: "" unless final.
        error: what went wrong, where finish_reason is "error".
        audio_format: what the client asked for.
        is_reference: these are the codes of a clone's reference, ahead of the stream's first chunk: the codec takes them as the
            stream's past, and no answer comes of them.
    """

    codes: npt.NDArray[np.int16]
    stream_key: str
    chunk_index: int
    is_final: bool = False
    finish_reason: str = ""
    error: str = ""
    audio_format: AudioFormat = AudioFormat.FLOAT32
    is_reference: bool = False

    def pack(self) -> Tensors:
        """Return the message as tensors: the talker's outputs, the codec's inputs."""
        as_text = self.audio_format is AudioFormat.PCM16_BASE64
        key, reason = self.stream_key.encode(), self.finish_reason.encode()
        header = _HEADER.pack(self.chunk_index, self.is_final, as_text, self.is_reference, len(key), len(reason))
        return {"codes": self.codes, "header": np.frombuffer(header + key + reason + self.error.encode(), np.uint8)}

    @classmethod
    def unpack(cls, tensors: Mapping[str, npt.NDArray[Any]]) -> CodesMessage:
        """Read a message. The codes are copied: a tensor's memory is gone once its request has been answered.

        Raises:
            ValueError: it is none.
        """
        header = tensors["header"].tobytes()
        if len(header) < _HEADER.size:
            raise ValueError(f"header: {len(header)} bytes are too few")
        chunk_index, is_final, as_text, is_reference, key_length, reason_length = _HEADER.unpack_from(header)
        reason = _HEADER.size + key_length
        error = reason + reason_length
        return cls(
            codes=np.array(tensors["codes"], np.int16),
            stream_key=header[_HEADER.size : reason].decode(),
            chunk_index=chunk_index,
            is_final=is_final,
            finish_reason=header[reason:error].decode(),
            error=header[error:].decode(),
            audio_format=AudioFormat.PCM16_BASE64 if as_text else AudioFormat.FLOAT32,
            is_reference=is_reference,
        )


@dataclass(frozen=True)
class AudioAnswer:
    """What the client gets for one message.

    Attributes:
        audio: [samples] float32 in -1..1; none in a stream's last answer.
        sample_rate: in Hz.
        chunk_index, is_final, finish_reason, error, audio_format: as in CodesMessage.
    """

    audio: npt.NDArray[np.float32]
    sample_rate: int
    chunk_index: int
    is_final: bool
    finish_reason: str
    error: str
    audio_format: AudioFormat

    def pack(self) -> Tensors:
        """Return the answer as tensors: the outputs of the codec and of the ensemble."""
        as_text = self.audio_format is AudioFormat.PCM16_BASE64
        return {
            "audio": np.empty(0, np.float32) if as_text else self.audio,
            "sample_rate": np.array([self.sample_rate], np.int32),
            "chunk_index": np.array([self.chunk_index], np.int32),
            "is_final": np.array([self.is_final], np.bool_),
            "finish_reason": _strings(self.finish_reason),
            "error": _strings(self.error),
            "audio_base64": _strings(base64.b64encode(pcm16(self.audio)).decode() if as_text else ""),
        }


def new_stream_key(talker: str) -> str:
    """A key no other stream has, which says what model the stream comes from: one codec may serve several talkers."""
    return f"{talker}/{secrets.token_hex(16)}"


def talker_of(stream_key: str) -> str:
    """The model a stream comes from."""
    return stream_key.rpartition("/")[0]


def pcm16(audio: npt.NDArray[np.float32]) -> bytes:
    """Samples in -1..1 as little-endian 16-bit integers."""
    return (np.clip(audio, -1.0, 1.0) * 32767.0).round().astype("<i2").tobytes()


def _strings(value: str) -> npt.NDArray[np.object_]:
    return np.array([value.encode()], np.object_)
