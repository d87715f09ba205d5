"""within: wait for something so long, and never lose a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float, work: Awaitable[T]) -> T:
    """The result of `work`, as asyncio.wait_for gives it.

    That one drops a cancellation which comes in the same turn of the event loop as the result, before Python 3.12. Then whoever has
    cancelled the task waits for ever.

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
