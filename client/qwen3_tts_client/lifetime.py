"""Lifetime: from the making of a client to its `close`, in one process and one event loop."""

from __future__ import annotations

import asyncio
import os

from qwen3_tts_client.errors import Qwen3TTSClientError


class Lifetime:
    """Of one client and its channel. gRPC's own errors of a channel that is closed, or was made elsewhere, tell a caller nothing.

    Args:
        loop: of a client for asyncio.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._is_closed, self._process, self._loop = False, os.getpid(), loop

    def end(self) -> None:
        """The client is closed."""
        self._is_closed = True

    def check(self) -> None:
        """Call it before each request.

        Raises:
            Qwen3TTSClientError: the client is closed, or belongs to another process or event loop.
        """
        if self._is_closed:
            raise Qwen3TTSClientError("the client is closed", hint="make a new one")
        if self._process != os.getpid():
            raise Qwen3TTSClientError("the client was made before this process was forked", hint="make one in each process")
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise Qwen3TTSClientError("the client was made in another event loop", hint="make one in each loop, as in each asyncio.run")

    def has_cut(self) -> bool:
        """Whether a call of asyncio was cancelled by `close`, and not because the running task was cancelled (from Python 3.11 on)."""
        cancels = getattr(asyncio.current_task(), "cancelling", int)
        return self._is_closed and not cancels()
