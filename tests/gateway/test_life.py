"""What is left of a request, its id and log, clients that leave, the end by SIGTERM."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from server.streams import eventually_free, metric
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from benching.fake_triton import running_fake
from engine_lib.server.process import TritonServer
from gateway.conftest import COMMAND, LONG_TEXT, TEXT, RunningGateway, connect
from patience import PATIENCE, eventually


@pytest.fixture
def http(endless: TritonServer, endless_gateway: RunningGateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=endless_gateway.url, timeout=PATIENCE) as client:
        yield client


def test_a_request_id_goes_to_the_answer_and_to_the_log_which_has_no_text(http: httpx.Client, endless_gateway: RunningGateway) -> None:
    body = {"input": TEXT, "response_format": "pcm", "max_new_tokens": 3}
    given = http.post("/v1/audio/speech", json=body, headers={"X-Request-Id": "call-17"})
    made = http.post("/v1/audio/speech", json=body, headers={"X-Request-Id": "with space\tand more"})
    assert given.headers["x-request-id"] == "call-17"
    assert made.headers["x-request-id"].startswith("req_")
    eventually(lambda: bool(endless_gateway.answered("call-17")), "the request is in the log")
    line = endless_gateway.answered("call-17")
    assert (line["status"], line["model"], line["finish_reason"], line["characters"]) == (200, "qwen3_tts", "length", len(TEXT))
    assert line["audio_seconds"] == 0.24
    assert "penguin" not in endless_gateway.log_file.read_text()


def test_a_client_that_leaves_ends_its_speech_at_the_server(
    http: httpx.Client, endless: TritonServer, endless_gateway: RunningGateway
) -> None:
    cancels = metric(endless, "client_cancels_total")
    for number in range(3):
        headers = {"X-Request-Id": f"leaver-{number}"}
        body = {"input": LONG_TEXT, "response_format": "mp3"}
        with http.stream("POST", "/v1/audio/speech", json=body, headers=headers) as answer:
            next(answer.iter_bytes())
    eventually_free(endless)
    eventually(lambda: metric(endless, "client_cancels_total") == cancels + 3, "each of them was cancelled")
    eventually(lambda: endless_gateway.answered("leaver-2").get("status") == 499, "the log has it")
    assert endless_gateway.answered("leaver-2")["finish_reason"] == "left"
    eventually(lambda: "qwen3_tts_gateway_open_streams 0.0" in http.get("/metrics").text, "no stream is open")


def test_a_client_that_leaves_while_it_waits_is_forgotten(endless_gateway: RunningGateway, endless: TritonServer) -> None:
    """Eight streams have all places; the ninth waits for its first audio, and its client leaves."""
    host, port = endless_gateway.url.removeprefix("http://").split(":")
    body = b'{"input": "%s", "response_format": "pcm"}' % LONG_TEXT.encode()
    head = b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    clients = [socket.create_connection((host, int(port)), PATIENCE) for _ in range(9)]
    for client in clients:
        client.sendall(head + body)
    eventually(lambda: metric(endless, "waiting_requests") == 1, "the ninth waits")
    for client in clients:
        client.close()
    eventually_free(endless)


def test_health_readiness_and_metrics_are_there(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    eventually(lambda: http.get("/ready").status_code == 200, "it is ready")
    http.post("/v1/audio/speech", json={"input": TEXT, "max_new_tokens": 2})
    counted = 'qwen3_tts_gateway_requests_total{route="/v1/audio/speech",status="200"}'
    eventually(lambda: counted in http.get("/metrics").text, "the request is counted")
    page = http.get("/metrics").text
    assert 'qwen3_tts_gateway_streams_total{reason="length"}' in page
    assert 'qwen3_tts_gateway_backend_up{backend="127.0.0.1:' in page
    assert "qwen3_tts_gateway_first_audio_seconds_bucket" in page


def test_sigterm_lets_running_speech_end_and_says_not_ready(endless: TritonServer, tmp_path: Path) -> None:
    body = {"input": LONG_TEXT, "response_format": "pcm", "max_new_tokens": 100}
    with RunningGateway([endless], tmp_path / "log", "--drain-seconds", str(PATIENCE)) as own:
        with httpx.stream("POST", f"{own.url}/v1/audio/speech", json=body, timeout=PATIENCE) as answer:
            parts = answer.iter_raw()
            content = next(parts)
            own.process.send_signal(signal.SIGTERM)
            content += b"".join(parts)
        assert own.process.wait(PATIENCE) == 0
    assert len(content) == 100 * 1920 * 2
    assert "draining" in {line["event"] for line in own.log()}


def code_at_the_end(client: ClientConnection) -> int | None:
    """The code that the gateway closes a WebSocket with, behind all messages."""
    with suppress(ConnectionClosed):
        while True:
            client.recv(PATIENCE)
    return client.close_code


def test_sigterm_lets_speech_on_websockets_end_and_closes_silent_ones(endless: TritonServer, tmp_path: Path) -> None:
    with RunningGateway([endless], tmp_path / "log", "--drain-seconds", str(PATIENCE)) as own:
        address = own.url.replace("http", "ws")
        with (
            connect(f"{address}/v1/audio/speech/stream") as silent,
            connect(f"{address}/v1/audio/speech/stream") as speaking,
            connect(f"{address}/v1/text-to-speech/ryan/multi-stream-input?output_format=pcm_24000") as context,
        ):
            for event in (
                {"type": "session.config", "max_new_tokens": 60},
                {"type": "input.text", "text": LONG_TEXT},
                {"type": "input.done"},
            ):
                speaking.send(json.dumps(event))
            context.send(json.dumps({"text": "Ad.", "flush": True}))
            assert json.loads(speaking.recv(PATIENCE))["type"] == "audio.start"
            received = len(speaking.recv(PATIENCE))
            assert json.loads(context.recv(PATIENCE))["audio"]
            own.process.send_signal(signal.SIGTERM)
            assert code_at_the_end(silent) == 1012
            while isinstance(message := speaking.recv(PATIENCE), bytes):
                received += len(message)
            assert json.loads(message)["type"] == "audio.done"
            assert received == 60 * 1920 * 2
            assert json.loads(speaking.recv(PATIENCE))["type"] == "session.done"
            while not json.loads(context.recv(PATIENCE))["isFinal"]:
                pass
            assert code_at_the_end(speaking) == code_at_the_end(context) == 1012
        assert own.process.wait(PATIENCE) == 0
    assert "Traceback" not in own.log_file.read_text()


def test_a_websocket_that_is_given_no_more_text_is_cut(endless: TritonServer, tmp_path: Path) -> None:
    with (
        RunningGateway([endless], tmp_path / "log", "--drain-seconds", "1") as own,
        connect(own.url.replace("http", "ws") + "/v1/audio/speech/stream") as waiting,
    ):
        waiting.send(json.dumps({"type": "input.text", "text": "There is "}))
        assert json.loads(waiting.recv(PATIENCE))["type"] == "audio.start"
        own.process.send_signal(signal.SIGTERM)
        assert code_at_the_end(waiting) == 1012
        assert own.process.wait(PATIENCE) == 0


def test_a_drain_that_takes_too_long_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running_fake(frames=10_000, speed=1) as url, log.open("w") as stderr:  # a quarter of an hour
        options = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--backend", url, "--drain-seconds", "1"]
        with subprocess.Popen([*COMMAND, "gateway", *options], stdout=subprocess.PIPE, stderr=stderr, text=True) as gateway:
            assert gateway.stdout is not None
            address = f"http://127.0.0.1:{int(gateway.stdout.readline().split()[-1])}/v1/audio/speech"
            with httpx.stream("POST", address, json={"input": TEXT, "response_format": "pcm"}, timeout=PATIENCE) as answer:
                parts = answer.iter_raw()
                next(parts)
                gateway.terminate()
                with pytest.raises(httpx.RemoteProtocolError):
                    for _ in parts:
                        pass
            assert gateway.wait(PATIENCE) == 0
