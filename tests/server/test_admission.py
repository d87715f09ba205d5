"""Interactive requests start before batch ones, clients take turns, a refusal says when to ask again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from engine_lib.server.process import TritonServer
from patience import eventually
from server.streams import Stream, eventually_free, inputs, metric
from server.test_voices import add, recording, refusal, voices

MODEL, TALKER, SLOTS = "qwen3_tts_base", "talker_base", 4
ENDLESS: dict[str, Any] = {"max_frames": 1900, "chunk_frames": [8]}


def speech(**parameters: str) -> dict[str, Any]:
    return {"tensors": inputs(voice="eve", sampling=ENDLESS), "model": MODEL, "parameters": parameters}


def waiting(server: TritonServer, priority: str) -> float:
    return metric(server, "waiting_by_priority", model=TALKER, priority=priority)


@pytest.fixture
def busy(three: TritonServer) -> Iterator[list[Stream]]:
    """As many endless streams as run together, on a talker that was free."""
    add(three, "eve", recording(), text=None, x_vector_only=True)
    with ExitStack() as stack:
        streams = [stack.enter_context(Stream(three, **speech())) for _ in range(SLOTS)]
        for stream in streams:
            stream.next()
        yield streams
    eventually_free(three, TALKER)
    voices(three, [], action="remove", name="eve")


def starts(server: TritonServer, running: list[Stream], *requests: dict[str, str]) -> list[int]:
    """Numbers of `requests`, which wait in this order, in the order in which they start as one running stream after the other ends."""
    order = []
    with ExitStack() as stack:
        streams = {}
        for number, parameters in enumerate(requests):
            streams[number] = stack.enter_context(Stream(server, **speech(**parameters)))
            eventually(lambda: metric(server, "waiting_requests", model=TALKER) == len(streams), "it waits, too")
        for stream in running[: len(requests)]:
            stream.cancel()
            eventually(lambda: any(other.has_received for other in streams.values()), "one starts")
            [started] = [number for number, other in streams.items() if other.has_received]
            order.append(started)
            running.append(streams.pop(started))
        for stream in running[-len(requests) :]:
            stream.cancel()
    return order


def test_interactive_requests_start_before_batch_ones(three: TritonServer, busy: list[Stream]) -> None:
    batch = {"request_priority": "batch"}
    assert starts(three, busy, batch, batch, {}, {"request_priority": "interactive"}) == [2, 3, 0, 1]


def test_clients_take_turns(three: TritonServer, busy: list[Stream]) -> None:
    assert starts(three, busy, {"client": "a"}, {"client": "a"}, {"client": "b"}, {}) == [0, 2, 3, 1]


def test_those_that_wait_are_counted_by_priority(three: TritonServer, busy: list[Stream]) -> None:
    with Stream(three, **speech(request_priority="batch")), Stream(three, **speech()):
        eventually(lambda: (waiting(three, "interactive"), waiting(three, "batch")) == (1, 1), "one of each waits")
    eventually(lambda: (waiting(three, "interactive"), waiting(three, "batch")) == (0, 0), "none waits")


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"request_priority": "urgent"}, "request_priority: 'urgent' is not allowed; give interactive or batch"),
        ({"client": "x" * 65}, "client: has 65 characters, or one that is not printable; give a name of 1 to 64"),
        ({"client": 7}, "client: is a int; give a name"),
    ],
)
def test_a_bad_turn_is_refused_by_name(three: TritonServer, parameters: dict[str, Any], problem: str) -> None:
    assert refusal(three, "qwen3_tts", inputs(), parameters=parameters).startswith(f"INVALID_ARG: {problem}")
    with triton.InferenceServerClient(f"localhost:{three.grpc_port}") as client, pytest.raises(InferenceServerException, match=problem):
        client.infer("qwen3_tts_offline", inputs(), parameters=parameters)
    for name in parameters:
        beside = inputs(sampling={name: "batch"})
        assert refusal(three, "qwen3_tts", beside).startswith(f"INVALID_ARG: {name}: is a request parameter; ")


def test_overload_says_when_to_ask_again(small_server: TritonServer) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(Stream(small_server, inputs(sampling=ENDLESS))).next()
        stack.enter_context(Stream(small_server, inputs(sampling=ENDLESS)))
        eventually(lambda: metric(small_server, "waiting_requests") == 1, "one waits")
        before = metric(small_server, "overload_refusals_total", priority="batch")
        message = refusal(small_server, "qwen3_tts", inputs(), parameters={"request_priority": "batch"})
        with (
            triton.InferenceServerClient(f"localhost:{small_server.grpc_port}") as client,
            pytest.raises(InferenceServerException) as error,
        ):
            client.infer("qwen3_tts_offline", inputs())
        for text in (message, error.value.message()):
            found = re.fullmatch(r"UNAVAILABLE: 3 requests are open .*; try again later \(retry_after_ms=(\d+)\)", text)
            assert found is not None
            assert 100 <= int(found[1]) <= 60_000
        assert error.value.status() == "StatusCode.UNAVAILABLE"
        eventually(lambda: metric(small_server, "overload_refusals_total", priority="batch") == before + 1, "it is counted")
    eventually_free(small_server)
