"""The message the talker sends to the codec for every chunk, and the answer the client gets for it.

A step of a Triton ensemble sees no input of the ensemble beside an output of the step before it, so whatever the codec needs
to know of a request rides in this message. Both ends pack and unpack plain numpy dicts, tensor name to array; the names and
types are those of the config.pbtxt files.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = dict[str, npt.NDArray[Any]]


class AudioFormat(str, Enum):
    """How a client wants its samples: as the FP32 tensor `audio`, or as text in `audio_base64`."""

    FLOAT32 = "float32"
    PCM16_BASE64 = "pcm16_base64"


class MessageFlags(IntFlag):
    """Bits of the message's `flags` tensor."""

    FINAL = 1
    PCM16_BASE64 = 2


@dataclass(frozen=True)
class CodesMessage:
    """One chunk of one stream on its way from the talker to the codec.

    Attributes:
        codes: [frames, num_code_groups] int16; no frames in a stream's last message.
        stream_key: the server's own key of the stream. Clients choose request ids, so those may be empty or repeat.
        chunk_index: 0, 1, 2.. within the stream.
        is_final: True in the stream's last message.
        finish_reason: "" unless final.
        error: what went wrong, where finish_reason is "error".
        audio_format: what the client asked for.
    """

    codes: npt.NDArray[np.int16]
    stream_key: str
    chunk_index: int
    is_final: bool = False
    finish_reason: str = ""
    error: str = ""
    audio_format: AudioFormat = AudioFormat.FLOAT32

    def pack(self) -> Tensors:
        """Return the message as tensors: the talker's outputs, the codec's inputs."""
        flags = MessageFlags.FINAL if self.is_final else MessageFlags(0)
        if self.audio_format is AudioFormat.PCM16_BASE64:
            flags |= MessageFlags.PCM16_BASE64
        return {
            "codes": self.codes,
            "stream_key": _strings(self.stream_key),
            "chunk_index": np.array([self.chunk_index], np.int32),
            "flags": np.array([flags], np.int32),
            "finish_reason": _strings(self.finish_reason),
            "error": _strings(self.error),
        }

    @classmethod
    def unpack(cls, tensors: Mapping[str, npt.NDArray[Any]]) -> CodesMessage:
        """Read a message. The codes are copied: a tensor's memory is gone once its request has been answered."""
        flags = MessageFlags(int(tensors["flags"][0]))
        return cls(
            codes=np.array(tensors["codes"], np.int16),
            stream_key=_string(tensors["stream_key"]),
            chunk_index=int(tensors["chunk_index"][0]),
            is_final=MessageFlags.FINAL in flags,
            finish_reason=_string(tensors["finish_reason"]),
            error=_string(tensors["error"]),
            audio_format=AudioFormat.PCM16_BASE64 if MessageFlags.PCM16_BASE64 in flags else AudioFormat.FLOAT32,
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


def pcm16(audio: npt.NDArray[np.float32]) -> bytes:
    """Samples in -1..1 as little-endian 16-bit integers."""
    return (np.clip(audio, -1.0, 1.0) * 32767.0).round().astype("<i2").tobytes()


def _strings(value: str) -> npt.NDArray[np.object_]:
    return np.array([value.encode()], np.object_)


def _string(tensor: npt.NDArray[Any]) -> str:
    value: bytes = tensor[0]
    return value.decode()
