"""Shared by the tests of ends: streams in flight, and that nothing is left of a server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from engine_lib.server.process import MODEL_REPOSITORY, TritonServer
from patience import eventually
from server.streams import Chunk, ModelProcess, Stream, inputs, model_process

MODELS = ("talker", "codec_decoder")
ENDLESS = {"max_frames": 1900, "chunk_frames": [1], "on_runaway": "off"}


@contextmanager
def streams_in_flight(server: TritonServer) -> Iterator[list[Stream]]:
    """Three endless streams; each has begun."""
    with ExitStack() as stack:
        streams = [Stream(server, inputs(sampling=ENDLESS)) for _ in range(3)]
        for stream in streams:
            stack.callback(stream.cancel)
            stream.next()
        yield streams


def last_chunk(stream: Stream) -> Chunk:
    """Read a stream to its end and close its connection, because an open connection delays a stopping server."""
    chunk = stream.last()
    stream.cancel()
    return chunk


def processes_of(server: TritonServer) -> list[ModelProcess]:
    return [model_process(server, model) for model in MODELS]


def nothing_is_left_of(processes: list[ModelProcess]) -> None:
    eventually(lambda: not any(process.is_alive for process in processes), "the models' processes end")
    eventually(lambda: not any(process.region.exists() for process in processes), "their shared memory is removed")


def repository_with(folder: Path, model: str, prelude: str) -> Path:
    """A copy of the model repository in which `model` runs `prelude` before its model.py."""
    repository = Path(shutil.copytree(MODEL_REPOSITORY, folder / "repository"))
    shell = repository / model / "1" / "model.py"
    future, rest = shell.read_text().split("from __future__ import annotations\n", 1)
    shell.write_text(f"{future}from __future__ import annotations\n{prelude}\n{rest}")
    return repository
