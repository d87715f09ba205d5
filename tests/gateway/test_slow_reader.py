"""A client that asks and does not read, in front of a make-believe server that is very fast."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import httpx

from benching.fake_triton import running_fake
from gateway.conftest import COMMAND
from patience import PATIENCE, eventually

BODY = b'{"input": "Hello.", "response_format": "pcm"}'
REQUEST = b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


def test_a_client_that_takes_nothing_is_left(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running_fake(frames=10_000, speed=0) as url, log.open("w") as stderr:  # 38 MB, more than the sockets hold
        options = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--backend", url, "--stall-seconds", "0.5"]
        with subprocess.Popen([*COMMAND, "gateway", *options], stdout=subprocess.PIPE, stderr=stderr, text=True) as gateway:
            assert gateway.stdout is not None
            port = int(gateway.stdout.readline().split()[-1])
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                client.sendall(REQUEST)
                eventually(lambda: "took nothing for 0.5 s" in log.read_text(), "the client is left")
                page = f"http://127.0.0.1:{port}/metrics"
                free = "qwen3_tts_gateway_open_streams 0.0"
                eventually(lambda: free in httpx.get(page, timeout=PATIENCE).text, "its stream has ended")
            gateway.terminate()
            assert gateway.wait(PATIENCE) == 0
