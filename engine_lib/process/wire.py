"""Wire: the messages between two processes of this package, as bytes.

MessagePack by msgspec, which checks types, with numpy arrays. There is no pickle: only the declared messages can arrive.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

MessageT = TypeVar("MessageT")


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all messages. Fields may be numbers, text, arrays, tuples, dataclasses and messages of these, and None."""


class Wire(Generic[MessageT]):
    """Packs and unpacks the messages of one pipe."""

    def __init__(self, messages: Any) -> None:
        """`messages`: the union of the Message types that may arrive."""
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_encoded)
        self._decoder = msgspec.msgpack.Decoder(messages, dec_hook=_decoded)

    def pack(self, message: Message) -> bytes:
        """`message` as bytes."""
        return self._encoder.encode(message)

    def unpack(self, data: bytes) -> MessageT:
        """The message in `data`, from `pack`; its arrays are copies and writable.

        Raises:
            msgspec.MsgspecError: it is not a message of the union.
        """
        message: MessageT = self._decoder.decode(data)
        return message


def _encoded(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    raise NotImplementedError(f"{type(value).__name__} is no type of a message")


def _decoded(_kind: object, value: Any) -> object:
    dtype, shape, data = value
    if not isinstance(data, bytes):  # a number would become so many zeros
        raise ValueError("the data of an array are not bytes")
    return np.frombuffer(bytearray(data), dtype).reshape(shape)
