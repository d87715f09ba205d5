"""A client that does not read its stream delays no other one, and loses nothing."""

from __future__ import annotations

import grpc  # type: ignore[import-untyped]
import numpy as np

from engine_lib.server.process import TritonServer
from patience import PATIENCE
from qwen3_tts_client import Client
from qwen3_tts_client.channel import stream_call
from qwen3_tts_client.protocol import build_request, parse_response
from server.streams import SAMPLES_PER_FRAME, eventually_free

LONG = 150  # frames: 1.2 MB of samples, more than a connection holds
SAMPLING = {"max_frames": 15, "seed": 5, "do_sample": False, "subtalker_dosample": False}


def test_a_client_that_does_not_read_delays_nobody_and_gets_all_its_chunks_later(small_server: TritonServer) -> None:
    url = f"localhost:{small_server.grpc_port}"
    with Client(url) as client, grpc.insecure_channel(url) as channel:
        alone = client.synthesize("Hello.", sampling=SAMPLING).audio
        unread = stream_call(channel)(build_request("qwen3_tts", "Hello.", sampling={**SAMPLING, "max_frames": LONG}), timeout=PATIENCE)
        for _ in range(3):
            np.testing.assert_allclose(client.synthesize("Hello.", sampling=SAMPLING).audio, alone, atol=1e-5)
        eventually_free(small_server)  # its work is done, and it holds no slot of talker or codec
        chunks = [parse_response(response, number, sample_rate=24000) for number, response in enumerate(unread)]
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert chunks[-1].finish_reason == "length"
    assert sum(chunk.audio.size for chunk in chunks) == LONG * SAMPLES_PER_FRAME
