"""Models of a running server are loaded again while streams run: no stream is lost."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from roll import cancels, reload, reloadable_server, reloads

from engine_lib.server.process import TritonServer
from patience import PATIENCE, eventually
from server.streams import Stream, inputs, metric, model_process

STREAMS, RELOADS, CANCELS = 2, 3, 40  # each model that streams use is loaded again


@pytest.fixture(scope="module")
def reloadable(endless_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that loads models on request, with a repository of its own."""
    folder = tmp_path_factory.mktemp("reloadable")
    with reloadable_server(endless_voice, folder, folder / "log", exit_seconds=PATIENCE, max_num_seqs="4") as server:
        yield server


def test_reloads_lose_no_stream(reloadable: TritonServer) -> None:
    figures = reloads(reloadable, RELOADS, STREAMS)
    assert figures["is_well"], figures


@pytest.mark.parametrize("model", ["voices", "qwen3_tts_offline"])
def test_a_helper_is_loaded_again(reloadable: TritonServer, model: str) -> None:
    reload(reloadable, model)
    assert reloadable.is_model_ready(model)
    with Stream(reloadable, inputs(sampling={"max_frames": 2})) as stream:
        assert stream.all()[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("model", "changes", "problem"),
    [
        ("talker", {"model_transaction_policy": {"decoupled": False}}, "model_transaction_policy: talker answers in a stream"),
        ("codec_decoder", {"max_batch_size": 8}, "max_batch_size: is 8; give 0"),
        ("codec_decoder", {"sequence_batching": {}}, "sequence_batching: its requests would need a sequence id"),
        ("talker", {"dynamic_batching": {"priority_levels": 2, "default_priority_level": 1}}, "dynamic_batching: the engine batches"),
        ("voices", {"max_batch_size": 8}, "max_batch_size: is 8; give 0"),
        (
            "qwen3_tts_offline",
            {"model_transaction_policy": {"decoupled": True}},
            "model_transaction_policy: qwen3_tts_offline answers once",
        ),
        ("talker", {"parameters": {"kv_block_size": {"string_value": "many"}}}, "kv_block_size: 'many' is not a whole number"),
    ],
)
def test_a_load_with_a_bad_config_is_refused_and_the_old_instance_serves_on(
    reloadable: TritonServer, model: str, changes: dict[str, Any], problem: str
) -> None:
    base = f"http://localhost:{reloadable.http_port}/v2"
    with urllib.request.urlopen(f"{base}/models/{model}/config", timeout=PATIENCE) as response:
        config = json.load(response)
    body = json.dumps({"parameters": {"config": json.dumps(config | changes)}})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{base}/repository/models/{model}/load", data=body.encode(), timeout=PATIENCE)
    assert problem in json.load(refused.value)["error"]
    with Stream(reloadable, inputs(sampling={"max_frames": 2})) as stream:
        assert stream.all()[-1].finish_reason == "length"


def test_a_new_instance_counts_in_series_of_its_own(reloadable: TritonServer) -> None:
    old = model_process(reloadable, "talker")
    reload(reloadable, "talker")
    eventually(lambda: not old.is_alive, "the old instance ends")
    with Stream(reloadable, inputs(sampling={"max_frames": 2})) as stream:
        stream.all()
    new = str(model_process(reloadable, "talker").pid)

    def is_counted() -> bool:
        return any("frames_total" in line and f'pid="{new}"' in line for line in reloadable.metrics().splitlines())

    eventually(is_counted, "its series is there")
    eventually(lambda: metric(reloadable, "frames_total", pid=new) == 2, "its frames are counted")


def test_an_ensemble_is_unloaded_after_cancels_and_loaded_again(reloadable: TritonServer) -> None:
    figures = cancels(reloadable, CANCELS, STREAMS)
    assert figures["is_well"], figures
    reload(reloadable, "qwen3_tts")
    with Stream(reloadable, inputs(sampling={"max_frames": 2})) as stream:
        assert stream.all()[-1].finish_reason == "length"


def test_an_ensemble_that_is_unloaded_in_mid_stream_lets_the_stream_end(reloadable: TritonServer) -> None:
    with Stream(reloadable, inputs(sampling={"max_frames": 100, "chunk_frames": [1]})) as stream:
        stream.next()
        with triton.InferenceServerClient(f"localhost:{reloadable.grpc_port}") as client:
            client.unload_model("qwen3_tts")
            end = stream.last()
            eventually(lambda: not client.is_model_ready("qwen3_tts"), "it is unloaded")
            client.load_model("qwen3_tts")
    assert (end.finish_reason, end.index) == ("length", 100)
    with Stream(reloadable, inputs(sampling={"max_frames": 2})) as stream:
        assert stream.all()[-1].finish_reason == "length"
