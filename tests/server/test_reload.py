"""Models of a running server are loaded again while streams run: no stream is lost."""

from __future__ import annotations

import shutil
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine_lib.server.process import MODEL_REPOSITORY, TritonServer
from patience import PATIENCE, eventually
from server.conftest import new_server
from server.streams import Stream, inputs, metric, model_process

FRAMES, STREAMS, RELOADS = 30, 3, 10


@pytest.fixture(scope="module")
def reloadable(endless_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that loads models on request, with a repository of its own."""
    folder = tmp_path_factory.mktemp("reloadable")
    repository = Path(shutil.copytree(MODEL_REPOSITORY, folder / "repository"))
    arguments = ["--model-control-mode=explicit", "--load-model=*"]
    with new_server(endless_voice, folder / "log", repository=repository, arguments=arguments, max_num_seqs="4") as server:
        yield server


def load(server: TritonServer, model: str) -> None:
    """Load `model` again; its files count as changed."""
    for file in (server.repository / model).rglob("*.p*"):
        file.touch()
    url = f"http://localhost:{server.http_port}/v2/repository/models/{model}/load"
    with urllib.request.urlopen(urllib.request.Request(url, data=b"{}"), timeout=PATIENCE):
        pass


def test_ten_reloads_lose_no_stream(reloadable: TritonServer) -> None:
    is_over = threading.Event()

    def speak() -> list[tuple[str, int]]:
        """Stream after stream until all reloads are done; the reason and the number of frames of each."""
        ends = []
        while not is_over.is_set():
            with Stream(reloadable, inputs(sampling={"max_frames": FRAMES, "chunk_frames": [1]})) as stream:
                chunks = stream.all()
                ends.append((chunks[-1].finish_reason, len(chunks) - 1))
        return ends

    with ThreadPoolExecutor(STREAMS) as pool:
        speakers = [pool.submit(speak) for _ in range(STREAMS)]
        try:
            for number in range(RELOADS):
                load(reloadable, ("talker", "codec_decoder", "qwen3_tts")[number % 3])
        finally:
            is_over.set()
        ends = [end for speaker in speakers for end in speaker.result(PATIENCE)]
    assert set(ends) == {("length", FRAMES)}
    assert len(ends) >= STREAMS


@pytest.mark.parametrize("model", ["voices", "qwen3_tts_offline"])
def test_a_helper_is_loaded_again(reloadable: TritonServer, model: str) -> None:
    load(reloadable, model)
    assert reloadable.is_model_ready(model)
    with Stream(reloadable, inputs(sampling={"max_frames": 2})) as stream:
        assert stream.all()[-1].finish_reason == "length"


def test_a_new_instance_counts_in_series_of_its_own(reloadable: TritonServer) -> None:
    old = model_process(reloadable, "talker")
    load(reloadable, "talker")
    eventually(lambda: not old.is_alive, "the old instance ends")
    with Stream(reloadable, inputs(sampling={"max_frames": 2})) as stream:
        stream.all()
    new = str(model_process(reloadable, "talker").pid)

    def is_counted() -> bool:
        return any("frames_total" in line and f'pid="{new}"' in line for line in reloadable.metrics().splitlines())

    eventually(is_counted, "its series is there")
    eventually(lambda: metric(reloadable, "frames_total", pid=new) == 2, "its frames are counted")
