"""SessionRequests: requests that bring more text to an open stream, end its text, or stop it.

A client that has not got all of its text yet opens a stream with `session`, an id of its own making, and `text_end` false. Further
requests to the same model carry that id and a `session_action`: `append` and `end` bring text, `cancel` stops the stream. They are
answered by FINAL alone, or by an error. Who knows the id may send them, so it must be long and random; nothing tells it to others: only
its digest is kept. A session ends with its stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from engine_lib.errors import InvalidRequestError, NotFoundError, nearest
from engine_lib.serving.backend import Reply
from engine_lib.serving.request_values import SESSION, RequestValues, session_key
from engine_lib.serving.talker_stream import TalkerStream

ACTION = "session_action"
APPEND, END, CANCEL = "append", "end", "cancel"
ACTIONS = (APPEND, END, CANCEL)


class SessionRequests:
    """The sessions of one talker."""

    def __init__(self, streams: Mapping[str, TalkerStream], max_text_length: int) -> None:
        """
        Args:
            streams: those with a session, by `session_key`.
            max_text_length: longest text, in characters.
        """
        self._streams, self._max_text_length = streams, max_text_length

    def handle(self, tensors: Mapping[str, npt.NDArray[Any]], parameters: str, reply: Reply) -> bool:
        """Obey a request with a `session_action` and answer it; False for any other request.

        Raises:
            NotFoundError: no open stream has the session.
            InvalidRequestError: a field is missing or has a value that is not allowed.
        """
        if ACTION not in tensors and ACTION not in parameters:
            return False
        values = RequestValues(tensors, parameters)
        action = values.string(ACTION)
        if not action:
            return False
        if action not in ACTIONS:
            allowed = f"allowed: {', '.join(ACTIONS)}{nearest(action, ACTIONS)}"
            raise InvalidRequestError(ACTION, f"{action[:100]!r} is unknown; {allowed}; to open a stream leave it out")
        key = session_key(values)
        if key is None:
            raise InvalidRequestError(SESSION, f"is missing, and {ACTION} is given; give the id that the stream was opened with")
        stream = self._streams.get(key)
        if stream is None:
            raise _not_found()
        if action == CANCEL:
            stream.cancel()
        else:
            self._append(stream, action, values)
        reply.finish()
        return True

    def _append(self, stream: TalkerStream, action: str, values: RequestValues) -> None:
        text = values.string("text", self._max_text_length)
        if text is None and action == APPEND:
            raise InvalidRequestError("text", f"is missing; give the words to append, or {ACTION} {END}")
        if stream.has_whole_text:
            raise InvalidRequestError(ACTION, f"{action!r} is not allowed: the stream has the end of its text; only {CANCEL} is")
        if not stream.append(text or "", is_last=action == END):
            raise _not_found()


def _not_found() -> NotFoundError:
    return NotFoundError(
        SESSION, "no open stream of this model has this id: it has ended, was never opened, or began before the model was loaded again"
    )
