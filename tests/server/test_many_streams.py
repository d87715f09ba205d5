"""128 streams at once on a GPU, through MPS if available: each is complete, in order and correct."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from engine_lib.server.mps import CONTROL, MpsDaemon
from engine_lib.server.process import FREE_PORTS, TritonServer
from qwen3_tts_client import AsyncClient
from server.streams import SAMPLES_PER_FRAME, eventually_free

NUM_STREAMS, LONGEST = 128, 80
TEXTS = [f"This is text number {number}, {'and it is longer, ' * number}that is all." for number in range(8)]
GREEDY = {"do_sample": False, "subtalker_dosample": False, "chunk_policy": "adaptive"}


async def speak(client: AsyncClient, text: str, num_frames: int) -> npt.NDArray[np.float32]:
    """The audio of one stream; its chunks must be numbered in order."""
    chunks = [chunk async for chunk in client.stream(text, sampling={**GREEDY, "max_frames": num_frames})]
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    return np.concatenate([chunk.audio for chunk in chunks])


async def check_many_streams(server: TritonServer) -> None:
    async with AsyncClient(f"localhost:{server.grpc_port}") as client:
        alone = [await speak(client, text, LONGEST) for text in TEXTS]
        lengths = [LONGEST - number % 61 for number in range(NUM_STREAMS)]
        streams = await asyncio.gather(*(speak(client, TEXTS[i % len(TEXTS)], frames) for i, frames in enumerate(lengths)))
    for i, (audio, frames) in enumerate(zip(streams, lengths, strict=True)):
        assert len(audio) == frames * SAMPLES_PER_FRAME
        np.testing.assert_allclose(audio, alone[i % len(TEXTS)][: len(audio)], rtol=0, atol=1e-4, err_msg=f"stream {i}")


@pytest.mark.gpu
async def test_128_streams_on_a_gpu_are_each_the_stream_that_runs_alone(endless_voice: Path, tmp_path: Path) -> None:
    options = {"model_path": str(endless_voice), "device": "cuda", "dtype": "float32", "codec_dtype": "float32", "max_model_len": "512"}
    options |= {"max_num_seqs": str(NUM_STREAMS), "codec_slots": str(NUM_STREAMS), "on_runaway": "off"}
    with MpsDaemon() if shutil.which(CONTROL) else nullcontext() as mps:
        server = TritonServer(
            options=options,
            ports=FREE_PORTS,
            log_file=tmp_path / "log",
            environment=mps.environment if mps else {},
        )
        with server:
            await check_many_streams(server)
            eventually_free(server)
