"""Shared by server tests: streams of the official gRPC client, in-process audio, metrics, processes."""

from __future__ import annotations

import json
import queue
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.engine import AudioChunk, CodecEngine, CodecRequest
from engine_lib.config import EngineConfig
from engine_lib.delivery import Delivery
from engine_lib.prompt import PromptBuilder
from engine_lib.server.process import TritonServer
from engine_lib.serving.backend import SIGNATURE_PARAMETER, signed_order
from engine_lib.serving.secret import ServerSecret
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import CodesChunk, Request, RequestListener
from patience import PATIENCE, eventually, has_ended
from qwen3_tts_client.decoding import decoded

TEXT = "Good morning! How are you today?"
SAMPLES_PER_FRAME = 1920
SECRET = "known to tests alone"  # of every server of conftest.py


@dataclass(frozen=True)
class Chunk:
    """One response of the ensemble."""

    audio: npt.NDArray[np.float32]
    sample_rate: int
    index: int
    is_final: bool
    finish_reason: str
    error: str
    audio_base64: str
    request_id: str
    has_final_flag: bool
    metadata: dict[str, Any] | None  # None: the response has no such output

    @classmethod
    def read(cls, result: Any) -> Chunk:
        response = result.get_response()
        metadata = result.as_numpy("metadata")
        return cls(
            audio=result.as_numpy("audio"),
            sample_rate=int(result.as_numpy("sample_rate")[0]),
            index=int(result.as_numpy("chunk_index")[0]),
            is_final=bool(result.as_numpy("is_final")[0]),
            finish_reason=result.as_numpy("finish_reason")[0].decode(),
            error=result.as_numpy("error")[0].decode(),
            audio_base64=result.as_numpy("audio_base64")[0].decode(),
            request_id=response.id,
            has_final_flag=response.parameters["triton_final_response"].bool_param,
            metadata=None if metadata is None else json.loads(metadata[0]),
        )


def inputs(
    text: str | bytes | None = TEXT,
    *,
    sampling: Mapping[str, Any] | str | None = None,
    text_end: bool | None = None,
    **strings: str | bytes,
) -> list[Any]:
    """Input tensors of one request."""
    values: dict[str, str | bytes] = strings if text is None else {"text": text, **strings}
    if sampling is not None:
        values["sampling_parameters"] = sampling if isinstance(sampling, str) else json.dumps(sampling)
    tensors = []
    for name, value in values.items():
        tensor = triton.InferInput(name, [1], "BYTES")
        tensor.set_data_from_numpy(np.array([value.encode() if isinstance(value, str) else value], np.object_))
        tensors.append(tensor)
    if text_end is not None:
        tensors.append(triton.InferInput("text_end", [1], "BOOL"))
        tensors[-1].set_data_from_numpy(np.array([text_end]))
    return tensors


def tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> list[Any]:
    """Input tensors of these values."""
    made = []
    for name, array in arrays.items():
        made.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    return made


def signature(model: str, name: str, order: npt.NDArray[Any]) -> dict[str, str]:
    """The request parameters that make a control request one of the server's own."""
    return {SIGNATURE_PARAMETER: ServerSecret(SECRET.encode()).sign(signed_order(model, name, order)).hex()}


class Stream:
    """One stream over a connection of its own, read with the official synchronous client."""

    def __init__(self, server: TritonServer | int, tensors: list[Any], *, model: str = "qwen3_tts", **arguments: Any) -> None:
        """`server`: or its gRPC port. `arguments`: tritonclient's request_id, parameters, timeout (in microseconds)."""
        port = server if isinstance(server, int) else server.grpc_port
        self._received: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        self._has_ended = self._is_closed = False
        self._client = triton.InferenceServerClient(f"localhost:{port}")
        self._client.start_stream(lambda result, error: self._received.put((result, error)))
        self._client.async_stream_infer(model, tensors, **arguments)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cancel()

    def send(self, tensors: list[Any], *, model: str = "qwen3_tts", **arguments: Any) -> None:
        """Send another request on the same connection, after those before it."""
        self._client.async_stream_infer(model, tensors, **arguments)

    def next(self) -> Chunk:
        """Wait for the next chunk.

        Raises:
            InferenceServerException: the server sent an error instead.
        """
        return Chunk.read(self._receive())

    @property
    def has_received(self) -> bool:
        """Whether a response that was not read has come."""
        return not self._received.empty()

    def next_message(self) -> dict[str, npt.NDArray[Any]]:
        """Wait for the next message of a talker that is called directly; its tensors, none if the stream has ended.

        Raises:
            InferenceServerException: the server sent an error instead.
        """
        result = self._receive()
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    def _receive(self) -> Any:
        result, error = self._received.get(timeout=PATIENCE)
        if error is not None:
            self._has_ended = True
            raise error
        self._has_ended = result.get_response().parameters["triton_final_response"].bool_param
        return result

    def all(self, first: int = 0) -> list[Chunk]:
        """Wait for the stream's end; return its chunks, which must be well formed, with indices from `first` on."""
        chunks = [self.next()]
        while not chunks[-1].has_final_flag:
            chunks.append(self.next())
        assert [chunk.index for chunk in chunks] == list(range(first, first + len(chunks)))
        assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert all(chunk.finish_reason == "" and chunk.error == "" for chunk in chunks[:-1])
        assert len(chunks[-1].audio) == 0
        assert chunks[-1].audio_base64 == ""
        assert chunks[-1].finish_reason != ""
        return chunks

    def last(self) -> Chunk:
        """Wait for the stream's end; return its last chunk."""
        chunk = self.next()
        while not chunk.has_final_flag:
            chunk = self.next()
        return chunk

    def wait(self) -> None:
        """Wait for the stream's end, whatever comes. To see one that comes alone, ask for `enable_empty_final_response`."""
        while not self._has_ended:
            self._receive()

    def cancel(self) -> None:
        """Drop the stream and its connection.

        A stream that has ended must not be cancelled, because 24.10 then keeps the ensemble for ever and stops at its exit timeout.
        """
        if not self._is_closed:
            self._is_closed = True
            self._client.stop_stream(cancel_requests=not self._has_ended)
            self._client.close()


def audio_of(chunks: list[Chunk]) -> npt.NDArray[np.float32]:
    """All samples of a stream."""
    return np.concatenate([chunk.audio for chunk in chunks])


def assert_same_speech(one: bytes, other: bytes, audio_format: str) -> None:
    """Bytes of two streams of one request: nearly all are the same.

    Samples of two streams differ in their last bits, because a step of the codec may take more chunks at once. Where a sample lies
    between two codes, one stream has the code below it and the other the code above.
    """
    first, second = decoded(one, audio_format), decoded(other, audio_format)
    nearest = 1 / 32768 if audio_format == "pcm16" else 1 / 2048 + np.abs(first) / 16  # distance from a code to the next one
    assert first.size == second.size > 0
    assert (np.abs(first - second) <= nearest).all()
    assert np.mean(first != second) < 0.02


def in_process_audio(model_path: Path, sampling: Mapping[str, Any], chunk_frames: tuple[int, ...]) -> list[npt.NDArray[np.float32]]:
    """Audio of TEXT from the engines without a server: the samples of each chunk, the empty last one included."""
    checkpoint = Checkpoint(model_path)
    config = EngineConfig(device="cpu", max_num_seqs=16, max_model_len=2048)
    talker, codec = TalkerEngine(checkpoint, config), CodecEngine(checkpoint, config)
    answers: queue.SimpleQueue[AudioChunk] = queue.SimpleQueue()

    class Decoded(RequestListener):
        def on_chunk(self, chunk: CodesChunk) -> None:
            codec.submit(CodecRequest("stream", chunk.index, chunk.codes, chunk.is_final, answers.put))

    codec.start()
    talker.start()
    try:
        prompt = PromptBuilder(checkpoint, config.max_text_length).build(text=TEXT)
        defaults = checkpoint.sampling_defaults()
        talker.submit(Request("stream", prompt, defaults.updated(sampling), Delivery(chunk_frames)), Decoded())
        chunks = [answers.get(timeout=PATIENCE)]
        while not chunks[-1].is_final:
            chunks.append(answers.get(timeout=PATIENCE))
    finally:
        talker.shutdown()
        codec.shutdown()
    return [chunk.audio for chunk in chunks]


def metric(server: TritonServer, name: str, **labels: str) -> float:
    """Value of one of this project's metrics."""
    return value(server.metrics(), name, **labels)


def value(metrics: str, name: str, **labels: str) -> float:
    """Value of a metric in the text of a server's metrics; all values of one text were published together."""
    for line in metrics.splitlines():
        found = re.fullmatch(r"qwen3_tts_(\w+)\{(.*)\} (\S+)", line)
        if found and found[1] == name and all(f'{label}="{value}"' in found[2] for label, value in labels.items()):
            return float(found[3])
    raise AssertionError(f"no metric qwen3_tts_{name} with {labels}")


def eventually_free(server: TritonServer, talker: str = "talker") -> None:
    """Wait until no stream of `talker` holds a resource."""

    def is_free() -> bool:
        metrics = server.metrics()
        return (
            value(metrics, "active_streams", model=talker) == 0
            and value(metrics, "running_requests", model=talker) == 0
            and value(metrics, "codec_open_streams") == 0
            and value(metrics, "kv_blocks_free", model=talker) == value(metrics, "kv_blocks_total", model=talker)
        )

    eventually(is_free, "all streams, KV blocks and codec slots are free")


@dataclass(frozen=True)
class ModelProcess:
    """The process of one Python model, and the shared memory named on its command line."""

    pid: int
    region: Path

    @property
    def is_alive(self) -> bool:
        return not has_ended(self.pid)


def model_process(server: TritonServer | int, model: str) -> ModelProcess:
    """The process that runs `model` in `server`, or in the server of that process id."""
    pid = server if isinstance(server, int) else server.pid
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=True).stdout.split()
    for pid in map(int, children):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except OSError:  # it has ended, as the old instance of a model that was loaded again
            continue
        if any(argument.endswith(f"/{model}/1/model.py") for argument in arguments):
            region = next(name for file, name in pairwise(arguments) if file.endswith("/model.py"))
            return ModelProcess(pid, Path("/dev/shm", region))
    raise AssertionError(f"no process of {model}")
