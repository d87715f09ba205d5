"""Several Triton servers behind one gateway: load, a dead one, a stream that breaks."""

from __future__ import annotations

import asyncio
import os
import signal
from itertools import cycle
from pathlib import Path

import httpx
import pytest
from server.conftest import new_server

from benching.fake_triton import FakeTriton
from engine_lib.server.process import FREE_PORTS, TritonServer
from gateway.conftest import LONG_TEXT, TEXT, RunningGateway
from gateway.test_entry import served
from patience import PATIENCE, eventually
from qwen3_tts_gateway.backend import Backend
from qwen3_tts_gateway.backends import Backends
from qwen3_tts_gateway.metrics import GatewayMetrics
from qwen3_tts_gateway.settings import GatewaySettings


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
            broken = ""
            for name in cycle(streams):  # in turn, because the other one goes on
                try:
                    next(streams[name])
                except httpx.RemoteProtocolError:
                    broken = name
                    break
            assert next(streams["two" if broken == "one" else "one"])
        # the next requests go to the server that lives, whatever the turn
        for number in range(4):
            answer = http.post(speech, json={"input": TEXT, "max_new_tokens": 2}, headers={"X-Request-Id": f"after-{number}"})
            assert answer.status_code == 200
            assert backend_of(gateway, f"after-{number}") == f"127.0.0.1:{endless.grpc_port}"
        assert backend_of(gateway, broken) == f"127.0.0.1:{second.grpc_port}"
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


def test_a_name_stands_for_a_server_at_each_of_its_addresses(triton: TritonServer, tmp_path: Path) -> None:
    arguments = ("--resolve", "--backend", f"localhost:{triton.grpc_port}", "--metrics-port", "0")
    with RunningGateway([], tmp_path / "log", *arguments) as gateway, httpx.Client(base_url=gateway.url, timeout=PATIENCE) as http:
        eventually(lambda: http.get("/ready").status_code == 200, "an address answers")
        body = {"input": TEXT, "max_new_tokens": 2}
        assert http.post("/v1/audio/speech", json=body, headers={"X-Request-Id": "one"}).status_code == 200
        assert backend_of(gateway, "one") == f"127.0.0.1:{triton.grpc_port}"
        assert f'backend_up{{backend="127.0.0.1:{triton.grpc_port}"}} 1.0' in http.get("/metrics").text


def test_servers_come_and_go_with_their_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ["127.0.0.1:9", "[::1]:9"]

    async def look_up(_name: str) -> list[str]:
        if not found:
            raise OSError("no such name")
        return found

    async def change() -> None:
        backends = Backends(GatewaySettings(backends=("tts:9",), resolve=True), metrics := GatewayMetrics())
        try:
            first, second = await asked(backends, 2)
            first.open_streams = 1
            found[:] = [second.url, "127.0.0.2:9"]
            assert first not in await asked(backends, 2, without=first)
            assert first.url not in metrics.page().decode()
            assert second in backends.ready
            found.clear()
            await asyncio.sleep(0.1)
            assert len(backends.ready) == 2
        finally:
            await backends.close()

    async def asked(backends: Backends, number: int, without: Backend | None = None) -> list[Backend]:
        while len(backends.ready) != number or without in backends.ready:
            await asyncio.sleep(0.01)
        return backends.ready

    monkeypatch.setattr("qwen3_tts_gateway.backends.addresses", look_up)
    monkeypatch.setattr("qwen3_tts_gateway.backends.LOOKUP_SECONDS", 0.01)
    monkeypatch.setattr(Backend, "watch", lambda _backend: asyncio.sleep(PATIENCE))
    asyncio.run(asyncio.wait_for(change(), PATIENCE))


async def test_a_server_is_asked_again_after_a_page_of_metrics_that_was_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    pages, came_again = 0, asyncio.Event()

    async def cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal pages
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nqwen3_tts")
        writer.close()
        pages += 1
        if pages == 2:
            came_again.set()

    monkeypatch.setattr("qwen3_tts_gateway.backend.PROBE_SECONDS", 0.05)
    async with await asyncio.start_server(cut_off, "127.0.0.1", 0) as page, served(FakeTriton(frames=1, speed=0)) as address:
        backend = Backend(address, "qwen3_tts", f"http://127.0.0.1:{page.sockets[0].getsockname()[1]}/metrics")
        watch = asyncio.create_task(backend.watch())
        again = asyncio.create_task(came_again.wait())
        await asyncio.wait([watch, again], timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        assert came_again.is_set()
        watch.cancel()
        await asyncio.wait([watch])
        await backend.close()
