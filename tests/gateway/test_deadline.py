"""A deadline gives the result in time, and never takes a cancellation away."""

from __future__ import annotations

import asyncio

import pytest

from qwen3_tts_gateway.deadline import within


async def test_a_result_an_error_and_a_timeout_come_as_they_are() -> None:
    async def answer() -> int:
        return 5

    async def fail() -> int:
        raise ValueError

    assert await within(10, answer()) == 5
    with pytest.raises(ValueError):
        await within(10, fail())
    with pytest.raises(asyncio.TimeoutError):
        await within(0.01, asyncio.Event().wait())


async def test_a_cancellation_that_comes_with_the_result_is_not_lost() -> None:
    has_come = asyncio.Event()
    task = asyncio.create_task(within(10, has_come.wait()))
    for _ in range(3):
        await asyncio.sleep(0)
    has_come.set()
    await asyncio.sleep(0)  # the work is done, and the task does not know yet
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_takes_too_long_or_is_cancelled_is_cancelled_itself() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(asyncio.TimeoutError):
        await within(0.01, work())
    assert ended.is_set()
    ended.clear()
    task = asyncio.create_task(within(10, work()))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ended.wait()
