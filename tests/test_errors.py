"""Errors of the engine: what a caller can do with them."""

from __future__ import annotations

import pickle

import pytest

import engine_lib
from engine_lib import errors

EXAMPLES = [
    errors.ConfigError("max_num_seqs: 0 is not allowed"),
    errors.InvalidRequestError("voice", "is empty"),
    errors.NotFoundError("voice", "'bob' is unknown"),
    errors.OverloadedError("full", 1.2),
    errors.DeadlineError(),
    errors.EngineDeadError("it has ended"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_a_process_boundary(error: errors.Qwen3TTSError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_errors_that_a_caller_handles_are_found_beside_the_model() -> None:
    assert engine_lib.InvalidRequestError is errors.InvalidRequestError
    assert {"Qwen3TTS", "NotFoundError", "OverloadedError"} <= set(dir(engine_lib))
