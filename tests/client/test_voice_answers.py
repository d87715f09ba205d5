"""Answers about voices that are not those of this project's server."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from qwen3_tts_client.errors import Qwen3TTSClientError
from qwen3_tts_client.voices import Voices


def voices_of(answer: object) -> Voices:
    """The voices of a server that answers everything with this JSON."""
    content = json.dumps(answer).encode()
    response = service_pb2.ModelInferResponse(model_name="voices", raw_output_contents=[len(content).to_bytes(4, "little") + content])
    stub: Any = SimpleNamespace(ModelInfer=lambda _request, timeout: response)
    return Voices(stub, "localhost:8001")


@pytest.mark.parametrize(
    "ask",
    [
        lambda voices: voices.list(),
        lambda voices: voices.show("anna"),
        lambda voices: voices.blend("duo", "anna+ben"),
    ],
    ids=["list", "show", "blend"],
)
@pytest.mark.parametrize("answer", [{}, {"voices": 5, "models": None}, {"voices": [{"name": "anna"}]}, []])
def test_an_answer_of_another_form_is_an_error_of_the_client(ask: Callable[[Voices], object], answer: object) -> None:
    with pytest.raises(Qwen3TTSClientError, match="model 'voices' gave ") as caught:
        ask(voices_of(answer))
    assert caught.value.hint == "is it of this project, of the same version?"
