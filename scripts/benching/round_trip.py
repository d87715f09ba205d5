"""Times an empty call: gRPC, Triton, the model's process and the client alone. For bench_server.py.

The talker refuses the call at once, because its sampling_parameters are a list. After a pause it takes longer, because processors
sleep meanwhile.
"""

from __future__ import annotations

import asyncio
import statistics
import time

import grpc.aio  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from qwen3_tts_client.channel import CHANNEL_OPTIONS, stream_call
from qwen3_tts_client.wire import add_string

CALLS, UNTIMED = 60, 10  # UNTIMED: the first calls of a channel
IDLE_SECONDS, IDLE_CALLS = 0.2, 15


def round_trips(url: str) -> dict[str, float]:
    """Medians in milliseconds: of calls back to back, and of calls with a pause before each."""
    return asyncio.run(_round_trips(url))


async def _round_trips(url: str) -> dict[str, float]:
    async with grpc.aio.insecure_channel(url, CHANNEL_OPTIONS) as channel:
        call = stream_call(channel)
        times = [await _seconds(call) for _ in range(UNTIMED + CALLS)][UNTIMED:]
        idle_times = []
        for _ in range(IDLE_CALLS):
            await asyncio.sleep(IDLE_SECONDS)
            idle_times.append(await _seconds(call))
    return {"round_trip_ms": statistics.median(times) * 1e3, "idle_round_trip_ms": statistics.median(idle_times) * 1e3}


async def _seconds(call: grpc.aio.UnaryStreamMultiCallable) -> float:
    """Seconds from a call to its answer."""
    begin = time.perf_counter()
    answers = call(_empty_call())
    await answers.read()
    end = time.perf_counter()
    await answers.read()  # the call's end
    return end - begin


def _empty_call() -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="talker")
    add_string(request, "sampling_parameters", "[]")
    add_string(request, "text", "")
    return request
