"""A real server with codes that go past Triton: same audio, cancels are seen, and nothing is held."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_lib.server.process import TritonServer
from engine_lib.serving.lifecycle import PERIOD_SECONDS
from patience import eventually
from server.conftest import new_server
from server.ends import ENDLESS
from server.streams import SAMPLES_PER_FRAME, Stream, audio_of, eventually_free, in_process_audio, inputs, metric, tensors

GREEDY = {"do_sample": False, "subtalker_dosample": False, "max_frames": 40}


@pytest.fixture(scope="module")
def channel_server(endless_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server whose every stream is claimed, and that forgets none."""
    options: dict[str, Any] = {"codes_channel": "always", "max_num_seqs": "4", "codec_idle_timeout": "3600"}
    with new_server(endless_voice, tmp_path_factory.mktemp("channel") / "log", **options) as running:
        yield running


def direct_messages(server: TritonServer) -> float:
    return metric(server, "direct_messages_total")


def test_streams_past_triton_are_those_of_the_engine(channel_server: TritonServer, endless_voice: Path) -> None:
    expected = np.concatenate(in_process_audio(endless_voice, GREEDY, (1, 2)))
    assert len(expected) == 40 * SAMPLES_PER_FRAME

    def direct_messages_of_four_streams() -> float:
        before = direct_messages(channel_server)
        streams = [Stream(channel_server, inputs(sampling=GREEDY | {"chunk_frames": [1, 2]})) for _ in range(4)]
        for stream in streams:
            with stream:
                chunks = stream.all()
                assert chunks[-1].finish_reason == "length"
                np.testing.assert_allclose(audio_of(chunks), expected, rtol=0, atol=1e-4)
        eventually_free(channel_server)
        time.sleep(2 * PERIOD_SECONDS)  # until the last ones are published
        return direct_messages(channel_server) - before

    # Again if a busy machine let the codec wait: what the talker sends before it is asked for more goes through Triton.
    eventually(lambda: direct_messages_of_four_streams() >= 40, "most of the 84 messages go past Triton")


def test_a_client_that_goes_is_seen_by_a_message_through_triton(channel_server: TritonServer) -> None:
    cancelled = metric(channel_server, "finished_requests_total", reason="cancelled")
    before = direct_messages(channel_server)
    with Stream(channel_server, inputs(sampling=ENDLESS)) as stream:
        eventually(lambda: direct_messages(channel_server) > before, "its messages go past Triton")
        stream.next()
    eventually(lambda: metric(channel_server, "finished_requests_total", reason="cancelled") == cancelled + 1, "the stream is cancelled")
    eventually_free(channel_server)


def test_messages_that_are_sent_again_hold_no_request(channel_server: TritonServer) -> None:
    """Each is answered to its end. The codec's stream stays until the last message, so that nothing else ends them."""
    with Stream(channel_server, inputs(sampling=GREEDY | {"chunk_frames": [2]}), model="talker") as stream:
        messages = [stream.next_message()]
        while messages[-1]["codes"].size:
            messages.append(stream.next_message())
    again = [messages[number] for number in (0, 1, 1, 5, 0, -1)]
    for message in again:
        with Stream(channel_server, tensors(message), model="codec_decoder", enable_empty_final_response=True) as codec:
            codec.wait()
    eventually_free(channel_server)
