"""IncomingText: the text of a stream of this process, read piece by piece while it is spoken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from engine_lib.streamed_text import TextRows
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.text.feed import TextFeed


class IncomingText:
    """The pieces of a stream's text, read on a thread of their own, which ends at the next piece once the stream has ended."""

    def __init__(self, pieces: Iterable[str], rows: TextRows, max_length: int) -> None:
        """`rows`: of the prompt; `max_length`: longest text, in characters."""
        self._pieces, self._rows, self._feed = pieces, rows, TextFeed(max_length)

    def follow(self, on_text: Callable[[str, bool], None], max_text_tokens: int) -> None:
        """See TextRows."""
        self._rows.follow(on_text, max_text_tokens)

    def begin(self, talker: TalkerEngine, stream_key: str, on_failure: Callable[[BaseException], None]) -> None:
        """Read the pieces and feed them to a stream of `talker`; `on_failure` gets what they raise, or an error of one of them."""
        self._feed.connect(talker, stream_key, self._rows)

        def read() -> None:
            try:
                if all(self._feed.append(piece) for piece in self._pieces):
                    self._feed.append("", is_last=True)
            except BaseException as error:
                on_failure(error)
                talker.cancel(stream_key)

        threading.Thread(target=read, name="speech-text", daemon=True).start()
