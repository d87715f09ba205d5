"""A make-believe Triton server for bench_gateway.py: always the same speech, paced as a real one.

It costs a few microseconds a chunk, so that a gateway can be measured with hundreds of streams on a small machine. Its samples count
up from the start of each stream, so that a client can tell a lost or repeated piece.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc.aio  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc

SAMPLES_PER_FRAME = 1920
SECONDS_PER_FRAME = 0.08
RAMP = (1, 2, 4, 8)  # frames in the first, second, .. chunk; the last entry repeats
PROGRAM = (
    "import asyncio, sys; from benching.fake_triton import serve; "
    "asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))"
)
PERIOD = 2000  # samples after which the counting begins again
VOICES = {
    "voices": [{"name": "ada", "source": "built-in", "models": ["qwen3_tts"]}],
    "refused": {},
    "has_store": False,
    "models": [{"name": "qwen3_tts", "kind": "custom_voice", "languages": ["english"]}],
}


def expected_pcm(frames: int) -> bytes:
    """The whole utterance as signed 16-bit samples."""
    return np.rint(np.clip(_samples(0, frames * SAMPLES_PER_FRAME), -1, 1) * 32767).astype("<i2").tobytes()


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The gRPC service of one server.

    Args:
        frames: of every utterance.
        speed: seconds of audio made in a second; 0: all at once.
    """

    def __init__(self, frames: int, speed: float) -> None:
        self._speed = speed
        self._chunks: list[tuple[float, service_pb2.ModelStreamInferResponse]] = []  # with the seconds of audio after which it is due
        done = index = 0
        while done < frames:
            size = min(RAMP[min(index, len(RAMP) - 1)], frames - done)
            audio = _samples(done * SAMPLES_PER_FRAME, size * SAMPLES_PER_FRAME)
            done += size
            self._chunks.append((done * SECONDS_PER_FRAME, _response(audio, index, "")))
            index += 1
        self._chunks.append((frames * SECONDS_PER_FRAME, _response(np.zeros(0, np.float32), index, "stop")))

    async def ModelStreamInfer(
        self, requests: AsyncIterator[object], _context: object
    ) -> AsyncIterator[service_pb2.ModelStreamInferResponse]:
        clock = asyncio.get_running_loop().time
        begun = clock()
        async for _request in requests:
            for due, message in self._chunks:
                if self._speed and (wait := begun + due / self._speed - clock()) > 0:
                    await asyncio.sleep(wait)
                yield message

    async def RepositoryIndex(self, _request: object, _context: object) -> service_pb2.RepositoryIndexResponse:
        answer = service_pb2.RepositoryIndexResponse()
        answer.models.add(name="qwen3_tts", state="READY")
        return answer

    async def ModelReady(self, _request: object, _context: object) -> service_pb2.ModelReadyResponse:
        return service_pb2.ModelReadyResponse(ready=True)

    async def ModelInfer(self, _request: object, _context: object) -> service_pb2.ModelInferResponse:
        return service_pb2.ModelInferResponse(model_name="voices", raw_output_contents=[_text(json.dumps(VOICES))])


async def serve(frames: int, speed: float, port: int) -> None:
    """Serve on `port`, or with 0 on a free one, which it prints, until cancelled."""
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(FakeTriton(frames, speed), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


@contextmanager
def running_fake(frames: int, speed: float, port: int = 0) -> Iterator[str]:
    """One in a process of its own, on `port` or a free one; yields HOST:PORT."""
    command = [sys.executable, "-c", PROGRAM, str(frames), str(speed), str(port)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def _samples(start: int, count: int) -> npt.NDArray[np.float32]:
    return ((np.arange(start, start + count) % PERIOD) / PERIOD).astype(np.float32)


def _response(audio: npt.NDArray[np.float32], index: int, reason: str) -> service_pb2.ModelStreamInferResponse:
    response = service_pb2.ModelStreamInferResponse()
    result = response.infer_response
    result.model_name = "qwen3_tts"
    outputs = {"audio": audio.astype("<f4").tobytes()}
    if not index or reason:  # the others are sparse
        outputs["sample_rate"] = np.array([24000], "<i4").tobytes()
    if reason:
        outputs |= {"chunk_index": np.array([index], "<i4").tobytes(), "is_final": np.array([True]).tobytes()}
        outputs |= {"finish_reason": _text(reason), "error": _text("")}
    for name, content in outputs.items():
        result.outputs.add(name=name)
        result.raw_output_contents.append(content)
    return response


def _text(value: str) -> bytes:
    content = value.encode()
    return len(content).to_bytes(4, "little") + content
