"""Every example in client/examples that can run here, on a real server."""

from __future__ import annotations

import functools
import io
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import soundfile

from engine_lib.server.process import TritonServer
from gateway.conftest import RunningGateway
from patience import PATIENCE

EXAMPLES = Path(__file__).parents[2] / "client" / "examples"
NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WEBSOCKET = "--experimental-websocket"  # Node.js 20 needs it, 22 does not
needs_node = pytest.mark.skipif(NODE is None, reason="needs Node.js on PATH")
BYTES_A_SECOND = 48_000  # of PCM


def run(*command: str | Path) -> str:
    """The standard output of an example that ends well."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_speaks_through_triton(triton: TritonServer, tmp_path: Path) -> None:
    address = f"127.0.0.1:{triton.grpc_port}"
    assert "chunk 0" in run(sys.executable, EXAMPLES / "triton_sync.py", tmp_path / "out.wav", address)
    assert soundfile.info(tmp_path / "out.wav").duration > 0.5
    printed = run(sys.executable, EXAMPLES / "triton_asyncio.py", address)
    assert {line[:12] for line in printed.splitlines()} == {"Good morning", "Nice to meet", "There is a s"}


def test_curl_and_the_openai_package_write_an_mp3(gateway: str, tmp_path: Path) -> None:
    run(EXAMPLES / "curl.sh", tmp_path / "curl.mp3", f"{gateway}/v1")
    run(sys.executable, EXAMPLES / "openai_package.py", tmp_path / "openai.mp3", f"{gateway}/v1")
    for name in ("curl.mp3", "openai.mp3"):
        assert soundfile.info(io.BytesIO((tmp_path / name).read_bytes())).duration > 0.5


@needs_node
def test_node_speaks_as_it_comes(gateway: str, tmp_path: Path) -> None:
    printed = run(str(NODE), EXAMPLES / "node.mjs", tmp_path / "out.pcm", f"{gateway}/v1")
    assert "first audio after" in printed
    assert (tmp_path / "out.pcm").stat().st_size > BYTES_A_SECOND / 2


@needs_node
def test_node_streams_text(gateway: str, tmp_path: Path) -> None:
    asked = [str(NODE), WEBSOCKET, "-e", "process.exit(typeof WebSocket === 'function' ? 0 : 1)"]
    if subprocess.run(asked, capture_output=True, timeout=PATIENCE).returncode != 0:
        pytest.skip("needs Node.js with WebSocket: 20.10 or newer")
    printed = run(str(NODE), WEBSOCKET, EXAMPLES / "node_text_stream.mjs", tmp_path / "out.pcm", gateway.replace("http", "ws"))
    assert [line.strip() for line in printed.splitlines()] == ["audio.start", "audio.done", "session.done"]
    assert (tmp_path / "out.pcm").stat().st_size > BYTES_A_SECOND


@pytest.fixture
def pages() -> Iterator[str]:
    """The origin of a web server that has the examples."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(EXAMPLES))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(PATIENCE)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on PATH (Debian: apt-get install chromium)")
def test_a_page_of_another_origin_speaks(triton: TritonServer, pages: str, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: scripts/install.sh test brings it")
    with (
        RunningGateway([triton], tmp_path / "log", "--cors-origin", pages) as gateway,
        playwright.sync_playwright() as started,
    ):
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(f"{pages}/browser.html?base={gateway.url}/v1")
        begun = time.monotonic()
        while page.title() != "spoken":  # the gateway may not have seen its server yet
            assert time.monotonic() < begun + PATIENCE
            page.click("#speak")
            page.wait_for_timeout(1000)
        browser.close()
