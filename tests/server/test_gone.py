"""A client that has gone, or has run out of time, costs nothing more, wherever its request is."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from engine_lib.server.process import TritonServer
from patience import PATIENCE, eventually
from server.conftest import new_server
from server.streams import Stream, eventually_free, inputs, metric, signature
from server.test_voices import recording, reference, strings, voices

ENDLESS = {"max_frames": 1900, "chunk_frames": [8]}
NUM_WAITING = 12
LONG = 100.0  # seconds of a recording, which takes the tiny encoders of a CPU long enough


def test_a_stream_of_a_talker_called_directly_ends_with_its_client(small_server: TritonServer) -> None:
    eventually_free(small_server)
    cancelled = metric(small_server, "finished_requests_total", reason="cancelled")
    with Stream(small_server, inputs(sampling=ENDLESS), model="talker") as stream:
        stream.next_message()
    eventually(lambda: metric(small_server, "finished_requests_total", reason="cancelled") == cancelled + 1, "the talker notices")
    eventually_free(small_server)


def test_a_request_of_a_talker_called_directly_leaves_the_queue_with_its_client(small_server: TritonServer) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(Stream(small_server, inputs(sampling=ENDLESS))).next()
        with Stream(small_server, inputs(sampling=ENDLESS), model="talker"):
            eventually(lambda: metric(small_server, "waiting_requests") == 1, "the third stream waits")
        eventually(lambda: metric(small_server, "waiting_requests") == 0, "it does not wait any more")
        assert metric(small_server, "running_requests") == 2
    eventually_free(small_server)


@pytest.fixture(scope="module")
def cloning_server(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that takes long recordings, one by one."""
    folder = tmp_path_factory.mktemp("cloning")
    options: dict[str, Any] = {"reference_max_seconds": "120", "max_num_seqs": "16", "voice_store": str(folder / "voices")}
    with new_server(tiny_base, folder / "log", **options) as running:
        yield running


def clone(seed: int, seconds: float, max_frames: int = 2) -> list[Any]:
    return [*inputs(sampling={"max_frames": max_frames}), *reference(recording(seed, seconds), text=None, x_vector_only=True)]


def ends(server: TritonServer, reason: str) -> float:
    return metric(server, "finished_requests_total", reason=reason)


def test_a_recording_whose_client_has_gone_is_not_encoded(cloning_server: TritonServer) -> None:
    before, cancelled = metric(cloning_server, "references_encoded_total"), ends(cloning_server, "cancelled")
    came = metric(cloning_server, "references_total")
    with Stream(cloning_server, clone(0, LONG), model="talker"):
        eventually(lambda: metric(cloning_server, "references_total") > came, "one recording is being encoded, or was")
        with ExitStack() as stack:
            for seed in range(1, 1 + NUM_WAITING):  # enough for a fast machine, which encodes some meanwhile
                stack.enter_context(Stream(cloning_server, clone(seed, LONG), model="talker"))
            eventually(lambda: metric(cloning_server, "active_streams") >= 5, "four more wait")
    eventually_free(cloning_server)
    eventually(lambda: metric(cloning_server, "waiting_references") == 0, "none waits")
    # How many were encoded before the server saw their clients go depends on the machine.
    assert ends(cloning_server, "cancelled") > cancelled
    assert metric(cloning_server, "references_encoded_total") - before < 1 + NUM_WAITING


def test_a_deadline_passes_while_a_recording_waits_and_while_it_is_encoded(cloning_server: TritonServer) -> None:
    """A fast machine has encoded some of them by then, and speaks; none of these has come to its end."""
    before = metric(cloning_server, "references_encoded_total")
    with ExitStack() as stack:
        recordings = [clone(10 + seed, LONG, max_frames=1900) for seed in range(NUM_WAITING)]
        streams = [stack.enter_context(Stream(cloning_server, recording, timeout=100_000)) for recording in recordings]
        for stream in streams:
            end = stream.all()[-1]
            assert end.finish_reason == "error"
            assert end.error.startswith("DEADLINE_EXCEEDED: timeout: ")
    eventually_free(cloning_server)
    eventually(lambda: metric(cloning_server, "waiting_references") == 0, "none waits")
    assert metric(cloning_server, "references_encoded_total") - before < NUM_WAITING


def test_the_server_asks_for_clients_that_wait_inside_an_ensemble(small_server: TritonServer) -> None:
    """Triton tells no talker of them (up to 26.04): streams and whole utterances, in the queue."""
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(Stream(small_server, inputs(sampling=ENDLESS))).next()
        with Stream(small_server, inputs(sampling=ENDLESS)):
            eventually(lambda: metric(small_server, "waiting_requests") == 1, "the third stream waits")
        eventually(lambda: metric(small_server, "waiting_requests") == 0, "it does not wait any more")
        with triton.InferenceServerClient(f"localhost:{small_server.grpc_port}") as client:
            call = client.async_infer("qwen3_tts_offline", inputs(sampling=ENDLESS), lambda result, error: None)
            eventually(lambda: metric(small_server, "waiting_requests") == 1, "an utterance waits")
            call.cancel()
            eventually(lambda: metric(small_server, "waiting_requests") == 0, "it does not wait any more")
        assert metric(small_server, "running_requests") == 2
    eventually_free(small_server)


def test_a_recording_inside_an_ensemble_is_not_encoded_either(cloning_server: TritonServer) -> None:
    before, cancelled = metric(cloning_server, "references_encoded_total"), ends(cloning_server, "cancelled")
    came = metric(cloning_server, "references_total")
    with Stream(cloning_server, clone(100, LONG), model="talker"):
        eventually(lambda: metric(cloning_server, "references_total") > came, "one recording is being encoded, or was")
        with ExitStack() as stack:
            for seed in range(101, 101 + NUM_WAITING):
                stack.enter_context(Stream(cloning_server, clone(seed, LONG)))
            eventually(lambda: metric(cloning_server, "active_streams") >= 5, "four more wait")
        eventually(lambda: ends(cloning_server, "cancelled") >= cancelled + 4, "their clients have gone")
    eventually_free(cloning_server)
    assert metric(cloning_server, "references_encoded_total") - before <= 1 + NUM_WAITING - 3


def test_a_short_recording_need_not_wait_for_all_long_ones(cloning_server: TritonServer) -> None:
    before = metric(cloning_server, "references_encoded_total")
    with ExitStack() as stack:
        for seed in range(110, 110 + NUM_WAITING):
            stack.enter_context(Stream(cloning_server, clone(seed, LONG)))
        eventually(lambda: metric(cloning_server, "waiting_references") >= 3, "long ones wait")
        assert stack.enter_context(Stream(cloning_server, clone(130, 1.0))).all()[-1].finish_reason == "length"
        assert metric(cloning_server, "references_encoded_total") - before < NUM_WAITING
    eventually_free(cloning_server)


def test_voices_are_listed_while_one_is_added_and_the_next_one_has_a_deadline(cloning_server: TritonServer) -> None:
    came = metric(cloning_server, "references_total")
    with ExitStack() as stack, triton.InferenceServerClient(f"localhost:{cloning_server.grpc_port}") as client:
        for seed in range(140, 140 + NUM_WAITING):  # so that a fast machine's encoder is busy, too
            stack.enter_context(Stream(cloning_server, clone(seed, LONG)))
        eventually(lambda: metric(cloning_server, "references_total") > came, "recordings are being encoded")
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for name, timeout in (("first", None), ("second", 100_000)):
            tensors = [
                *strings(action="add", name=name, consent="In writing."),
                *reference(recording(190, LONG), text=None, x_vector_only=True),
            ]
            client.async_infer("voices", tensors, lambda result, error: answers.put(error or result), timeout=timeout)
        error = answers.get(timeout=PATIENCE)
        assert isinstance(error, InferenceServerException)
        assert error.message().startswith("DEADLINE_EXCEEDED: timeout: ")
        assert error.status() == "StatusCode.UNAVAILABLE"
        assert voices(cloning_server, [], action="list")["voices"] == []
        assert not isinstance(answers.get(timeout=PATIENCE), Exception)
    assert [voice["name"] for voice in voices(cloning_server, [], action="list")["voices"]] == ["first"]
    voices(cloning_server, [], action="remove", name="first")
    eventually_free(cloning_server)


def test_an_order_to_store_a_voice_has_a_deadline_too(cloning_server: TritonServer) -> None:
    order = '{"name": "eve", "consent": "In writing."}'
    tensors = [*strings(store_voice=order), *reference(recording(50, LONG), text=None, x_vector_only=True)]
    signed = signature("talker", "store_voice", np.array([order.encode()], np.object_))
    with (
        Stream(cloning_server, clone(51, LONG)),
        Stream(cloning_server, tensors, model="talker", timeout=100_000, parameters=signed) as stream,
        pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED: timeout: "),
    ):
        stream.next_message()
    eventually_free(cloning_server)


def test_a_clone_whose_client_stays_is_spoken(cloning_server: TritonServer) -> None:
    with Stream(cloning_server, clone(60, 2.0), timeout=600_000_000) as stream:
        assert stream.all()[-1].finish_reason == "length"
