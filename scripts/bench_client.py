"""Measure the client alone: its CPU time for each stream, on a server that replays chunks.

    python scripts/bench_client.py --streams 16 64 --speed 10

The server is a gRPC service in a process of its own. It answers every request with one utterance in the form of qwen3_tts: chunks of
1, 2, 4, 8, 8, .. frames of silence, `--speed` times as fast as they are played. 64 streams at speed 10 are 640 seconds of audio a
second, some 1,000 chunks: what one H100 gives. The client is that of `qwen3-tts bench`, in one process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2

from benching.arguments import HelpFormatter
from benching.measuring import command, machine
from qwen3_tts_client import DEFAULT_MODEL
from qwen3_tts_client.load.clients import running_clients
from qwen3_tts_client.load.streams import Load
from qwen3_tts_client.load.table import load_name, number

SAMPLE_RATE, SAMPLES_PER_FRAME = 24_000, 1_920
FRAMES_PER_SECOND = SAMPLE_RATE / SAMPLES_PER_FRAME
CHUNKS = (1, 2, 4, 8, 8, 8, 8, 8, 8, 8, 8)  # 71 frames, the mean of spoken turns
START_SECONDS = 60.0
BOOL, INT32, STRING, FP32 = "BOOL", "INT32", "BYTES", "FP32"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64], help="closed loops: streams at a time")
    parser.add_argument("--speed", type=float, default=10, help="seconds of audio that a stream gets in a second")
    parser.add_argument("--seconds", type=float, default=10, help="measured time of each point")
    arguments = parser.parse_args()
    print(f"command: {command()}\n{machine()}")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(theirs, arguments.speed, max(arguments.streams)), daemon=True)
    server.start()
    if not ours.poll(START_SECONDS):
        sys.exit("the replaying server did not start")
    url = f"127.0.0.1:{ours.recv()}"
    print(f"{'load':>12} {'audio-s/s':>9} {'CPU % of a core':>15} {'for a stream':>12} {'ms for 1 s of audio':>19} {'failed':>6}")
    try:
        with running_clients(1, watched=True) as clients:
            for streams in arguments.streams:
                load = Load(url=url, model=DEFAULT_MODEL, streams=streams, rate=0, warm_up=2, patience=10, seed=0, options={})
                point = clients.measure(load, arguments.seconds, lambda begin, ended: None, 0.25).figures | {"streams": streams, "rate": 0}
                cpu, audio = float(str(point["client_cpu"])), float(str(point["audio_seconds_per_second"]))
                row = f"{load_name(point):>12} {audio:>9.1f} {cpu * 100:>15.1f} {number(point, 'client_cpu_per_stream', 2, 100):>12}"
                print(f"{row} {cpu * 1e3 / audio:>19.2f} {point['failed']:>6}", flush=True)
    finally:
        server.kill()


def _serve(parent: Connection, speed: float, streams: int) -> None:
    """The replaying server; sends its port."""
    responses = [_response(index, frames) for index, frames in enumerate(CHUNKS)] + [_response(len(CHUNKS), 0)]
    times = np.cumsum([0, *CHUNKS[:-1]]) / FRAMES_PER_SECOND / speed

    def stream(requests: Iterator[object], context: object) -> Iterator[bytes]:
        next(requests)
        begin = time.monotonic()
        for response, due in zip(responses, [*times, times[-1]], strict=True):
            time.sleep(max(0.0, begin + due - time.monotonic()))
            yield response

    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
    server = grpc.server(ThreadPoolExecutor(streams + 4))
    handler = grpc.stream_stream_rpc_method_handler(stream)  # bytes as they are: no time goes to protobuf here
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"ModelStreamInfer": handler}),))
    parent.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


def _response(index: int, frames: int) -> bytes:
    """One response of qwen3_tts, as sparse as its clients ask for; without frames the last."""
    answer = service_pb2.ModelInferResponse(model_name=DEFAULT_MODEL)
    empty = (0).to_bytes(4, "little")
    outputs = {"audio": (FP32, [frames * SAMPLES_PER_FRAME], np.zeros(frames * SAMPLES_PER_FRAME, "<f4").tobytes())}
    if not index or not frames:
        outputs["sample_rate"] = (INT32, [1], np.array([SAMPLE_RATE], "<i4").tobytes())
    if not frames:
        outputs |= {
            "chunk_index": (INT32, [1], np.array([index], "<i4").tobytes()),
            "is_final": (BOOL, [1], np.array([True]).tobytes()),
            "finish_reason": (STRING, [1], (4).to_bytes(4, "little") + b"stop"),
            "error": (STRING, [1], empty),
            "audio_base64": (STRING, [1], empty),
        }
    for name, (datatype, shape, content) in outputs.items():
        answer.outputs.add(name=name, datatype=datatype, shape=shape)
        answer.raw_output_contents.append(content)
    message: bytes = service_pb2.ModelStreamInferResponse(infer_response=answer).SerializeToString()
    return message


if __name__ == "__main__":
    main()
