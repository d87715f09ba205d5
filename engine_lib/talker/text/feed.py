"""TextFeed: brings the pieces of one request's text, from any thread, to the engine that speaks them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from engine_lib.errors import InvalidRequestError
from engine_lib.streamed_text import TextRows, check_text
from engine_lib.talker.base_engine import BaseTalkerEngine
from engine_lib.talker.request import FurtherText


class TextFeed:
    """Keeps the pieces until the engine has the request, and makes rows of text of them then. Any thread may call it."""

    def __init__(self, max_length: int) -> None:
        """`max_length`: longest text, in characters."""
        self._lock = threading.Lock()
        self._max_length, self._room = max_length, max_length
        self._pieces: list[str] = []
        self._is_complete = False
        self._engine: BaseTalkerEngine[Any]
        self._rows: TextRows | None = None
        self._stream_key = ""

    @property
    def is_complete(self) -> bool:
        """Whether the last piece has come."""
        return self._is_complete

    def append(self, piece: str, *, is_last: bool = False) -> bool:
        """Add a piece of text, which may be empty.

        Returns:
            False if it comes too late, because the text is complete or the request has ended.

        Raises:
            InvalidRequestError: the piece is not allowed, and was not added; or all text is blank, or takes more rows than there are.
                Then `is_complete`, and the caller must end the request.
        """
        with self._lock:
            if self._is_complete:
                return False
            check_text("text", piece, self._max_length, self._room)
            self._room -= len(piece)
            self._is_complete = is_last
            if self._rows is not None:
                return self._pass_on(self._rows, piece)
            self._pieces.append(piece)
            return True

    def connect(self, engine: BaseTalkerEngine[Any], stream_key: str, rows: TextRows) -> None:
        """Pass on what has come and what will come to the request `stream_key`, which `engine` has.

        Raises:
            InvalidRequestError: as in `append`.
        """
        with self._lock:
            self._engine, self._stream_key, self._rows = engine, stream_key, rows
            pieces, self._pieces = "".join(self._pieces), []
            self._pass_on(rows, pieces)

    def _pass_on(self, rows: TextRows, piece: str) -> bool:
        if not piece and not self._is_complete:
            return True
        text_ids = rows.append(piece, is_last=self._is_complete)
        limit = self._engine.config.max_model_len
        if rows.num_rows > limit:
            self._is_complete = True
            raise InvalidRequestError("text", f"takes {rows.num_rows} rows; at most {limit} (max_model_len) fit")
        most = rows.max_text_tokens
        if most is not None and rows.num_text_tokens > most:
            self._is_complete = True
            raise InvalidRequestError("text", f"has {rows.num_text_tokens} tokens; with timestamps at most {most} are allowed")
        text = FurtherText(self._stream_key, np.array(text_ids, np.int32), rows.num_text_tokens, self._is_complete)
        return self._engine.feed(text)
