"""Scores of the text come with the frames of the streams that ask, and change no code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHAPES_1B7

from engine_lib.delivery import Delivery, Timestamps
from engine_lib.errors import InvalidRequestError
from engine_lib.layers.attention import TorchAttention
from engine_lib.ops.kv_cache import store_kv
from engine_lib.speech.alignment_file import Alignment
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.isolation.messages import FROM_ENGINE, StepChunks
from engine_lib.talker.request import CodesChunk, Request
from make_checkpoint import make_checkpoint
from talker.speaking import GREEDY, GREETING, Stream, Utterance, make_engine, prompt_builder, running_engine, speak, submit

HEADS = ((2, 5), (0, 1), (2, 0))
STORY = Utterance("one two three four five six seven")
FED = replace(STORY, non_streaming_mode=False)


@pytest.fixture(scope="module")
def aligned(checkpoints: Path) -> Path:
    """Return a checkpoint of grouped heads that can give timestamps and never ends by itself."""
    path = make_checkpoint(checkpoints / "aligned", seed=5, overrides=SHAPES_1B7, eos_gain=0.0)
    Alignment(HEADS, 0.0, 0.1).write(path)
    return path


def start_timed(engine: TalkerEngine, name: str, utterance: Utterance, frames: int) -> Stream:
    prompt = utterance.prompt(engine.checkpoint.path)
    delivery = Delivery((1, 4), timestamps=Timestamps.WORD)
    return submit(engine, Request(name, prompt, replace(GREEDY, max_frames=frames), delivery), Stream())


def scores_of(stream: Stream) -> list[np.ndarray]:
    """[heads, rows] of each frame."""
    return [frame for chunk in stream.chunks if chunk.scores is not None for frame in chunk.scores]


def test_streams_with_scores_have_the_codes_of_those_without(aligned: Path) -> None:
    utterances = [STORY, FED, GREETING]
    with running_engine(aligned, exact=True) as engine:
        expected = [speak(engine, utterance, max_frames=16) for utterance in utterances]
    with running_engine(aligned, exact=True, pipelined=True, max_model_len=64, num_kv_blocks=17) as engine:
        streams = [start_timed(engine, str(i), utterance, 16) for i, utterance in enumerate(utterances[:2])]
        np.testing.assert_array_equal(speak(engine, GREETING, max_frames=16), expected[2])  # beside them, without
        for stream, codes in zip(streams, expected, strict=False):
            stream.end()
            np.testing.assert_array_equal(stream.codes, codes)
            assert len(scores_of(stream)) == len(codes)
        assert engine.stats().num_preemptions > 0


@pytest.mark.parametrize("utterance", [STORY, FED], ids=["text in the prompt", "text fed"])
def test_scores_are_the_products_that_go_into_the_softmax(utterance: Utterance, aligned: Path) -> None:
    num_frames = 6
    with running_engine(aligned, exact=True) as engine:
        stream = start_timed(engine, "a", utterance, num_frames)
        stream.end()
        prompt, model, pad = stream.request.prompt, engine.worker.model, engine.worker.model.tts_pad_token_id
        text = np.concatenate([prompt.text_ids, prompt.trailing_text_ids, np.full(num_frames, pad)])[: len(prompt) + num_frames - 1]
        codes = np.concatenate([prompt.codes, stream.codes[:-1]])
        seen: dict[tuple[int, int], torch.Tensor] = {}

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            k_cache, v_cache = torch.zeros(2, 1, len(text), *k.shape[1:], dtype=k.dtype)
            store_kv(k, v, k_cache, v_cache, torch.arange(len(text)))
            for head in range(q.shape[1]):
                seen[layer, head] = q[:, head] @ k[:, head * k.shape[1] // q.shape[1]].T * q.shape[-1] ** -0.5
            lengths, starts = torch.tensor([len(text)]), torch.tensor([0, len(text)])
            return TorchAttention().prefill(q, k_cache, v_cache, torch.zeros(1, 1, dtype=torch.int64), lengths, starts)

        with torch.inference_mode():
            x = model.embed(torch.from_numpy(text).long(), torch.from_numpy(codes).long())
            model.forward(x, torch.arange(len(text)), attend)
    start, stop = prompt.text_start, prompt.text_start + prompt.num_text_tokens + 1
    assert [*text[start : min(stop, len(text))]] == [*spoken_ids(aligned, utterance.text)][: len(text) - start]
    frames = scores_of(stream)
    assert not np.isfinite(frames[0]).any()  # the prompt's frame
    for number, frame in enumerate(frames[1:], 1):
        row = len(prompt) - 1 + number
        for column, head in enumerate(sorted(HEADS)):
            expected = seen[head][row, start : min(stop, row + 1)].numpy()
            np.testing.assert_allclose(frame[column, : len(expected)], expected, rtol=2e-3, atol=2e-3)
            assert not np.isfinite(frame[column, len(expected) :]).any()


def spoken_ids(path: Path, text: str) -> list[int]:
    builder = prompt_builder(path)
    return [*builder.build(text=text).text_ids[-len(builder.token_spans(text)) - 2 : -2], builder.config.tts_eos_token_id]


def test_they_cross_the_pipe_of_an_engine_in_a_process_of_its_own() -> None:
    chunk = CodesChunk("a", 0, np.zeros((2, 16), np.int16), scores=np.array([[[1.5, -np.inf]], [[0.0, 2.0]]], np.float16))
    message = FROM_ENGINE.unpack(FROM_ENGINE.pack(StepChunks((chunk,))))
    assert isinstance(message, StepChunks)
    sent, received = chunk.scores, message.chunks[0].scores
    assert sent is not None
    assert received is not None
    assert received.dtype == np.float16
    np.testing.assert_array_equal(received, sent)


def test_a_text_of_too_many_tokens_is_refused(aligned: Path) -> None:
    engine = make_engine(aligned, max_model_len=2048, max_num_seqs=1)
    with pytest.raises(InvalidRequestError, match=r"text: has 11\d\d tokens; with timestamps at most 1023"):
        start_timed(engine, "a", Utterance("7" * 1100), 4)


def test_a_checkpoint_without_the_file_computes_nothing_more_and_refuses(endless_voice: Path) -> None:
    engine = make_engine(endless_voice)
    assert engine.worker.text_scores is None
    with pytest.raises(InvalidRequestError, match=r"timestamps: word is not possible .* no alignment\.json .*calibrate_alignment\.py"):
        start_timed(engine, "a", GREETING, 4)


def test_ranks_that_share_the_heads_refuse(aligned: Path) -> None:
    engine = make_engine(aligned)
    engine.config = replace(engine.config, tensor_parallel_size=2)
    with pytest.raises(InvalidRequestError, match="timestamps: word is not possible with tensor_parallel_size 2"):
        start_timed(engine, "a", GREETING, 4)
