"""Replies: a refusal has its code and is counted; a held reply ends with its release alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tritonclient.utils import serialize_byte_tensor

from engine_lib.errors import InvalidRequestError, OverloadedError
from engine_lib.serving.backend import TritonBackend
from engine_lib.serving.errors import RelayedError


class TritonError:
    INVALID_ARG, UNAVAILABLE, INTERNAL = range(3)

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


class Server:
    """Stands for the server: keeps the answers and the log."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, int]] = []
        self.logged: list[str] = []
        pb_utils = SimpleNamespace(
            Logger=SimpleNamespace(log_error=self.logged.append),
            MetricFamily=None,
            TritonError=TritonError,
            InferenceResponse=lambda tensors=None, error=None: error,
            TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        )
        self.backend = TritonBackend(pb_utils, {"model_name": "talker", "model_version": "1"}, cast(Any, None))

    def request_id(self) -> str:
        return "a request"

    def get_response_sender(self) -> Server:
        return self

    def send(self, response: Any = None, *, flags: int) -> None:
        self.sent.append((response, flags))


@pytest.mark.parametrize(
    ("error", "code", "is_logged"),
    [
        (InvalidRequestError("voice", "is unknown"), "INVALID_ARG", False),
        (OverloadedError("full"), "UNAVAILABLE", False),
        (ValueError("a user's words"), "INTERNAL", True),
        (RelayedError("INTERNAL: broken"), "INTERNAL", False),
    ],
)
def test_a_refusal_is_the_only_answer_is_counted_and_logged_if_it_is_a_fault_of_this_model(
    error: Exception, code: str, is_logged: bool
) -> None:
    server = Server()
    server.backend.reply(server).refuse(error)
    ((answer, flags),) = server.sent
    assert (answer.code, flags) == (getattr(TritonError, code), 1)
    assert answer.message.startswith(f"{code}: ")
    assert server.backend.refusals.take() == {code: 1}
    assert len(server.logged) == is_logged
    assert "a user's words" not in "".join([answer.message, *server.logged])


@pytest.mark.parametrize("values", [[b""], [b"stop"], ["caf\u00e9".encode()], ["as text"], [b"two", b"strings"], []])
def test_triton_gets_the_same_bytes_of_strings(values: list[Any]) -> None:
    pb_utils = SimpleNamespace(
        Logger=None, MetricFamily=None, serialize_byte_tensor=lambda array: serialize_byte_tensor(array).item() if array.size else ()
    )
    array = np.array(values, np.object_)
    expected = bytes(pb_utils.serialize_byte_tensor(array))
    TritonBackend(pb_utils, {"model_name": "talker", "model_version": "1"}, cast(Any, None))
    assert bytes(pb_utils.serialize_byte_tensor(array)) == expected


def test_a_reply_that_is_held_ends_with_its_release_alone() -> None:
    server = Server()
    reply = server.backend.reply(server)
    reply.hold()
    reply.send({}, is_final=True)
    reply.finish()
    assert [flags for _, flags in server.sent] == [0]
    reply.release()
    reply.release()
    reply.send({}, is_final=True)
    reply.finish()
    assert [flags for _, flags in server.sent] == [0, 1]


def test_a_reply_that_is_let_go_ends_with_its_own_last_answer() -> None:
    server = Server()
    reply = server.backend.reply(server)
    reply.hold()
    reply.send({}, is_final=False)
    reply.let_go()
    reply.send({}, is_final=True)
    reply.release()
    assert [flags for _, flags in server.sent] == [0, 1]


@pytest.mark.parametrize("has_audio", [True, False])
def test_a_reply_that_is_let_go_once_it_is_answered_ends_at_once(has_audio: bool) -> None:
    server = Server()
    reply = server.backend.reply(server)
    reply.hold()
    if has_audio:
        reply.send({}, is_final=True)
    else:
        reply.finish()
    reply.let_go()
    reply.release()
    assert [flags for _, flags in server.sent] == [0, 1][not has_audio :]
