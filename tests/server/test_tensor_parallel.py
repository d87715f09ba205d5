"""A server with a talker of two ranks: the codes of one rank; no process remains after a death."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import numpy as np

from engine_lib.talker.parallel.rank_zero import RANK_MODULE
from patience import PATIENCE, eventually, has_ended
from server.conftest import new_server
from server.ends import MODELS, last_chunk, nothing_is_left_of, processes_of, streams_in_flight
from server.streams import Stream, audio_of, in_process_audio, inputs, model_process

GREEDY = {"do_sample": False, "subtalker_dosample": False, "max_frames": 12}


def test_a_talker_of_two_ranks_serves_and_ends_with_any_of_them(endless_voice: Path, tmp_path: Path) -> None:
    with new_server(endless_voice, tmp_path / "log", tensor_parallel_size="2") as server:
        processes = processes_of(server)
        talker = model_process(server, MODELS[0]).pid
        [rank] = subprocess.run(["pgrep", "-P", str(talker), "-f", RANK_MODULE], capture_output=True, text=True).stdout.split()
        with Stream(server, inputs(sampling=GREEDY | {"chunk_frames": [4]})) as stream:
            audio = audio_of(stream.all())
        expected = np.concatenate(in_process_audio(endless_voice, GREEDY, (4,)))
        np.testing.assert_allclose(audio, expected, atol=1e-5)
        with streams_in_flight(server) as streams:
            os.kill(int(rank), signal.SIGKILL)
            for one in streams:
                end = last_chunk(one)
                assert (end.is_final, end.finish_reason) == (True, "error")
                assert "the talker engine failed" in end.error
            server.wait(PATIENCE)
    nothing_is_left_of(processes)
    eventually(lambda: has_ended(int(rank)), "the rank ends")
    assert "tensor parallel rank 1" in (tmp_path / "log").read_text()
