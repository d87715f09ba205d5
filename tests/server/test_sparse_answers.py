"""A client that asks for sparse answers gets what others get, in fewer tensors."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from engine_lib.server.process import TritonServer
from qwen3_tts_client import Client
from server.streams import Stream, assert_same_speech, inputs
from server.test_offline import unary

SAMPLING = {"do_sample": False, "subtalker_dosample": False, "seed": 4, "max_frames": 8, "chunk_frames": [1, 2]}
LAST = {"audio", "sample_rate", "chunk_index", "is_final", "finish_reason", "error", "audio_base64"}
SPARSE = {"sparse_answers": True}


def answers(server: TritonServer, sampling: dict[str, Any], parameters: dict[str, bool] | None = None) -> list[dict[str, Any]]:
    """The tensors of each answer of a stream, as tritonclient reads them."""
    read: list[dict[str, Any]] = []
    with Stream(server, inputs(sampling=sampling), parameters=parameters) as stream:
        while not read or "is_final" not in read[-1] or not read[-1]["is_final"][0]:
            read.append(stream.next_message())
    return read


@pytest.mark.parametrize(
    ("asked", "told"),
    [({}, {"audio"}), ({"sample_rate": 8000}, {"audio"}), ({"audio_format": "pcm16"}, {"audio", "audio_base64"})],
    ids=["float32", "another rate", "base64"],
)
def test_sparse_answers_say_the_same_as_whole_ones(server: TritonServer, asked: dict[str, Any], told: set[str]) -> None:
    whole, sparse = answers(server, SAMPLING | asked), answers(server, SAMPLING | asked, SPARSE)
    assert [set(answer) for answer in whole] == [LAST] * len(whole)
    assert [set(answer) for answer in sparse] == [told | {"sample_rate"}] + [told] * (len(whole) - 2) + [LAST]
    assert {name: value.tolist() for name, value in sparse[-1].items()} == {name: value.tolist() for name, value in whole[-1].items()}
    with Client(f"localhost:{server.grpc_port}") as client:
        chunks = list(client.stream("Good morning! How are you today?", sampling=SAMPLING | asked))
    for number, (one, other, chunk) in enumerate(zip(whole, sparse, chunks, strict=True)):
        np.testing.assert_allclose(other["audio"], one["audio"], atol=1e-5)
        if chunk.encoded:
            for answer in (one, other):
                assert_same_speech(base64.b64decode(answer["audio_base64"][0]), chunk.encoded, "pcm16")
        else:
            assert one["audio_base64"].tolist() == [b""]
            np.testing.assert_allclose(chunk.audio, one["audio"], atol=1e-5)
        assert (number, chunk.index) == (one["chunk_index"][0], number)
        assert chunk.sample_rate == one["sample_rate"][0]
        assert (chunk.is_final, chunk.finish_reason) == (one["is_final"][0], one["finish_reason"][0].decode())


def test_one_answer_for_all_is_whole_whatever_is_asked_for(server: TritonServer) -> None:
    for wish in ({}, SPARSE, {"sparse_answers": False}):
        result = unary(server, inputs(sampling=SAMPLING | {"audio_format": "mulaw"}), parameters=wish)
        assert len(base64.b64decode(result.as_numpy("audio_base64")[0])) == 8 * 1920
        assert result.as_numpy("sample_rate").tolist() == [24000]


def test_a_value_that_is_neither_true_nor_false_is_refused(server: TritonServer) -> None:
    refusal = "INVALID_ARG: sparse_answers: 'yes' is not allowed; give true or false"
    with Stream(server, inputs(), parameters={"sparse_answers": "yes"}) as stream, pytest.raises(InferenceServerException, match=refusal):
        stream.next()
    with pytest.raises(InferenceServerException, match=refusal):
        unary(server, inputs(), parameters={"sparse_answers": "yes"})
