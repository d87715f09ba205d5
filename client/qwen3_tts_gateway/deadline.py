"""within: wait for something so long, and never lose a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float, work: Awaitable[T]) -> T:
    """The result of `work`, as asyncio.wait_for gives it.

    Before Python 3.12, asyncio.wait_for drops a cancellation that comes in the same turn of the event loop as the result. Then the code
    that has cancelled the task, and waits for its end, waits for ever.

    Raises:
        asyncio.TimeoutError: it took longer; it has been cancelled.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=seconds)
    finally:  # nothing to cancel if it is done
        task.cancel()
    if not task.done():
        await asyncio.wait([task])
    if task.cancelled():
        raise asyncio.TimeoutError
    return task.result()
