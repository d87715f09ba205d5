"""A voice that is silent for ever, on a real server with a talker in a process of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from safetensors.torch import load_file, save_file

from engine_lib.server.process import TritonServer
from engine_lib.speech.runaway import SILENCE_IN_SPEECH
from patience import eventually
from server.conftest import new_server
from server.streams import SAMPLES_PER_FRAME, Stream, audio_of, eventually_free, inputs, metric

LAST_LAYER = ("decoder.decoder.6.conv.weight", "decoder.decoder.6.conv.bias")
# Long enough for a codec that a busy machine lets wait: a stream that has come to its limit by then has not run away for the talker.
LONG: dict[str, Any] = {"seed": 1, "max_frames": 1500, "chunk_frames": [4]}
PAUSE = SILENCE_IN_SPEECH * SAMPLES_PER_FRAME


@pytest.fixture(scope="module")
def silent_server(endless_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("silent")
    shutil.copytree(endless_voice, folder / "voice")
    weights = folder / "voice" / "speech_tokenizer" / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {name: tensors[name] * 0 for name in LAST_LAYER}, weights)
    with new_server(folder / "voice", folder / "log", max_num_seqs="4", talker_isolation="process", on_runaway="auto") as running:
        yield running


def spoken(server: TritonServer, **sampling: Any) -> tuple[int, str]:
    """The samples of a stream and its finish reason."""
    with Stream(server, inputs(sampling=LONG | sampling)) as stream:
        chunks = stream.all()
    return len(audio_of(chunks)), chunks[-1].finish_reason


def counts(server: TritonServer) -> tuple[float, float, float]:
    """Runaways that were stopped and retried, and requests that ended with one."""
    stopped, retried = (metric(server, "runaways_total", cause="silence", outcome=outcome) for outcome in ("stopped", "retried"))
    return stopped, retried, metric(server, "finished_requests_total", reason="runaway")


def test_a_server_stops_it_and_only_a_short_pause_is_heard(silent_server: TritonServer) -> None:
    stopped, retried, ended = counts(silent_server)
    assert spoken(silent_server) == (PAUSE, "runaway")
    eventually(lambda: counts(silent_server) == (stopped + 1, retried, ended + 1), "it is counted")
    eventually_free(silent_server)


def test_a_request_may_want_it_spoken_anew(silent_server: TritonServer) -> None:
    stopped, retried, ended = counts(silent_server)
    assert spoken(silent_server, on_runaway="retry") == (3 * PAUSE, "runaway")
    eventually(lambda: counts(silent_server) == (stopped + 1, retried + 2, ended + 1), "all of them are counted")
    eventually_free(silent_server)


def test_a_request_may_want_all_of_it(silent_server: TritonServer) -> None:
    before = counts(silent_server)
    assert spoken(silent_server, on_runaway="off", max_frames=40) == (40 * SAMPLES_PER_FRAME, "length")
    eventually_free(silent_server)
    assert counts(silent_server) == before


def test_silence_at_the_end_of_a_stream_that_ends_is_heard_whole(silent_server: TritonServer) -> None:
    """The codec has kept it back, and sends it with the final message, which it answers twice."""
    assert spoken(silent_server, max_frames=20) == (20 * SAMPLES_PER_FRAME, "length")
    eventually_free(silent_server)


@pytest.mark.parametrize(("on_runaway", "takes"), [("stop", 1), ("retry", 3)])
def test_each_line_of_a_script_ends_by_itself(silent_server: TritonServer, on_runaway: str, takes: int) -> None:
    text = json.dumps([{"text": "One."}, {"text": "Two.", "pause_ms": 100}])
    sampling = LONG | {"text_format": "dialogue", "on_runaway": on_runaway}
    with Stream(silent_server, inputs(text, sampling=sampling)) as stream:
        chunks = stream.all()
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert chunks[-1].finish_reason == "runaway"
    assert (chunks[-1].metadata or {})["cut_lines"] == [1, 2]
    first, second = (len(audio_of([chunk for chunk in chunks if (chunk.metadata or {})["line"] == line])) for line in (1, 2))
    assert first == takes * PAUSE
    # The second may have reached its limit of frames before it was heard; then it cannot be spoken anew.
    assert second - 2400 in [number * PAUSE for number in range(1, takes + 1)]
    eventually_free(silent_server)


def test_an_audio_chain_gets_what_passes(silent_server: TritonServer) -> None:
    assert spoken(silent_server, sample_rate=8000) == (PAUSE // 3, "runaway")
    assert spoken(silent_server, sample_rate=8000, max_frames=20) == (20 * SAMPLES_PER_FRAME // 3, "length")


def test_a_whole_utterance_says_so_too(silent_server: TritonServer) -> None:
    with triton.InferenceServerClient(f"localhost:{silent_server.grpc_port}") as client:
        result = client.infer("qwen3_tts_offline", inputs(sampling=LONG))
    assert result.as_numpy("finish_reason")[0] == b"runaway"
    assert len(result.as_numpy("audio")) == PAUSE
