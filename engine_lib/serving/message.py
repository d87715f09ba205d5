"""The message from the talker to the codec for every chunk, and the client's answer for it.

A step of a Triton ensemble cannot take an input of the ensemble next to an output of the step before it. So the message carries
everything that the codec needs of a request. Both ends pack and unpack plain numpy dicts, tensor name to array, with the names
and types of the config.pbtxt files. The message has two tensors because each further one costs a tenth of a millisecond a
chunk, and an engine's thread may wait for that. The answer's tensors are the client's interface.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import MsgspecError, structs

from engine_lib.delivery import AudioFormat, Delivery
from engine_lib.process.wire import Message, Wire
from engine_lib.serving.backend import Tensors
from engine_lib.serving.secret import SIGNATURE_BYTES, ServerSecret
from engine_lib.talker.request import CodesChunk


class CodesMessage(Message, frozen=True):
    """One chunk of one stream on its way from the talker to the codec.

    Attributes:
        chunk: its `stream_key` is the server's own, from `new_stream_key`. Clients choose request ids, so those may be empty
            or repeat.
        delivery: as the client asked for it.
    """

    chunk: CodesChunk
    delivery: Delivery

    def pack(self, secret: ServerSecret) -> Tensors:
        """Return the message as tensors: the talker's outputs, the codec's inputs. The header begins with their signature."""
        header = _WIRE.pack(structs.replace(self, chunk=structs.replace(self.chunk, codes=_NO_CODES)))
        signature = secret.sign(header + self.chunk.codes.tobytes())
        return {"codes": self.chunk.codes, "header": np.frombuffer(signature + header, np.uint8)}

    @classmethod
    def unpack(cls, tensors: Mapping[str, npt.NDArray[Any]], secret: ServerSecret) -> CodesMessage:
        """Read a message. The codes are copied: a tensor's memory is gone once its request has been answered.

        Raises:
            ValueError: the tensors are not a message, or not one of this server.
        """
        signed = tensors["header"].tobytes()
        signature, header = signed[:SIGNATURE_BYTES], signed[SIGNATURE_BYTES:]
        if not secret.has_signed(header + tensors["codes"].tobytes(), signature):
            raise ValueError("header: has no signature of this server")
        try:
            message = _WIRE.unpack(header)
        except MsgspecError as error:
            raise ValueError(f"header: {error}") from None
        return structs.replace(message, chunk=structs.replace(message.chunk, codes=np.array(tensors["codes"], np.int16)))


_WIRE: Wire[CodesMessage] = Wire(CodesMessage)
_NO_CODES = np.empty((0, 0), np.int16)


@dataclass(frozen=True)
class AudioAnswer:
    """The client's answer for one message.

    Attributes:
        audio: [samples] float32 in -1..1; none in the last answer of a stream.
        sample_rate: in Hz.
        index, is_final, finish_reason, error: as in CodesChunk.
        audio_format: as in Delivery.
    """

    audio: npt.NDArray[np.float32]
    sample_rate: int
    index: int
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
            "chunk_index": np.array([self.index], np.int32),
            "is_final": np.array([self.is_final], np.bool_),
            "finish_reason": _strings(self.finish_reason),
            "error": _strings(self.error),
            "audio_base64": _strings(base64.b64encode(pcm16(self.audio)).decode() if as_text else ""),
        }


def new_stream_key(talker: str) -> str:
    """A key that no other stream has. It names the stream's talker, because one codec may serve several talkers."""
    return f"{talker}/{secrets.token_hex(16)}"


def talker_of(stream_key: str) -> str:
    """The model that a stream comes from."""
    return stream_key.rpartition("/")[0]


def pcm16(audio: npt.NDArray[np.float32]) -> bytes:
    """Samples in -1..1 as little-endian 16-bit integers."""
    return (np.clip(audio, -1.0, 1.0) * 32767.0).round().astype("<i2").tobytes()


def _strings(value: str) -> npt.NDArray[np.object_]:
    return np.array([value.encode()], np.object_)
