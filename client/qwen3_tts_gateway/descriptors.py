"""Descriptors: a gateway has as many as it is allowed, and goes on where there are no more.

Each connection takes one. Those that find none wait in the kernel until another one ends.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import time
from math import inf
from typing import Any

from qwen3_tts_gateway.logs import log

ACCEPTED_AT_ONCE = 16  # in one turn of the loop; where none can be taken asyncio, too, tries and fails as often, every second
REPORT_SECONDS = 10.0
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def allow_all() -> None:
    """Raise this process's limit to the most that it may have; many systems begin with 1,024."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class LoopErrors:
    """The event loop's handler of errors: connections that cannot be taken are told now and then, and not each with a traceback."""

    def __init__(self) -> None:
        self._told_at = -inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log the error."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in EXHAUSTED and "accept" in context["message"]):
            loop.default_exception_handler(context)
        elif time.monotonic() > self._told_at + REPORT_SECONDS:
            self._told_at = time.monotonic()
            allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            log("connections wait", logging.ERROR, reason=error.strerror, open_files_allowed=allowed, advice="raise ulimit -n")
