"""Several Triton servers behind one gateway: load, a dead one, a stream that breaks."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import pytest
from server.conftest import new_server

from engine_lib.server.process import FREE_PORTS, TritonServer
from gateway.conftest import LONG_TEXT, TEXT, RunningGateway
from patience import PATIENCE, eventually


def backend_of(gateway: RunningGateway, request_id: str) -> str:
    eventually(lambda: bool(gateway.answered(request_id)), "the request is in the log")
    return str(gateway.answered(request_id)["backend"])


def test_streams_are_spread_and_a_killed_server_breaks_only_its_own(endless: TritonServer, checkpoints: Path, tmp_path: Path) -> None:
    with (
        new_server(checkpoints / "endless_gateway", tmp_path / "second", max_num_seqs="4") as second,
        RunningGateway([endless, second], tmp_path / "log", "--metrics-port", "0") as gateway,
        httpx.Client(base_url=gateway.url, timeout=PATIENCE) as http,
    ):
        speech, body = "/v1/audio/speech", {"input": LONG_TEXT, "response_format": "pcm"}
        with (
            http.stream("POST", speech, json=body, headers={"X-Request-Id": "one"}) as one,
            http.stream("POST", speech, json=body, headers={"X-Request-Id": "two"}) as two,
        ):
            streams = {"one": one.iter_raw(), "two": two.iter_raw()}
            for parts in streams.values():
                next(parts)
            page = http.get("/metrics").text
            for server in (endless, second):
                assert f'backend_open_streams{{backend="127.0.0.1:{server.grpc_port}"}} 1.0' in page
            os.kill(second.pid, signal.SIGKILL)
            broken: list[str] = []
            for name, parts in streams.items():
                try:
                    for _ in parts:
                        if len(broken) == 1:
                            break  # the other one goes on
                except httpx.RemoteProtocolError:
                    broken.append(name)
        # the next requests go to the server that lives, whatever the turn
        for number in range(4):
            answer = http.post(speech, json={"input": TEXT, "max_new_tokens": 2}, headers={"X-Request-Id": f"after-{number}"})
            assert answer.status_code == 200
            assert backend_of(gateway, f"after-{number}") == f"127.0.0.1:{endless.grpc_port}"
        assert len(broken) == 1
        assert backend_of(gateway, broken[0]) == f"127.0.0.1:{second.grpc_port}"
        assert any(line["event"] == "backend is not ready" for line in gateway.log())
        assert f'backend_up{{backend="127.0.0.1:{second.grpc_port}"}} 0.0' in http.get("/metrics").text


def test_without_a_server_the_answer_says_so_and_when_to_try_again(tmp_path: Path) -> None:
    nowhere = TritonServer(options={}, ports=FREE_PORTS)  # never started
    with RunningGateway([nowhere], tmp_path / "log") as gateway, httpx.Client(base_url=gateway.url, timeout=PATIENCE) as http:
        answer = http.post("/v1/audio/speech", json={"input": TEXT})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "no_server"
        assert answer.headers["retry-after"] == "1"
        assert http.get("/ready").status_code == 503
        assert http.get("/health").status_code == 200


@pytest.mark.parametrize("model", ["qwen3_tts", "tts-1"])
def test_a_model_that_is_not_served_leaves_the_choice_to_the_gateway(http: httpx.Client, model: str) -> None:
    answer = http.post("/v1/audio/speech", json={"input": TEXT, "model": model, "max_new_tokens": 2})
    assert answer.headers["x-model"] == "qwen3_tts"
