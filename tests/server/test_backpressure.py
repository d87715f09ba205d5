"""A codec slower than the talker: requests wait in the talker's queue; every stream is complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from engine_lib.server.process import TritonServer
from make_checkpoint import make_checkpoint
from patience import eventually
from server.conftest import new_server
from server.streams import SAMPLES_PER_FRAME, Stream, audio_of, eventually_free, inputs, metric, signature, value

NUM_STREAMS, NUM_FRAMES = 24, 12


@pytest.fixture(scope="module")
def slow_codec_server(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A tiny talker with a codec about a hundred times as large as the tiny one."""
    wide = {"speech_tokenizer.decoder_config.decoder_dim": 1024}
    path = make_checkpoint(checkpoints / "slow_codec", overrides=wide, eos_gain=0.0)
    with new_server(path, tmp_path_factory.mktemp("slow_codec") / "log", max_num_seqs="2", codec_slots="2") as running:
        yield running


def talker_pauses(metrics: str) -> bool:
    """Whether requests are held back while none runs."""
    return value(metrics, "requests_held") == 1 and value(metrics, "running_requests") == 0 < value(metrics, "waiting_requests")


def test_requests_wait_for_a_codec_that_lags_behind(slow_codec_server: TritonServer) -> None:
    server = slow_codec_server
    with ExitStack() as stack:
        options = [{"max_frames": NUM_FRAMES, "seed": seed} for seed in range(NUM_STREAMS)]
        streams = [stack.enter_context(Stream(server, inputs(sampling=sampling))) for sampling in options]
        eventually(lambda: talker_pauses(server.metrics()), "the talker pauses while requests wait")
        for stream in streams:
            chunks = stream.all()
            assert chunks[-1].finish_reason == "length"
            assert len(audio_of(chunks)) == NUM_FRAMES * SAMPLES_PER_FRAME
    eventually(lambda: metric(server, "requests_held") == 0, "the codec has caught up")
    eventually_free(server)
    with Stream(server, inputs(sampling={"max_frames": 2})) as stream:
        assert stream.all()[-1].finish_reason == "length"


@pytest.mark.parametrize("seconds", [-1.0, 3.5, np.inf, np.nan])
def test_nobody_can_hold_a_talker_for_long(slow_codec_server: TritonServer, seconds: float) -> None:
    order = np.array([seconds], np.float32)
    tensor = triton.InferInput("hold", [1], "FP32")
    tensor.set_data_from_numpy(order)
    with (
        Stream(slow_codec_server, [tensor], model="talker", parameters=signature("talker", "hold", order)) as stream,
        pytest.raises(InferenceServerException, match=r"INVALID_ARG: hold: .* is not allowed; give 0 to 3 seconds"),
    ):
        stream.next()
