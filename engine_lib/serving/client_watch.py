"""ClientWatch: notices clients that have gone, and recordings that wait for too long.

The codec notices a client that leaves the ensemble, on the stream's next chunk. A stream that waits, or a recording that is still to
be encoded, has no chunks, and a client of another model never reaches the codec. To ask the server takes up to half a millisecond,
so a sender asks, between the messages of the stream: never on an engine's thread, and never after the stream's last message.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Protocol

from engine_lib.serving.ordered_sender import OrderedSender

TICK_SECONDS = 0.2
ASK_SECONDS = 1.0  # between two questions about one client


class Watched(Protocol):
    """The work for one client.

    Attributes:
        due_at: time.monotonic() at which `look_after` ends it whether or not its client is there; None: never.
    """

    due_at: float | None

    def look_after(self) -> None:
        """On its sender: end the work if its client has gone or its time is over. Does nothing if it has ended already."""


class ClientWatch:
    """A slow thread beside one model."""

    def __init__(self, sender: OrderedSender, *watched: Mapping[str, Watched]) -> None:
        """
        Args:
            sender: of the model's messages.
            watched: all work under way, by stream key or another key.
        """
        self._sender, self._watched = sender, watched
        self._asked_at: dict[str, float] = {}
        self._pending: set[str] = set()  # those with a sender that has not come to the last question yet
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="client-watch", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopped.wait(TICK_SECONDS):
            now = time.monotonic()
            work = {key: one for group in self._watched for key, one in list(group.items())}
            self._asked_at = {key: self._asked_at.get(key, now) for key in work}
            for key, one in work.items():
                due_at = one.due_at
                is_due = now >= self._asked_at[key] + ASK_SECONDS or (due_at is not None and now >= due_at)
                if is_due and key not in self._pending:
                    self._asked_at[key] = now
                    self._pending.add(key)
                    self._sender.put(key, partial(self._look_after, key, one))

    def _look_after(self, key: str, one: Watched) -> None:
        try:
            one.look_after()
        finally:
            self._pending.discard(key)
