"""Clients that die: this file as a program speaks one stream, and is killed while it does."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from pathlib import Path

CLIENT = Path(__file__).parents[2] / "client"  # runs from a checkout that is not installed, too


def speak_and_die(url: str, request: bytes, seconds: float, patience: float) -> None:
    """Start a client, and kill it some `seconds` after its first chunk.

    Args:
        url: HOST:PORT of the gRPC port.
        request: a serialized ModelInferRequest, whose stream should last longer than that.
        patience: seconds until it is killed though no chunk has come.
    """
    command = [sys.executable, __file__, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        try:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(request)
            client.stdin.close()
            if select.select([client.stdout], [], [], patience)[0]:
                time.sleep(seconds)
        finally:
            client.kill()


def _speak(url: str) -> None:
    sys.path.insert(0, str(CLIENT))
    from tritonclient.grpc import service_pb2

    from qwen3_tts_client.channel import open_channel, stream_call

    request = service_pb2.ModelInferRequest.FromString(sys.stdin.buffer.read())
    with open_channel(url) as channel:
        for _ in stream_call(channel)(request):
            print("heard", flush=True)


if __name__ == "__main__":
    _speak(sys.argv[1])
