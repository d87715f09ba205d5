"""The processes that encode: python -m qwen3_tts_gateway.encoder_process, which the gateway starts.

The program is a template. It loads the codecs once and forks a process for each socket that arrives on its standard input, so that a
new one costs milliseconds and shares the memory. On its socket a process gets messages of many streams: HEADER, then the content.
It answers SAMPLES and FINISH in their order: ANSWER, then the bytes that are ready, or the error's text.

Each process ends when the other end of its socket is closed, which the kernel does if the gateway dies in any way.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
from contextlib import suppress
from typing import BinaryIO

import numpy as np

from qwen3_tts_gateway.audio import Encoder, Encoding

HEADER = struct.Struct("<IBI")  # number of the stream, kind, bytes of the content
ANSWER = struct.Struct("<BI")  # 1 or an error's 0, bytes of the content
OPEN, SAMPLES, FINISH, CLOSE = range(4)  # content: JSON of an Encoding; float32; none; none
MOST_SPARES = 4


def main() -> None:
    """Fork a process for each socket that comes; end when no more can come."""
    for number in (signal.SIGINT, signal.SIGTERM):  # ^C goes to every process of a terminal, and speech may still have to end
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing waits for them
    with socket.socket(fileno=0) as control:
        while sockets := socket.recv_fds(control, 1, 1)[1]:
            if os.fork() == 0:
                control.close()
                with socket.socket(fileno=sockets[0]) as connection:
                    _serve(connection)
                os._exit(0)
            os.close(sockets[0])


def _serve(connection: socket.socket) -> None:
    messages, encoders = connection.makefile("rb"), _Encoders()
    while (header := _read(messages, HEADER.size)) is not None:
        number, kind, size = HEADER.unpack(header)
        if (content := _read(messages, size)) is None:
            return
        if kind == OPEN:
            encoders.open(number, content)
        elif kind == CLOSE:
            encoders.close(number)
        else:
            try:
                answer, is_good = encoders.encode(number, content, is_last=kind == FINISH), 1
            except Exception as error:  # it is the gateway's to tell, and the other streams go on
                answer, is_good = f"{type(error).__name__}: {error}".encode(), 0
            try:
                connection.sendall(ANSWER.pack(is_good, len(answer)) + answer)
            except OSError:  # the gateway has gone
                return


def _read(messages: BinaryIO, size: int) -> bytes | None:
    """So many bytes; None at the end."""
    content = messages.read(size)
    return content if len(content) == size else None


class _Encoders:
    """The encoders of a process's streams, by number. One is made when its first samples come: their answer can hold its error.

    To open a codec takes 0.2 to 4 ms, which a stream's first audio would wait for. So one is opened ahead when a stream is closed: for
    the next stream with the same encoding.
    """

    def __init__(self) -> None:
        self._encodings: dict[int, Encoding] = {}
        self._encoders: dict[int, Encoder] = {}
        self._spares: dict[Encoding, Encoder] = {}

    def open(self, number: int, content: bytes) -> None:
        self._encodings[number] = Encoding(**json.loads(content))

    def encode(self, number: int, content: bytes, *, is_last: bool) -> bytes:
        if number not in self._encoders:
            encoding = self._encodings[number]
            spare = self._spares.pop(encoding, None)
            self._encoders[number] = Encoder(encoding) if spare is None else spare
        encoder = self._encoders[number]
        return encoder.finish() if is_last else encoder.encode(np.frombuffer(content, np.float32))

    def close(self, number: int) -> None:
        encoding = self._encodings.pop(number)
        if number not in self._encoders:  # it could not be opened, or was not needed
            return
        del self._encoders[number]
        if encoding in self._spares:
            return
        if len(self._spares) == MOST_SPARES:
            del self._spares[next(iter(self._spares))]  # the oldest
        with suppress(Exception):  # the next stream is told why
            self._spares[encoding] = Encoder(encoding)


if __name__ == "__main__":
    main()
