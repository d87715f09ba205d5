"""The models' shells on a stand-in for the stub of Triton 24.10 and of 26.11.

Both give the same answers, and no rule of the stub is broken.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from random_voices import recording
from tritonclient.grpc import service_pb2, service_pb2_grpc

from engine_lib.server.process import MODEL_REPOSITORY
from engine_lib.server.repository import NO_VARIABLES, Options, lay_out
from engine_lib.serving.lifecycle import DRAIN_DIRECTORY_VARIABLE
from engine_lib.serving.secret import SECRET_VARIABLE
from engine_lib.serving.served import GRPC_URL_VARIABLE
from engine_lib.serving.server_log import LOGGER
from make_checkpoint import make_checkpoint
from patience import PATIENCE, eventually
from qwen3_tts_client import Client, InvalidRequest, ServerOverloaded, StreamFailed
from qwen3_tts_client.channel import stream_call
from qwen3_tts_client.protocol import build_request
from serving.python_backend import TRITON_24_10, TRITON_26_11, Release
from serving.stand_in_server import NoGuard, StandInServer

NOWHERE = "127.0.0.1:1"  # a port that no program listens on
NUMPY_2 = np.lib.NumpyVersion(np.__version__) >= "2.0.0"
RELEASES = [
    pytest.param(TRITON_24_10, id="24.10", marks=pytest.mark.skipif(NUMPY_2, reason="the stub of 24.10 cannot run with numpy 2")),
    pytest.param(TRITON_26_11, id="26.11"),
]
OPTIONS = {"device": "cpu", "num_threads": "1", "max_model_len": "1024", "max_num_seqs": "4", "reference_max_seconds": "5"}
SAMPLING = {"max_frames": 6, "seed": 3}
ENDLESS: dict[str, Any] = {"max_frames": 900, "chunk_frames": [1]}


@dataclass
class Shells:
    """A server of a custom_voice and a base checkpoint, and how its models drain."""

    server: StandInServer
    drain_folder: Path

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.server.port}"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shells")
    checkpoints = [make_checkpoint(folder / kind, kind=kind, eos_gain=0.0) for kind in ("custom_voice", "base")]
    lay_out(MODEL_REPOSITORY, folder / "repository", checkpoints, Options(every=OPTIONS | {"voice_store": str(folder / "voices")}))
    return folder / "repository"


@pytest.fixture(scope="module", params=RELEASES)
def shells(request: pytest.FixtureRequest, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shells]:
    release: Release = request.param
    drain_folder = tmp_path_factory.mktemp("drain")
    log = [*LOGGER.handlers], LOGGER.propagate, LOGGER.level
    interval = sys.getswitchinterval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine_lib.serving.server_guard.ServerGuard", NoGuard)
        patch.setitem(sys.modules, "triton_python_backend_utils", None)
        for name in NO_VARIABLES:
            patch.delenv(name, raising=False)
        server = StandInServer(repository, release)
        patch.setenv(GRPC_URL_VARIABLE, f"127.0.0.1:{server.port}")
        patch.setenv(SECRET_VARIABLE, "a secret of the tests")
        patch.setenv(DRAIN_DIRECTORY_VARIABLE, str(drain_folder))
        with server:
            yield Shells(server, drain_folder)
    (LOGGER.handlers, LOGGER.propagate), level = log[:2], log[2]
    LOGGER.setLevel(level)
    sys.setswitchinterval(interval)
    assert server.faults == []  # those of the end included


@pytest.fixture
def client(shells: Shells) -> Iterator[Client]:
    with Client(shells.url) as client:
        yield client
    assert shells.server.faults == []


def test_a_stream_and_the_offline_model_say_the_same(shells: Shells, client: Client) -> None:
    chunks = list(client.stream("Hello.", sampling=SAMPLING, request_id="mine"))
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert (chunks[-1].is_final, chunks[-1].finish_reason, chunks[-1].audio.size) == (True, "length", 0)
    request = build_request("qwen3_tts_offline", "Hello.", 100.0, sampling=SAMPLING)
    request.parameters["voice"].string_param = "vivian"  # as generate_stream sends it
    with grpc.insecure_channel(shells.url) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=PATIENCE)
    raw = dict(zip((output.name for output in answer.outputs), answer.raw_output_contents, strict=True))
    whole = np.concatenate([chunk.audio for chunk in client.stream("Hello.", voice="vivian", sampling=SAMPLING)])
    np.testing.assert_allclose(np.frombuffer(raw["audio"], np.float32), whole, atol=1e-5)


def test_an_offline_model_that_does_not_reach_its_server_says_where_it_asked(shells: Shells, monkeypatch: pytest.MonkeyPatch) -> None:
    service = shells.server.models["qwen3_tts_offline"]._service
    monkeypatch.setattr(service, "_url", NOWHERE)
    monkeypatch.setattr(service, "_stream_call", stream_call(grpc.insecure_channel(NOWHERE)))
    with grpc.insecure_channel(shells.url) as channel, pytest.raises(grpc.RpcError) as refused:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(build_request("qwen3_tts_offline", "Hello.", 100.0), timeout=PATIENCE)
    expected = f"UNAVAILABLE: no answer of qwen3_tts at {NOWHERE}; grpc_url of the model's config.pbtxt, or {GRPC_URL_VARIABLE}, names "
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert refused.value.details().startswith(expected)


def test_voices_are_stored_listed_spoken_with_and_removed(shells: Shells, client: Client) -> None:
    client.voices.add("anna", recording(1.0, 24000), 24000, text="What is said.", consent="Anna, by mail")
    assert "anna" in [voice.name for voice in client.voices.list().voices]
    with Client(shells.url, model="qwen3_tts_base") as base:
        assert base.synthesize("Hello.", voice="anna", sampling=SAMPLING).audio.size
        again = base.synthesize(
            "Hello.", reference_audio=recording(1.0, 24000), reference_sample_rate=24000, reference_text="What is said.", sampling=SAMPLING
        )
        assert again.audio.size
    client.voices.remove("anna")


def test_a_client_that_leaves_stops_its_stream_by_a_control_request(shells: Shells, client: Client) -> None:
    stream = client.stream("Hello.", sampling=ENDLESS)
    next(stream)
    stream.close()
    eventually(lambda: not shells.server.models["talker"]._service._parts.streams, "the stream has ended")


def test_refusals_carry_their_code(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="voice: 'nobody' is unknown") as refused:
        client.synthesize("Hello.", voice="nobody")
    assert refused.value.field == "voice"


@pytest.mark.parametrize("model", ["qwen3_tts", "qwen3_tts_offline"])
def test_the_names_that_triton_keeps_for_itself_never_come_from_us(shells: Shells, client: Client, model: str) -> None:
    request = build_request(model, "Hello.", 100.0, sampling=SAMPLING)
    request.parameters["priority"].uint64_param = 1
    request.parameters["triton_of_tomorrow"].bool_param = True
    with grpc.insecure_channel(shells.url) as channel:
        [first, *_] = stream_call(channel)(request, timeout=PATIENCE)
    if shells.server.release.reserves_names:
        assert first.error_message == "INVALID_ARG: parameters ['triton_of_tomorrow'] are reserved"
    else:
        assert (first.error_message, isinstance(first.infer_response, service_pb2.ModelInferResponse)) == ("", True)


def test_every_answer_about_readiness_is_a_bool_and_a_draining_talker_is_not_ready(shells: Shells, client: Client) -> None:
    server = shells.server
    everything = [*server.models, "qwen3_tts", "qwen3_tts_base"]
    assert all(map(server.is_ready, everything))
    stream = client.stream("Hello.", sampling=ENDLESS)
    next(stream)
    (shells.drain_folder / "talker").touch()
    eventually(lambda: server.models["talker"].is_ready() is False, "the talker drains")
    ready = {name for name in everything if server.is_ready(name)}
    assert set(everything) - ready == ({"talker", "qwen3_tts"} if server.release.asks_is_ready else set())
    with pytest.raises(ServerOverloaded, match="the server is shutting down"):
        client.synthesize("Hello.")
    with pytest.raises(StreamFailed, match="the server is shutting down"):
        list(stream)
