"""What surrounds a running gateway: no descriptor left, a log that is not read, no file to be written."""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType

import httpx
import psutil

from benching.fake_triton import running_fake
from gateway.conftest import COMMAND
from patience import PATIENCE, eventually

NO_LIMITS: Mapping[int, int] = MappingProxyType({})


@contextmanager
def gateway(stderr: int | None = None, limits: Mapping[int, int] = NO_LIMITS, *closed: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gateway before a make-believe server, and its URL. `limits`: soft ones (of setrlimit); `closed`: its inputs and outputs."""

    def limited() -> None:
        for kind, limit in limits.items():
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
        for descriptor in closed:
            os.close(descriptor)

    with running_fake(frames=100, speed=4) as backend:
        options = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--backend", backend]
        command = [*COMMAND, "gateway", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, preexec_fn=limited) as process:
            try:
                assert process.stdout is not None
                yield process, f"http://127.0.0.1:{int(process.stdout.readline().split()[-1])}"
            finally:
                process.terminate()
                assert process.wait(PATIENCE) == 0


def speak(client: httpx.Client, url: str, audio_format: str) -> bytes:
    body = {"input": "Hello.", "response_format": audio_format}
    answer = client.post(f"{url}/v1/audio/speech", json=body)
    assert answer.status_code == 200, answer.text
    return answer.content


def test_a_gateway_without_a_free_descriptor_speaks_on_says_so_once_and_takes_the_others_later() -> None:
    unread, stderr = os.pipe()
    with gateway(stderr, {resource.RLIMIT_NOFILE: 256}) as (process, url), httpx.Client(timeout=PATIENCE) as client, ExitStack() as stack:
        os.close(stderr)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (most, most), "it has raised its limit"
        speak(client, url, "mp3")
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (psutil.Process(process.pid).num_fds(), most))
        address = url.removeprefix("http://").split(":")
        waiting = [stack.enter_context(socket.create_connection((address[0], int(address[1])), PATIENCE)) for _ in range(20)]
        for one in waiting:
            one.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        said: list[dict[str, object]] = []
        with os.fdopen(unread) as lines:
            while not said or said[-1]["event"] != "connections wait":
                said.append(json.loads(lines.readline()))
            assert said[-1]["reason"] == "Too many open files"
            first = speak(client, url, "pcm")
            assert len(first) == 100 * 1920 * 2
            while len(said) < 100 and select.select([lines], [], [], 0)[0]:
                said.append(json.loads(lines.readline()))
                assert said[-1]["event"] in ("answered", "connections wait", "backend is ready")
            assert len(said) < 100
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (most, most))
            for one in waiting:
                assert one.recv(100).startswith(b"HTTP/1.1 200 ")
            speak(client, url, "mp3")


def test_a_gateway_whose_log_is_not_read_speaks_on_and_counts_the_lines_that_are_lost() -> None:
    unread, stderr = os.pipe()
    with gateway(stderr) as (_, url), httpx.Client(timeout=PATIENCE) as client:
        os.close(stderr)
        for _ in range(400):  # two pipes full
            assert client.get(f"{url}/v1/voices").status_code == 200
        assert len(speak(client, url, "pcm")) == 100 * 1920 * 2
        read = b""
        while select.select([unread], [], [], 0)[0]:
            read += os.read(unread, 1 << 20)
        speak(client, url, "pcm")
        eventually(lambda: bool(select.select([unread], [], [], 0)[0]), "it logs again")
        lines = [json.loads(line) for line in (read + os.read(unread, 1 << 20)).decode().splitlines()]
    os.close(unread)
    lost = [line for line in lines if line["event"] == "lines are lost"]
    assert [line["lines"] > 0 for line in lost] == [True]


def test_a_recording_needs_no_room_for_temporary_files() -> None:
    """As if the disk were full. Pipes, to which the log goes, are no files."""
    unread, stderr = os.pipe()
    with gateway(stderr, {resource.RLIMIT_FSIZE: 0}) as (_, url):
        os.close(stderr)
        form, files = {"name": "x", "consent": "yes"}, {"audio_sample": ("a.wav", bytes(2_000_000), "audio/wav")}
        answer = httpx.post(f"{url}/v1/audio/voices", data=form, files=files, timeout=PATIENCE)
    os.close(unread)
    assert answer.json()["error"]["message"].startswith("audio_sample: it cannot be read as audio")


def test_no_connection_takes_the_number_of_a_closed_input_or_output() -> None:
    with gateway(None, NO_LIMITS, 0, 2) as (process, url), httpx.Client(timeout=PATIENCE) as client:
        speak(client, url, "mp3")
        assert [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in (0, 2)] == [os.devnull] * 2
