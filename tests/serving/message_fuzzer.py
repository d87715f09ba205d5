"""Fuzzes the decoder of codec messages: python tests/serving/message_fuzzer.py CORPUS -runs=20000

atheris follows its branches; the options are libFuzzer's. An error other than ValueError, or a message beyond the limits, ends it
with a crash and prints the input. Each input is a number of frames and a header, which is signed: without its signature nothing
of a header is decoded.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import atheris

with atheris.instrument_imports(include=["engine_lib.serving", "engine_lib.process"]):
    from engine_lib.serving.message import CodesMessage

import numpy as np

from engine_lib.delivery import Delivery
from engine_lib.serving.secret import SIGNATURE_BYTES, ServerSecret
from engine_lib.talker.request import CodesChunk
from engine_lib.talker.script.lines import LinePart

SECRET = ServerSecret(b"of the tests")


def decode(data: bytes) -> None:
    """Decode one input."""
    frames, header = data[0] if data else 0, data[1:]
    codes = np.zeros((frames, 16), np.int16)
    signed = np.frombuffer(SECRET.sign(header + codes.tobytes()) + header, np.uint8)
    try:
        chunk = CodesMessage.unpack({"codes": codes, "header": signed}, SECRET).chunk
    except ValueError:
        return
    if not (1 <= len(chunk.stream_key) <= 300 and 0 <= chunk.index < 2**31 and frames <= 64 and len(chunk.error) <= 1000):
        raise RuntimeError("a message beyond the limits was taken")


def write_corpus(folder: Path) -> None:
    """Write true messages, from which the fuzzer starts."""
    no_codes = np.empty((0, 16), np.int16)
    for number, chunk in enumerate(
        (
            CodesChunk("talker/0", 3, no_codes),
            CodesChunk("talker/0", 0, no_codes, is_reference=True),
            CodesChunk("talker/0", 9, no_codes, True, "error", "the talker engine failed"),
        )
    ):
        message = CodesMessage(chunk, Delivery((1, 2)), part=LinePart(2, 1) if chunk.is_final else None)
        header = message.pack(SECRET)["header"].tobytes()[SIGNATURE_BYTES:]
        (folder / str(number)).write_bytes(b"\0" + header)


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]))
    atheris.Setup(sys.argv, decode)
    atheris.Fuzz()
